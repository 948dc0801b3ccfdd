// Sessionlab is a place to try sessionctl: a Kerberos realm, a Jira, other sites
// and an agent in one process, on loopback. The rigs are package daemontest's;
// flags, the demonstration and what is printed are here.
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

A place to try sessionctl, on this machine alone: a Kerberos realm, a Jira that
asks for a ticket, a Jira that asks for a password, a site behind Negotiate, a
site with a login form, and an agent that knows them all. It stays until Ctrl-C
and leaves nothing behind.

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
	_, err = fmt.Fprintf(stdout, `
A lab is running:
  jira     %-32s a Jira behind IWAAC; the agent logs in with a keytab
  tracker  %-32s a Jira that takes passwords
  app      %-32s a site behind Negotiate
  form     %-32s a site with a login form

To go on in another shell:
  export PATH=%s:"$PATH"
  export SESSIONCTL_SOCKET=%s
  sessionctl list
  sessionctl header jira | %s %s/rest/api/2/myself
  echo %s | sessionctl login tracker --password-stdin     # of %s, for form too

The agent's configuration: %s
Ctrl-C ends it all.
`, lab.Jira.URL(), lab.Tracker.URL(), lab.App.URL()+"/spnego/", lab.Form.URL()+"/app/",
		quote(bin), quote(lab.Socket), get, lab.Jira.URL(), daemontest.Password, daemontest.User, filepath.Join(lab.Dir, "sessiond.toml"))
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
