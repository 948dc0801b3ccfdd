package shim

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/sessionctl/sessionctl/api"
)

// git's credential helper protocol, as far as cookies fit into it
// (https://git-scm.com/docs/git-credential#IOFMT).
const (
	maxAttribute  = 65535 // git's own limit of a line, in bytes
	maxAttributes = 1024
)

// attributes is what a credential request says about the request to come. Its
// password and anything else that is secret is not kept.
type attributes struct {
	protocol, host, path string
	hasHost              bool
	generation           string
}

// runCredential answers a credential helper's operation. Unknown operations
// are ignored, as git asks of its helpers.
func runCredential(p *process, o *options) error {
	operation := o.operand
	o.operand = "" // what failures are about is the verb
	switch operation {
	case "get", "erase":
	case "store":
		// Nothing is stored on the word of a caller: the agent logs in itself.
		_, err := io.Copy(io.Discard, p.input(o))
		return err
	default:
		return nil
	}
	a, err := readAttributes(p.input(o))
	if err != nil {
		return err
	}
	url, err := a.url()
	if err != nil || url == "" {
		return err
	}
	if operation == "erase" {
		// A report, not an order: the agent probes before it believes.
		_, err := newCaller(o.socket, o.deadline, nil).call(methodRefreshSession, refreshSession{url: url, generation: a.generation}.encode())
		return unlessUnknown(err)
	}
	s, err := p.fetch(o, getSession{url: url})
	if err != nil {
		return unlessUnknown(err)
	}
	text, err := s.lines("header[]=")
	if err != nil {
		return err
	}
	if err := printable("generation", s.generation); err != nil {
		return err
	}
	if s.generation != "" {
		text += "generation=" + s.generation + "\n"
	}
	return p.answer(s, o, text)
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
// whoever should write may never do.
func (p *process) input(o *options) io.Reader {
	if f, ok := p.stdin.(*os.File); ok {
		return &timedReader{int(f.Fd()), o.deadline}
	}
	return p.stdin
}

type timedReader struct {
	fd       int
	deadline time.Time
}

func (r *timedReader) Read(b []byte) (int, error) {
	for {
		left := time.Until(r.deadline)
		if left <= 0 {
			return 0, &api.Error{Code: api.Deadline, Detail: "standard input did not end in the time allowed", Remedy: askHelper}
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
	case "generation":
		a.generation = value
	case "url":
		scheme, rest, ok := strings.Cut(value, "://")
		if !ok {
			scheme, rest = "", ""
		}
		host := hostOf(rest)
		a.protocol, a.path = strings.ToLower(scheme), strings.TrimPrefix(rest[len(host):], "/")
		// The user, and a password with it, is nobody's business here.
		a.host, a.hasHost = host[strings.LastIndexByte(host, '@')+1:], true
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
