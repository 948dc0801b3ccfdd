// Sessiond is the agent: it turns keytabs into Kerberos tickets and web
// sessions, and serves them on a Unix socket. Flags, the listener and signals
// are here; everything else is package daemon.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon"
)

const usage = `usage: sessiond [flags]

The sessionctl agent. It reads its configuration, listens on its socket and
stays in the foreground; SIGHUP makes it read its configuration again, SIGTERM
and SIGINT end it.

  --config FILE      configuration; conf.d/*.toml beside it are read too
                     (default $XDG_CONFIG_HOME/sessionctl/sessiond.toml)
  --socket PATH      socket, unless systemd hands one over
                     (default $XDG_RUNTIME_DIR/sessionctl/agent.sock)
  --store FILE       encrypted store
                     (default $XDG_STATE_HOME/sessionctl/store.db)
  --passphrase       open the store with a passphrase, which is asked for on a
                     terminal, or is the first line of standard input
  --log-level LEVEL  debug, info, warn or error (default info)
  --check            check configuration, krb5.conf, keytabs and ticket caches,
                     and end
  --version          print the version, and end
  --help             print this, and end

A configuration:

  [credential.build]
  principal = "svc-build@CORP.EXAMPLE"
  keytab    = "/home/build/build.keytab"

  [site.app]
  url             = "https://app.corp.example/"
  kind            = "spnego"
  credential      = "build"
  probe_url       = "api/me"      # refused without a session
  identity_json   = "user.name"   # where its answer names the user

A site that takes passwords has a credential with a username instead; its
password comes in by: sessionctl login SITE --password-stdin

Kerberos is set up by /etc/krb5.conf, or the files that $KRB5_CONFIG lists.
`

func main() {
	if len(os.Args) == 2 && os.Args[1] == daemon.ProbeVerb {
		os.Exit(daemon.Probe(os.Stdout))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("sessiond", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	config := fs.String("config", "", "")
	socket := fs.String("socket", "", "")
	storeFile := fs.String("store", "", "")
	passphrase := fs.Bool("passphrase", false, "")
	level := fs.String("log-level", "info", "")
	check := fs.Bool("check", false, "")
	version := fs.Bool("version", false, "")
	err := fs.Parse(args)
	var lv slog.Level
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return api.ExitOK
	case err == nil && fs.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case err == nil:
		err = lv.UnmarshalText([]byte(*level))
	}
	if err != nil {
		fmt.Fprintf(stderr, "sessiond: %v\n  next: sessiond --help\n", err)
		return api.ExitUsage
	}
	if *version {
		fmt.Fprintln(stdout, "sessiond", api.Version)
		return api.ExitOK
	}

	// Nothing the agent makes is for others, and no copy of its memory either.
	unix.Umask(0o077)
	if err := daemon.CloseMemory(); err != nil {
		fmt.Fprintf(stderr, "sessiond: core dumps could not be turned off: %v\n", err)
		return api.ExitOther
	}

	if err := serve(*config, *socket, *storeFile, *check, *passphrase, lv, stdout, stderr); err != nil {
		e := api.AsError(err)
		fmt.Fprintf(stderr, "sessiond: %v\n", e)
		if e.Remedy != "" {
			fmt.Fprintf(stderr, "  next: %s\n", e.Remedy)
		}
		return e.Code.Exit()
	}
	return api.ExitOK
}

func serve(config, socket, storeFile string, check, passphrase bool, level slog.Level, stdout, stderr io.Writer) error {
	config, err := place(config, "XDG_CONFIG_HOME", ".config", "sessiond.toml")
	if err != nil {
		return err
	}
	cfg, err := daemon.LoadConfig(config)
	if err != nil {
		return err
	}
	if check {
		return report(cfg, stdout)
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: logged}))
	for _, n := range cfg.Notes {
		log.Info(n)
	}
	for _, p := range cfg.Problems(context.Background()) {
		log.Warn(p.Error())
	}
	if storeFile, err = place(storeFile, "XDG_STATE_HOME", ".local/state", "store.db"); err != nil {
		return err
	}
	if socket, err = socketPlace(socket); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	var said []byte
	if passphrase { // before anybody can call
		if said, err = readPassphrase(ctx, os.Stdin, stderr); err != nil {
			return err
		}
	}
	l, credentials, err := daemon.Passed()
	if err == nil && l == nil {
		l, err = daemon.Listen(socket)
	}
	if err != nil {
		return err
	}
	if at := l.Addr().String(); at != api.UserSocket(os.Geteuid()) && at != api.SystemSocket {
		log.Info("clients do not look there by themselves", "set", api.SocketVariable+"="+at)
	}
	hup := make(chan os.Signal, 1) // one more, while a reload is under way, is enough: it sees what is there then
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)
	reload := make(chan struct{})
	go func() {
		for {
			select {
			case <-hup:
			case <-ctx.Done():
				return
			}
			select {
			case reload <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	load := func() (*daemon.Config, error) { return daemon.LoadConfig(config) }
	o := daemon.Options{Config: cfg, Load: load, Reload: reload, Store: storeFile, Passphrase: said, Credentials: credentials, Log: log, Warnings: daemon.MemoryWarnings()}
	if self, err := os.Executable(); err == nil {
		o.Probe = daemon.ProbeBy(self)
	}
	return daemon.Run(ctx, l, o)
}

// report prints what --check found.
func report(cfg *daemon.Config, stdout io.Writer) error {
	for _, f := range cfg.Files {
		fmt.Fprintln(stdout, "read", f)
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintln(stdout, "warning:", w)
	}
	for _, n := range cfg.Notes {
		fmt.Fprintln(stdout, "note:", n)
	}
	problems := cfg.Problems(context.Background())
	for _, p := range problems {
		fmt.Fprintln(stdout, "problem:", p)
		if r := api.AsError(p).Remedy; r != "" {
			fmt.Fprintln(stdout, "  next:", r)
		}
	}
	if len(problems) > 0 {
		return &api.Error{Code: api.CodeOf(problems[0]), Detail: fmt.Sprintf("problems found: %d", len(problems)), Remedy: "mend them, then: sessionctl check-config " + cfg.Files[0]}
	}
	fmt.Fprintf(stdout, "ok: %d sites\n", len(cfg.Sites))
	return nil
}

// place returns where a file of ours is: as named by a flag, else in an XDG
// base directory. The path is absolute, because others are told it.
func place(named, variable, fallback, name string) (string, error) {
	if named != "" {
		return absolute(named)
	}
	base := os.Getenv(variable)
	if !filepath.IsAbs(base) { // as the XDG base directory specification wants it
		home, err := os.UserHomeDir()
		if err != nil || !filepath.IsAbs(home) {
			return "", &api.Error{Code: api.ConfigInvalid, Detail: "neither $" + variable + " nor $HOME is set to an absolute path",
				Remedy: "name the files: sessiond --config FILE --store FILE --socket PATH", Err: err}
		}
		base = filepath.Join(home, fallback)
	}
	return filepath.Join(base, "sessionctl", name), nil
}

// socketPlace is place for the socket, which has its own fallback.
func socketPlace(named string) (string, error) {
	if named != "" {
		return absolute(named)
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "sessionctl", "agent.sock"), nil
	}
	return api.UserSocket(os.Geteuid()), nil
}

func absolute(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", &api.Error{Code: api.ConfigInvalid, Detail: path + " is relative, and the working directory is gone",
			Remedy: "name the file by its absolute path", Err: err}
	}
	return abs, nil
}

// logged leaves the time out when the journal adds its own, and bounds texts, so
// that nobody whose words come into one can fill the log. There is room for the
// stack of a panic.
func logged(groups []string, a slog.Attr) slog.Attr {
	const limit = 16 << 10 // bytes
	if len(groups) == 0 && a.Key == slog.TimeKey && os.Getenv("JOURNAL_STREAM") != "" {
		return slog.Attr{}
	}
	text := ""
	switch v := a.Value.Any().(type) {
	case string:
		text = v
	case error:
		text = v.Error()
	}
	if len(text) > limit {
		a.Value = slog.StringValue(text[:limit] + "…")
	}
	return a
}
