package shim

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/sessionctl/sessionctl/api"
)

// The exit statuses of `curl` and `exec` that are not the program's own, as
// those of env(1).
const (
	exitOwn      = 125
	exitCannot   = 126 // the program is there and cannot be run
	exitNotFound = 127
)

// redactVerb is the sibling's verb that runs a program and keeps the value of
// a variable out of its output.
const redactVerb = "redact"

// runExec becomes another program that has the session in its environment.
func runExec(p *process, o *options) error {
	variable := variableOf(o)
	if variable == "" {
		return usageError("the site's name makes no variable's name", "give one with --var NAME")
	}
	s, err := p.session(o)
	if err != nil {
		return err
	}
	value, err := s.cookie()
	if err != nil {
		return err
	}
	if err := p.announce(s, o); err != nil {
		return err
	}
	if o.redact {
		if err := os.Setenv(variable, value); err != nil {
			return err
		}
		supervisor := *p
		supervisor.args = append([]string{"sessionctl", redactVerb, variable, "--"}, o.rest...)
		return supervisor.sibling()
	}
	return p.become(o, o.rest, append(without(os.Environ(), variable), variable+"="+value))
}

// without returns an environment without one variable: of two of a name, some
// programs see the first and some the last.
func without(environ []string, name string) (kept []string) {
	for _, v := range environ {
		if !strings.HasPrefix(v, name+"=") {
			kept = append(kept, v)
		}
	}
	return kept
}

// announce gives the warnings of an answer whose standard output is another
// program's.
func (p *process) announce(s *session, o *options) error {
	quiet := *p
	quiet.stdout = io.Discard
	return quiet.answer(s, o, "")
}

// become replaces the process by a program, which is found as execvp(3) finds
// it. It returns only the errors that are sessionctl's own; a program that
// cannot be run ends the process as env(1) ends.
func (p *process) become(o *options, argv, environ []string) error {
	err := execPath(argv, environ)
	status := exitCannot
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		status = exitNotFound
	}
	// Neither the program's name nor its arguments are repeated: one may be a
	// secret in the wrong place.
	p.fail(Subject(o.operand), &api.Error{Code: api.Unknown, Err: err,
		Detail: "the program cannot be run: " + err.Error(), Remedy: "name a program, or the path of one"})
	os.Exit(status)
	return nil
}

// execPath is execvpe(3): a name without a slash is looked for in PATH, and what
// the kernel does not know is a script of sh.
func execPath(argv, environ []string) error {
	if argv[0] == "" {
		return syscall.ENOENT
	}
	if strings.Contains(argv[0], "/") {
		return execFile(argv[0], argv, environ)
	}
	path, ok := os.LookupEnv("PATH")
	if !ok {
		path = "/bin:/usr/bin"
	}
	result := error(syscall.ENOENT)
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		switch err := execFile(dir+"/"+argv[0], argv, environ); err {
		case syscall.ENOENT, syscall.ENOTDIR, syscall.ESTALE, syscall.ENODEV, syscall.ETIMEDOUT:
		case syscall.EACCES:
			result = err // but another may be better
		default:
			return err
		}
	}
	return result
}

// shell is what runs a script without a first line that says what does.
const shell = "/bin/sh"

func execFile(file string, argv, environ []string) error {
	err := syscall.Exec(file, argv, environ)
	if err == syscall.ENOEXEC {
		return syscall.Exec(shell, append([]string{shell, file}, argv[1:]...), environ)
	}
	return err
}
