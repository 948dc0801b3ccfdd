package daemontest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/grpc"

	"github.com/sessionctl/sessionctl/daemon"
)

// What there is in a lab.
const (
	// Realm is the lab's Kerberos realm.
	Realm = "LAB.EXAMPLE"
	// Account is the account that has a keytab, at the sites jira and app.
	Account = "svc-build"
	// User and Password are of a person, at the sites tracker and form. The agent
	// does not know the password yet.
	User     = "alice"
	Password = "CANARY-alice"
)

// LabOptions say how a lab is to be.
type LabOptions struct {
	// Dir is where the lab keeps its files, an existing directory; "": one that
	// Close removes. The socket's path in it must fit into 107 bytes.
	Dir string
	// Log gets what the agent says; nil: nobody.
	Log *slog.Logger
	// Register, if it is not nil, adds services to the agent's.
	Register func(*grpc.Server)
}

// Lab is a realm, four web sites and an agent that has them all configured, in
// this process:
//
//	jira     a Jira behind IWAAC, by keytab
//	tracker  a Jira that takes passwords
//	app      a site behind Negotiate, by keytab
//	form     a site with a login form, by password
type Lab struct {
	// Dir holds the agent's configuration, store, keytab and socket.
	Dir string
	// Socket is where the agent listens.
	Socket string

	KDC     *KDC
	Jira    *Atlassian
	Tracker *Atlassian
	App     *App
	Form    *Form

	o     LabOptions
	close []func() error
	stop  context.CancelFunc // of the agent; nil while it is stopped
	done  chan error         // what the agent's Run returned
}

// StartLab starts a lab. Close it.
func StartLab(o LabOptions) (l *Lab, err error) {
	l = &Lab{Dir: o.Dir, o: o}
	defer func() {
		if err != nil {
			l, err = nil, errors.Join(err, l.Close())
		}
	}()
	if l.o.Log == nil {
		l.o.Log = slog.New(slog.DiscardHandler)
	}
	if l.Dir == "" {
		if l.Dir, err = os.MkdirTemp("", "sessionlab"); err != nil {
			return l, err
		}
		l.close = append(l.close, func() error { return os.RemoveAll(l.Dir) })
	}
	// Relative paths in the configuration are refused.
	if l.Dir, err = filepath.Abs(l.Dir); err != nil {
		return l, err
	}
	l.Socket = filepath.Join(l.Dir, "run", "agent.sock")
	if err := l.startSites(); err != nil {
		return l, err
	}
	for name, text := range map[string]string{
		"krb5.conf":     l.KDC.Krb5Conf(),
		"build.keytab":  string(l.KDC.Keytab(Account)),
		"sessiond.toml": l.configuration(),
	} {
		if err := os.WriteFile(filepath.Join(l.Dir, name), []byte(text), 0o600); err != nil {
			return l, err
		}
	}
	return l, l.StartAgent()
}

func (l *Lab) startSites() (err error) {
	stops := func(stop func()) { l.close = append(l.close, func() error { stop(); return nil }) }
	if l.KDC, err = StartKDC(Realm); err != nil {
		return err
	}
	stops(l.KDC.Close)
	l.KDC.AddPrincipal(Account, "CANARY-"+Account)
	l.KDC.AddService("HTTP/localhost")
	keys := l.KDC.Keytab("HTTP/localhost")
	if l.Jira, err = StartJira(AtlassianOptions{ContextPath: "/jira", Keytab: keys, Guard: &IWAAC{Agent: "Windows NT", URIs: []string{"/login.jsp"}}}); err != nil {
		return err
	}
	stops(l.Jira.Stop)
	l.Jira.AddUser(Account, "")
	if l.Tracker, err = StartJira(AtlassianOptions{}); err != nil {
		return err
	}
	stops(l.Tracker.Stop)
	l.Tracker.AddUser(User, Password)
	if l.App, err = StartApp(keys); err != nil {
		return err
	}
	stops(l.App.Stop)
	if l.Form, err = StartForm(); err != nil {
		return err
	}
	stops(l.Form.Stop)
	l.Form.AddUser(User, Password)
	return nil
}

// configuration is the agent's. A lab's sites forget sessions when they are told
// to, and its people want to see that at once: recheck is 0.
func (l *Lab) configuration() string {
	return fmt.Sprintf(`# The agent of a sessionlab. All servers are on this machine, so http will do.

[credential.build]
principal = "%s@%s"
keytab    = %q

[credential.alice]
username = %q                # its password: sessionctl login tracker --password-stdin

[site.jira]
url           = %q
kind          = "jira"
credential    = "build"
insecure_http = true
recheck       = "0s"         # ask the site before each answer

[site.tracker]
url           = %q
kind          = "jira"
credential    = "alice"
insecure_http = true
recheck       = "0s"

[site.app]
url           = %q
kind          = "spnego"
credential    = "build"
insecure_http = true
recheck       = "0s"
login_url     = "spnego/"
probe_url     = "spnego/whoami"
identity_json = "user"

[site.form]
url           = %q
kind          = "form"
credential    = "alice"
insecure_http = true
recheck       = "0s"
probe_url     = "whoami"
identity_json = "user"
`, Account, Realm, filepath.Join(l.Dir, "build.keytab"), User, l.Jira.URL(), l.Tracker.URL(), l.App.URL()+"/", l.Form.URL()+"/app/")
}

// StartAgent starts the agent, after StopAgent anew.
func (l *Lab) StartAgent() error {
	config, err := daemon.LoadConfig(filepath.Join(l.Dir, "sessiond.toml"), filepath.Join(l.Dir, "krb5.conf"))
	if err != nil {
		return err
	}
	listener, err := daemon.Listen(l.Socket)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	l.stop, l.done = stop, make(chan error, 1)
	go func(done chan<- error) {
		done <- daemon.Run(ctx, listener, daemon.Options{
			Config: config, Store: filepath.Join(l.Dir, "state", "store.db"), Log: l.o.Log, Register: l.o.Register,
		})
	}(l.done)
	return nil
}

// StopAgent stops the agent and waits for its end.
func (l *Lab) StopAgent() error {
	if l.stop == nil {
		return nil
	}
	l.stop()
	l.stop = nil
	return <-l.done
}

// Close stops everything.
func (l *Lab) Close() error {
	err := l.StopAgent()
	for _, end := range slices.Backward(l.close) {
		err = errors.Join(err, end())
	}
	l.close = nil
	return err
}
