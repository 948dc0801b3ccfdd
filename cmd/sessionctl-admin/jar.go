package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client/shim"
)

func (a *app) jar() *cobra.Command {
	var keep, httpOnly bool
	c := &cobra.Command{
		Use:   "jar SITE [FILE]",
		Short: "Write a site's session into a cookie file",
		Long: `Write a site's session into a cookie file, for programs that read one: curl, wget,
git, aria2c and Python's. It holds the cookies for the site's own URL, and of this
site alone, in the dialect that all of them read (Netscape's); what one of them would
misread is refused.

FILE is SITE.txt in $XDG_RUNTIME_DIR/sessionctl/jars. It is replaced as a whole,
never in part, and only you can read it; its directory must be yours alone to
write in.

It says what it wrote on a terminal alone, so that cron has nothing to mail.

--keep stays and follows the agent: FILE is written anew whenever the session
changes, or the file has gone. If the agent says that there is no session, FILE is
removed until there is one again. What fails is said once and tried again until you
end it, by Ctrl-C or SIGTERM: with status 0, and the file stays. A cookie without an
end of its own gets one: an hour from now with --keep, which renews it, else 12.`,
		Example:           "  sessionctl jar app && curl -b \"$XDG_RUNTIME_DIR/sessionctl/jars/app.txt\" https://app.corp.example/api/me\n  sessionctl jar app ~/.cache/app.txt --keep",
		GroupID:           "serve",
		ValidArgsFunction: a.siteThenFile,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return usage("one SITE is needed, and at most one FILE")
			}
			return shim.CheckSite(args[0])
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "stay, and follow the session")
	c.Flags().BoolVar(&httpOnly, "httponly", false, "mark HttpOnly cookies, which wget and aria2c then pass over")
	c.RunE = func(c *cobra.Command, args []string) error {
		j := jarKeeper{site: args[0], httpOnly: httpOnly, life: softLife, stderr: a.stderr, say: keep || onTerminal(a.stderr)}
		var err error
		if j.file, j.own, err = jarFile(args); err != nil {
			return err
		}
		if keep {
			j.life = keptLife
		}
		s, err := a.client.Sessions()
		if err != nil {
			return err
		}
		err = a.call(c, j.site+": waiting for a session", func(ctx context.Context) error {
			resp, err := s.GetSession(ctx, &pb.GetSessionRequest{Site: j.site})
			if err != nil {
				return err
			}
			a.flags(resp.GetSession())
			return j.take(resp.GetSession())
		})
		if err != nil {
			j.drop(err)
			return err
		}
		if !keep {
			return nil
		}
		j.watch = func(ctx context.Context) (sessions, error) {
			s, err := a.client.Sessions()
			if err != nil {
				return nil, err
			}
			return s.WatchSession(ctx, &pb.WatchSessionRequest{Site: j.site})
		}
		return j.keep(c.Context())
	}
	return c
}

func (a *app) siteThenFile(c *cobra.Command, args []string, last string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault // a file
	}
	return a.sites(c, args, last)
}

// jarPath returns where a site's cookie file is unless somebody names another place:
// in the directory that a user's programs have for what ends with the login.
func jarPath(site string) (string, error) {
	run := os.Getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(run) { // as the XDG Base Directory Specification has it
		run = "/run/user/" + strconv.Itoa(os.Geteuid())
		if info, err := os.Stat(run); err != nil || !info.IsDir() {
			return "", &api.Error{Code: api.InvalidRequest, Detail: "neither is XDG_RUNTIME_DIR set, nor is there " + run,
				Remedy: "name a file, in a directory of your own: sessionctl jar " + site + " FILE"}
		}
	}
	return filepath.Join(run, "sessionctl", "jars", site+".txt"), nil
}

// jarFile returns the file that the operands name, and whether it is the site's own,
// whose directory is made.
func jarFile(operands []string) (path string, own bool, err error) {
	if len(operands) == 1 {
		path, err = jarPath(operands[0])
		own = true
	} else if path = operands[1]; path == "" {
		err = usage("the name of the file is empty")
	} else {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", false, err
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		// Of a pipe, too, a reader would get a part, or nothing.
		return "", false, usage("%s is there, and no ordinary file", api.Clean(path))
	}
	return path, own, nil
}

// How long a cookie that ends with its session is good in a file: some readers pass
// over a line whose expiry is 0. In a file that is kept it is as long as the cookie
// could outlive the agent unnoticed.
const (
	softLife = 12 * time.Hour
	keptLife = time.Hour
)

// Pauses between calls while the agent does not answer double, from first to last.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// sessions is a WatchSession call.
type sessions interface {
	Recv() (*pb.WatchSessionResponse, error)
}

// jarKeeper writes a site's session into a cookie file.
type jarKeeper struct {
	site, file string
	own        bool // its directory is made if it is not there
	httpOnly   bool
	life       time.Duration // of cookies that end with the session
	stderr     io.Writer
	say        bool // also when all is well
	watch      func(context.Context) (sessions, error)

	session    *pb.Session // the one there is; nil: none
	generation string      // of what is in the file
	refresh    time.Time   // when it is to be written anew
	said       api.Code    // of the failure that was said last
}

// take writes a session into the file.
func (j *jarKeeper) take(s *pb.Session) error {
	j.session = s
	var b bytes.Buffer
	if err := writeJar(&b, s, time.Now().Add(j.life), j.httpOnly, j.mark()); err != nil {
		return err
	}
	if err := j.replace(b.Bytes()); err != nil {
		j.refresh = time.Time{} // try again at the next look
		return err
	}
	j.refresh = time.Now().Round(0).Add(j.life / 2) // a machine that sleeps counts, too
	if j.say && s.GetGeneration() != j.generation {
		fmt.Fprintf(j.stderr, "sessionctl: %s: the session of %s is in %s\n", j.site, api.Clean(s.GetUser()), api.Clean(j.file))
	}
	j.generation, j.said = s.GetGeneration(), ""
	return nil
}

// mark is the line by which a file of ours is known.
func (j *jarKeeper) mark() string { return "# session of " + j.site + ", written by sessionctl\n" }

// replace puts cookies in the place of the file, in one step.
func (j *jarKeeper) replace(cookies []byte) error {
	dir := filepath.Dir(j.file)
	if j.own {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return j.cannot("written", err)
		}
	}
	if err := ownDirectory(dir); err != nil {
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			return j.cannot("written", errno)
		}
		return err
	}
	if err := replace(j.file, cookies); err != nil {
		return j.cannot("written", err)
	}
	return nil
}

// ownDirectory refuses a directory in which others can write, or that others can put
// another in the place of: who can could give you another's cookies to use.
func ownDirectory(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for at := real; ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t).Uid
		if int(owner) != os.Geteuid() && (at == real || owner != 0) {
			return usage("%s belongs to uid %d: name a file in a directory of your own", api.Clean(at), owner)
		}
		// In a sticky one only the owner of an entry can move it.
		if info.Mode()&0o022 != 0 && (at == real || info.Mode()&os.ModeSticky == 0) {
			return usage("others can write in %s: name a file in a directory of your own, or: chmod go-w %[1]s", api.Clean(at))
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// onlyHost returns the host of the URL that a session is for, and whether that is
// https: what a file for one site holds goes there alone, whatever the cookies' own
// attributes allow.
func onlyHost(s *pb.Session) (host string, secure bool, err error) {
	u, err := url.Parse(s.GetUrl())
	if err != nil || u.Hostname() == "" || strings.Trim(strings.ToLower(u.Hostname()), "abcdefghijklmnopqrstuvwxyz0123456789.-_:") != "" {
		return "", false, &api.Error{Code: api.Unknown, Detail: "the agent answered without the URL that the session is for", Remedy: "see that it and sessionctl are of one release: sessionctl version"}
	}
	return strings.ToLower(u.Hostname()), u.Scheme == "https", nil
}

// cannot is the error of a file that cannot be written or removed.
func (j *jarKeeper) cannot(be string, err error) error {
	what := err.Error()
	if cause, ok := errors.AsType[syscall.Errno](err); ok {
		what = cause.Error() // without the temporary file's name
	}
	return &api.Error{Code: api.Unknown, Detail: j.file + " cannot be " + be + ": " + what, Remedy: "name another file: sessionctl jar " + j.site + " FILE", Err: err}
}

// drop removes the file, if it is one of this site's, when a failure means that there
// is no session for it, and not that nobody could be asked or nothing be written: a
// program finds that there is no file sooner than that a session is dead.
func (j *jarKeeper) drop(why error) {
	switch api.CodeOf(why) {
	case api.NoAgent, api.UntrustedSocket, api.VersionSkew, api.Quota, api.Deadline, api.InvalidRequest, api.Unknown:
		return
	}
	j.session, j.generation = nil, ""
	if !j.ours() {
		return
	}
	if err := os.Remove(j.file); err != nil {
		fail(j.stderr, j.site, j.cannot("removed", err))
		return
	}
	fmt.Fprintf(j.stderr, "sessionctl: %s: %s is removed: there is no session for it\n", j.site, api.Clean(j.file))
}

// ours tells whether the file is one that was written for this site.
func (j *jarKeeper) ours() bool {
	f, err := os.OpenFile(j.file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	want := jarHead + j.mark()
	head := make([]byte, len(want))
	_, err = io.ReadFull(f, head)
	return err == nil && string(head) == want
}

// keep follows the agent's word on the session until ctx ends.
func (j *jarKeeper) keep(ctx context.Context) error {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		came, err := j.follow(ctx)
		if ctx.Err() != nil {
			return nil // the way to end it
		}
		if came {
			pause = firstRetry
		}
		j.failed(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause/2 + rand.N(pause/2)): // many lose their agent at the same moment
		}
	}
}

// failed says what is wrong, once, and removes the file if that is what it means.
func (j *jarKeeper) failed(err error) {
	if code := api.CodeOf(err); code != j.said {
		j.said = code
		fail(j.stderr, j.site, err)
	}
	j.drop(err)
}

// follow makes one call and takes its sessions until it ends. It reports whether
// there was one, and why the call ended.
func (j *jarKeeper) follow(ctx context.Context) (came bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // nothing else ends a call of which not all is read
	w, err := j.watch(ctx)
	if err != nil {
		return false, err
	}
	next, ended := make(chan *pb.Session), make(chan error, 1)
	go func() {
		for {
			m, err := w.Recv()
			if err == io.EOF {
				err = &api.Error{Code: api.NoAgent, Detail: "the agent ended the call", Remedy: api.StartHint, Err: err}
			}
			if err != nil {
				ended <- err
				return
			}
			select {
			case next <- m.GetSession():
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		var err error
		select {
		case s := <-next:
			came = true
			err = j.take(s)
		case err := <-ended:
			return came, err
		case <-ctx.Done():
			return came, ctx.Err()
		case <-time.After(keepLook):
			if j.session == nil || time.Now().Round(0).Before(j.refresh) && !j.gone() {
				continue
			}
			err = j.take(j.session)
		}
		if err != nil {
			j.failed(err)
		}
	}
}

// gone tells whether somebody has removed the file.
func (j *jarKeeper) gone() bool {
	_, err := os.Lstat(j.file)
	return errors.Is(err, os.ErrNotExist)
}

// jarHead is the first line, without which Python refuses a file.
const jarHead = "# Netscape HTTP Cookie File\n"

// Limits of the readers. curl 7.88 passes over a line of 5,000 bytes, and over the
// cookies after the first 8,190 bytes of the field that it sends; newer ones and
// RFC 6265, section 6.1, take 4,096 bytes of name and value; aria2 1.36 sends the
// first 50 cookies of a host.
const (
	maxJarCookie  = 4096
	maxJarLine    = 4999
	maxJarField   = 8190
	maxJarCookies = 50
)

// writeJar writes the dialect that curl, wget, Python's http.cookiejar and aria2 all
// read: host-only cookies by the bare host and FALSE, the others by a dot and TRUE;
// paths without a slash at their end; an expiry for each. Python, and it alone, wants
// bytes to be ASCII, and aria2 values without spaces around them: others would be sent
// as other bytes than the site has set. Nor is a line written that a reader passes over.
func writeJar(w io.Writer, s *pb.Session, soft time.Time, httpOnly bool, comment string) error {
	if _, err := cookieHeader(s); err != nil {
		return err
	}
	cannot := func(what string) error {
		return &api.Error{Code: api.Unprintable, Detail: what + ", which not every reader of a cookie file takes as it is",
			Remedy: "take another form: sessionctl header " + s.GetSite() + ", or sessionctl get " + s.GetSite() + " -o curl"}
	}
	host, secure, err := onlyHost(s)
	if err != nil {
		return err
	}
	fmt.Fprint(w, jarHead, comment)
	field := -2
	for _, c := range s.GetCookies() {
		name, value := string(c.GetName()), string(c.GetValue())
		domain, path := host, strings.TrimRight(c.GetPath(), "/")
		if path == "" {
			path = "/"
		}
		if httpOnly && c.GetHttpOnly() {
			domain = "#HttpOnly_" + domain
		}
		expires := soft
		if t := c.GetExpireTime(); t != nil {
			expires = t.AsTime()
		}
		line := strings.Join([]string{domain, "FALSE", path, strings.ToUpper(strconv.FormatBool(secure || c.GetSecure())), strconv.FormatInt(expires.Unix(), 10), name, value}, "\t") + "\n"
		field += len("; ") + len(name) + len("=") + len(value)
		switch {
		case strings.ContainsFunc(domain+path+name+value, func(r rune) bool { return r < 0x20 || r > 0x7e }):
			return cannot("a cookie holds a character that is not printable ASCII")
		case name == "":
			return cannot("a cookie has no name")
		case strings.TrimSpace(name) != name || strings.TrimSpace(value) != value:
			return cannot("a cookie begins or ends with a space")
		case len(name)+len(value) > maxJarCookie || len(line) > maxJarLine:
			return cannot(fmt.Sprintf("a cookie has more than %d bytes", maxJarCookie))
		case !secure && !c.GetSecure() && (strings.HasPrefix(name, "__Host-") || strings.HasPrefix(name, "__Secure-")):
			return cannot("a cookie is secure by its name alone")
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	if n := len(s.GetCookies()); n > maxJarCookies || field > maxJarField {
		return cannot(fmt.Sprintf("there are %d cookies with %d bytes", n, field))
	}
	return nil
}
