package login

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

var _ = register("command", func() Driver { return &command{Timeout: 30} })

// command is a site for which a program logs in: one that runs as the agent's user,
// gets the password, and says which cookies it got. These are proven as any others.
//
// It is started without a shell, in "/", in a session of its own (setsid(2)), with an
// environment that tells nothing, and with nothing but a commandInput on its standard
// input. What it writes to standard error is not read: it may hold secrets. When it has
// ended, or its time is over, or nobody wants the login any more, its process group is
// killed, with all that it has started there.
type command struct {
	// Command is the program, an absolute path, and its arguments.
	Command []string `toml:"command" for:"login"`
	// Timeout is how long it may take, in seconds.
	Timeout int `toml:"timeout" for:"login"`
	proof
}

// Limits of a program. maxCommandTime is what a login has.
const (
	maxCommandTime   = 120       // seconds
	maxCommandOutput = 256 << 10 // bytes
)

// commandVersion is the version of what a program gets, and says.
const commandVersion = 1

// commandInput is what a program gets.
type commandInput struct {
	Version   int    `json:"version"`
	Site      string `json:"site"`      // the site's url
	LoginURL  string `json:"login_url"` // absolute
	Username  string `json:"username"`
	Password  string `json:"password"`
	UserAgent string `json:"user_agent"` // to which a site may bind its session
}

// Check implements Checker.
func (c *command) Check(o web.Options, identity string) error {
	switch {
	case len(c.Command) == 0:
		return errors.New("command is missing: the program that logs in, and its arguments, as in: command = [\"/usr/local/bin/login\", \"--quiet\"]")
	case !filepath.IsAbs(c.Command[0]):
		return fmt.Errorf("command: %q is not an absolute path", c.Command[0])
	case slices.ContainsFunc(c.Command, func(s string) bool { return strings.Contains(s, "\x00") }):
		return errors.New("command holds a character that no program can get")
	case c.Timeout < 1 || c.Timeout > maxCommandTime:
		return fmt.Errorf("timeout is %d, not 1 to %d seconds", c.Timeout, maxCommandTime)
	case c.LoginURL == "" && c.ProbeURL == "":
		return errors.New("probe_url is missing: a page that only a session may read, by which what the program returns is proven")
	}
	return c.proof.Check(o, identity)
}

// Missing implements Dependent.
func (c *command) Missing() error {
	if err := safeProgram(c.Command[0]); err != nil {
		return fmt.Errorf("command: %w", err)
	}
	return nil
}

// safeProgram returns what keeps a program, an absolute path, from being run: that it is
// none, or that others could put something else in its place. It goes the way that the
// kernel goes (path_resolution(7)), and nobody else may be able to change any part of it.
func safeProgram(name string) error {
	users, _ := os.ReadFile("/proc/self/uid_map") // not there: everybody has a number
	at, rest := "/", strings.Split(name, "/")
	for links := 0; ; {
		info, err := os.Lstat(at)
		if err != nil {
			return unseen(at, err)
		}
		owner := info.Sys().(*syscall.Stat_t).Uid
		link := info.Mode()&fs.ModeSymlink != 0
		sticky := info.IsDir() && info.Mode()&fs.ModeSticky != 0 // nobody moves another's file there
		switch {
		case int(owner) != os.Geteuid() && owner != 0 && !unmapped(owner, string(users)):
			return fmt.Errorf("%s belongs to uid %d, who could put another program in the place of %s, and learn the password: let it belong to root, or to the agent's user", at, owner, name)
		case link:
			to, err := os.Readlink(at)
			if links++; err != nil || links > 40 {
				return fmt.Errorf("%s has links on its way that lead nowhere", name)
			}
			if at = filepath.Dir(at); filepath.IsAbs(to) {
				at = "/"
			}
			rest = append(strings.Split(to, "/"), rest...)
			continue
		case info.Mode()&0o022 != 0 && !sticky:
			return fmt.Errorf("others can write to %s, and so put another program in the place of %s, and learn the password: chmod go-w it", at, name)
		case len(rest) > 0:
			at, rest = filepath.Join(at, rest[0]), rest[1:]
			continue
		case !info.Mode().IsRegular():
			return fmt.Errorf("%s is not a file", name)
		case info.Mode()&0o111 == 0:
			return fmt.Errorf("%s is not executable: chmod +x it", name)
		}
		return nil
	}
}

// unmapped reports whether an owner is somebody who has no number here, as root has none
// in a user's own service with PrivateUsers=: users is the process's uid_map
// (user_namespaces(7)).
func unmapped(owner uint32, users string) bool {
	const overflow = 65534
	f := strings.Fields(users)
	return owner == overflow && len(f) > 0 && (len(f) != 3 || f[0] != "0" || f[1] != "0")
}

// unseen is for a file that nobody could look at.
func unseen(name string, err error) error {
	var cause syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist", name)
	case errors.As(err, &cause):
		return fmt.Errorf("%s cannot be looked at: %s", name, cause)
	}
	return fmt.Errorf("%s cannot be looked at", name)
}

// Takes implements Driver.
func (*command) Takes() []Means { return []Means{Secret} }

// LoginPage implements Paged.
func (c *command) LoginPage() string { return c.LoginURL }

// byHand is what to do about a program that does not keep to the protocol.
const byHand = "run the program by hand to see what it says: the documentation of kind command has what it gets, and what it has to say"

// Login implements Driver.
func (c *command) Login(ctx context.Context, x *web.Exchange, p Password) error {
	u, err := x.URL(c.LoginURL)
	if err != nil {
		return err
	}
	if err := c.Missing(); err != nil {
		return &api.Error{Code: api.ConfigInvalid, Detail: err.Error(), Remedy: "mend that, then log in again"}
	}
	password, err := p.Take(ctx)
	if err != nil {
		return err
	}
	var input bytes.Buffer
	e := json.NewEncoder(&input)
	e.SetEscapeHTML(false)
	if err := e.Encode(commandInput{commandVersion, base(x).String(), u.String(), p.User(), password.Reveal(), x.UserAgent()}); err != nil {
		return err
	}
	said, err := c.run(ctx, input.Bytes(), p)
	if err != nil {
		return err
	}
	says, err := readCommandOutput(said.output)
	switch {
	case err != nil && !said.state.Success():
		return c.wrong(c.Command[0] + " " + ending(said.state) + " and without saying why: " + err.Error())
	case err != nil:
		return c.wrong("what " + c.Command[0] + " says is no answer: " + err.Error())
	case says.Error != nil:
		if used := says.Error.PasswordUsed; used != nil && !*used {
			p.GiveBack()
		}
		return says.Error.error(c.Command[0], password)
	case !said.state.Success():
		return c.wrong(c.Command[0] + " says cookies, and then " + ending(said.state))
	}
	for i, k := range says.SetCookie {
		if err := x.Permit(nil, k.url); err != nil {
			f := *api.AsError(err)
			f.Detail = fmt.Sprintf("set_cookie[%d].url, of what %s says, %s", i, c.Command[0], f.Detail)
			return &f
		}
		x.Jar().Set(k.url, []string{k.Line}, x.Now())
	}
	if x.Jar().Len() == 0 {
		return &api.Error{Code: api.NoSessionCookie, Detail: c.Command[0] + " says no cookie that a browser would take from there", Remedy: byHand}
	}
	return nil
}

func (*command) wrong(detail string) error {
	return &api.Error{Code: api.UnexpectedStatus, Detail: detail, Remedy: byHand}
}

// ending says how a program ended that has failed.
func ending(s *os.ProcessState) string {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return "was ended by a signal (" + w.Signal().String() + ")"
	}
	return fmt.Sprintf("ended with status %d", s.ExitCode())
}

// spoken is what a program has said, and how it ended.
type spoken struct {
	output []byte
	state  *os.ProcessState
}

// run runs the program. If it cannot be started, the password is given back.
func (c *command) run(ctx context.Context, input []byte, p Password) (*spoken, error) {
	limited, cancel := context.WithTimeout(ctx, time.Duration(c.Timeout)*time.Second)
	defer cancel()
	out := &commandOutput{full: cancel}
	cmd := exec.Command(c.Command[0], c.Command[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8", "HOME=/nonexistent"}
	cmd.Stdin, cmd.Stdout = bytes.NewReader(input), out
	cmd.WaitDelay = time.Second // for what has left the group and holds on to a pipe
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	// What the agent itself was started with is not for the program. Kernels before
	// 5.11 do not know that (close_range(2)), and then nobody else marks it.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	// The kernel sends Pdeathsig when the thread ends that has forked (prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		p.GiveBack()
		why := "it is not a program"
		if cause := syscall.Errno(0); errors.As(err, &cause) {
			why = cause.Error()
		}
		return nil, &api.Error{Code: api.ConfigInvalid, Detail: c.Command[0] + " cannot be started: " + why,
			Remedy: "check the site's command, and whether the agent's user may run it", Err: err}
	}
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// Until somebody waits for it, its number is that of the group and of no other.
		for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
	}()
	select {
	case <-ended:
	case <-limited.Done():
	}
	over := limited.Err()
	// An error means that nobody is left in the group.
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	<-ended
	// An error says how it ended, which is in the state, or what became of a pipe.
	_ = cmd.Wait()
	switch {
	case out.over:
		return nil, c.wrong(fmt.Sprintf("%s says more than %d KiB", c.Command[0], maxCommandOutput>>10))
	case ctx.Err() != nil:
		return nil, &api.Error{Code: api.Timeout, Detail: "the time for the login was over before " + c.Command[0] + " was done", Remedy: "try again", Err: ctx.Err()}
	case over != nil:
		return nil, &api.Error{Code: api.Timeout, Detail: fmt.Sprintf("%s was not done after %d s", c.Command[0], c.Timeout),
			Remedy: fmt.Sprintf("see by hand what takes it so long; the site's timeout can be up to %d", maxCommandTime)}
	}
	return &spoken{out.text, cmd.ProcessState}, nil
}

// commandOutput keeps what a program says.
type commandOutput struct {
	text []byte
	over bool // it says too much
	full func()
}

// Write implements io.Writer.
func (o *commandOutput) Write(p []byte) (int, error) {
	if len(o.text)+len(p) > maxCommandOutput {
		o.over = true
		o.full()
		return 0, io.ErrShortWrite
	}
	o.text = append(o.text, p...)
	return len(p), nil
}

// commandSays is what a program says: cookies, or a failure.
type commandSays struct {
	Version   int             `json:"version"`
	SetCookie []commandCookie `json:"set_cookie"`
	Error     *commandFailure `json:"error"`
}

// commandCookie is one Set-Cookie field that a program got.
type commandCookie struct {
	URL  string `json:"url"` // where from
	Line string `json:"line"`
	url  *url.URL
}

// commandFailure is what a program says where there is no session.
type commandFailure struct {
	Code         api.Code `json:"code"`
	Detail       string   `json:"detail"`
	PasswordUsed *bool    `json:"password_used"` // not false: somebody may have seen it
}

// commandRemedies are the codes that a program may say, and what to do then.
var commandRemedies = map[api.Code]string{
	api.BadCredentials:   "correct the password",
	api.Captcha:          "log in there with a browser; if the site always wants one, no program can log in",
	api.AccountLocked:    "ask whoever runs the site to unlock the account",
	api.PasswordExpired:  "set a new password at the site, then give that",
	api.SecondFactor:     "use an account that needs a password alone",
	api.Forbidden:        "ask for this user's right to log in there",
	api.RateLimited:      "ask again later",
	api.Maintenance:      "ask again later; if it stays so, ask whoever runs the site",
	api.NetworkError:     "check whether the program can reach the site, then ask again",
	api.Timeout:          "check whether the site answers, then ask again",
	api.UnexpectedStatus: "run the program by hand to see what it met",
}

// error returns the failure as that of a login by a program of that name.
func (f *commandFailure) error(name string, password secret.String) error {
	e := &api.Error{Code: f.Code, Detail: name + " says " + string(f.Code), Remedy: commandRemedies[f.Code]}
	if e.Remedy == "" {
		e.Code, e.Detail, e.Remedy = api.Unknown, name+" says a code that it may not say", byHand
	}
	const longest = 200
	text := api.Clean(strings.ReplaceAll(f.Detail, password.Reveal(), "[redacted]"))
	if r := []rune(text); len(r) > longest { // at a space: what is cut through is not known for a secret any more
		text = string(r[:longest])
		text = text[:strings.LastIndex(text, " ")+1] + "…"
	}
	if text != "" {
		e.Detail += ": " + text
	}
	return e
}

// readCommandOutput reads what a program says. The error names what is wrong with it,
// and quotes nothing, for anything of it may be a secret.
func readCommandOutput(doc []byte) (*commandSays, error) {
	var first struct{ Version json.RawMessage } // for another one may have other members
	switch err := json.Unmarshal(doc, &first); {
	case len(bytes.TrimSpace(doc)) == 0:
		return nil, errors.New("it is empty")
	case !utf8.Valid(doc):
		return nil, errors.New("it is not UTF-8")
	case !json.Valid(doc):
		return nil, errors.New("it is not one JSON document, and nothing else")
	case err != nil:
		return nil, errors.New("it is not an object")
	case string(first.Version) != fmt.Sprint(commandVersion):
		return nil, fmt.Errorf("version is not %d", commandVersion)
	}
	if err := once(json.NewDecoder(bytes.NewReader(doc))); err != nil {
		return nil, errors.New("a member stands there twice")
	}
	says, d, mistyped := new(commandSays), json.NewDecoder(bytes.NewReader(doc)), new(json.UnmarshalTypeError)
	d.DisallowUnknownFields()
	switch err := d.Decode(says); {
	case errors.As(err, &mistyped):
		return nil, fmt.Errorf("%s is of another type", mistyped.Field)
	case err != nil:
		return nil, fmt.Errorf("it has a member that is not one of version %d", commandVersion)
	case (says.SetCookie == nil) == (says.Error == nil):
		return nil, errors.New("it has to have either set_cookie or error")
	}
	for i := range says.SetCookie {
		c := &says.SetCookie[i]
		var err error
		if c.url, err = url.Parse(c.URL); err != nil || c.url.Host == "" {
			return nil, fmt.Errorf("set_cookie[%d].url is not an absolute URL", i)
		}
	}
	return says, nil
}

// once returns an error if an object in a value has a member twice, for encoding/json
// takes the last, whatever its case: what two say is for nobody to guess.
func once(d *json.Decoder) error {
	open, err := d.Token()
	if open != json.Delim('{') && open != json.Delim('[') {
		return err
	}
	names := map[string]bool{}
	for d.More() {
		if open == json.Delim('{') {
			t, err := d.Token()
			name, _ := t.(string)
			if name = strings.ToLower(name); err != nil || names[name] {
				return cmp.Or(err, errTwice)
			}
			names[name] = true
		}
		if err := once(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}
