package rig

import (
	"cmp"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// webServer is how a fake site listens: http on a free port of 127.0.0.1, which
// it keeps when it is stopped and started again, under the name localhost.
type webServer struct {
	mu      sync.Mutex
	addr    string          // "" before the first start
	server  *http.Server    // nil while stopped
	hits    map[string]Hits // by path
	serving sync.WaitGroup
}

// start serves h. It is an error to start what runs.
func (s *webServer) start(h http.Handler) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ln, err := net.Listen("tcp", cmp.Or(s.addr, "127.0.0.1:0"))
	if err != nil {
		return err
	}
	s.addr = ln.Addr().String()
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	s.server = server
	s.serving.Go(func() { server.Serve(ln) })
	return nil
}

// Stop ends the site: connections are refused until Start. What it knows stays.
func (s *webServer) Stop() {
	s.mu.Lock()
	server := s.server
	s.server = nil
	s.mu.Unlock()
	if server != nil {
		server.Close()
		s.serving.Wait()
	}
}

// origin returns http://localhost:port.
func (s *webServer) origin() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, port, _ := net.SplitHostPort(s.addr)
	return "http://localhost:" + port
}

// count takes note of a request.
func (s *webServer) count(r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hits == nil {
		s.hits = make(map[string]Hits)
	}
	n := s.hits[r.URL.Path]
	n.Total++
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch strings.ToLower(scheme) {
	case "negotiate":
		n.Negotiate++
	case "basic":
		n.Basic++
	}
	if r.Header.Get("Cookie") != "" {
		n.Cookie++
	}
	s.hits[r.URL.Path] = n
}

// Hits returns how many requests have arrived whose path, with the context path
// if there is one, begins with prefix.
func (s *webServer) Hits(prefix string) Hits {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum Hits
	for path, n := range s.hits {
		if strings.HasPrefix(path, prefix) {
			sum.Total += n.Total
			sum.Negotiate += n.Negotiate
			sum.Basic += n.Basic
			sum.Cookie += n.Cookie
		}
	}
	return sum
}

// localPath returns ref if it is a path on the same site, else otherwise: a
// login must not send people to foreign sites (OWASP, Unvalidated Redirects and
// Forwards Cheat Sheet).
func localPath(ref, otherwise string) string {
	if !strings.HasPrefix(ref, "/") || strings.HasPrefix(ref, "//") || strings.ContainsAny(ref, "\\\r\n") {
		return otherwise
	}
	return ref
}
