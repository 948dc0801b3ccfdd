// Sessionctl-admin holds the verbs of sessionctl that are not worth linking
// into every shell start: sessionctl runs it, found beside itself, for every
// verb it does not know. One file per group of verbs; what the agent does with
// a call is not here.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/client/shim"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes a verb. Results go to stdout; everything said about them goes
// to stderr as "sessionctl: site: detail (code)", the next step below it.
func run(args []string, stdout, stderr io.Writer) int {
	// What a shell's & or nohup has it ignore stays ignored.
	ctx := context.Background()
	if ends := slices.DeleteFunc([]os.Signal{unix.SIGINT, unix.SIGTERM}, signal.Ignored); len(ends) > 0 {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, ends...)
		defer stop()
	}
	a := &app{stdin: os.Stdin, stdout: stdout, stderr: stderr, timeout: 30 * time.Second}
	root := a.root()
	root.SetArgs(args)
	// The connection is left to the kernel: to end it well would take an agent
	// that reads.
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return api.ExitOK
	}
	if ctx.Err() != nil && !shim.Evaluated(args) {
		fmt.Fprintln(stderr, "sessionctl: interrupted")
		return exitInterrupted
	}
	if skew := versionSkew(); skew != nil {
		err = skew // a wrong argument may be the other version's
	}
	about := subject(c)
	if shim.Evaluated(args) {
		// To an eval, no output at all would mean success.
		fmt.Fprintln(stdout, envFailure(about))
	}
	return fail(stderr, about, err)
}

// subject names what a verb was about, as messages do.
func subject(c *cobra.Command) string {
	operands := c.Flags().Args()
	switch {
	case len(operands) == 0:
	case strings.Contains(c.Use, "SITE"):
		return shim.Subject(operands[0])
	case strings.Contains(c.Use, "PRINCIPAL"):
		return shown(operands[0])
	}
	return ""
}

// exitInterrupted is what shells make of SIGINT.
const exitInterrupted = 128 + 2

// versionSkew refuses to work for a sessionctl of another version. It names
// its own when it runs this program.
func versionSkew() error {
	v := os.Getenv(shim.VersionVariable)
	if v == "" || v == api.Version {
		return nil
	}
	return &api.Error{Code: api.VersionSkew, Detail: "sessionctl is version " + v + ", sessionctl-admin " + api.Version,
		Remedy: "install both from one release"}
}

// usage is the error of a wrong command line.
func usage(format string, args ...any) error {
	return &api.Error{Code: api.InvalidRequest, Detail: fmt.Sprintf(format, args...), Remedy: "sessionctl help"}
}

func fail(stderr io.Writer, about string, err error) int {
	e := api.AsError(err)
	if about != "" {
		about += ": "
	}
	fmt.Fprintf(stderr, "sessionctl: %s%s\n", about, api.Clean(e.Error()))
	if e.Remedy != "" {
		fmt.Fprintf(stderr, "  next: %s\n", api.Clean(e.Remedy))
	}
	return e.Code.Exit()
}

type app struct {
	stdin          *os.File
	stdout, stderr io.Writer
	client         client.Client
	timeout        time.Duration
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "sessionctl",
		Short: "Web sessions and Kerberos tickets from one agent",
		Long: `sessionctl serves web sessions that its agent, sessiond, keeps alive.

One login per machine and site; every shell, script and service shares it.`,
		Example:           "  eval $(sessionctl cookie app)\n  sessionctl header app | curl -H @- https://app.corp.example/api/me",
		Version:           api.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              noVerb,
		PersistentPreRunE: func(*cobra.Command, []string) error { return versionSkew() },
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetVersionTemplate("sessionctl {{.Version}}\n")
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.PersistentFlags().Var(word{&a.client.Socket, "PATH", nil}, "socket", "the agent's socket (default: $SESSIONCTL_SOCKET, the user's agent, the system's)")
	root.PersistentFlags().Var(duration{&a.timeout, true}, "timeout", "how long to wait")
	root.SetFlagErrorFunc(flagError)
	root.AddGroup(&cobra.Group{ID: "serve", Title: "Serve a session:"}, &cobra.Group{ID: "session", Title: "Look after sessions:"}, &cobra.Group{ID: "agent", Title: "Look after the agent:"})
	root.SetHelpCommandGroupID("agent")
	root.SetCompletionCommandGroupID("agent")
	root.AddCommand(a.hot()...)
	root.AddCommand(a.get(), a.bazel(), a.list(), a.login(), a.refresh(), a.reject(), a.logout(), a.jar(), a.gitSetup(), a.ccache(), a.tickets(), a.status(), a.reload(), a.rekey(), a.checkConfig(), a.redact(), a.version())
	strict(root)
	return root
}

// strict makes usage errors of what cobra's own verbs would let pass.
func strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Args = func(_ *cobra.Command, args []string) error {
				if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
					return usage("there is no such verb")
				}
				return nil
			}
		case "completion":
			c.Args = cobra.ArbitraryArgs
			c.RunE = func(c *cobra.Command, args []string) error {
				if len(args) > 0 {
					return usage("completion is for bash, zsh, fish and powershell")
				}
				return c.Help()
			}
			for _, shell := range c.Commands() {
				shell.Args = noOperand
			}
		}
	}
}

// flagError is the usage error of a flag. A value is not repeated: it may be
// a secret in the wrong place.
func flagError(_ *cobra.Command, err error) error {
	text := err.Error()
	var wrong interface{ GetValue() string }
	if errors.As(err, &wrong) {
		text = strings.ReplaceAll(text, strconv.Quote(wrong.GetValue()), "…")
	}
	return usage("%s", text)
}

func noVerb(_ *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case strings.Trim(args[0], "abcdefghijklmnopqrstuvwxyz-") == "":
		return usage("there is no verb %s", args[0])
	}
	return usage("there is no such verb")
}

func noOperand(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("%s takes no operand", c.Name())
	}
	return nil
}

// operand wants one operand that a check lets pass.
func operand(check func(string) error) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usage("exactly one %s is needed", strings.Fields(c.Use)[1])
		}
		return check(args[0])
	}
}

// word is the value of a flag: not empty, and one of allowed if there are any.
type word struct {
	s       *string
	kind    string // how the help calls it
	allowed []string
}

func (w word) Set(s string) error {
	switch {
	case s == "":
		return errors.New("it is empty")
	case w.allowed != nil && !slices.Contains(w.allowed, s):
		return errors.New("needs one of " + strings.Join(w.allowed, ", "))
	}
	*w.s = s
	return nil
}

func (w word) String() string { return *w.s }
func (w word) Type() string   { return w.kind }

// duration is the value of a flag, as the hot verbs read it: a bare number is
// seconds.
type duration struct {
	d       *time.Duration
	notZero bool
}

func (v duration) Set(s string) error {
	d, err := shim.ParseDuration(s)
	if err == nil && d == 0 && v.notZero {
		err = errors.New("it is zero")
	}
	if err != nil {
		return err
	}
	*v.d = d
	return nil
}

func (v duration) String() string {
	if *v.d == 0 {
		return ""
	}
	return v.d.String()
}

func (v duration) Type() string { return "DURATION" }

// call runs one call under --timeout. If it takes longer than a second on a
// terminal, it says what is going on.
func (a *app) call(c *cobra.Command, doing string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(c.Context(), a.timeout)
	defer cancel()
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil {
		t := time.AfterFunc(time.Second, func() { fmt.Fprintf(a.stderr, "sessionctl: %s …\n", doing) })
		defer t.Stop()
	}
	return f(ctx)
}

// sites completes the names of sites.
func (a *app) sites(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.offer(func(s *pb.SessionSummary) (name, about string) { return s.GetSite(), s.GetUrl() })
}

// offer completes a name, once each, by asking the agent for its sessions. An
// empty name is not offered.
func (a *app) offer(of func(*pb.SessionSummary) (name, about string)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var offered []string
	seen := map[string]bool{"": true}
	if s, err := a.client.Sessions(); err == nil {
		if resp, err := s.ListSessions(ctx, &pb.ListSessionsRequest{}); err == nil {
			for _, s := range resp.GetSessions() {
				if name, about := of(s); !seen[name] {
					seen[name] = true
					offered = append(offered, cobra.CompletionWithDesc(api.Clean(name), api.Clean(about)))
				}
			}
		}
	}
	return offered, cobra.ShellCompDirectiveNoFileComp
}
