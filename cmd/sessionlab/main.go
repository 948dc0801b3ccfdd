// Sessionlab is a place to try sessionctl: a Kerberos realm, models of Atlassian's
// products and of IBM's Jazz, other sites and an agent in one process, on loopback. The rigs are
// package daemontest's; flags, the demonstration and what is printed are here.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

const usage = `usage: sessionlab [--demo [--once]]
       sessionlab fetch URL

A place to try sessionctl, on this machine alone: a Kerberos realm, a Jira and a
Bamboo that ask for a ticket, a Jira, a Confluence, a Bitbucket and a Crucible
that ask for a password, a Crowd with a Confluence and a Jira that share one
login, a Jazz server with two applications that share one, a site behind
Negotiate, a site with a login form, and an agent that knows them all. The
products are models of those that bear the names. It stays until Ctrl-C and
leaves nothing behind.

  --demo     show the main job first, step by step
  --once     end after the demonstration: status 0 only if every step was right
  --version  print the version, and end
  --help     print this, and end

  fetch URL  get a URL, with the header lines on standard input; it is curl -H @-
             for machines without curl
`

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("sessionlab", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	demonstrate := fs.Bool("demo", false, "")
	once := fs.Bool("once", false, "")
	version := fs.Bool("version", false, "")
	err := fs.Parse(args)
	// However it ends, it cleans up: also when its terminal is closed, or a pipe
	// that it writes into.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	signal.Ignore(unix.SIGPIPE)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return api.ExitOK
	case err == nil && *version:
		fmt.Fprintln(stdout, "sessionlab", api.Version)
		return api.ExitOK
	case err == nil && fs.NArg() == 2 && fs.Arg(0) == "fetch":
		if err := fetch(ctx, fs.Arg(1), stdin, stdout); err != nil {
			fmt.Fprintf(stderr, "sessionlab: %v\n", err)
			return api.ExitOther
		}
		return api.ExitOK
	case err == nil && fs.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case err == nil && *once && !*demonstrate:
		err = errors.New("--once is for --demo")
	}
	if err != nil {
		fmt.Fprintf(stderr, "sessionlab: %v\n  next: sessionlab --help\n", err)
		return api.ExitUsage
	}
	if err := serve(ctx, *demonstrate, *once, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "sessionlab: %v\n", err)
		return api.ExitOther
	}
	return api.ExitOK
}

// serve runs a lab until the context ends.
func serve(ctx context.Context, demonstrate, once bool, stdout, stderr io.Writer) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(self)
	for _, program := range []string{"sessionctl", "sessionctl-admin"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			return fmt.Errorf("%s is not beside sessionlab, in %s: make build", program, bin)
		}
	}
	unix.Umask(0o077)
	lab, err := daemontest.StartLab(daemontest.LabOptions{
		Log:      slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		Register: func(s *grpc.Server) { reflection.Register(s) },
	})
	if err != nil {
		return fmt.Errorf("%w (its directory is made below $TMPDIR)", err)
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	// Both are shown as they are run.
	get := "curl -sS -H @-"
	if _, err := exec.LookPath("curl"); err != nil {
		get = "sessionlab fetch"
	}
	if demonstrate {
		d := demonstration{lab: lab, bin: bin, get: get, out: stdout}
		if err := d.run(ctx); err != nil || once {
			return err
		}
	}
	fmt.Fprintln(stdout, "\nA lab is running:")
	for _, site := range [][3]string{
		{"jira", lab.Jira.URL(), "a Jira behind IWAAC; the agent logs in with a keytab"},
		{"tracker", lab.Tracker.URL(), "a Jira that takes passwords"},
		{"confluence", lab.Confluence.URL(), "a Confluence with a login form"},
		{"bitbucket", lab.Bitbucket.URL(), "a Bitbucket with two-step verification's login"},
		{"bamboo", lab.Bamboo.URL(), "a Bamboo that asks for a ticket"},
		{"crucible", lab.Crucible.URL(), "a Crucible"},
		{"wiki", lab.Wiki.URL(), "a Confluence that relies on Crowd"},
		{"board", lab.Board.URL(), "a Jira that relies on Crowd: no login of its own"},
		{"app", lab.App.URL() + "/spnego/", "a site behind Negotiate"},
		{"form", lab.Form.URL() + "/app/", "a site with a login form"},
		{"ccm", lab.Jazz.URL("ccm"), "an application of a Jazz server, whose login is for all of them"},
		{"rm", lab.Jazz.URL("rm"), "another, which delegates its login"},
	} {
		fmt.Fprintf(stdout, "  %-11s %-36s %s\n", site[0], site[1], site[2])
	}
	_, err = fmt.Fprintf(stdout, `
The Crowd of wiki and board: %s
Their hosts are this machine, as curl knows. For other clients there is a proxy
that knows it: %s

To go on in another shell:
  export PATH=%s:"$PATH"
  export SESSIONCTL_SOCKET=%s
  sessionctl list
  sessionctl header jira | %s %s/rest/api/2/myself
  echo %s | sessionctl login tracker --password-stdin     # of %s, for all others too

The agent's configuration: %s
Ctrl-C ends it all.
`, lab.Crowd.URL(), lab.Proxy.URL(), quote(bin), quote(lab.Socket), get, lab.Jira.URL(), daemontest.Password, daemontest.User, filepath.Join(lab.Dir, "sessiond.toml"))
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
