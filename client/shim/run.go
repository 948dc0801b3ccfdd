package shim

import (
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/sessionctl/sessionctl/api"
)

// Sibling is the program that has every verb that is not hot. It is found
// beside sessionctl's own executable, never through PATH.
const Sibling = "sessionctl-admin"

// VersionVariable is the environment variable by which the sibling learns the
// version of the sessionctl that started it, to refuse another one.
const VersionVariable = "SESSIONCTL_VERSION"

// gitHelper is the name by which git calls sessionctl as a credential helper;
// its arguments are those of `sessionctl credential`.
const gitHelper = "git-credential-sessionctl"

// process is what a verb works with.
type process struct {
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer
}

// Run runs the command that args name (args[0] is the program) and returns
// its exit status, one of package api's. A verb that is not hot replaces the
// process by the sibling's.
//
// Standard output holds the answer and nothing else; if the verb fails it
// stays empty, but for `cookie`, whose failure is code too.
func Run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		args = []string{"sessionctl"}
	}
	p := &process{args: args, stdin: stdin, stdout: stdout, stderr: stderr}
	rest := args[1:]
	if filepath.Base(args[0]) == gitHelper {
		rest = append([]string{"credential"}, rest...)
	}
	o := &options{timeout: defaultTimeout}
	name, rest, err := leading(rest, o)
	switch {
	case err != nil:
		p.refuse()
		return p.fail("", err)
	case name == "":
		io.WriteString(stderr, usage(nil))
		return api.ExitUsage
	}
	for i := range verbs {
		if v := &verbs[i]; v.name == name {
			return p.run(v, rest, o)
		}
	}
	err = p.sibling()
	if isHelp(name) || name == "help" && len(rest) == 0 {
		// Better the help for what is here than none.
		if err = p.print(usage(nil)); err == nil {
			return api.ExitOK
		}
	}
	p.refuse()
	return p.fail("", err)
}

// Evaluated reports whether a command line, wrong as it may be, is meant for an
// eval of its output: `cookie`, or `get -o env`. To an eval no output at all
// would mean success.
func Evaluated(args []string) bool {
	env := func(a string) bool { return a == "env" || a == "-oenv" || strings.HasSuffix(a, "=env") }
	return slices.Contains(args, "cookie") || slices.Contains(args, "get") && slices.ContainsFunc(args, env)
}

// refuse prints code that fails in every shell, if an eval waits for code and
// nothing more is known.
func (p *process) refuse() {
	if Evaluated(p.args[1:]) {
		d, _ := detectShell("")
		io.WriteString(p.stdout, d.fail+"\n")
	}
}

// run runs a hot verb.
func (p *process) run(v *verb, args []string, o *options) int {
	err := v.parse(args, o)
	usageOnly := errors.Is(err, errHelp)
	o.deadline = time.Now().Add(o.timeout)
	if err == nil {
		err = v.run(p, o)
	}
	if err == nil {
		return api.ExitOK
	}
	if v.refuse != nil {
		v.refuse(p, o)
	}
	if usageOnly {
		// Not to standard output, which a shell may be about to evaluate.
		io.WriteString(p.stderr, usage(v))
		if v.refuse != nil {
			return api.ExitUsage
		}
		return api.ExitOK
	}
	if e := *api.AsError(err); api.ValidSite(o.operand) {
		e.Remedy = strings.ReplaceAll(e.Remedy, "SITE", o.operand)
		err = &e
	}
	status := p.fail(cmp.Or(Subject(o.operand), v.name), err)
	return cmp.Or(v.failure, status)
}

// Subject names what a verb was about without anything that could be a
// secret: a site by its name, a URL by its scheme and host. "" for what is neither.
func Subject(operand string) string {
	if api.ValidSite(operand) {
		return operand
	}
	if !validURL(operand) {
		return ""
	}
	scheme, rest, _ := strings.Cut(operand, "://")
	return scheme + "://" + hostOf(rest)
}

// fail tells the user what went wrong and what to do next, and returns the
// exit status.
func (p *process) fail(about string, err error) int {
	e := api.AsError(err)
	text := "sessionctl: "
	if about != "" {
		text += about + ": "
	}
	text += api.Clean(e.Error()) + "\n"
	if e.Remedy != "" {
		text += "  next: " + api.Clean(e.Remedy) + "\n"
	}
	io.WriteString(p.stderr, text)
	return e.Code.Exit()
}

// warn tells the user about an answer that is good, but not quite.
func (p *process) warn(about, text string) {
	io.WriteString(p.stderr, "sessionctl: "+about+": "+text+"\n")
}

// print writes to standard output. An answer that does not arrive whole is a
// failure.
func (p *process) print(text string) error {
	if _, err := io.WriteString(p.stdout, text); err != nil {
		return &api.Error{Code: api.Unknown, Detail: "standard output: " + err.Error(), Err: err}
	}
	return nil
}

// sibling becomes sessionctl-admin. It returns only if that fails.
func (p *process) sibling() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	path := filepath.Join(filepath.Dir(self), Sibling)
	argv := append([]string{"sessionctl"}, p.args[1:]...)
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, VersionVariable+"=") {
			env = append(env, v)
		}
	}
	err = syscall.Exec(path, argv, append(env, VersionVariable+"="+api.Version))
	return &api.Error{Code: api.Unknown, Err: err,
		Detail: "this is no verb of sessionctl itself, and " + path + " cannot be run: " + err.Error(),
		Remedy: "install " + Sibling + " of the same release beside sessionctl, and see sessionctl help"}
}

// session asks the agent for the session that the operand names.
func (p *process) session(o *options) (*session, error) {
	r := getSession{site: o.operand, minValidity: o.minValidity, cachedOnly: o.cached}
	if !api.ValidSite(o.operand) {
		r.site, r.url = "", o.operand
	}
	return p.fetch(o, r)
}

func (p *process) fetch(o *options, r getSession) (*session, error) {
	return p.request(o, methodGetSession, r.encode())
}

// request makes a call that is answered with a session.
func (p *process) request(o *options, method string, message []byte) (*session, error) {
	c := newCaller(o.socket, o.deadline, p.progress(o))
	message, err := c.call(method, message)
	if err != nil {
		return nil, err
	}
	s, err := decodeSession(message)
	if err != nil {
		return nil, c.explain(err)
	}
	return s, nil
}

// progress returns what to do when an answer takes long: a word to a person at
// a terminal, nothing otherwise.
func (p *process) progress(o *options) func() {
	f, ok := p.stderr.(*os.File)
	if !ok || !isTerminal(f) {
		return nil
	}
	return func() {
		p.warn(cmp.Or(Subject(o.operand), "credential"), "waiting for the agent, which may be logging in …")
	}
}

func isTerminal(f *os.File) bool {
	var termios syscall.Termios
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&termios)))
	return errno == 0
}

// answer prints what a session gave, after a warning if the session is not all
// that it should be.
func (p *process) answer(s *session, o *options, text string) error {
	about := s.site
	if !api.ValidSite(about) {
		about = Subject(o.operand)
	}
	if s.stale {
		p.warn(about, "served stale: the site gave no fresh proof; see sessionctl list")
	}
	if s.notDurable {
		p.warn(about, "not durable: the session could not be stored and ends with the agent")
	}
	if o.minValidity > 0 && !s.expires.IsZero() && time.Until(s.expires) < o.minValidity {
		p.warn(about, EndsSooner(s.expires))
	}
	return p.print(text)
}

// EndsSooner is the warning about a session that does not live as long as it
// was asked to.
func EndsSooner(end time.Time) string {
	return "the session ends at " + end.UTC().Format(time.RFC3339) + ", sooner than asked: the site's sessions do not live longer"
}

func runRaw(p *process, o *options) error {
	s, err := p.session(o)
	if err != nil {
		return err
	}
	value, err := s.cookie()
	if err != nil {
		return err
	}
	return p.answer(s, o, value+"\n")
}

func runHeader(p *process, o *options) error {
	s, err := p.session(o)
	if err != nil {
		return err
	}
	lines, err := s.lines("")
	if err != nil {
		return err
	}
	return p.answer(s, o, lines)
}

// cookie returns the value of the Cookie header.
func (s *session) cookie() (string, error) {
	for _, h := range s.headers {
		if strings.EqualFold(h.name, "Cookie") && h.value != "" {
			return h.value, printable("Cookie", h.value)
		}
	}
	if slices.ContainsFunc(s.headers, func(h sessionHeader) bool { return strings.EqualFold(h.name, "Authorization") }) { // a token in place of cookies
		return "", &api.Error{Code: api.PerRequestOnly, Detail: "the site takes a token or password with each request, and no cookie",
			Remedy: "ask for its headers: sessionctl header " + s.site}
	}
	return "", &api.Error{Code: api.NoSessionCookie, Detail: "the session has no cookie for this URL",
		Remedy: "ask for a URL below the site's own, or for its headers: sessionctl header " + s.site}
}

// lines returns all headers, a line each, behind prefix.
func (s *session) lines(prefix string) (string, error) {
	var b strings.Builder
	for _, h := range s.headers {
		if !isToken(h.name) {
			return "", &api.Error{Code: api.Unprintable, Detail: "a header's name is not printable", Remedy: anotherForm}
		}
		if err := printable(h.name, h.value); err != nil {
			return "", err
		}
		b.WriteString(prefix + h.name + ": " + h.value + "\n")
	}
	if b.Len() == 0 {
		return "", &api.Error{Code: api.NoSessionCookie, Detail: "the session has no header for this URL", Remedy: "ask for a URL below the site's own"}
	}
	return b.String(), nil
}

// anotherForm is what prints more sessions.
const anotherForm = "take another form: sessionctl get SITE, with -o json or -o curl"

// printable refuses a value that would end its line, or that a shell could
// not hold: control characters and what is not UTF-8.
func printable(name, value string) error {
	if hasControl(value) || !utf8.ValidString(value) {
		return &api.Error{Code: api.Unprintable, Detail: "the " + name + " header has a byte that cannot be printed safely", Remedy: anotherForm}
	}
	return nil
}

func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

// isToken reports whether s is a header field's name (RFC 9110, section 5.1).
func isToken(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}
