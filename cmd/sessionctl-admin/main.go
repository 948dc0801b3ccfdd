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
// to stderr as "sessionctl: detail (code)", the next command below it.
func run(args []string, stdout, stderr io.Writer) int {
	// Set by the sessionctl that ran this program, with its own version.
	if v := os.Getenv(shim.VersionVariable); v != "" && v != api.Version {
		return fail(stderr, &api.Error{Code: api.VersionSkew, Detail: "sessionctl is version " + v + ", sessionctl-admin " + api.Version,
			Remedy: "install both from one release"})
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	a := &app{stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	a.client.Close()
	if err != nil {
		return fail(stderr, err)
	}
	return api.ExitOK
}

// usageError is a wrong command line.
type usageError struct{ error }

func fail(stderr io.Writer, err error) int {
	if u := (usageError{}); errors.As(err, &u) {
		fmt.Fprintf(stderr, "sessionctl: %v\n  next: sessionctl help\n", err)
		return api.ExitUsage
	}
	e := api.AsError(err)
	fmt.Fprintf(stderr, "sessionctl: %v\n", e)
	if e.Remedy != "" {
		fmt.Fprintf(stderr, "  next: %s\n", e.Remedy)
	}
	return e.Code.Exit()
}

type app struct {
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
		Example:       "  eval $(sessionctl cookie app)\n  sessionctl header app | curl -H @- https://app.corp.example/api/me",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noVerb,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.PersistentFlags().StringVar(&a.client.Socket, "socket", "", "the agent's `PATH` (default: $SESSIONCTL_SOCKET, the user's agent, the system's)")
	root.PersistentFlags().DurationVar(&a.timeout, "timeout", 30*time.Second, "give up after `DURATION`")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(&cobra.Group{ID: "serve", Title: "Serve a session:"}, &cobra.Group{ID: "session", Title: "Look after sessions:"}, &cobra.Group{ID: "agent", Title: "Look after the agent:"})
	root.SetHelpCommandGroupID("agent")
	root.SetCompletionCommandGroupID("agent")
	root.AddCommand(a.hot()...)
	root.AddCommand(a.get(), a.list(), a.login(), a.refresh(), a.logout(), a.tickets(), a.status(), a.checkConfig(), a.version())
	return root
}

func noVerb(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %q", args[0])}
	}
	return nil
}

// args wraps cobra's argument checks, so that they end as usage errors.
func args(n int) cobra.PositionalArgs {
	check := cobra.ExactArgs(n)
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{fmt.Errorf("%s: %w; usage: %s", c.Name(), err, c.UseLine())}
		}
		return nil
	}
}

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

// sites completes the names of sites by asking the agent.
func (a *app) sites(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var names []string
	if s, err := a.client.Sessions(); err == nil {
		if resp, err := s.ListSessions(ctx, &pb.ListSessionsRequest{}); err == nil {
			for _, s := range resp.GetSessions() {
				names = append(names, cobra.CompletionWithDesc(s.GetSite(), s.GetUrl()))
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
