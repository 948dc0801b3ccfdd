package login

import (
	"bytes"
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
	case slices.ContainsFunc(c.Command, func(s string) bool { return strings.Contains(s, "\x00") }):
		return errors.New("command holds a character that no program can get")
	case c.Timeout < 1 || c.Timeout > maxCommandTime:
		return fmt.Errorf("timeout is %d, not 1 to %d seconds", c.Timeout, maxCommandTime)
	case c.LoginURL == "" && c.ProbeURL == "":
		return errors.New("probe_url is missing: a page that only a session may read, by which what the program returns is proven")
	}
	if err := safeProgram(c.Command[0]); err != nil {
		return fmt.Errorf("command: %w", err)
	}
	return c.proof.Check(o, identity)
}

// safeProgram returns what keeps a program from being run: that it is none, or that
// others could put something else in its place.
func safeProgram(name string) error {
	if !filepath.IsAbs(name) {
		return fmt.Errorf("%q is not an absolute path", name)
	}
	target, err := filepath.EvalSymlinks(name)
	if err != nil {
		return unseen(name, err)
	}
	info, err := os.Stat(target)
	switch {
	case err != nil:
		return unseen(name, err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a file", name)
	case info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not executable: chmod +x it", name)
	case info.Mode()&0o022 != 0:
		return fmt.Errorf("others can write to %s, and so learn the password: chmod go-w it", target)
	}
	for _, dir := range []string{filepath.Dir(name), filepath.Dir(target)} {
		info, err := os.Stat(dir)
		switch {
		case err != nil:
			return unseen(dir, err)
		case info.Mode()&0o002 != 0:
			return fmt.Errorf("others can write to %s, and so put another program in the place of %s: chmod o-w it", dir, name)
		}
	}
	return nil
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
	if err := safeProgram(c.Command[0]); err != nil {
		return &api.Error{Code: api.ConfigInvalid, Detail: "the program that logs in is not safe to run: " + err.Error(), Remedy: "mend that, then log in again"}
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
	cookies, failure, err := readCommandOutput(said.output)
	switch {
	case err != nil && !said.state.Success():
		return c.wrong(c.Command[0] + " " + ending(said.state) + " and without saying why: " + err.Error())
	case err != nil:
		return c.wrong("what " + c.Command[0] + " says is no answer: " + err.Error())
	case failure != nil:
		if failure.unused {
			p.GiveBack()
		}
		return failure.error(c.Command[0])
	case !said.state.Success():
		return c.wrong(c.Command[0] + " says cookies, and then " + ending(said.state))
	}
	for i, k := range cookies {
		if err := x.Permit(nil, k.url); err != nil {
			f := *api.AsError(err)
			f.Detail = fmt.Sprintf("set_cookie[%d].url, of what %s says, %s", i, c.Command[0], f.Detail)
			return &f
		}
		x.Jar().Set(k.url, []string{k.line}, x.Now())
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

// saidCookie is one Set-Cookie field that a program got.
type saidCookie struct {
	url  *url.URL // where from
	line string
}

// commandFailure is what a program says where there is no session.
type commandFailure struct {
	code   api.Code
	detail string
	unused bool // nobody has seen the password
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
func (f *commandFailure) error(name string) error {
	e := &api.Error{Code: f.code, Detail: name + " says " + string(f.code), Remedy: commandRemedies[f.code]}
	if e.Remedy == "" {
		e.Code, e.Detail, e.Remedy = api.Unknown, name+" says a code that it may not say", byHand
	}
	const longest = 200
	if d := []rune(api.Clean(f.detail)); len(d) > 0 {
		e.Detail += ": " + string(d[:min(len(d), longest)])
	}
	return e
}

// readCommandOutput reads what a program says: cookies or a failure. The error names
// what is wrong with it, and quotes nothing, for anything of it may be a secret.
func readCommandOutput(doc []byte) (cookies []saidCookie, failure *commandFailure, err error) {
	switch {
	case len(bytes.TrimSpace(doc)) == 0:
		return nil, nil, errors.New("it is empty")
	case !utf8.Valid(doc):
		return nil, nil, errors.New("it is not UTF-8")
	case !json.Valid(doc):
		return nil, nil, errors.New("it is not one JSON document, and nothing else")
	}
	top, err := jsonObject(doc, "it")
	if err != nil {
		return nil, nil, err
	}
	if v := top["version"]; string(v) != fmt.Sprint(commandVersion) { // first, for another one may have other members
		return nil, nil, fmt.Errorf("version is not %d", commandVersion)
	}
	if err := onlyMembers(top, "it", "version", "set_cookie", "error"); err != nil {
		return nil, nil, err
	}
	list, fault := top["set_cookie"], top["error"]
	switch {
	case (list == nil) == (fault == nil):
		return nil, nil, errors.New("it has to have either set_cookie or error")
	case fault != nil:
		failure, err = readCommandFailure(fault)
		return nil, failure, err
	}
	var entries []json.RawMessage
	if list[0] != '[' || json.Unmarshal(list, &entries) != nil {
		return nil, nil, errors.New("set_cookie is not an array")
	}
	for i, entry := range entries {
		where := fmt.Sprintf("set_cookie[%d]", i)
		c, err := readSaidCookie(entry, where)
		if err != nil {
			return nil, nil, err
		}
		cookies = append(cookies, c)
	}
	return cookies, nil, nil
}

func readSaidCookie(doc json.RawMessage, where string) (c saidCookie, err error) {
	m, err := jsonObject(doc, where)
	if err == nil {
		err = onlyMembers(m, where, "url", "line")
	}
	if err != nil {
		return c, err
	}
	address, err := jsonText(m["url"], where+".url")
	if err != nil {
		return c, err
	}
	if c.url, err = url.Parse(address); err != nil || c.url.Host == "" {
		return c, errors.New(where + ".url is not an absolute URL") // err would quote it
	}
	c.line, err = jsonText(m["line"], where+".line")
	return c, err
}

func readCommandFailure(doc json.RawMessage) (*commandFailure, error) {
	m, err := jsonObject(doc, "error")
	if err == nil {
		err = onlyMembers(m, "error", "code", "detail", "password_used")
	}
	if err != nil {
		return nil, err
	}
	f := new(commandFailure)
	code, err := jsonText(m["code"], "error.code")
	if err != nil {
		return nil, err
	}
	f.code = api.Code(code)
	if v := m["detail"]; v != nil {
		if f.detail, err = jsonText(v, "error.detail"); err != nil {
			return nil, err
		}
	}
	switch v := m["password_used"]; string(v) {
	case "", "true":
	case "false":
		f.unused = true
	default:
		return nil, errors.New("error.password_used is neither true nor false")
	}
	return f, nil
}

// jsonObject returns the members of an object in a valid document. Names count as they
// are written, and each once: what two say is for nobody to guess.
func jsonObject(doc json.RawMessage, where string) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New(where + " is not an object")
	}
	members := map[string]json.RawMessage{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, errors.New(where + " cannot be read")
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, errors.New(where + " cannot be read")
		}
		if members[name.(string)] != nil {
			return nil, errors.New(where + " has a member twice")
		}
		members[name.(string)] = v
	}
	return members, nil
}

// onlyMembers returns an error if an object has others than those.
func onlyMembers(members map[string]json.RawMessage, where string, names ...string) error {
	for name := range members {
		if !slices.Contains(names, name) {
			return fmt.Errorf("%s has a member that is none of %s", where, strings.Join(names, ", "))
		}
	}
	return nil
}

// jsonText returns a string; nil is none.
func jsonText(v json.RawMessage, where string) (s string, err error) {
	if v == nil || v[0] != '"' || json.Unmarshal(v, &s) != nil {
		return "", errors.New(where + " is not a string")
	}
	return s, nil
}
