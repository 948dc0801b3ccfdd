package shim

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sessionctl/sessionctl/api"
)

// dialect is how a kind of shell is spoken to.
type dialect struct {
	shells []string
	// set is one line of code. It holds no value, no quote that splitting could
	// break, nothing that could match a file name, so that it passes through
	// unquoted eval $(…). nil: the shell has no eval, and value is for a parser.
	set   func(name, command string) string
	value func(name, value string) string // for quoted eval only
	// unset removes the variable and fails, so that no old value survives and
	// the evaluating shell sees a failure.
	unset func(name string) string
	fail  string
}

var (
	posix = &dialect{
		shells: []string{"posix", "sh", "dash", "bash", "zsh", "ksh", "rksh", "pdksh", "lksh", "mksh", "ash", "busybox", "yash", "posh"},
		// The right side of an assignment is neither split nor globbed. The
		// semicolons and the braces are there for an IFS that holds a backtick or
		// "&": what such a split leaves is no syntax, so that nothing of it runs.
		set:   func(name, command string) string { return name + "=`" + command + ";`&&{ export " + name + ";}" },
		value: func(name, value string) string { return name + "=" + quote(value, "'", `'\''`) + "&&export " + name },
		unset: func(name string) string { return "unset " + name + "&&false" },
		fail:  "false",
	}
	csh = &dialect{
		shells: []string{"csh", "tcsh", "bsd-csh"},
		set:    func(name, command string) string { return "setenv " + name + " \"`" + command + "`\"" },
		value: func(name, value string) string {
			return "setenv " + name + " " + quote(value, "'", `'\''`, "!", `\!`)
		},
		unset: func(name string) string { return "unsetenv " + name + ";false" },
		fail:  "false",
	}
	fish = &dialect{
		shells: []string{"fish"},
		set: func(name, command string) string {
			return "set -gx " + name + " (" + command + "); and test -n \"$" + name + "\""
		},
		value: func(name, value string) string {
			return "set -gx " + name + " " + quote(value, `\`, `\\`, "'", `\'`)
		},
		unset: func(name string) string { return "set -e " + name + "; false" },
		fail:  "false",
	}
	// In elvish a failing command is an exception.
	elvish = &dialect{
		shells: []string{"elvish"},
		set: func(name, command string) string {
			return "unset-env " + name + "; set-env " + name + " (" + command + ")"
		},
		value: func(name, value string) string { return "set-env " + name + " " + quote(value, "'", "''") },
		unset: func(name string) string { return "unset-env " + name + "; fail sessionctl" },
		fail:  "fail sessionctl",
	}
	// JSON for nu's load-env. What is no record makes load-env fail.
	nu = &dialect{
		shells: []string{"nu", "nushell"},
		// In a shell with eval it is no code, whatever the value.
		value: func(name, value string) string { return `{"` + name + `":"` + jsonEscaped(value) + `"}` },
		unset: func(string) string { return "false" },
		fail:  "false",
	}
	// Each of five quotation marks ends a string in PowerShell, and is kept
	// when it is doubled. Invoke-Expression gets the output line by line, and a
	// command that fails ends nothing.
	powershell = &dialect{
		shells: []string{"pwsh", "powershell"},
		set: func(name, command string) string {
			return "$env:" + name + " = $null; $env:" + name + " = " + command + "; if (-not $env:" + name + ") { throw 'sessionctl failed' }"
		},
		value: func(name, value string) string {
			return "$env:" + name + " = " + quote(value, "'", "''", "‘", "‘‘", "’", "’’", "‚", "‚‚", "‛", "‛‛")
		},
		unset: func(name string) string { return "$env:" + name + " = $null; throw 'sessionctl failed'" },
		fail:  "throw 'sessionctl failed'",
	}
	dialects = []*dialect{posix, csh, fish, elvish, nu, powershell}
)

// quote puts a value into single quotes, with the replacements given.
func quote(value string, replace ...string) string {
	return "'" + strings.NewReplacer(replace...).Replace(value) + "'"
}

// jsonEscaped writes all but letters and digits as \uXXXX (RFC 8259, section 7).
func jsonEscaped(value string) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	unit := func(u rune) { b.Write([]byte{'\\', 'u', hex[u>>12&15], hex[u>>8&15], hex[u>>4&15], hex[u&15]}) }
	for _, r := range value {
		switch {
		case '0' <= r && r <= '9', 'A' <= r && r <= 'Z', 'a' <= r && r <= 'z':
			b.WriteRune(r)
		case r > 0xffff: // two surrogates
			unit(0xd800 + (r-0x10000)>>10)
			unit(0xdc00 + (r-0x10000)&0x3ff)
		default:
			unit(r)
		}
	}
	return b.String()
}

// wrappers are programs that stand between a shell and the command it runs.
var wrappers = []string{
	"chrt", "doas", "env", "flock", "ionice", "nice", "nohup", "setpriv", "setsid", "stdbuf", "strace", "sudo",
	"taskset", "time", "timeout", "unbuffer", "xargs",
}

// multicall are programs that are many, a shell or a wrapper among them, by
// the name that they are called by.
var multicall = []string{"busybox", "coreutils", "toybox"}

// shellName is what kind of program a path names: its base name without a
// version, "" for a deleted file's mark and the like.
func shellName(path string) string {
	name := filepath.Base(strings.TrimSuffix(path, " (deleted)"))
	name = strings.TrimSuffix(strings.TrimPrefix(name, "-"), "-static")
	return strings.TrimRight(name, "0123456789.-")
}

// dialectOf returns the dialect of a shell, nil if the shell is not known.
func dialectOf(name string) *dialect {
	for _, d := range dialects {
		if slices.Contains(d.shells, name) {
			return d
		}
	}
	return nil
}

// detectShell finds the shell that evaluates the output: the one named, then
// $SESSIONCTL_SHELL, then the parent process behind at most three wrappers,
// then $SHELL, then a POSIX shell. With an error it returns the dialect in
// which to say so.
func detectShell(named string) (*dialect, error) {
	for _, s := range [...]struct{ where, name string }{
		{"--shell", named},
		{"SESSIONCTL_SHELL", os.Getenv("SESSIONCTL_SHELL")},
	} {
		if s.name == "" {
			continue
		}
		if d := dialectOf(shellName(s.name)); d != nil {
			return d, nil
		}
		return runningShell(), usageError(s.where+" names no shell known here", "name sh, csh, fish, elvish, nu or pwsh")
	}
	return runningShell(), nil
}

// runningShell guesses the shell from the processes above and from $SHELL.
func runningShell() *dialect {
	pid := os.Getppid()
	for range 1 + 3 {
		name, parent := processName(pid)
		if d := dialectOf(name); d != nil {
			return d
		}
		if !slices.Contains(wrappers, name) {
			break
		}
		pid = parent
	}
	// What $SHELL names did not call: with the value itself one does not guess.
	if d := dialectOf(shellName(os.Getenv("SHELL"))); d != nil && d.set != nil {
		return d
	}
	return posix
}

// processName returns the name of a process's program and its parent. The
// program of another user's process cannot be read; its name can.
func processName(pid int) (name string, parent int) {
	proc := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return "", 0
	}
	name, parent = parseStat(string(stat))
	if exe, err := os.Readlink(proc + "/exe"); err == nil {
		if program := shellName(exe); !slices.Contains(multicall, program) || !slices.Contains(wrappers, name) {
			name = program
		}
	}
	return shellName(name), parent
}

// parseStat returns the second and fourth field of /proc/PID/stat. The second
// is in parentheses and may itself hold any.
func parseStat(stat string) (name string, parent int) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", 0
	}
	if fields := strings.Fields(stat[end+1:]); len(fields) > 1 {
		parent, _ = strconv.Atoi(fields[1])
	}
	return stat[open+1 : end], parent
}

// plain reports whether a word passes through every shell as it is.
func plain(word string) bool {
	for i := range len(word) {
		switch c := word[i]; {
		case '0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z':
		case strings.IndexByte("/._-", c) >= 0:
		default:
			return false
		}
	}
	return word != ""
}

// ownName returns the word by which the evaluating shell can call this very
// program again.
func ownName(args0 string) (string, error) {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"sessionctl", args0} {
		if !plain(name) {
			continue
		}
		if found, err := os.Stat(lookPath(name)); err == nil && os.SameFile(self, found) {
			return name, nil
		}
	}
	return "", &api.Error{Code: api.Unknown, Detail: "sessionctl is not in PATH, and its own path has a character that a shell could change",
		Remedy: "put the directory of sessionctl into PATH"}
}

// lookPath returns the file that a shell runs for a command's name, "" if
// there is none.
func lookPath(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		file := filepath.Join(dir, name)
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return file
		}
	}
	return ""
}

// runCookie prints code for the caller's shell. Unless the value itself is
// asked for, or is all that the shell can take, it makes no call: the code
// makes it, by `sessionctl raw`.
func runCookie(p *process, o *options) error {
	name := variableOf(o)
	if name == "" {
		return usageError("the site's name makes no variable's name", "give one with --var NAME")
	}
	d, err := detectShell(o.shell)
	if err != nil {
		return err
	}
	if o.inline || d.set == nil {
		s, err := p.session(o)
		if err != nil {
			return err
		}
		value, err := s.cookie()
		if err != nil {
			return err
		}
		return p.answer(s, o, d.value(name, value)+"\n")
	}
	own, err := ownName(p.args[0])
	if err != nil {
		return err
	}
	for _, word := range o.common {
		if !plain(word) {
			return usageError("the value of --socket or --timeout has a character that a shell could change", "name the socket with "+api.SocketVariable)
		}
	}
	words := append([]string{own, "raw", o.operand}, o.common...)
	return p.print(d.set(name, strings.Join(words, " ")) + "\n")
}

// variableOf returns the variable to set, "" if none is known.
func variableOf(o *options) string {
	if o.variable == "" && o.operand != "" {
		return api.CookieVariable(o.operand)
	}
	return o.variable
}

// refuseCookie prints code that fails. What reads standard output is an eval,
// to which no output at all would mean success.
func refuseCookie(p *process, o *options) {
	d, _ := detectShell(o.shell)
	code := d.fail
	if name := variableOf(o); name != "" {
		code = d.unset(name)
	}
	p.print(code + "\n")
}
