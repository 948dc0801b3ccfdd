package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/client/shim"
)

// redact is what `sessionctl exec --redact` becomes: VARIABLE -- COMMAND….
func (a *app) redact() *cobra.Command {
	return &cobra.Command{
		Use:                "redact VARIABLE -- COMMAND…",
		Short:              "Run a command and keep a variable's value out of its output",
		Hidden:             true,
		DisableFlagParsing: true,
		// Failures of its own have a status of their own.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE: func(_ *cobra.Command, args []string) error {
			err := versionSkew()
			if err == nil && (len(args) < 3 || args[1] != "--") {
				err = usage("a variable, -- and a command are needed")
			}
			if err == nil && os.Getenv(args[0]) == "" {
				err = usage("the variable is empty, or not set")
			}
			if err == nil {
				var status int
				if status, err = supervise(args[0], args[2:]); err == nil {
					os.Exit(status)
				}
			}
			fail(a.stderr, "exec", err)
			os.Exit(statusOwn)
			return nil
		},
	}
}

// The exit statuses of env(1).
const (
	statusOwn      = 125
	statusCannot   = 126
	statusNotFound = 127
)

const marker = "[redacted]"

// supervise runs a command whose output comes out without the value of the
// variable, and returns its exit status. If a signal ended it, so it does this
// process. Output ends when all that hold it have closed it, as of a pipe.
func supervise(variable string, argv []string) (int, error) {
	cookie := os.Getenv(variable)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = os.Stdin
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, shim.VersionVariable+"=") })
	var ends []*os.File // of the command, to be closed here
	var copies sync.WaitGroup
	var lost atomic.Pointer[error] // of the output
	pass := func(to *os.File) (*os.File, func(), error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		ends = append(ends, w)
		return w, func() {
			// When nobody reads, the command is told so by its next write.
			defer r.Close()
			if err := newRedactor(cookie, to).copy(r); err != nil && !errors.Is(err, unix.EPIPE) {
				lost.Store(&err)
			}
		}, nil
	}
	out, copyOut, err := pass(os.Stdout)
	if err != nil {
		return 0, err
	}
	errs, copyErrs, err := pass(os.Stderr)
	if err != nil {
		return 0, err
	}
	cmd.Stdout, cmd.Stderr = out, errs

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, slices.DeleteFunc(slices.Clone(forwarded), signal.Ignored)...)
	// Who ends this process by SIGKILL means the command. The kernel goes by the thread
	// that started it.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		status := statusCannot
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, unix.ENOENT) {
			status = statusNotFound
		}
		fail(os.Stderr, "exec", &api.Error{Code: api.Unknown, Detail: "the program cannot be run", Err: err, Remedy: "name a program, or the path of one"})
		return status, nil
	}
	for _, end := range ends {
		end.Close()
	}
	copies.Go(copyOut)
	copies.Go(copyErrs)
	done := make(chan struct{})
	var forwarding sync.WaitGroup
	forwarding.Go(func() {
		for {
			select {
			case s := <-signals:
				if passedOn(s) {
					_ = cmd.Process.Signal(s) // it may have ended
				}
			case <-done:
				return
			}
		}
	})
	err = cmd.Wait()
	close(done)
	forwarding.Wait()
	copies.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	signal.Stop(signals)
	if err := lost.Load(); err != nil {
		return 0, &api.Error{Code: api.Unknown, Detail: "the command's output could not be written: " + (*err).Error(), Err: *err}
	}
	state := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !state.Signaled() {
		return state.ExitStatus(), nil
	}
	return dieOf(state.Signal())
}

// forwarded are the signals that the command gets, too. One that was ignored when
// this process began, as by nohup(1), stays so.
var forwarded = []os.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGPIPE,
	unix.SIGCONT, unix.SIGWINCH, unix.SIGVTALRM, unix.SIGXCPU, unix.SIGPROF, unix.SIGIO, unix.SIGPWR}

// passedOn reports whether a signal must be given to the command. A terminal
// sends SIGINT and SIGQUIT to the whole foreground group, the command
// included, which must not get them twice. SIGPIPE is this process's own.
func passedOn(s os.Signal) bool {
	switch s {
	case unix.SIGPIPE:
		return false
	case unix.SIGINT, unix.SIGQUIT:
		tty, err := os.Open("/dev/tty")
		if err != nil {
			return true
		}
		defer tty.Close()
		group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
		return err != nil || group != unix.Getpgrp()
	}
	return true
}

// dieOf ends this process by the signal that ended the command. Go's runtime
// passes over some signals and answers others with a trace, so that the kernel is
// told to do what it does by default. No core is written: it would hold the secret.
func dieOf(s syscall.Signal) (int, error) {
	runtime.LockOSThread()
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return 0, err
	}
	var byDefault [64]byte // a struct sigaction of zeros: SIG_DFL, no flags, no mask
	// SIGKILL cannot be set, and need not be.
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
	// To this very thread: it does not come back. One that another thread gets, which
	// would write a core, comes only after this one has ended the process.
	if err := unix.Tgkill(unix.Getpid(), unix.Gettid(), s); err != nil {
		return 0, err
	}
	return 128 + int(s), nil // the signal is blocked
}

// minSecret is how long a cookie's value must be to be one: of shorter ones,
// every text is full.
const minSecret = 9

// secretForms returns what must not come out: a Cookie header's value and the
// values of its cookies, as they are and as programs write them: in base64 (also
// within a longer text) and hex, in URLs, JSON and HTML, quoted for a shell. The
// longest come first.
func secretForms(cookie string) [][]byte {
	var all []string
	add := func(s string) {
		if len(s) >= minSecret {
			all = append(all, s)
		}
	}
	values := []string{cookie}
	for part := range strings.SplitSeq(cookie, ";") {
		_, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		values = append(values, value, strings.Trim(value, `"`))
	}
	for _, v := range values {
		if v == cookie && len(v) > 1 {
			all = append(all, v)
		} else if len(v) < minSecret {
			continue
		}
		add(v)
		for _, e := range written(v) {
			add(e)
		}
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			add(enc.EncodeToString([]byte(v)))
			for before := range 3 {
				// The characters that no neighbour of the value has a bit in.
				text := enc.EncodeToString([]byte(strings.Repeat("x", before) + v + "xx"))
				add(text[(before*8+5)/6 : (before+len(v))*8/6])
			}
		}
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	var forms [][]byte
	for _, s := range slices.Compact(all) {
		forms = append(forms, []byte(s))
	}
	return forms
}

// urlSafe are the characters besides letters, digits and -_.~ that some encoder of
// URLs leaves as they are: Go's and Python's with their kinds, and JavaScript's two.
var urlSafe = []string{"", "/", "!'()*", ":@&=+$", "/:@&=+$,", "/:@&=+$,;?!'()*#"}

// written returns a value as encoders write it.
func written(v string) (all []string) {
	for _, safe := range urlSafe {
		e := percent(v, safe)
		all = append(all, e, strings.ReplaceAll(e, "%20", "+"), lowerHex(e), lowerHex(strings.ReplaceAll(e, "%20", "+")))
	}
	quoted, err := json.Marshal(v)
	if err == nil {
		js := strings.Trim(string(quoted), `"`)
		plain := strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(js)
		all = append(all, js, plain, strings.ReplaceAll(plain, "/", `\/`))
	}
	all = append(all, html.EscapeString(v), hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v))),
		escaped(v, "\\\"$`"), escaped(v, " \t!\"#$&'()*,;<=>?[\\]^`{|}~"), escaped(v, " \t!\"#$&'()*,;<>?[\\]^`{|}"),
		strings.ReplaceAll(v, "'", `'\''`), strings.ReplaceAll(v, "'", `'"'"'`))
	return all
}

// percent writes a value as in a URL (RFC 3986, section 2.1), but for what is safe.
func percent(v, safe string) string {
	var b strings.Builder
	for _, c := range []byte(v) {
		if '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || strings.IndexByte("-_.~"+safe, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// escaped puts a backslash before each of the characters.
func escaped(v, characters string) string {
	var b strings.Builder
	for _, c := range []byte(v) {
		if strings.IndexByte(characters, c) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

// lowerHex turns %2F into %2f.
func lowerHex(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

// redactor passes a stream on with a marker in place of each form, also of one that
// is broken into lines. What could be the beginning of a form is held back until it is
// known not to be; all else passes at once.
type redactor struct {
	forms  [][]byte      // the longest first
	starts [1 << 16]bool // whether a form begins with these two bytes
	to     io.Writer
	held   []byte
}

func newRedactor(cookie string, to io.Writer) *redactor {
	r := &redactor{forms: secretForms(cookie), to: to}
	for _, form := range r.forms {
		for _, second := range []byte{form[1], '\n', '\r'} {
			r.starts[uint16(form[0])<<8|uint16(second)] = true
		}
	}
	return r
}

// chunk is how much is read at once, in bytes: as much as a pipe holds.
const chunk = 64 << 10

func (r *redactor) copy(from io.Reader) error {
	buffer := make([]byte, chunk)
	for {
		n, err := from.Read(buffer)
		if werr := r.write(buffer[:n], err != nil); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// write takes a part of the stream; last says that it is the last one.
func (r *redactor) write(part []byte, last bool) error {
	b := append(r.held, part...)
	end := len(b)
	if !last {
		end = r.beginning(b)
	}
	var out []byte
	at := 0
	// What begins at end or later may be a longer form's beginning, and waits.
	for i := 0; i < end && i+1 < len(b); i++ {
		if !r.starts[uint16(b[i])<<8|uint16(b[i+1])] {
			continue
		}
		if n := r.match(b[i:]); n > 0 {
			out = append(append(out, b[at:i]...), marker...)
			if at = i + n; at > end {
				end = at + r.beginning(b[at:])
			}
			i = at - 1
		}
	}
	if last {
		end = len(b)
	}
	out = append(out, b[at:end]...)
	r.held = append([]byte(nil), b[end:]...)
	if len(out) == 0 {
		return nil
	}
	_, err := r.to.Write(out)
	return err
}

// match returns how many bytes the longest form takes that b begins with, 0 if
// there is none.
func (r *redactor) match(b []byte) (longest int) {
	for _, form := range r.forms {
		if n, whole := fit(form, b); whole {
			longest = max(longest, n)
		}
	}
	return longest
}

// beginning returns where the first form begins of which b ends before it does.
func (r *redactor) beginning(b []byte) int {
	if len(r.forms) == 0 {
		return len(b)
	}
	for at := max(0, len(b)-2*len(r.forms[0])); at < len(b); at++ {
		if at+1 < len(b) && !r.starts[uint16(b[at])<<8|uint16(b[at+1])] {
			continue
		}
		for _, form := range r.forms {
			if n, whole := fit(form, b[at:]); n > 0 && !whole {
				return at
			}
		}
	}
	return len(b)
}

// fit reports how many bytes of b the form takes: whole, or as far as b goes. 0 if b
// does not begin with it. It may be broken into lines, as base64(1) does, of which no
// form has any itself.
func fit(form, b []byte) (n int, whole bool) {
	i := 0
	for ; n < len(b) && i < len(form); n++ {
		switch {
		case b[n] == form[i]:
			i++
		case i > 0 && (b[n] == '\n' || b[n] == '\r') && n-i < len(form):
		default:
			return 0, false
		}
	}
	return n, i == len(form)
}
