package keeper

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
)

// life is one site of an agent, looked at as the table of a session's life does.
type life struct {
	*team
	site *site
}

func startLife(t *testing.T, stored string) *life {
	m := startTeam(t, rightPassword, stored)
	return &life{m, m.sites["jira"]}
}

// restarted is the agent after a restart with a configuration.
func (l *life) restarted(t *testing.T, fingerprint string) *life {
	n := &life{l.team.restarted(t), l.site}
	n.entries["jira"].site.Fingerprint = fingerprint
	return n
}

// is checks the state, how many logins and probes there were so far, and the
// generation that is stored, "" for none.
func (l *life) is(t *testing.T, state State, logins, probes int, stored string) {
	t.Helper()
	synctest.Wait()
	if sum := l.List()[0]; sum.State != state {
		t.Errorf("state %d, want %d", sum.State, state)
	}
	if _, p := l.site.tally(); l.directory.tried() != logins || p != probes {
		t.Errorf("%d logins, %d probes; want %d, %d", l.directory.tried(), p, logins, probes)
	}
	record, _, _ := l.sessions.Load(l.entries["jira"].key())
	switch {
	case stored == "" && record == nil:
	case record == nil:
		t.Error("no session is stored")
	case stored == "" || !strings.Contains(string(record), `"generation":"`+stored+`"`):
		t.Errorf("stored is %s, want generation %q", record, stored)
	}
}

// serves asks for the session and returns its generation.
func (l *life) serves(t *testing.T, stale bool) string {
	t.Helper()
	s, err := l.Get(t.Context(), "jira", GetOptions{})
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	if s.Stale != stale || s.NotDurable {
		t.Errorf("stale: %v, not durable: %v; want %v, false", s.Stale, s.NotDurable, stale)
	}
	return s.Generation
}

// keeps asks for the session and checks that it is still the one of a
// generation.
func (l *life) keeps(t *testing.T, generation string, stale bool) {
	t.Helper()
	if l.serves(t, stale) != generation {
		t.Error("another session is served")
	}
}

// replaces asks for the session and checks that it is a new one, which the site
// honours.
func (l *life) replaces(t *testing.T, old string) (generation string) {
	t.Helper()
	generation = l.serves(t, false)
	s, err := l.Get(t.Context(), "jira", GetOptions{})
	if err != nil || generation == old || header(s) != "session="+l.site.current {
		t.Errorf("an old session is served: %v", err)
	}
	return generation
}

func (l *life) fails(t *testing.T, code api.Code) *api.Error {
	t.Helper()
	e := l.get(t, "jira")
	l.want(t, e, code)
	return e
}

// What the site can be told to do.
func (l *life) kill()    { l.site.set(func() { l.site.current = "" }) }
func (l *life) slow()    { l.site.set(func() { l.site.delay = time.Second }) }
func (l *life) silent()  { l.site.set(func() { l.site.probeE = &api.Error{Code: api.NetworkError} }) }
func (l *life) answers() { l.site.set(func() { l.site.probeE = nil }) }

func (l *life) impossible() {
	l.site.set(func() {
		l.site.taken = func(_ context.Context, p login.Password) error {
			p.GiveBack()
			return &api.Error{Code: api.NetworkError}
		}
	})
}

// live brings about the state live, with one login and one probe.
func (l *life) live(t *testing.T) string {
	t.Helper()
	g := l.serves(t, false)
	l.is(t, Live, 1, 1, g)
	return g
}

// stale brings about the state stale, with one more probe.
func (l *life) stale(t *testing.T) string {
	t.Helper()
	g := l.live(t)
	l.silent()
	pass(5 * time.Minute)
	l.keeps(t, g, true)
	l.is(t, Stale, 1, 2, g)
	return g
}

// latched brings about the state latched, with one attempt.
func (l *life) latched(t *testing.T) {
	t.Helper()
	l.fails(t, api.BadCredentials)
	l.is(t, Latched, 1, 0, "")
}

// loggingIn brings about the state logging in. Some callers wait for the login,
// which takes one second, and its probe one more.
func (l *life) loggingIn(t *testing.T) (callers <-chan error) {
	t.Helper()
	l.slow()
	c := make(chan error, 10)
	for range cap(c) {
		go func() {
			_, err := l.Get(t.Context(), "jira", GetOptions{})
			c <- err
		}()
	}
	l.is(t, LoggingIn, 1, 0, "")
	return c
}

// got checks what all of them got.
func got(t *testing.T, callers <-chan error, code api.Code) {
	t.Helper()
	for range cap(callers) {
		if err := <-callers; api.CodeOf(err) != code {
			t.Errorf("a caller got %v, want code %q", err, code)
		}
	}
}

// report is what somebody does whose request was refused.
func (l *life) report(t *testing.T, generation string) (Served, error) {
	t.Helper()
	s, err := l.Refresh(t.Context(), "jira", generation, false)
	shown(t, err)
	return s, err
}

// TestSessionLife holds the table "Session life" of the design: one test for
// each cell, state/event, that says something.
func TestSessionLife(t *testing.T) {
	for _, c := range []struct {
		cell     string
		password string // the stored one
		run      func(t *testing.T, l *life)
	}{
		{"none/get", rightPassword, func(t *testing.T, l *life) {
			l.is(t, None, 0, 0, "")
			g := l.serves(t, false)
			l.is(t, Live, 1, 1, g)
		}},
		{"none/login refused", wrongPassword, func(t *testing.T, l *life) {
			l.fails(t, api.BadCredentials)
			l.is(t, Latched, 1, 0, "")
		}},
		{"none/login impossible now", rightPassword, func(t *testing.T, l *life) {
			l.impossible()
			l.fails(t, api.NetworkError)
			l.is(t, None, 1, 0, "")
			if sum := l.List()[0]; !sum.RetryTime.After(time.Now()) || sum.Failure.Code != api.NetworkError {
				t.Errorf("no back-off: %+v", sum)
			}
			for range 10 {
				l.fails(t, api.NetworkError)
				pass(patience)
			}
			if n := l.directory.tried(); n < 2 || n > 8 {
				t.Errorf("%d attempts", n)
			}
		}},

		{"live/get", rightPassword, func(t *testing.T, l *life) {
			g := l.live(t)
			for range 100 {
				l.keeps(t, g, false)
			}
			l.is(t, Live, 1, 1, g)
		}},
		{"live/probe says dead", rightPassword, func(t *testing.T, l *life) {
			g := l.live(t)
			l.kill()
			pass(5 * time.Minute)
			n := l.replaces(t, g)
			l.is(t, Live, 2, 3, n)

			l.kill()
			pass(24 * time.Hour) // not in use: nobody is asked
			l.is(t, Live, 2, 3, n)
			l.impossible()
			l.fails(t, api.NetworkError)
			l.is(t, None, 3, 4, "")
		}},
		{"live/probe: outage", rightPassword, func(t *testing.T, l *life) {
			g := l.live(t)
			l.silent()
			pass(5 * time.Minute)
			l.keeps(t, g, true)
			l.is(t, Stale, 1, 2, g)
		}},
		{"live/caller reports dead", rightPassword, func(t *testing.T, l *life) {
			g := l.live(t)
			if s, err := l.report(t, g); err != nil || s.Generation != g { // it is not
				t.Errorf("%+v, %v", s, err)
			}
			l.is(t, Live, 1, 2, g)
			l.kill()
			s, err := l.report(t, g)
			if err != nil || s.Generation == g {
				t.Errorf("%+v, %v", s, err)
			}
			l.is(t, Live, 2, 4, s.Generation)
			l.keeps(t, s.Generation, false)
		}},
		{"live/config changed", rightPassword, func(t *testing.T, l *life) {
			g := l.live(t)
			same := l.restarted(t, "f1")
			same.is(t, Live, 1, 1, g)
			same.keeps(t, g, false)
			same.is(t, Live, 1, 2, g) // proven by the new process

			other := l.restarted(t, "f2")
			other.is(t, None, 1, 2, g) // the record is not used
			n := other.replaces(t, g)
			other.is(t, Live, 2, 3, n)
		}},

		{"stale/get", rightPassword, func(t *testing.T, l *life) {
			l.site.life = time.Hour
			g := l.stale(t)
			for range 10 {
				l.keeps(t, g, true)
			}
			pass(55*time.Minute - time.Second)
			l.keeps(t, g, true)
			pass(time.Second) // its life ends
			synctest.Wait()
			l.impossible()
			l.fails(t, api.NetworkError)
			if _, err := l.Get(t.Context(), "jira", GetOptions{CachedOnly: true}); api.CodeOf(err) != api.NotCached {
				t.Errorf("from the cache: %v", err)
			}
		}},
		{"stale/probe says dead", rightPassword, func(t *testing.T, l *life) {
			g := l.stale(t)
			l.kill()
			l.answers()
			l.impossible()
			pass(5 * time.Minute) // it is in use: the probe tries by itself
			l.is(t, None, 2, 3, "")
			l.site.set(func() { l.site.taken = nil })
			pass(5 * time.Minute)
			n := l.replaces(t, g)
			l.is(t, Live, 3, 4, n)
		}},
		{"stale/probe: outage", rightPassword, func(t *testing.T, l *life) {
			g := l.stale(t)
			for range 100 { // in the back-off, nobody is asked
				l.keeps(t, g, true)
			}
			l.is(t, Stale, 1, 2, g)
			_, before := l.site.tally()
			for range 12 { // at the end of each back-off, one probe tries
				pass(5 * time.Minute)
				for range 100 {
					l.keeps(t, g, true)
				}
			}
			if _, n := l.site.tally(); n-before < 12 || n-before > 40 {
				t.Errorf("%d probes in an hour", n-before)
			}
			l.answers()
			pass(maxBackOff + time.Second) // nobody has to ask for that
			_, before = l.site.tally()
			l.keeps(t, g, false)
			l.is(t, Live, 1, before, g)
		}},
		{"stale/caller reports dead", rightPassword, func(t *testing.T, l *life) {
			g := l.stale(t)
			pass(time.Second) // of the back-off
			if s, err := l.report(t, g); api.CodeOf(err) != api.NetworkError {
				t.Errorf("a guess was served: %+v, %v", s, err)
			}
			l.keeps(t, g, true)
			l.kill()
			l.answers()
			s, err := l.report(t, g)
			for api.CodeOf(err) == api.NetworkError { // the back-off
				pass(patience)
				s, err = l.report(t, g)
			}
			if err != nil || s.Generation == g {
				t.Errorf("%+v, %v", s, err)
			}
			_, probes := l.site.tally()
			l.is(t, Live, 2, probes, s.Generation)
		}},
		{"stale/login impossible now", rightPassword, func(t *testing.T, l *life) {
			g := l.stale(t)
			l.impossible()
			l.want(t, l.login(t, "jira", LoginOptions{}), api.NetworkError)
			l.keeps(t, g, true)
			l.is(t, Stale, 2, 2, g)
		}},
		{"stale/config changed", rightPassword, func(t *testing.T, l *life) {
			g := l.stale(t)
			same := l.restarted(t, "f1")
			same.keeps(t, g, true)
			same.is(t, Stale, 1, 3, g)

			other := l.restarted(t, "f2")
			other.is(t, None, 1, 3, g)
			l.answers()
			n := other.replaces(t, g)
			other.is(t, Live, 2, 4, n)
		}},

		{"logging in/get", rightPassword, func(t *testing.T, l *life) {
			callers := l.loggingIn(t)
			got(t, callers, "")
			g := l.serves(t, false)
			l.is(t, Live, 1, 1, g)
		}},
		{"logging in/caller reports dead", rightPassword, func(t *testing.T, l *life) {
			callers := l.loggingIn(t)
			s, err := l.report(t, "the one before")
			if err != nil {
				t.Error(err)
			}
			got(t, callers, "")
			l.is(t, Live, 1, 1, s.Generation)
		}},
		{"logging in/login refused", wrongPassword, func(t *testing.T, l *life) {
			callers := l.loggingIn(t)
			got(t, callers, api.BadCredentials)
			l.is(t, Latched, 1, 0, "")
		}},
		{"logging in/login impossible now", rightPassword, func(t *testing.T, l *life) {
			l.impossible()
			callers := l.loggingIn(t)
			got(t, callers, api.NetworkError)
			l.is(t, None, 1, 0, "")

			// With an old session that lives.
			m := startLife(t, rightPassword)
			g := m.live(t)
			m.slow()
			m.impossible()
			forced := make(chan error, 1)
			go func() {
				_, err := m.Login(t.Context(), "jira", LoginOptions{})
				forced <- err
			}()
			synctest.Wait()
			m.keeps(t, g, false) // nobody has to wait beside it
			got(t, forced, api.NetworkError)
			m.is(t, Live, 2, 1, g)
			m.keeps(t, g, false)
		}},
		{"logging in/config changed", rightPassword, func(t *testing.T, l *life) {
			callers := l.loggingIn(t)
			got(t, callers, "") // it ends as it began
			g := l.serves(t, false)
			same := l.restarted(t, "f1")
			same.keeps(t, g, false)
			same.is(t, Live, 1, 2, g)
			other := l.restarted(t, "f2")
			n := other.replaces(t, g)
			other.is(t, Live, 2, 3, n)
		}},

		{"latched/get", wrongPassword, func(t *testing.T, l *life) {
			l.latched(t)
			for _, n := range []*life{l, l.restarted(t, "f1"), l.restarted(t, "f2")} {
				for range 100 {
					if e := n.fails(t, api.Latched); !strings.HasSuffix(e.Remedy, "sessionctl login jira --retry") {
						t.Errorf("remedy %q", e.Remedy)
					}
				}
				n.is(t, Latched, 1, 0, "")
			}
		}},
		{"latched/config changed", wrongPassword, func(t *testing.T, l *life) {
			// Another password, which another site of the credential brings.
			l.latched(t)
			l.want(t, l.login(t, "wiki", LoginOptions{Password: []byte(rightPassword)}), "")
			g := l.serves(t, false)
			l.is(t, Live, 3, 1, g)

			// Another keytab: the credential is ready again.
			a := start(t, &site{ready: &api.Error{Code: api.Latched, Detail: "refused"}}, newRecords())
			a.refused(t, api.Latched)
			if sum := a.List()[0]; sum.State != Latched {
				t.Errorf("state %d", sum.State)
			}
			a.count(t, 0, 0)
			a.site.ready = nil
			s := a.get(t)
			if sum := a.List()[0]; sum.State != Live || sum.Session.Generation != s.Generation || sum.Failure != nil {
				t.Errorf("%+v", sum)
			}
			a.count(t, 1, 1)
		}},
	} {
		t.Run(c.cell, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { c.run(t, startLife(t, c.password)) })
		})
	}
}
