package clienttest

import (
	"context"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
)

// Site is a site of a fake agent.
type Site struct {
	// Name is the site's name, as api.ValidSite wants it.
	Name string
	// URL is the site's own URL, absolute.
	URL string
	// Login logs in and returns the new session. An error is the answer to those
	// who wait; give an *api.Error to choose the code. It runs once at a time for
	// its site, and must not call the Agent.
	Login func() (Session, error)
}

// Session is what a login brings.
type Session struct {
	// User is whose session it is.
	User string
	// Header is what requests must carry, whatever their URL and method: a Cookie
	// or an Authorization header, which count as secrets, and any others.
	Header http.Header
	// ExpireTime is when the session is known to end. Zero: not known.
	ExpireTime time.Time
	// The flags of client.Session.
	Stale, NotDurable, IdentityUnproven bool
}

// Agent is a fake agent. Its methods may be called at any time by anybody. They
// panic if a site is named that there is not: a mistake in the test.
type Agent struct {
	dir    string
	client client.Client

	mu    sync.Mutex
	sites map[string]*site
	calls map[string]int

	serving sync.Mutex // held by Stop and Restart
	server  *grpc.Server
	served  chan struct{}
}

// Start starts an agent without any site.
func Start() (*Agent, error) {
	dir, err := os.MkdirTemp("", "clienttest") // mode 0700, as api.CheckSocket wants it
	if err != nil {
		return nil, err
	}
	a := &Agent{dir: dir, sites: map[string]*site{}, calls: map[string]int{}}
	a.client.Socket = a.Socket()
	if err := a.Restart(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return a, nil
}

// Socket returns the path of the agent's socket. A program that finds its agent
// by itself finds this one if the environment variable api.SocketVariable names
// it.
func (a *Agent) Socket() string { return filepath.Join(a.dir, "agent.sock") }

// Client returns a client of the agent. It is always the same one, and closed
// by Close.
func (a *Agent) Client() *client.Client { return &a.client }

// Close ends the agent, with the calls under way, and removes its directory.
func (a *Agent) Close() error {
	a.client.Close()
	a.Stop()
	return os.RemoveAll(a.dir)
}

// Stop takes the agent away, as its restart or its crash does. It waits for
// the logins under way.
func (a *Agent) Stop() {
	a.serving.Lock()
	defer a.serving.Unlock()
	a.stop()
}

func (a *Agent) stop() {
	if a.server == nil {
		return
	}
	a.server.Stop()
	<-a.served
	a.server = nil
}

// Restart brings the agent back, with its sites and their sessions; one that
// is there it takes away first.
func (a *Agent) Restart() error {
	a.serving.Lock()
	defer a.serving.Unlock()
	a.stop()
	l, err := net.Listen("unix", a.Socket())
	if err != nil {
		return err
	}
	a.server = grpc.NewServer(grpc.WaitForHandlers(true), grpc.UnaryInterceptor(a.unary), grpc.StreamInterceptor(a.stream),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second})) // as the agent
	pb.RegisterSessionServiceServer(a.server, &service{agent: a})
	a.served = make(chan struct{})
	go func(server *grpc.Server, served chan struct{}) {
		defer close(served)
		_ = server.Serve(l) // nil after Stop; it has no other way to fail
	}(a.server, a.served)
	return nil
}

// AddSite adds a site, which has no session yet: the first caller logs in. It
// panics if the name is taken or not valid, or the URL not absolute.
func (a *Agent) AddSite(s Site) {
	u, err := url.Parse(s.URL)
	if err != nil || u.Host == "" || !api.ValidSite(s.Name) || s.Login == nil {
		panic("clienttest: a site needs a valid name, an absolute URL and a login: " + s.Name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sites[s.Name] != nil {
		panic("clienttest: there is a site " + s.Name)
	}
	a.sites[s.Name] = &site{Site: s, url: u, mu: &a.mu, login: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Expire ends the current session at the site. The agent does not know it yet:
// it goes on serving the session until somebody reports it, and then logs in.
// Without Expire, a report is found to be wrong.
func (a *Agent) Expire(name string) {
	s := a.site(name)
	a.mu.Lock()
	defer a.mu.Unlock()
	s.dead = true
}

// Renew makes the agent log in anew, as it does ahead of a session's end or
// when it finds one dead. Watchers are told of the new session; if the login
// fails there is none, and they are told why.
func (a *Agent) Renew(name string) {
	s := a.site(name)
	_ = s.hold(context.Background()) // which does not end
	defer s.release()
	_, _ = s.logIn() // the failure is for the callers and watchers
}

// Calls returns how many calls of a method, such as "GetSession", there were.
func (a *Agent) Calls(method string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[method]
}

func (a *Agent) count(fullMethod string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls[filepath.Base(fullMethod)]++
}

func (a *Agent) site(name string) *site {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.sites[name]
	if s == nil {
		panic("clienttest: there is no site " + name)
	}
	return s
}

// all returns the sites in order of their names.
func (a *Agent) all() []*site {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*site
	for _, name := range slices.Sorted(maps.Keys(a.sites)) {
		all = append(all, a.sites[name])
	}
	return all
}
