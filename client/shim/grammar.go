package shim

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// verb is one hot verb: a line of the grammar.
type verb struct {
	name    string
	operand string             // how the usage calls the operand
	check   func(string) error // refuses what an operand may not be
	many    bool               // one operand or more
	rest    string             // how the usage calls what follows the operand and is not ours; "" for nothing
	dashes  bool               // rest begins after "--", not right after the operand
	flags   []flag             // besides the common ones
	about   string
	run     func(*process, *options) error
	// failure is the exit status of every failure of the verb's own, where
	// other statuses are another program's. 0: the one of the error's code.
	failure int
	// refuse prints what standard output needs when the verb fails. nil:
	// nothing.
	refuse func(*process, *options)
}

// flag is a flag of a verb.
type flag struct {
	name  string
	value string // how the usage calls its value; "" for a switch
	about string
	set   func(*options, string) error
}

// options is what the arguments say.
type options struct {
	operand     string   // the first one
	operands    []string // all of them, of a verb that takes many
	rest        []string
	shell       string
	variable    string
	inline      bool
	minValidity time.Duration
	cached      bool
	redact      bool
	socket      string
	timeout     time.Duration
	deadline    time.Time // when timeout is over
	// common holds the common flags as they were given, for the inner call of
	// `cookie`.
	common []string
}

const defaultTimeout = 30 * time.Second

// verbs is the grammar of the hot verbs. Flags and operands come in any order;
// "--" ends the flags; a flag's value follows as the next argument or after
// "=". What belongs to another program comes last and is not looked at.
var verbs = []verb{
	{
		name: "cookie", operand: "SITE", check: CheckSite,
		about: "Print code for eval $(…) that sets SITE_COOKIE",
		flags: []flag{
			{"shell", "SHELL", "the shell that takes the output: sh, csh or one of their kind, fish, elvish, nu (gets JSON), pwsh", func(o *options, s string) error { o.shell = s; return nil }},
			{"var", "NAME", "the variable to set", setVariable},
			{"inline", "", `the value itself instead of a call for it; only for eval "$(…)" with the quotes, or for a file to source`, func(o *options, _ string) error { o.inline = true; return nil }},
		},
		run: runCookie, refuse: refuseCookie,
	},
	{
		name: "raw", operand: "SITE|URL", check: CheckTarget,
		about: "Print the value of the Cookie header",
		flags: []flag{
			minValidity,
			{"cached", "", "answer only from what is at hand: no login", func(o *options, _ string) error { o.cached = true; return nil }},
		},
		run: runRaw,
	},
	{
		name: "header", operand: "SITE|URL", check: CheckTarget,
		about: "Print all headers, as lines for curl -H @-",
		flags: []flag{minValidity},
		run:   runHeader,
	},
	{
		name: "curl", operand: "SITE", check: CheckSite, rest: "[OPTION…] PATH|URL", failure: exitOwn,
		about: "Run curl with the session, for a path below the site's URL",
		run:   runCurl,
	},
	{
		name: "exec", operand: "SITE", check: CheckSite, rest: "COMMAND…", dashes: true, failure: exitOwn,
		about: "Run a command that has SITE_COOKIE in its environment",
		flags: []flag{
			{"var", "NAME", "the variable to set", setVariable},
			{"redact", "", "keep the session out of what the command prints", func(o *options, _ string) error { o.redact = true; return nil }},
		},
		run: runExec,
	},
	{
		name: "credential", operand: "get|store|erase", check: checkOperation,
		about: "Take git's credential attributes, print header[]=…",
		run:   runCredential,
	},
	{
		name: "goauth", operand: "SITE", check: CheckTarget, many: true,
		about: "Answer the go command: GOAUTH=\"sessionctl goauth SITE…\"",
		run:   runGoauth,
	},
}

var minValidity = flag{"min-validity", "DURATION", "how long the session must still live", func(o *options, s string) (err error) {
	o.minValidity, err = ParseDuration(s)
	return err
}}

// commonFlags stand before or after the verb.
var commonFlags = []flag{
	{"socket", "PATH", "the agent's socket", func(o *options, s string) error {
		if s == "" {
			return errors.New("is empty")
		}
		o.socket = s
		o.common = append(o.common, "--socket", s)
		return nil
	}},
	{"timeout", "DURATION", "how long to wait, 30s by default", func(o *options, s string) error {
		d, err := ParseDuration(s)
		if err == nil && d == 0 {
			err = errors.New("is zero")
		}
		o.timeout = d
		o.common = append(o.common, "--timeout", s)
		return err
	}},
}

// errHelp says that the usage was asked for.
var errHelp = errors.New("help")

// usageError is an error of code InvalidRequest about the command line. It
// never quotes an operand or a value: it may be a secret in the wrong place.
func usageError(detail, remedy string) error {
	return &api.Error{Code: api.InvalidRequest, Detail: detail, Remedy: remedy}
}

// leading reads the common flags before the verb. verb is the first argument
// that is none, "" if there is none; it may be a flag of the sibling's.
func leading(args []string, o *options) (verb string, rest []string, err error) {
	for len(args) > 0 {
		arg := args[0]
		if !strings.HasPrefix(arg, "-") || arg == "-" || flagOf(commonFlags, arg) == nil {
			return arg, args[1:], nil
		}
		if args, err = setFlag(commonFlags, args, "sessionctl help", o); err != nil {
			return "", nil, err
		}
	}
	return "", nil, nil
}

// parse reads the arguments after the verb. It goes on after a mistake and
// returns the first one, so that o holds all that could be understood.
func (v *verb) parse(args []string, o *options) error {
	flags := slices.Concat(v.flags, commonFlags)
	help := "sessionctl " + v.name + " --help"
	var operands []string
	var first error
	restGiven := false
	for len(args) > 0 {
		arg := args[0]
		var err error
		switch {
		case v.rest != "" && !v.dashes && len(operands) == 1:
			o.rest, restGiven, args = args, true, nil
		case arg == "--" && v.dashes:
			o.rest, restGiven, args = args[1:], true, nil
		case arg == "--":
			operands = append(operands, args[1:]...)
			args = nil
		case isHelp(arg):
			args, err = args[1:], errHelp
		case strings.HasPrefix(arg, "-") && arg != "-":
			args, err = setFlag(flags, args, help, o)
		default:
			operands = append(operands, arg)
			args = args[1:]
		}
		if first == nil {
			first = err
		}
	}
	var err error
	switch {
	case v.dashes && !restGiven:
		err = usageError("-- and "+v.rest+" are missing", "sessionctl "+v.name+" "+v.operands())
	case len(operands) != 1 && !v.many:
		err = usageError("exactly one "+v.operand+" is needed", help)
	case len(operands) == 0:
		err = usageError("at least one "+v.operand+" is needed", help)
	case v.rest != "" && len(o.rest) == 0:
		err = usageError(v.rest+" is missing", help)
	}
	for i, operand := range operands {
		wrong := v.check(operand)
		if wrong == nil && i == 0 && (len(operands) == 1 || v.many) {
			o.operand = operand
		}
		if err == nil {
			err = wrong
		}
	}
	if v.many {
		o.operands = operands
	}
	if first == nil {
		first = err
	}
	return first
}

func isHelp(arg string) bool { return arg == "-h" || arg == "--help" }

func flagOf(flags []flag, arg string) *flag {
	name, _, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
	if !strings.HasPrefix(arg, "--") {
		return nil
	}
	if i := slices.IndexFunc(flags, func(f flag) bool { return f.name == name }); i >= 0 {
		return &flags[i]
	}
	return nil
}

// setFlag sets the flag that args begin with and returns the arguments after
// it. help is the command that shows what there is.
func setFlag(flags []flag, args []string, help string, o *options) ([]string, error) {
	f := flagOf(flags, args[0])
	name, value, given := strings.Cut(args[0], "=")
	if f == nil {
		detail := "unknown flag"
		// Only what looks like one is repeated.
		if word, ok := strings.CutPrefix(name, "--"); ok && strings.Trim(word, "abcdefghijklmnopqrstuvwxyz-") == "" {
			detail += " " + name
		}
		return args[1:], usageError(detail, help)
	}
	args = args[1:]
	switch {
	case f.value == "" && given:
		return args, usageError("--"+f.name+" takes no value", help)
	case f.value != "" && !given && len(args) == 0:
		return args, usageError("--"+f.name+" needs a "+f.value, help)
	case f.value != "" && !given:
		value, args = args[0], args[1:]
	}
	if err := f.set(o, value); err != nil {
		return args, usageError("--"+f.name+" "+err.Error(), help)
	}
	return args, nil
}

// maxDuration bounds every duration that can be given.
const maxDuration = 24 * time.Hour

// ParseDuration reads 5s, 500ms, 2m, or a number of seconds.
func ParseDuration(s string) (time.Duration, error) {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		s = strconv.FormatUint(n, 10) + "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxDuration {
		return 0, errors.New("needs a duration like 500ms, 5s or 2m, of at most 24h")
	}
	return d, nil
}

// setVariable takes a variable's name unless it means something to a shell or
// to the loader.
func setVariable(o *options, name string) error {
	ok := name != "" && name != "_"
	for i := range len(name) {
		c := name[i]
		ok = ok && (c == '_' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || i > 0 && '0' <= c && c <= '9')
	}
	if !ok {
		return errors.New("needs a variable's name: letters, digits and underscores")
	}
	switch upper := strings.ToUpper(name); {
	case slices.Contains(reservedVariables, upper), slices.ContainsFunc(reservedPrefixes, func(p string) bool { return strings.HasPrefix(upper, p) }):
		return errors.New("may not name a variable that shells, the loader or other programs use themselves")
	}
	o.variable = name
	return nil
}

// reservedPrefixes begin names as reservedVariables are.
var reservedPrefixes = []string{"BASH", "EPOCH", "GIT_", "GLIBC_", "LC_", "LD_", "LESS", "PERL5", "PS", "PYTHON", "RUBY"}

// reservedVariables are those by which a value could become code, or that a
// shell does not let be set or prints. Some shells have them in lower case too.
var reservedVariables = []string{
	"BROWSER", "COLUMNS", "EDITOR", "GCONV_PATH", "HISTCMD", "JAVA_TOOL_OPTIONS", "LANG", "LINES", "NODE_OPTIONS", "PAGER", "VISUAL",
	"ARGV", "CDPATH", "CWD", "EGID", "ENV", "EUID", "FCEDIT", "FPATH", "GID", "HISTFILE", "HOME", "IFS", "LINENO",
	"MAIL", "MAILPATH", "MODULE_PATH", "NULLCMD", "OLDPWD", "OPTARG", "OPTIND", "PATH", "PPID", "PROMPT", "PROMPT_COMMAND",
	"PWD", "RANDOM", "READNULLCMD", "RPROMPT", "RPS1", "SECONDS", "SHELL", "SHELLOPTS", "SHLVL", "STATUS", "TMOUT",
	"UID", "USERNAME", "ZDOTDIR",
}

const (
	siteName      = "a site's name (letters, digits, . _ -, at most 63)"
	namesAndVerbs = "sessionctl list shows the sites, sessionctl help the verbs"
)

// CheckSite refuses what names no site, without repeating it.
func CheckSite(s string) error {
	if api.ValidSite(s) {
		return nil
	}
	return usageError("that is not "+siteName, namesAndVerbs)
}

// CheckTarget refuses what names neither a site nor a URL, without repeating
// it: it may be a cookie in the wrong place.
func CheckTarget(s string) error {
	if api.ValidSite(s) || validURL(s) {
		return nil
	}
	return usageError("that is neither "+siteName+" nor an http(s) URL without a user", namesAndVerbs)
}

// checkOperation lets operations of tomorrow pass.
func checkOperation(s string) error {
	if s != "" {
		return nil
	}
	return usageError("the operation is empty", "sessionctl credential --help")
}

// maxURL is the longest URL that is sent, in bytes.
const maxURL = 8192

// validURL reports whether s is an absolute http or https URL with a host,
// without user and password, and without a byte that must be escaped in a URL.
func validURL(s string) bool {
	if len(s) > maxURL {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("\"<>\\^`{|}", c) >= 0 {
			return false
		}
	}
	scheme, rest, ok := strings.Cut(s, "://")
	host := hostOf(rest)
	return ok && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https")) &&
		strings.Trim(host, ":") != "" && !strings.Contains(host, "@")
}

// hostOf returns the authority that the part of a URL after :// begins with.
func hostOf(rest string) string {
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		return rest[:i]
	}
	return rest
}

// operands is how the usage calls what the verb takes besides flags.
func (v *verb) operands() string {
	s := v.operand
	if v.many {
		s += "…"
	}
	if v.rest != "" {
		if v.dashes {
			s += " --"
		}
		s += " " + v.rest
	}
	return s
}

// synopsis is how the verb is called.
func (v *verb) synopsis() string {
	if v.rest != "" {
		return v.name + " [flags] " + v.operands()
	}
	return v.name + " " + v.operands() + " [flags]"
}

// usage is the text of --help: of one verb, or of all hot ones.
func usage(v *verb) string {
	var b strings.Builder
	line := func(f flag) {
		name := "--" + f.name
		if f.value != "" {
			name += " " + f.value
		}
		b.WriteString("  " + name + strings.Repeat(" ", max(1, 25-len(name))) + f.about + "\n")
	}
	if v != nil {
		b.WriteString("usage: sessionctl " + v.synopsis() + "\n\n" + v.about + ".\n\n")
		for _, f := range v.flags {
			line(f)
		}
	} else {
		b.WriteString("usage: sessionctl VERB …\n\n")
		for _, v := range verbs {
			name := v.name + " " + v.operands()
			b.WriteString("  " + name + strings.Repeat(" ", max(1, 29-len(name))) + v.about + "\n")
		}
		b.WriteString("  list, login, get, status, …  and all others: sessionctl help\n\n")
	}
	for _, f := range commonFlags {
		line(f)
	}
	if v != nil {
		b.WriteString("\nAll verbs: sessionctl help\n")
	} else {
		b.WriteString("\n    eval $(sessionctl cookie jira)       # a shell: $JIRA_COOKIE\n" +
			"    sessionctl header jira | curl -H @- https://jira.corp.example/rest/api/2/myself\n")
	}
	return b.String()
}
