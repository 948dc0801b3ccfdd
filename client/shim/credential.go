package shim

import (
	"bufio"
	"cmp"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/sessionctl/sessionctl/api"
)

// git's credential helper protocol
// (https://git-scm.com/docs/git-credential#IOFMT), and header[], which holds what
// it has no attribute for: git passes over what it does not know.
const (
	maxAttribute  = 65535 // git's own limit of a line, in bytes
	maxAttributes = 1024
)

// What git says by capability[], from 2.46 on. What depends on one is sent only to
// who has it.
const (
	capAuthtype = "authtype" // an Authorization field of any scheme
	capState    = "state"    // lines that come back at an erase
)

// stateGeneration begins the state[] by which git returns the generation of what
// it was given.
const stateGeneration = "sessionctl:generation="

// attributes is what a credential request says about the request to come. Its
// password and anything else that is secret is not kept.
type attributes struct {
	protocol, host, path string
	hasHost              bool
	username             string
	generation           string
	authtype, state      bool // capabilities
}

// runCredential answers a credential helper's operation. Unknown operations
// are ignored, as git asks of its helpers.
func runCredential(p *process, o *options) error {
	operation := o.operand
	o.operand = "" // what failures are about is the verb
	switch operation {
	case "get", "erase":
	case "capability":
		return p.print("version 0\ncapability " + capAuthtype + "\ncapability " + capState + "\n")
	case "store":
		// Nothing is stored on the word of a caller: the agent logs in itself.
		_, err := io.Copy(io.Discard, p.input(o, askHelper))
		return err
	default:
		return nil
	}
	a, err := readAttributes(p.input(o, askHelper))
	if err != nil {
		return err
	}
	url, err := a.url()
	if err != nil || url == "" {
		return err
	}
	if operation == "erase" {
		// A report, not an order: the agent probes before it believes.
		_, err := p.request(o, methodRefreshSession, refreshSession{url: url, generation: a.generation}.encode())
		return unlessUnknown(err)
	}
	s, err := p.fetch(o, getSession{url: url})
	if err != nil {
		return p.quit(unlessUnknown(err))
	}
	text, useless, err := a.answer(s)
	if err != nil || text == "" {
		return err
	}
	if useless != "" && filepath.Base(p.args[0]) == gitHelper {
		// git asks after the site has refused it without what it cannot be told here:
		// the cookies of its file are those of a dead session, perhaps.
		p.warn(s.site, useless)
		if _, err := p.request(o, methodRefreshSession, refreshSession{url: url, generation: s.generation}.encode()); err != nil {
			return p.quit(err)
		}
	}
	return p.answer(s, o, text)
}

// quit ends git's search, too, after a failure that a person must act on: the site is
// ours, and git would ask for a password, only to have that refused. It returns the
// failure.
func (p *process) quit(err error) error {
	if err != nil && api.CodeOf(err).Exit() == api.ExitPerson {
		if failed := p.print("quit=1\n"); failed != nil {
			return failed
		}
	}
	return err
}

// answer returns the lines that answer get with a session, "" if the request is for
// another user, and why git itself has no use for them, if so.
func (a *attributes) answer(s *session) (text, useless string, err error) {
	headers, err := s.lines("header[]=")
	if err != nil {
		return "", "", err
	}
	if err := printable("generation", s.generation); err != nil {
		return "", "", err
	}
	scheme, value, name, password := s.authorization()
	switch {
	case a.username == "":
	case name != "" && a.username == name:
	case s.user != "" && strings.EqualFold(a.username, s.user):
	default:
		return "", "", nil
	}
	switch {
	case scheme == "":
		useless = "git takes cookies from a file alone, see sessionctl git-setup; if it has one, the session in there is looked at now: try again"
	case a.authtype:
		text = "capability[]=" + capAuthtype + "\n"
		if a.state {
			text += "capability[]=" + capState + "\n"
		}
		// Ephemeral, so that no other helper keeps it.
		text += "authtype=" + scheme + "\ncredential=" + value + "\nephemeral=1\n"
		if a.state && s.generation != "" {
			text += "state[]=" + stateGeneration + s.generation + "\n"
		}
	case name != "":
		if err := cmp.Or(printable("Authorization", name), printable("Authorization", password)); err != nil {
			return "", "", err
		}
		text = "username=" + name + "\npassword=" + password + "\n"
	default:
		useless = "git takes no token of the scheme " + scheme + " from a helper before its version 2.46"
	}
	if text != "" && !s.expires.IsZero() {
		text += "password_expiry_utc=" + strconv.FormatInt(s.expires.Unix(), 10) + "\n"
	}
	text += headers
	if s.generation != "" {
		text += "generation=" + s.generation + "\n"
	}
	return text, useless, nil
}

// authorization returns the scheme and the credentials of the Authorization header,
// and by the Basic scheme (RFC 7617) the name and password that they are made of. All
// are empty without such a header.
func (s *session) authorization() (scheme, credentials, name, password string) {
	for _, h := range s.headers {
		if !strings.EqualFold(h.name, "Authorization") {
			continue
		}
		scheme, credentials, _ = strings.Cut(h.value, " ")
		if !isToken(scheme) || credentials == "" {
			break
		}
		if strings.EqualFold(scheme, "Basic") {
			if raw, err := base64.StdEncoding.DecodeString(credentials); err == nil {
				name, password, _ = strings.Cut(string(raw), ":")
			}
		}
		return scheme, credentials, name, password
	}
	return "", "", "", ""
}

// unlessUnknown drops the error of a URL that is not ours: other helpers may
// know it.
func unlessUnknown(err error) error {
	if api.CodeOf(err) == api.UnknownSite {
		return nil
	}
	return err
}

// askHelper is what to do about a request that is not understood.
const askHelper = "give lines as git does: protocol=https, host=HOST, path=PATH, then an empty one"

// input is standard input, read until the deadline if it is a file descriptor:
// whoever should write may never do. remedy is what to do then.
func (p *process) input(o *options, remedy string) io.Reader {
	if f, ok := p.stdin.(*os.File); ok {
		return &timedReader{int(f.Fd()), o.deadline, remedy}
	}
	return p.stdin
}

type timedReader struct {
	fd       int
	deadline time.Time
	remedy   string // when it is over
}

func (r *timedReader) Read(b []byte) (int, error) {
	for {
		left := time.Until(r.deadline)
		if left <= 0 {
			return 0, &api.Error{Code: api.Deadline, Detail: "standard input did not end in the time allowed", Remedy: r.remedy}
		}
		wait := syscall.NsecToTimespec(int64(left))
		poll := struct {
			fd              int32
			events, revents int16
		}{fd: int32(r.fd), events: 1} // POLLIN; the end and errors always count
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&wait)), 0, 0, 0)
		if errno != 0 && errno != syscall.EINTR {
			return 0, errno
		}
		if n != 1 || errno != 0 {
			continue
		}
		switch n, err := syscall.Read(r.fd, b); {
		case err == syscall.EINTR || err == syscall.EAGAIN:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// readAttributes reads key=value lines up to a blank line or the end.
func readAttributes(r io.Reader) (*attributes, error) {
	a := new(attributes)
	in := bufio.NewReaderSize(r, maxAttribute+1)
	for range maxAttributes {
		raw, err := in.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			if errors.Is(err, bufio.ErrBufferFull) {
				return nil, usageError("a credential attribute is longer than 65535 bytes", askHelper)
			}
			return nil, err
		}
		line, ended := strings.CutSuffix(string(raw), "\n")
		if line == "" {
			return a, nil
		}
		if len(line) > maxAttribute {
			return nil, usageError("a credential attribute is longer than 65535 bytes", askHelper)
		}
		if hasControl(line) {
			return nil, usageError("a credential attribute has a control character", askHelper)
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" {
			return nil, usageError("a credential attribute is not key=value", askHelper)
		}
		a.set(key, value)
		if !ended {
			return a, nil
		}
	}
	return nil, usageError("too many credential attributes", askHelper)
}

// set takes in one attribute; a later one wins.
func (a *attributes) set(key, value string) {
	switch key {
	case "protocol":
		a.protocol = value
	case "host":
		a.host, a.hasHost = value, true
	case "path":
		a.path = escapePath(value)
	case "username":
		a.username = value
	case "generation":
		a.generation = value
	case "capability[]":
		a.authtype = a.authtype || value == capAuthtype
		a.state = a.state || value == capState
	case "state[]":
		if generation, ok := strings.CutPrefix(value, stateGeneration); ok {
			a.generation = generation
		}
	case "url":
		scheme, rest, ok := strings.Cut(value, "://")
		if !ok {
			scheme, rest = "", ""
		}
		host := hostOf(rest)
		a.protocol, a.path = strings.ToLower(scheme), strings.TrimPrefix(rest[len(host):], "/")
		// The user, and a password with it, is nobody's business here. Where readers
		// of URLs would not agree on what the user is, nothing is taken away, so that
		// the host is refused.
		if user, rest, ok := strings.Cut(host, "@"); ok && !strings.ContainsAny(user, "\\") {
			host = rest
		}
		a.host, a.hasHost = host, true
	}
}

// escapePath escapes a path, which git hands over unescaped.
func escapePath(path string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(strings.TrimPrefix(path, "/")) {
		if '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || strings.IndexByte("-._~!$&'()*+,;=:@/", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// url returns the URL that the attributes name, "" for one that is not for
// HTTP: other helpers may know it.
func (a *attributes) url() (string, error) {
	switch {
	case a.protocol == "" || !a.hasHost:
		return "", usageError("the credential request names no protocol or no host", "give protocol= and host=, or url=")
	case a.host == "", a.protocol != "http" && a.protocol != "https":
		return "", nil
	}
	url := a.protocol + "://" + a.host + "/" + a.path
	if strings.ContainsAny(a.host, "/?#@") || !validURL(url) {
		return "", usageError("the credential request names no proper URL", askHelper)
	}
	return url, nil
}
