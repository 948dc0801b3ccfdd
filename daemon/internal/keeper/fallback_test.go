package keeper

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// falling is an agent whose one site logs in by ticket, and falls back to a
// password.
func falling(t *testing.T, ticketE error, stored string) *team {
	m := &team{directory: &directory{right: rightPassword}, sites: map[string]*site{}, sessions: newRecords(), latches: newRecords(), stored: newRecords()}
	m.sites["app"] = &site{directory: m.directory, ticketE: ticketE}
	l := NewLatches(m.latches, mac)
	m.password = NewPassword("person", "person", "", m.stored, l)
	if stored != "" {
		if err := m.password.Store(t.Context(), secret.New(stored)); err != nil {
			t.Fatal(err)
		}
	}
	s := m.sites["app"].named("app")
	s.Fallback = m.password
	exchange := s.Exchange
	s.Exchange = func(jar *web.Jar, tickets bool) *web.Exchange {
		m.tickets = append(m.tickets, tickets)
		return exchange(jar, tickets)
	}
	m.Keeper = keep(t, m.sessions, l, s)
	return m
}

// TestFallback: a password takes over only where the site has no use for a
// ticket.
func TestFallback(t *testing.T) {
	for code, falls := range map[api.Code]bool{
		api.NoChallenge: true, api.ChallengeUnsupported: true, api.NTLMOnly: true, api.SPNUnknown: true,
		api.ServiceKeyMismatch: true, api.NegotiateRejected: true,
		api.KDCUnreachable: false, api.NetworkError: false, api.Server5xx: false, api.BadCredentials: false,
		api.MutualAuthFailed: false, api.ClockSkew: false, api.SSORedirect: false, api.Forbidden: false, api.BadChannelBinding: false,
	} {
		synctest.Test(t, func(t *testing.T) {
			m := falling(t, &api.Error{Code: code, Detail: "no way"}, rightPassword)
			err := m.get(t, "app")
			if falls {
				m.want(t, err, "")
				m.tried(t, 1)
				// The login by ticket, that by password, and the proof.
				if !slices.Equal(m.tickets, []bool{true, false, false}) {
					t.Errorf("exchanges with tickets: %v", m.tickets)
				}
				return
			}
			m.want(t, err, code)
			m.tried(t, 0)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		m := falling(t, nil, rightPassword)
		m.want(t, m.get(t, "app"), "")
		m.tried(t, 0)
	})
}

// TestFallbackRefused: a wrong password is tried once, and the site is left alone
// between the looks whether a ticket is of use by now.
func TestFallbackRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := falling(t, &api.Error{Code: api.NoChallenge, Detail: "no Negotiate"}, wrongPassword)
		m.want(t, m.get(t, "app"), api.BadCredentials)
		for begin := time.Now(); time.Since(begin) < time.Hour; pass(10 * time.Second) {
			if err := m.get(t, "app"); err == nil {
				t.Fatal("served")
			}
		}
		m.tried(t, 1)
		err := m.get(t, "app")
		if !strings.Contains(err.Remedy, "sessionctl login app --password-stdin") {
			t.Errorf("remedy %q", err.Remedy)
		}
		if logins, _ := m.sites["app"].tally(); logins > 80 {
			t.Errorf("%d logins by ticket in an hour", logins)
		}
		// A person brings the right one.
		m.want(t, m.login(t, "app", LoginOptions{Password: []byte(rightPassword)}), "")
		m.tried(t, 2)
		m.want(t, m.get(t, "app"), "")
	})
}

func TestFallbackWithoutPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := falling(t, &api.Error{Code: api.SPNUnknown, Detail: "no such service"}, "")
		err := m.get(t, "app")
		m.want(t, err, api.NoSecret, "no such service", "no password of person")
		if !strings.Contains(err.Remedy, "--password-stdin") {
			t.Errorf("remedy %q", err.Remedy)
		}
		m.want(t, m.login(t, "app", LoginOptions{Password: []byte(rightPassword)}), "")
	})
}

// TestBring: a principal's password goes to its realm, not to the site, and is
// followed by a login.
func TestBring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{ready: &api.Error{Code: api.NoSecret, Detail: "no password of build@CORP.EXAMPLE is stored"}}
		k := s.named("app")
		var retries []bool
		k.Bring = func(_ context.Context, password []byte, retry bool) error {
			retries = append(retries, retry)
			if string(password) != rightPassword {
				return &api.Error{Code: api.BadCredentials, Detail: "the KDC refuses it"}
			}
			s.set(func() { s.ready = nil })
			return nil
		}
		l := NewLatches(newRecords(), mac)
		k.Brought = NewPassword("build", "build@CORP.EXAMPLE", "", newRecords(), l)
		fixed := k
		fixed.Name, fixed.Brought = "fixed", NewPassword("build", "build@CORP.EXAMPLE", "/somewhere/password.build", newRecords(), l)
		m := &team{Keeper: keep(t, newRecords(), l, k, fixed)}
		err := m.get(t, "app")
		m.want(t, err, api.NoSecret)
		if !strings.Contains(err.Remedy, "sessionctl login app --password-stdin") {
			t.Errorf("remedy %q", err.Remedy)
		}
		err = m.get(t, "fixed")
		m.want(t, err, api.NoSecret)
		if strings.Contains(err.Remedy, "--password-stdin") {
			t.Errorf("remedy %q for a password that stands in a file", err.Remedy)
		}
		err = m.login(t, "app", LoginOptions{Password: []byte(wrongPassword)})
		m.want(t, err, api.BadCredentials)
		if !strings.Contains(err.Remedy, "--password-stdin --retry") {
			t.Errorf("remedy %q", err.Remedy)
		}
		m.want(t, m.login(t, "app", LoginOptions{Password: []byte("two\nlines")}), api.InvalidRequest)
		m.want(t, m.login(t, "app", LoginOptions{Password: []byte(rightPassword), Retry: true}), "")
		m.want(t, m.get(t, "app"), "")
		if logins, _ := s.tally(); logins != 1 || len(retries) != 2 || retries[0] || !retries[1] {
			t.Errorf("%d logins, brought with retry %v", logins, retries)
		}
	})
}

// TestWaysAtProxy: what a person can do when the site's proxy has no use for its
// credential.
func TestWaysAtProxy(t *testing.T) {
	typed := NewPassword("corp", "person", "", newRecords(), NewLatches(newRecords(), mac))
	fixed := NewPassword("corp", "person", "/somewhere/password.corp", newRecords(), NewLatches(newRecords(), mac))
	const bring, retry = "sessionctl login app --proxy --password-stdin", "sessionctl login app --retry"
	for name, c := range map[string]struct {
		err          *api.Error
		password     *Password
		bring, again bool
	}{
		"none at hand":      {&api.Error{Code: api.ProxyAuthRequired, Err: &api.Error{Code: api.NoSecret}}, typed, true, false},
		"none in the file":  {&api.Error{Code: api.ProxyAuthRequired, Err: &api.Error{Code: api.NoSecret}}, fixed, false, false},
		"refused":           {&api.Error{Code: api.ProxyAuthFailed}, typed, true, true},
		"refused, a file":   {&api.Error{Code: api.ProxyAuthFailed}, fixed, false, true},
		"a key's latch":     {&api.Error{Code: api.ProxyAuthFailed, Err: &api.Error{Code: api.Latched}}, nil, false, true},
		"a key refused":     {&api.Error{Code: api.ProxyAuthFailed, Err: &api.Error{Code: api.BadCredentials}}, nil, false, true},
		"a ticket refused":  {&api.Error{Code: api.ProxyAuthFailed}, nil, false, false},
		"out of reach":      {&api.Error{Code: api.ProxyError}, typed, false, false},
		"wants no password": {&api.Error{Code: api.ProxyAuthRequired}, typed, false, false}, // or not in clear
	} {
		s := new(site).named("app")
		s.ForgiveProxy, s.ProxyPassword = func(context.Context) error { return nil }, c.password
		got := (&entry{site: s}).remedied(c.err, nil).Remedy
		if strings.Contains(got, bring) != c.bring || strings.Contains(got, retry) != c.again {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := (&entry{site: new(site).named("app")}).remedied(&api.Error{Code: api.ProxyAuthFailed}, nil).Remedy; got != "" {
		t.Errorf("without a credential of ours: %q", got)
	}
}
