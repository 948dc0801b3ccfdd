package clienttest

import (
	"context"
	"crypto/rand"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// site is a site with its one session.
type site struct {
	Site
	url *url.URL
	// login is held, by a value in it, for a login and the decision to make one.
	login chan struct{}

	mu      *sync.Mutex // the Agent's, for what follows
	current *current    // nil: none
	err     error       // why the last login failed
	dead    bool        // the site has ended the session
	changed chan struct{}
}

// current is a session as it is served. It never changes.
type current struct {
	Session
	generation string
	time       time.Time // of the login
}

// look returns the session or why there is none, and what is closed when that
// changes. Neither session nor error: nobody has logged in.
func (s *site) look() (c *current, changed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.changed, s.err
}

// get returns the session, after a login if there is none, or if anew says so
// of the one that there is, and whether the site has ended it.
func (s *site) get(ctx context.Context, anew func(c *current, dead bool) bool) (*current, error) {
	if err := s.hold(ctx); err != nil {
		return nil, err
	}
	defer s.release()
	s.mu.Lock()
	c, dead := s.current, s.dead
	s.mu.Unlock()
	if c != nil && !anew(c, dead) {
		return c, nil
	}
	return s.logIn()
}

// drop forgets the session, and reports whether there was one.
func (s *site) drop(ctx context.Context) (had bool, err error) {
	if err := s.hold(ctx); err != nil {
		return false, err
	}
	defer s.release()
	c, _, _ := s.look()
	s.publish(nil, nil)
	return c != nil, nil
}

func (s *site) hold(ctx context.Context) error {
	select {
	case s.login <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *site) release() { <-s.login }

// logIn replaces the session. The caller holds login.
func (s *site) logIn() (*current, error) {
	session, err := s.Login()
	var c *current
	if err == nil {
		session.Header = session.Header.Clone()
		c = &current{Session: session, generation: rand.Text(), time: time.Now()}
	}
	s.publish(c, err)
	return c, err
}

// publish makes c the session and tells the watchers.
func (s *site) publish(c *current, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current, s.err, s.dead = c, err, false
	close(s.changed)
	s.changed = make(chan struct{})
}

// find returns the site that a request names and the URL that counts, by the
// agent's rules: the name first; else the site of the same origin whose path
// is the longest that the URL's begins with, at a segment.
func (a *Agent) find(name, rawURL string) (*site, *url.URL, error) {
	var u *url.URL
	if rawURL != "" {
		var err error
		if u, err = url.Parse(rawURL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, nil, &api.Error{Code: api.InvalidRequest, Detail: "that is not an absolute web address"}
		}
	}
	if name == "" && u == nil {
		return nil, nil, &api.Error{Code: api.InvalidRequest, Detail: "neither a site nor a URL is named"}
	}
	var best []*site
	for _, s := range a.all() {
		switch {
		case name != "" && s.Name != name:
		case u == nil:
			return s, s.url, nil
		case name != "" && origin(u) != origin(s.url):
			return nil, nil, &api.Error{Code: api.InvalidRequest, Detail: "that URL is not at " + origin(s.url), Remedy: "name the site of that URL, or only the URL"}
		case name != "":
			return s, u, nil
		case origin(u) != origin(s.url) || !below(u, s.url):
		case len(best) == 0 || len(segments(s.url)) > len(segments(best[0].url)):
			best = []*site{s}
		case len(segments(s.url)) == len(segments(best[0].url)):
			best = append(best, s)
		}
	}
	switch len(best) {
	case 0:
		return nil, nil, &api.Error{Code: api.UnknownSite, Detail: "no site " + name + " for this user", Remedy: "check the name with sessionctl list"}
	case 1:
		return best[0], u, nil
	}
	return nil, nil, &api.Error{Code: api.AmbiguousSite, Detail: "the URL fits several sites", Remedy: "name the site"}
}

func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port
}

func segments(u *url.URL) string { return strings.TrimRight(u.EscapedPath(), "/") }

func below(u, base *url.URL) bool {
	rest, ok := strings.CutPrefix(u.EscapedPath(), segments(base))
	return ok && (rest == "" || rest[0] == '/')
}
