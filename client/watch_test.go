package client_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/client"
)

// until waits for what a source returns.
func until(t *testing.T, s *client.Source, done func(*client.Session, error) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		changed := s.Changed()
		session, err := s.Session()
		if done(session, err) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("still %v, %v", session, err)
		}
	}
}

func cookieOf(s *client.Session) string {
	if s == nil {
		return ""
	}
	return s.Header().Get("Cookie")
}

func TestSourceWithAgent(t *testing.T) {
	w := newWorld(t)
	s, err := w.Client().Watch(t.Context(), client.Query{Site: "jira"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first, err := s.Session()
	if err != nil || cookieOf(first) != *w.live.Load() || w.logins.Load() != 1 {
		t.Fatalf("%v, %v after %d logins", first, err, w.logins.Load())
	}

	// Somebody reports it dead.
	w.end()
	fresh, err := w.Client().Refresh(t.Context(), first)
	if err != nil || fresh.Generation == first.Generation {
		t.Fatalf("%v, %v", fresh, err)
	}
	until(t, s, func(now *client.Session, _ error) bool { return now != nil && now.Generation == fresh.Generation })

	// The agent renews it faster than anybody reads: the newest counts.
	for range 1000 {
		w.Renew("jira")
	}
	last := w.live.Load()
	until(t, s, func(now *client.Session, _ error) bool { return cookieOf(now) == *last })

	// It finds it dead, and the login is refused.
	w.fails.Store(&api.Error{Code: api.Latched, Detail: "refused", Remedy: "do this"})
	w.Renew("jira")
	until(t, s, func(now *client.Session, err error) bool {
		return now == nil && api.CodeOf(err) == api.Latched && api.AsError(err).Remedy == "do this"
	})

	// A person mends it: the source asks again.
	w.fails.Store(nil)
	until(t, s, func(now *client.Session, _ error) bool { return now != nil && cookieOf(now) == *w.live.Load() })
}

// TestSourceRestart: the agent goes and comes back, and so does the client's
// connection.
func TestSourceRestart(t *testing.T) {
	w := newWorld(t)
	s, err := w.Client().Watch(t.Context(), client.Query{Site: "jira"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first, err := s.Session()
	if err != nil {
		t.Fatal(err)
	}
	for what, interrupt := range map[string]func(){
		"restart": func() {
			if err := w.Restart(); err != nil {
				t.Fatal(err)
			}
		},
		"gap": func() {
			w.Stop()
			// It goes on with what it has, while it is looking.
			for range 2 {
				<-s.Changed()
				if now, err := s.Session(); err != nil || now.Generation != first.Generation {
					t.Fatalf("%v, %v", now, err)
				}
			}
			if err := w.Restart(); err != nil {
				t.Fatal(err)
			}
		},
		"closed client": func() { w.Client().Close() },
	} {
		t.Run(what, func(t *testing.T) {
			calls := w.Calls("WatchSession")
			interrupt()
			until(t, s, func(now *client.Session, err error) bool {
				if err != nil {
					t.Fatal(err)
				}
				return w.Calls("WatchSession") > calls
			})
			w.Renew("jira")
			last := *w.live.Load()
			until(t, s, func(now *client.Session, _ error) bool { return cookieOf(now) == last })
			if first, err = s.Session(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestSourceSilence: whoever listens now does not answer. Neither a context nor
// Close waits for that.
func TestSourceSilence(t *testing.T) {
	w := newWorld(t)
	s, err := w.Client().Watch(t.Context(), client.Query{Site: "jira"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w.Stop()
	l, err := net.Listen("unix", w.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	began := time.Now()
	c, err := l.Accept() // the source's next try
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if now, err := s.Session(); err != nil || cookieOf(now) != *w.live.Load() {
		t.Errorf("%v, %v", now, err)
	}
	s.Close()
	other := &client.Client{Socket: w.Socket()}
	defer other.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if c, err := l.Accept(); err == nil {
			defer c.Close()
		}
		cancel()
	}()
	if s, err := other.Watch(ctx, client.Query{Site: "jira"}); s != nil || err == nil {
		t.Errorf("%v, %v", s, err)
	}
	if d := time.Since(began); d > time.Minute {
		t.Errorf("took %v", d)
	}
}

// TestWatchErrors: what stands in the way of the first session.
func TestWatchErrors(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Client().Watch(t.Context(), client.Query{Site: "other"}); api.CodeOf(err) != api.UnknownSite {
		t.Errorf("%v", err)
	}
	w.fails.Store(&api.Error{Code: api.Captcha, Detail: "a picture"})
	if _, err := w.Client().Watch(t.Context(), client.Query{Site: "jira"}); api.CodeOf(err) != api.Captcha {
		t.Errorf("%v", err)
	}
	// The agent is there only later.
	w.fails.Store(nil)
	w.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Client().Watch(ctx, client.Query{Site: "jira"}); err == nil {
		t.Error("a session from nowhere")
	}
	back := make(chan error)
	go func() { back <- w.Restart() }()
	s, err := w.Client().Watch(t.Context(), client.Query{Site: "jira"})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := <-back; err != nil {
		t.Error(err)
	}
}
