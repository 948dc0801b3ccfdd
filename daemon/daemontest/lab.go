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
	// Account is the account that has a keytab, at the sites jira, bamboo and app.
	Account = "svc-build"
	// User and Password are of a person, at the sites that take passwords. The
	// agent does not know the password yet.
	User     = "alice"
	Password = "CANARY-alice"
	// Domain is the domain of all hosts of the single sign-on. They are this
	// machine, as all of localhost is, but few resolvers know it: the agent reaches
	// them through a proxy of the lab's, curl by itself, and other clients with
	// DialLocalhost or that proxy.
	Domain = ".corp.localhost"
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

// Lab is a realm, web sites and an agent that has them all configured, in this
// process:
//
//	jira        a Jira behind IWAAC, by keytab
//	tracker     a Jira that takes passwords
//	confluence  a Confluence with the login form of old, by password
//	bitbucket   a Bitbucket with two-step verification's login, by password
//	bamboo      a Bamboo whose login page asks for a ticket, by keytab
//	crucible    a Crucible, by password
//	wiki        a Confluence that relies on a Crowd, at wiki.corp.localhost
//	board       a Jira that relies on the same Crowd, at board.corp.localhost
//	app         a site behind Negotiate, by keytab
//	form        a site with a login form, by password
//	ccm, rm     two applications of a Jazz server, the second of which delegates its
//	            login
//
// The Crowd's single sign-on is the identity provider sso: one login at wiki, by
// password, is good for wiki and board. That of the Jazz server is elm: one login at
// its Jazz Team Server, by password, is good for ccm and rm.
type Lab struct {
	// Dir holds the agent's configuration, store, keytab and socket.
	Dir string
	// Socket is where the agent listens.
	Socket string

	KDC        *KDC
	Jira       *Atlassian
	Tracker    *Atlassian
	Confluence *Atlassian
	Bitbucket  *Atlassian
	Bamboo     *Atlassian
	Crucible   *Atlassian
	Crowd      *Crowd
	Wiki       *Atlassian
	Board      *Atlassian
	App        *App
	Form       *Form
	Jazz       *Jazz
	// Proxy knows the hosts of the single sign-on, and serves everybody.
	Proxy *Proxy

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
	if l.Crowd, err = StartCrowd(CrowdOptions{Host: "crowd" + Domain, Domain: Domain}); err != nil {
		return err
	}
	stops(l.Crowd.Stop)
	l.Crowd.AddUser(User, Password)
	for _, product := range []struct {
		site    **Atlassian
		start   func(AtlassianOptions) (*Atlassian, error)
		options AtlassianOptions
	}{
		{&l.Jira, StartJira, AtlassianOptions{ContextPath: "/jira", Keytab: keys, Guard: &IWAAC{Agent: "Windows NT", URIs: []string{"/login.jsp"}}}},
		{&l.Tracker, StartJira, AtlassianOptions{}},
		{&l.Confluence, StartConfluence, AtlassianOptions{ContextPath: "/confluence"}},
		{&l.Bitbucket, StartBitbucket, AtlassianOptions{TwoStep: true}},
		{&l.Bamboo, StartBamboo, AtlassianOptions{Keytab: keys}},
		{&l.Crucible, StartCrucible, AtlassianOptions{}},
		{&l.Wiki, StartConfluence, AtlassianOptions{Host: "wiki" + Domain, Crowd: l.Crowd}},
		{&l.Board, StartJira, AtlassianOptions{Host: "board" + Domain, Crowd: l.Crowd}},
	} {
		a, err := product.start(product.options)
		if err != nil {
			return err
		}
		stops(a.Stop)
		if product.options.Keytab != nil {
			a.AddUser(Account, "")
		} else if product.options.Crowd == nil {
			a.AddUser(User, Password)
		}
		*product.site = a
	}
	if l.App, err = StartApp(keys); err != nil {
		return err
	}
	stops(l.App.Stop)
	if l.Form, err = StartForm(); err != nil {
		return err
	}
	stops(l.Form.Stop)
	l.Form.AddUser(User, Password)
	if l.Jazz, err = StartJazz(JazzOptions{}); err != nil {
		return err
	}
	stops(l.Jazz.Stop)
	l.Jazz.AddUser(User, Password)
	if l.Proxy, err = StartProxy(ProxyOptions{Dial: DialLocalhost}); err != nil {
		return err
	}
	stops(l.Proxy.Close)
	return nil
}

// configuration is the agent's. A lab's sites forget sessions when they are told
// to, and its people want to see that at once: recheck is 0.
func (l *Lab) configuration() string {
	text := fmt.Sprintf(`# The agent of a sessionlab. All servers are on this machine, so http will do.

[credential.build]
principal = "%s@%s"
keytab    = %q

[credential.alice]
username = %q                # its password: sessionctl login tracker --password-stdin

[proxy.lab]
url = %q

[idp.sso]
url           = %q
kind          = "crowd"
via           = "confluence" # whose login is the one for all
credential    = "alice"
insecure_http = true
recheck       = "0s"         # ask before each answer
proxy         = "lab"

[idp.elm]
url           = %q
kind          = "jazz"
credential    = "alice"
insecure_http = true
recheck       = "0s"
`, Account, Realm, filepath.Join(l.Dir, "build.keytab"), User, l.Proxy.URL(), l.Wiki.URL()+"/", l.Jazz.URL("jts"))
	for _, site := range []struct{ name, url, kind, lines string }{
		{"jira", l.Jira.URL(), "jira", `credential    = "build"`},
		{"tracker", l.Tracker.URL(), "jira", `credential    = "alice"`},
		{"confluence", l.Confluence.URL(), "confluence", `credential    = "alice"`},
		{"bitbucket", l.Bitbucket.URL(), "bitbucket", `credential    = "alice"`},
		{"bamboo", l.Bamboo.URL(), "bamboo", `credential    = "build"`},
		{"crucible", l.Crucible.URL(), "crucible", `credential    = "alice"
probe_url     = "/"          # no resource names the user, but its pages do
identity_regexp = 'id="headerUserDetails"><a href="[^"]*/user/([^"]+)"'`},
		{"wiki", l.Wiki.URL(), "confluence", `idp           = "sso"
proxy         = "lab"`},
		{"board", l.Board.URL(), "jira", `idp           = "sso"
proxy         = "lab"`},
		{"app", l.App.URL() + "/", "spnego", `credential    = "build"
login_url     = "spnego/"
probe_url     = "spnego/whoami"
identity_json = "user"`},
		{"form", l.Form.URL() + "/app/", "form", `credential    = "alice"
probe_url     = "whoami"
identity_json = "user"`},
		{"ccm", l.Jazz.URL("ccm"), "jazz", `idp           = "elm"`},
		{"rm", l.Jazz.URL("rm"), "jazz", `idp           = "elm"`},
	} {
		text += fmt.Sprintf(`
[site.%s]
url           = %q
kind          = %q
insecure_http = true
recheck       = "0s"
%s
`, site.name, site.url, site.kind, site.lines)
	}
	return text
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
