package keeper

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

const (
	rightPassword = "CANARY-password-right"
	wrongPassword = "CANARY-password-wrong"
	newPassword   = "CANARY-password-new"
)

// directory is where several sites look passwords up: it has one user.
type directory struct {
	mu       sync.Mutex
	right    string
	attempts []string // the passwords that sites were given, in order
	underway int      // logins between Take and their end
	most     int      // of them at a time
	silent   bool     // its sites do not say that they accept a password
}

func (d *directory) tried() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.attempts)
}

func (d *directory) change(password string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.right = password
}

// password takes the password to the site, which takes its time and judges it.
func (s *site) password(ctx context.Context, p login.Password) error {
	s.mu.Lock()
	page := s.page
	s.mu.Unlock()
	if page != nil {
		return page
	}
	pw, err := p.Take(ctx)
	if err != nil {
		return err
	}
	d := s.directory
	d.mu.Lock()
	d.attempts = append(d.attempts, pw.Reveal())
	d.underway++
	d.most = max(d.most, d.underway)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.underway--
	}()
	if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	taken := s.taken
	s.mu.Unlock()
	if taken != nil {
		return taken(ctx, p)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if pw.Reveal() != d.right {
		return &api.Error{Code: api.BadCredentials, Detail: siteURL.String() + " refuses the password of " + p.User()}
	}
	if !d.silent {
		p.Accepted()
	}
	return nil
}

// team is an agent whose three sites log in with one password.
type team struct {
	*Keeper
	directory                 *directory
	sites                     map[string]*site
	sessions, latches, stored *records
	password                  *Password
	tickets                   []bool // of each exchange, where that counts
}

var names = []string{"jira", "wiki", "ci"}

// startTeam starts an agent that has a password stored, or none.
func startTeam(t *testing.T, right, stored string) *team {
	m := &team{directory: &directory{right: right}, sites: map[string]*site{}, sessions: newRecords(), latches: newRecords(), stored: newRecords()}
	for _, name := range names {
		m.sites[name] = &site{directory: m.directory}
	}
	m.start(t, "")
	if stored != "" {
		if err := m.password.Store(t.Context(), secret.New(stored)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *team) start(t *testing.T, file string) {
	l := NewLatches(m.latches, mac)
	m.password = NewPassword("office", "build", file, m.stored, l)
	var sites []Site
	for _, name := range names {
		s := m.sites[name].named(name)
		s.Account, s.Password = "build", m.password
		sites = append(sites, s)
	}
	m.Keeper = keep(t, m.sessions, l, sites...)
	t.Cleanup(func() {
		for kind, r := range map[string]*records{"latch": m.latches, "session": m.sessions} {
			for _, record := range r.clone().data {
				for _, pw := range []string{rightPassword, wrongPassword, newPassword} {
					if bytes.Contains(record, []byte(pw)) || bytes.Contains(record, []byte(base64.StdEncoding.EncodeToString([]byte(pw)))) {
						t.Errorf("a %s record holds a password: %s", kind, record)
					}
				}
			}
		}
	})
}

// restarted is a new agent with what the store holds now, at the same sites. The
// old one is as good as killed: what it does from now on is not seen.
func (m *team) restarted(t *testing.T) *team {
	n := *m
	n.sessions, n.latches, n.stored = m.sessions.clone(), m.latches.clone(), m.stored.clone()
	n.start(t, m.password.file)
	return &n
}

// get asks for a session and returns the failure, which shows no secret.
func (m *team) get(t *testing.T, name string) *api.Error {
	t.Helper()
	_, err := m.Get(t.Context(), name, GetOptions{})
	return shown(t, err)
}

func (m *team) login(t *testing.T, name string, o LoginOptions) *api.Error {
	t.Helper()
	_, err := m.Login(t.Context(), name, o)
	return shown(t, err)
}

func shown(t *testing.T, err error) *api.Error {
	t.Helper()
	e := api.AsError(err)
	if e != nil && strings.Contains(e.Error()+e.Remedy, "CANARY") {
		t.Errorf("an error shows a secret: %v, %s", e, e.Remedy)
	}
	return e
}

// want checks a failure's code, "" for none, and what its detail says.
func (m *team) want(t *testing.T, err *api.Error, code api.Code, says ...string) {
	t.Helper()
	switch {
	case err == nil && code == "":
		return
	case err == nil:
		t.Fatalf("got no failure, want code %q", code)
	case err.Code != code:
		t.Errorf("got %v, want code %q", err, code)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Detail, s) {
			t.Errorf("%q does not say %q", err.Detail, s)
		}
	}
}

func (m *team) tried(t *testing.T, attempts int) {
	t.Helper()
	if got := m.directory.tried(); got != attempts {
		t.Errorf("%d attempts, want %d", got, attempts)
	}
}

// elsewhere checks that a failure shows nothing of the site that had it first to
// the callers of another one.
func (m *team) elsewhere(t *testing.T, err *api.Error) {
	t.Helper()
	if err == nil || strings.Contains(err.Error()+strings.ReplaceAll(err.Remedy, seeAt, ""), siteURL.Host) {
		t.Errorf("another site is named: %+v", err)
	}
}

// seeAt begins a remedy with the login page of the site itself, and loginPage is
// added to another.
const (
	seeAt     = "see at https://app.corp.example/ with a browser whether the account can log in, then: "
	loginPage = " (the site's login page: https://app.corp.example/), or: "
)

// setUpAnew is the agent after a restart with the configuration of a site changed.
func (m *team) setUpAnew(t *testing.T, name, fingerprint string) *team {
	n := m.restarted(t)
	n.entries[name].site.Fingerprint = fingerprint
	return n
}

// everybody asks for the session of each site, ten times at once, and returns
// how often which code came.
func (m *team) everybody(t *testing.T) map[api.Code]int {
	var mu sync.Mutex
	codes := map[api.Code]int{}
	var wg sync.WaitGroup
	for range 10 {
		for _, name := range names {
			wg.Go(func() {
				_, err := m.Get(t.Context(), name, GetOptions{})
				shown(t, err)
				mu.Lock()
				defer mu.Unlock()
				codes[api.CodeOf(err)]++
			})
		}
	}
	wg.Wait()
	return codes
}

func (m *team) end(sessions ...string) {
	for _, name := range sessions {
		m.sites[name].set(func() { m.sites[name].current = "" })
	}
}

func TestWrongPasswordIsTriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, wrongPassword)
		for _, name := range names {
			m.sites[name].delay = time.Second
		}
		go m.Get(t.Context(), "jira", GetOptions{})
		synctest.Wait()
		m.tried(t, 1)
		killed := m.restarted(t) // with the attempt under way

		codes := m.everybody(t)
		if codes[api.BadCredentials] != 10 || codes[api.Latched] != 20 {
			t.Errorf("got %v", codes)
		}
		codes = m.everybody(t)
		if codes[api.Latched] != 30 {
			t.Errorf("later: %v", codes)
		}
		for _, sum := range m.List() {
			m.elsewhere(t, sum.Failure)
			if sum.State != Latched || !strings.HasSuffix(sum.Failure.Remedy, "sessionctl login "+sum.Site.Name+" --password-stdin, or: sessionctl login "+sum.Site.Name+" --retry") {
				t.Errorf("%s: state %d, remedy %q", sum.Site.Name, sum.State, sum.Failure.Remedy)
			}
		}

		for _, n := range []*team{m.restarted(t), killed, killed.restarted(t)} {
			if codes := n.everybody(t); codes[api.Latched] != 30 {
				t.Errorf("after a restart: %v", codes)
			}
		}
		m.want(t, killed.get(t, "ci"), api.Latched, "nobody knows what became of the attempt of build")
		pass(24 * time.Hour)
		m.want(t, m.get(t, "jira"), api.Latched, "the password of build was refused (bad_credentials)")
		m.want(t, killed.get(t, "jira"), api.Latched)
		m.tried(t, 1)

		// A person may have it tried, once.
		m.want(t, m.login(t, "wiki", LoginOptions{}), api.Latched)
		m.tried(t, 1)
		m.want(t, m.login(t, "wiki", LoginOptions{Retry: true}), api.BadCredentials)
		m.tried(t, 2)
		m.want(t, m.login(t, "wiki", LoginOptions{}), api.Latched)
		m.want(t, m.get(t, "jira"), api.Latched)
		m.directory.change(wrongPassword) // it was the site's mistake
		m.want(t, m.login(t, "ci", LoginOptions{Retry: true}), "")
		m.want(t, m.get(t, "jira"), "")
		m.tried(t, 4)
	})
}

// TestPasswordChangedAtTheSite: one that was accepted is refused from now on.
func TestPasswordChangedAtTheSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, rightPassword)
		if codes := m.everybody(t); codes[""] != 30 {
			t.Fatalf("got %v", codes)
		}
		m.tried(t, 3) // one login per site

		m.directory.change(newPassword)
		m.end(names...)
		pass(5 * time.Minute)
		if codes := m.everybody(t); codes[api.BadCredentials]+codes[api.Latched] != 30 || codes[api.BadCredentials] == 0 {
			t.Errorf("got %v", codes)
		}
		if codes := m.restarted(t).everybody(t); codes[api.Latched] != 30 {
			t.Errorf("after a restart: %v", codes)
		}
		m.tried(t, 4)
	})
}

func TestOfferedPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, rightPassword)
		before, err := m.Get(t.Context(), "jira", GetOptions{})
		if err != nil {
			t.Fatal(err)
		}

		// Wrong: only its caller sees that.
		offer := LoginOptions{Password: []byte(wrongPassword)}
		e := m.login(t, "jira", offer)
		m.want(t, e, api.BadCredentials)
		if e.Remedy != seeAt+"sessionctl login jira --password-stdin, or: sessionctl login jira --password-stdin --retry" {
			t.Errorf("remedy %q", e.Remedy)
		}
		m.tried(t, 2)
		if now, err := m.Get(t.Context(), "jira", GetOptions{}); err != nil || now.Generation != before.Generation || now.Stale {
			t.Errorf("the session that lives did not stay: %+v, %v", now, err)
		}
		if sum := m.List()[0]; sum.State != Live || sum.Failure != nil {
			t.Errorf("state %d, %v", sum.State, sum.Failure)
		}
		m.want(t, m.get(t, "wiki"), "") // with the stored one
		m.tried(t, 3)

		// Again: known, also at the other sites, also after a restart.
		for _, n := range []*team{m, m.restarted(t)} {
			for _, name := range names {
				m.want(t, n.login(t, name, offer), api.Latched, "bad_credentials")
			}
		}
		m.tried(t, 3)
		offer.Retry = true
		m.want(t, m.login(t, "wiki", offer), api.BadCredentials)
		m.tried(t, 4)
		offer.Retry = false
		m.want(t, m.login(t, "wiki", offer), api.Latched)
		m.tried(t, 4)

		// It was changed at the site, and everybody has seen the old one refused.
		m.directory.change(newPassword)
		m.end(names...)
		pass(5 * time.Minute)
		if codes := m.everybody(t); codes[""] != 0 {
			t.Errorf("got %v", codes)
		}
		m.tried(t, 5)
		// Right: stored, and all sites go on with it.
		m.want(t, m.login(t, "ci", LoginOptions{Password: []byte(newPassword)}), "")
		m.tried(t, 6)
		if codes := m.everybody(t); codes[""] != 30 {
			t.Errorf("got %v", codes)
		}
		m.tried(t, 8)
		m.end(names...)
		n := m.restarted(t)
		pass(5 * time.Minute)
		if codes := n.everybody(t); codes[""] != 30 {
			t.Errorf("after a restart: %v", codes)
		}
		m.tried(t, 11)
		if slices.Contains(m.directory.attempts[5:], rightPassword) {
			t.Error("the old one was tried again")
		}
	})
}

// TestOfferedPasswordIsTriedOnce: the same wrong one, typed at three sites.
func TestOfferedPasswordIsTriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, "")
		var wg sync.WaitGroup
		for _, name := range names {
			m.sites[name].delay = time.Second
			for range 3 {
				wg.Go(func() {
					_, err := m.Login(t.Context(), name, LoginOptions{Password: []byte(wrongPassword)})
					if code := api.CodeOf(err); code != api.BadCredentials && code != api.Latched {
						t.Errorf("got %v", err)
					}
				})
			}
		}
		wg.Wait()
		m.tried(t, 1)
		if len(m.stored.data) != 0 {
			t.Error("a password that was refused is stored")
		}
	})
}

// TestRefusedOfferProvesNothing: who waits beside a login with a password that
// is refused is not served, for that, a session that was due for a proof.
func TestRefusedOfferProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, rightPassword)
		m.want(t, m.get(t, "jira"), "")
		s := m.sites["jira"]
		s.delay = time.Second
		m.end("jira")
		pass(5 * time.Minute)
		go m.Login(t.Context(), "jira", LoginOptions{Password: []byte(wrongPassword)})
		synctest.Wait()
		served, err := m.Get(t.Context(), "jira", GetOptions{})
		if err != nil || header(served) != "session="+s.current {
			t.Errorf("served what the site does not honour: %v", err)
		}
		if s.probes != 3 { // of the first login, of the dead session, of the second login
			t.Errorf("%d probes", s.probes)
		}
	})
}

var silence = &api.Error{Code: api.Timeout, Detail: "no answer from the site"}

// lost is a login that ends without anybody knowing what the site thought.
func lost(context.Context, login.Password) error { return silence }

// TestOutcomeUnknown: what one site has not answered counts at that site alone.
func TestOutcomeUnknown(t *testing.T) {
	t.Run("never accepted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := startTeam(t, rightPassword, rightPassword)
			m.sites["jira"].taken = lost
			m.want(t, m.get(t, "jira"), api.Timeout)
			pass(time.Hour)
			m.want(t, m.get(t, "wiki"), "")
			m.want(t, m.get(t, "ci"), "")
			for _, n := range []*team{m, m.restarted(t)} {
				m.want(t, n.get(t, "jira"), api.Latched, "nobody knows what became of the attempt of build", "no answer from the site (timeout)")
			}
			m.tried(t, 3)
			m.sites["jira"].set(func() { m.sites["jira"].taken = nil })
			m.want(t, m.get(t, "jira"), api.Latched)
			m.want(t, m.login(t, "wiki", LoginOptions{Retry: true}), "")
			m.want(t, m.get(t, "jira"), api.Latched) // it is another site's
			m.want(t, m.login(t, "jira", LoginOptions{Retry: true}), "")
			m.tried(t, 5)
		})
	})
	t.Run("accepted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := startTeam(t, rightPassword, rightPassword)
			m.want(t, m.get(t, "jira"), "")
			s := m.sites["jira"]
			s.set(func() { s.taken = lost })
			m.end("jira")
			pass(5 * time.Minute)
			m.want(t, m.get(t, "jira"), api.Timeout)
			pass(2 * time.Second) // of the back-off
			m.want(t, m.get(t, "jira"), api.Timeout)
			m.tried(t, 3)
			// Now slowly, as with everything that may count as a failure there.
			pass(5 * time.Minute)
			for _, n := range []*team{m, m.restarted(t)} {
				m.want(t, n.get(t, "jira"), api.Timeout, "nobody knows what became of the last 2 attempts of build", "no answer")
			}
			m.tried(t, 3)
			m.want(t, m.get(t, "wiki"), "")
			m.want(t, m.get(t, "ci"), "")
			m.tried(t, 5)
			begin := time.Now()
			for time.Since(begin) < time.Hour {
				if m.get(t, "jira") == nil {
					t.Fatal("a session without a login")
				}
				pass(10 * time.Second)
			}
			if n := m.directory.tried() - 5; n < 3 || n > 6 {
				t.Errorf("%d attempts in an hour", n)
			}
			// The site is back: nothing was latched.
			s.set(func() { s.taken = nil })
			pass(unknownPause + 5*time.Minute)
			m.want(t, m.get(t, "jira"), "")
			// And what was not answered before counts no longer.
			s.set(func() { s.taken = lost })
			m.end("jira")
			pass(5 * time.Minute)
			before := m.directory.tried()
			m.want(t, m.get(t, "jira"), api.Timeout)
			s.set(func() { s.taken = nil })
			pass(2 * time.Second)
			m.want(t, m.get(t, "jira"), "")
			m.tried(t, before+2)
		})
	})
}

// TestAmbiguousAnswer: an answer to a password that is neither a login nor a
// refusal is not asked for again, whatever was before; with none at all, what was
// accepted before is tried again. The credential's other sites go on. The same
// site, set up in another way, is worth another attempt.
func TestAmbiguousAnswer(t *testing.T) {
	again := map[api.Code]bool{} // if it was accepted before
	for _, code := range []api.Code{
		api.InsecureRedirect, api.BasicDisabled, api.CSRF403, api.Forbidden, api.NoChallenge, api.ChallengeUnsupported, api.NTLMOnly,
		api.SSORedirect, api.RedirectLoop, api.NoSessionCookie, api.LoginOKButProbeFailed, api.WrongIdentity, api.Expired, api.UnexpectedStatus,
	} {
		again[code] = false
	}
	for _, code := range []api.Code{
		api.DNSError, api.NetworkError, api.Timeout, api.TLSError, api.RateLimited, api.Maintenance, api.Server5xx, api.Deadline, api.Unknown,
	} {
		again[code] = true
	}
	for code, again := range again {
		for _, accepted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, accepted before: %v", code, accepted), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := startTeam(t, rightPassword, rightPassword)
					if accepted {
						m.want(t, m.get(t, "jira"), "")
						m.end("jira")
						pass(5 * time.Minute)
					}
					before := m.directory.tried()
					jira := m.sites["jira"]
					jira.set(func() {
						jira.taken = func(context.Context, login.Password) error {
							return &api.Error{Code: code, Detail: siteURL.String() + " is odd", Remedy: "look at " + siteURL.String()}
						}
					})
					m.want(t, m.get(t, "jira"), code, siteURL.Host)
					m.tried(t, before+1)
					jira.set(func() { jira.taken = nil })
					if accepted && again {
						m.want(t, m.restarted(t).get(t, "jira"), "")
						m.tried(t, before+2)
						return
					}
					pass(24 * time.Hour)
					for _, n := range []*team{m, m.restarted(t)} {
						e := n.get(t, "jira")
						m.want(t, e, api.Latched, siteURL.String()+" is odd ("+string(code)+")")
						if !strings.HasSuffix(e.Remedy, "sessionctl login jira --password-stdin, or: sessionctl login jira --retry") {
							t.Errorf("remedy %q", e.Remedy)
						}
						m.want(t, n.login(t, "jira", LoginOptions{}), api.Latched)
					}
					m.tried(t, before+1)
					m.want(t, m.get(t, "wiki"), "")
					m.want(t, m.get(t, "jira"), api.Latched) // also now that it is known to be right
					m.tried(t, before+2)

					m.want(t, m.setUpAnew(t, "jira", "f2").get(t, "jira"), "")
					m.tried(t, before+3)
					m.want(t, m.setUpAnew(t, "wiki", "f2").get(t, "jira"), api.Latched)
					m.want(t, m.login(t, "jira", LoginOptions{Retry: true}), "")
					m.want(t, m.get(t, "jira"), "")
					m.tried(t, before+4)
				})
			})
		}
	}
}

// TestVerdictIsForAllSites: a refusal counts for the credential, and says nothing
// of the site that gave it.
func TestVerdictIsForAllSites(t *testing.T) {
	for _, code := range []api.Code{api.BadCredentials, api.PrincipalUnknown, api.PrincipalDisabled, api.PrincipalExpired, api.PasswordExpired} {
		t.Run(string(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := startTeam(t, rightPassword, rightPassword)
				m.want(t, m.get(t, "jira"), "") // accepted before
				m.end("jira")
				pass(5 * time.Minute)
				m.sites["jira"].set(func() {
					m.sites["jira"].taken = func(context.Context, login.Password) error {
						return &api.Error{Code: code, Detail: siteURL.String() + " refuses it", Remedy: "see " + siteURL.String()}
					}
				})
				e := m.get(t, "jira")
				m.want(t, e, code, siteURL.Host)
				if !strings.Contains(e.Remedy, "see "+siteURL.String()+loginPage) {
					t.Errorf("remedy %q", e.Remedy)
				}
				// The old configuration or another one.
				for _, n := range []*team{m, m.restarted(t), m.setUpAnew(t, "wiki", "f2"), m.setUpAnew(t, "jira", "f2")} {
					for _, name := range names {
						e := n.get(t, name)
						m.want(t, e, api.Latched, "the password of build was refused ("+string(code)+")")
						m.elsewhere(t, e)
						if !errors.Is(e, &api.Error{Code: code}) {
							t.Errorf("%v hides its code", e)
						}
					}
				}
				m.tried(t, 2)
			})
		})
	}
}

// TestKilledInTheAttempt: an agent that dies while a site looks at a password has
// made the one attempt, also with a password that was right before.
func TestKilledInTheAttempt(t *testing.T) {
	for name, c := range map[string]struct {
		offer []byte
		code  api.Code // of the one that a person then lets it make
	}{
		"stored":  {nil, ""},
		"offered": {[]byte(newPassword), api.BadCredentials}, // right before the stored one was
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := startTeam(t, rightPassword, rightPassword)
				m.want(t, m.get(t, "jira"), "")
				if c.offer != nil {
					m.directory.change(newPassword)
					m.want(t, m.login(t, "ci", LoginOptions{Password: c.offer}), "")
					m.directory.change(rightPassword)
					m.want(t, m.login(t, "ci", LoginOptions{Password: []byte(rightPassword)}), "")
				}
				before := m.directory.tried()
				m.sites["jira"].set(func() { m.sites["jira"].delay = time.Second })
				over := make(chan struct{})
				go func() {
					m.Login(t.Context(), "jira", LoginOptions{Password: c.offer})
					close(over)
				}()
				synctest.Wait()
				m.tried(t, before+1)
				killed := m.restarted(t)
				<-over
				m.want(t, m.login(t, "wiki", LoginOptions{}), "") // who lives has seen the end
				m.tried(t, before+2)
				for _, n := range []*team{killed, killed.restarted(t), killed.setUpAnew(t, "ci", "f2")} {
					for _, name := range names {
						e := n.login(t, name, LoginOptions{Password: c.offer})
						m.want(t, e, api.Latched, "nobody knows what became of the attempt of build at ")
						m.elsewhere(t, e)
					}
				}
				m.tried(t, before+2)
				m.want(t, killed.login(t, "ci", LoginOptions{Password: c.offer, Retry: true}), c.code)
				m.tried(t, before+3)
			})
		})
	}
}

// history is a store that remembers what a kill after each write would have left.
type history struct {
	*records
	left []*records
}

func (h *history) Swap(ctx context.Context, key string, revision uint64, record []byte) (uint64, error) {
	next, err := h.records.Swap(ctx, key, revision, record)
	h.left = append(h.left, h.clone())
	return next, err
}

// TestKilledBetweenWrites: nor does it matter how much of the outcome was written
// down.
func TestKilledBetweenWrites(t *testing.T) {
	for _, code := range []api.Code{api.BadCredentials, api.Captcha, api.UnexpectedStatus} {
		t.Run(string(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := startTeam(t, rightPassword, rightPassword)
				m.want(t, m.get(t, "jira"), "") // accepted before
				m.end("jira")
				pass(5 * time.Minute)
				h := &history{records: m.latches}
				m.password.latches.records = h
				m.sites["jira"].set(func() {
					m.sites["jira"].taken = func(context.Context, login.Password) error { return &api.Error{Code: code} }
				})
				m.want(t, m.get(t, "jira"), code)
				if len(h.left) < 2 {
					t.Fatalf("%d writes", len(h.left))
				}
				for _, left := range h.left {
					n := *m
					n.latches = left
					n.start(t, "")
					m.want(t, n.get(t, "jira"), api.Latched)
				}
				m.tried(t, 2)
			})
		})
	}
}

// TestGivenBack: a site that has not looked at the password costs nothing.
func TestGivenBack(t *testing.T) {
	for _, code := range []api.Code{api.Maintenance, api.RateLimited, api.BasicDisabled, api.Forbidden} {
		synctest.Test(t, func(t *testing.T) {
			m := startTeam(t, newPassword, rightPassword)
			s := m.sites["jira"]
			s.taken = func(_ context.Context, p login.Password) error {
				p.GiveBack()
				return &api.Error{Code: code}
			}
			begin := time.Now()
			for time.Since(begin) < time.Hour {
				m.want(t, m.get(t, "jira"), code)
				pass(time.Second)
			}
			if n := m.directory.tried(); n < 10 || n > 80 {
				t.Errorf("%s: %d attempts in an hour", code, n)
			}
			// Neither refused nor accepted: the next attempt counts, and it alone.
			if code == api.Forbidden {
				m.want(t, m.login(t, "jira", LoginOptions{Password: []byte(wrongPassword)}), code)
				if pw, err := m.password.Load(); err != nil || pw.Reveal() != rightPassword {
					t.Errorf("a password that nobody looked at was stored: %v", err)
				}
			}
			before := m.directory.tried()
			m.sites["wiki"].taken = lost
			m.want(t, m.get(t, "wiki"), api.Timeout)
			m.want(t, m.get(t, "wiki"), api.Latched)
			m.tried(t, before+1)
		})
	}
}

// TestVerdictOfTheProof: what a login that looked good says about the password.
func TestVerdictOfTheProof(t *testing.T) {
	for name, c := range map[string]struct {
		site     func(*site)
		code     api.Code
		accepted bool
	}{
		"outage":       {func(s *site) { s.probeE = &api.Error{Code: api.Maintenance, Detail: "503"} }, api.Maintenance, true},
		"another user": {func(s *site) { s.user = "somebody" }, api.WrongIdentity, true},
		"no right":     {func(s *site) { s.probeE = &api.Error{Code: api.Forbidden, Detail: "403"} }, api.Forbidden, true},
		"no right, said by the login": {func(s *site) {
			s.taken = func(_ context.Context, p login.Password) error {
				p.Accepted()
				return &api.Error{Code: api.Forbidden, Detail: "403"}
			}
		}, api.Forbidden, true},
		"nobody": {func(s *site) { s.probeE = &api.Error{Code: api.Expired, Detail: "401"} }, api.LoginOKButProbeFailed, true},
		// A site that only seems to accept passwords, as login forms do.
		"outage, nothing said":       {func(s *site) { s.directory.silent, s.probeE = true, &api.Error{Code: api.Maintenance, Detail: "503"} }, api.Maintenance, false},
		"another user, nothing said": {func(s *site) { s.directory.silent, s.user = true, "somebody" }, api.WrongIdentity, false},
		"no right, nothing said":     {func(s *site) { s.directory.silent, s.probeE = true, &api.Error{Code: api.Forbidden, Detail: "403"} }, api.Forbidden, false},
		"nobody, nothing said":       {func(s *site) { s.directory.silent, s.probeE = true, &api.Error{Code: api.Expired, Detail: "401"} }, api.LoginOKButProbeFailed, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := startTeam(t, rightPassword, rightPassword)
				wiki, jira := m.sites["wiki"], m.sites["jira"]
				jira.set(func() { c.site(jira) })
				m.want(t, m.get(t, "jira"), c.code)
				m.tried(t, 1)
				if !c.accepted {
					for _, n := range []*team{m, m.restarted(t)} {
						m.want(t, n.get(t, "jira"), api.Latched, "("+string(c.code)+")")
					}
					m.tried(t, 1)
					m.want(t, m.get(t, "wiki"), "")
					m.tried(t, 2)
					return
				}
				// What was accepted may be lost once and is tried again.
				wiki.taken = lost
				m.want(t, m.get(t, "wiki"), api.Timeout)
				wiki.set(func() { wiki.taken = nil })
				m.want(t, m.get(t, "wiki"), "")
				m.tried(t, 3)
				m.want(t, m.restarted(t).get(t, "jira"), c.code)
				m.tried(t, 4)
			})
			synctest.Test(t, func(t *testing.T) {
				m := startTeam(t, rightPassword, "")
				m.sites["jira"].set(func() { c.site(m.sites["jira"]) })
				m.want(t, m.login(t, "jira", LoginOptions{Password: []byte(rightPassword)}), c.code)
				if pw, err := m.password.Load(); c.accepted != (err == nil && pw.Reveal() == rightPassword) {
					t.Errorf("what was offered is stored: %v", err == nil)
				}
			})
		})
	}
}

// TestAcceptedAndRefused: a driver that says both latches nothing, and is not
// asked again at once.
func TestAcceptedAndRefused(t *testing.T) {
	for _, code := range []api.Code{api.BadCredentials, api.Captcha} {
		synctest.Test(t, func(t *testing.T) {
			m := startTeam(t, rightPassword, rightPassword)
			m.sites["jira"].taken = func(_ context.Context, p login.Password) error {
				p.Accepted()
				return &api.Error{Code: code}
			}
			begin := time.Now()
			for time.Since(begin) < time.Hour {
				m.want(t, m.get(t, "jira"), code)
				pass(time.Second)
			}
			if n := m.directory.tried(); n < 10 || n > 80 {
				t.Errorf("%s: %d attempts in an hour", code, n)
			}
			m.want(t, m.get(t, "wiki"), "")
		})
	}
}

func TestPanicWithAPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, rightPassword)
		m.want(t, m.get(t, "jira"), "") // accepted
		bug := func(context.Context, login.Password) error { panic("a bug") }
		m.sites["wiki"].taken = bug
		m.want(t, m.get(t, "wiki"), api.Unknown)
		m.want(t, m.get(t, "ci"), "") // the turn is free
		m.tried(t, 3)

		n := startTeam(t, rightPassword, rightPassword)
		n.sites["wiki"].taken = bug
		n.want(t, n.get(t, "wiki"), api.Unknown)
		n.want(t, n.restarted(t).get(t, "wiki"), api.Latched, "the login broke off (unknown)")
		n.tried(t, 1)
		n.want(t, n.get(t, "ci"), "")
		n.tried(t, 2)
		n.want(t, n.login(t, "wiki", LoginOptions{Password: []byte(newPassword)}), api.Unknown)
		n.want(t, n.login(t, "wiki", LoginOptions{Password: []byte(newPassword)}), api.Latched)
		n.tried(t, 3)
	})
}

func TestOneAttemptAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, rightPassword)
		for _, name := range names {
			m.sites[name].delay = 2 * time.Second
		}
		// A caller that leaves cancels nothing.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := m.Get(ctx, "jira", GetOptions{}); api.CodeOf(err) != api.Deadline {
			t.Errorf("got %v", err)
		}
		if codes := m.everybody(t); codes[""] != 30 {
			t.Errorf("got %v", codes)
		}
		if took := time.Since(begin); took != 12*time.Second { // three logins with their probes
			t.Errorf("it took %v", took)
		}
		m.tried(t, 3)
		if m.directory.most != 1 {
			t.Errorf("%d attempts at a time", m.directory.most)
		}
	})
}

// TestSilentSiteAndItsNeighbours: a site that never answers a password keeps the
// others waiting, but neither for ever nor until their own attempt has no time
// left; and it costs them none of theirs.
func TestSilentSiteAndItsNeighbours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, rightPassword)
		m.want(t, m.get(t, "ci"), "") // accepted
		m.tried(t, 1)
		m.sites["jira"].delay = time.Hour
		begin := time.Now()
		hung := make(chan error, 1)
		go func() {
			_, err := m.Get(t.Context(), "jira", GetOptions{})
			hung <- err
		}()
		synctest.Wait()
		m.tried(t, 2)
		m.want(t, m.get(t, "wiki"), api.Timeout, "another login with the password of build")
		if took := time.Since(begin); took >= loginTimeout {
			t.Errorf("a neighbour waited %v", took)
		}
		m.tried(t, 2)
		for m.get(t, "wiki") != nil {
			if time.Since(begin) > loginTimeout+5*time.Second {
				t.Fatal("the neighbour never had its turn")
			}
			pass(time.Second)
		}
		if err := <-hung; api.CodeOf(err) != api.Timeout || time.Since(begin) < loginTimeout {
			t.Errorf("the silent site: %v after %v", err, time.Since(begin))
		}
		m.tried(t, 3)
	})
}

// TestAttemptsNeedTime: a login whose time ends while it waits for its turn does
// not begin an attempt of which nobody would learn the outcome.
func TestAttemptsNeedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, rightPassword)
		over, cancel := context.WithCancel(t.Context())
		cancel()
		for range 50 { // a select with two ways open takes either
			a := &attempt{p: m.password}
			if _, err := a.Take(over); err == nil {
				t.Fatal("an attempt began after its time")
			}
		}
		m.want(t, m.get(t, "jira"), "")
		m.tried(t, 1)
	})
}

// TestTakenTwice: a driver cannot make two attempts of one.
func TestTakenTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, rightPassword)
		m.sites["jira"].taken = func(ctx context.Context, p login.Password) error {
			_, err := p.Take(ctx)
			return err
		}
		m.want(t, m.get(t, "jira"), api.Unknown, "asks for the password twice")
		m.tried(t, 1)
		m.want(t, m.restarted(t).get(t, "jira"), api.Latched)
		m.want(t, m.get(t, "wiki"), "") // the turn is free
		m.tried(t, 2)
	})
}

func TestNoPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, "")
		for range 5 {
			for _, name := range names {
				e := m.get(t, name)
				m.want(t, e, api.NoSecret, "no password of build is stored for the credential office")
				if e.Remedy != "sessionctl login "+name+" --password-stdin, or: sessionctl login "+name+" --cookie-stdin" {
					t.Errorf("remedy %q", e.Remedy)
				}
			}
		}
		m.want(t, m.login(t, "jira", LoginOptions{Retry: true}), api.NoSecret)
		m.tried(t, 0)
		// No back-off stands in the way of what comes next.
		begin := time.Now()
		m.want(t, m.login(t, "jira", LoginOptions{Password: []byte(rightPassword)}), "")
		if codes := m.everybody(t); codes[""] != 30 || time.Since(begin) != 0 {
			t.Errorf("got %v after %v", codes, time.Since(begin))
		}

		for k := range m.stored.data {
			for _, record := range []string{"{", `{"v":99,"password":"Q0FOQVJZ"}`} {
				m.stored.data[k] = []byte(record)
				m.end("jira")
				pass(5 * time.Minute)
				m.want(t, m.get(t, "jira"), api.NoSecret, "unknown form")
			}
		}
		m.want(t, m.login(t, "jira", LoginOptions{Password: []byte(rightPassword)}), "")
	})
}

// damagedRecords cannot be read until they are replaced.
type damagedRecords struct{ *records }

func (r damagedRecords) Load(key string) ([]byte, uint64, error) {
	if r.rev[key] == 0 {
		return nil, 0, &api.Error{Code: api.StoreDamaged, Detail: "it was changed"}
	}
	return r.records.Load(key)
}

func TestDamagedPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, "")
		m.password.records = damagedRecords{m.stored}
		e := m.get(t, "jira")
		m.want(t, e, api.StoreDamaged, "the password of build cannot be read: it was changed")
		if !strings.HasPrefix(e.Remedy, "sessionctl login jira --password-stdin") {
			t.Errorf("remedy %q", e.Remedy)
		}
		m.want(t, m.login(t, "jira", LoginOptions{Retry: true}), api.StoreDamaged)
		m.tried(t, 0)
		m.want(t, m.login(t, "jira", LoginOptions{Password: []byte(rightPassword)}), "")
		m.want(t, m.get(t, "wiki"), "")
	})
}

var unusablePasswords = map[string]string{
	"empty":              "",
	"too long":           "CANARY-" + strings.Repeat("a", maxPassword),
	"not UTF-8":          "CANARY-\xff",
	"more than one line": "CANARY-1\nCANARY-2",
}

func TestCheckPassword(t *testing.T) {
	for what, p := range unusablePasswords {
		e := shown(t, CheckPassword([]byte(p)))
		if e == nil || e.Code != api.InvalidRequest || !strings.HasSuffix(e.Detail, what) || e.Remedy == "" {
			t.Errorf("%s: got %+v", what, e)
		}
	}
	for _, p := range []string{"CANARY\r", "CANARY\x00", "\n", "CANARY\t", "CANARY\x1a", "CANARY\x7f", "CANARY\u0085"} {
		if CheckPassword([]byte(p)) == nil {
			t.Errorf("%q is taken", p)
		}
	}
	for _, p := range []string{"x", " CANARY ", "CANARY-ä€𝄞", strings.Repeat("a", maxPassword)} {
		if err := CheckPassword([]byte(p)); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, rightPassword)
		m.want(t, m.get(t, "jira"), "")
		for what, p := range unusablePasswords {
			m.want(t, m.login(t, "jira", LoginOptions{Password: []byte(p)}), api.InvalidRequest, what)
		}
		m.tried(t, 1)
	})
}

// FuzzPassword: what passes the check is stored and comes back as it is.
func FuzzPassword(f *testing.F) {
	for _, p := range unusablePasswords {
		f.Add([]byte(p))
	}
	f.Add([]byte("CANARY-ä€𝄞\ufffd\u2028"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if CheckPassword(b) != nil {
			return
		}
		p := NewPassword("office", "build", "", newRecords(), nil)
		if err := p.Store(t.Context(), secret.New(string(b))); err != nil {
			t.Fatal(err)
		}
		if got, err := p.Load(); err != nil || got.Reveal() != string(b) {
			t.Errorf("%q came back as %q, %v", b, got.Reveal(), err)
		}
	})
}

func TestPasswordFromAFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "password.office")
		write := func(p string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(p), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m := startTeam(t, rightPassword, newPassword)
		m.start(t, file)

		e := m.get(t, "jira")
		m.want(t, e, api.NoSecret, file+": no such file or directory")
		if !strings.Contains(e.Remedy, "LoadCredential=") || strings.Contains(e.Remedy, "--password-stdin") {
			t.Errorf("remedy %q", e.Remedy)
		}
		for what, p := range unusablePasswords {
			write(p + "\n")
			m.want(t, m.get(t, "jira"), api.NoSecret, file+": the password is "+what)
		}
		m.tried(t, 0)

		// Read anew at each login.
		write(wrongPassword)
		e = m.get(t, "jira")
		m.want(t, e, api.BadCredentials)
		if e.Remedy != seeAt+"sessionctl login jira --retry" {
			t.Errorf("remedy %q", e.Remedy)
		}
		m.want(t, m.get(t, "wiki"), api.Latched)
		m.tried(t, 1)
		for i, end := range []string{"", "\n", "\r\n"} {
			write(rightPassword + end)
			m.want(t, m.get(t, "jira"), "")
			m.end("jira")
			pass(5 * time.Minute)
			m.tried(t, i+2)
		}
		if slices.ContainsFunc(m.directory.attempts[1:], func(p string) bool { return p != rightPassword }) {
			t.Errorf("%q", m.directory.attempts)
		}

		// No second way in.
		m.want(t, m.login(t, "jira", LoginOptions{Password: []byte(newPassword)}), api.InvalidRequest, "the password stands in "+file)
		m.tried(t, 4)
		if m.stored.writes != 1 {
			t.Error("a password was stored")
		}
	})
}

func TestPasswordForATicketSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		before := a.get(t)
		_, err := a.Login(t.Context(), "app", LoginOptions{Password: []byte(rightPassword)})
		if e := shown(t, err); api.CodeOf(err) != api.InvalidRequest || e.Remedy == "" {
			t.Errorf("got %v", err)
		}
		if a.get(t).Generation != before.Generation {
			t.Error("it logged in")
		}
		a.count(t, 1, 1)
	})
}

func TestPasswordAndAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := func(m *team, err error) {
			for _, r := range []*records{m.latches, m.sessions, m.stored} {
				r.mu.Lock()
				r.failing = err
				r.mu.Unlock()
			}
		}
		m := startTeam(t, rightPassword, rightPassword)
		full(m, errors.New("no space left on device"))
		m.want(t, m.get(t, "jira"), api.StoreFailed, "not tried", "no space left on device")
		m.want(t, m.login(t, "wiki", LoginOptions{Password: []byte(newPassword)}), api.StoreFailed)
		m.tried(t, 0)
		full(m, nil)
		m.want(t, m.get(t, "jira"), "") // it was not the password's fault
		full(m, errors.New("no space left on device"))
		s, err := m.Get(t.Context(), "wiki", GetOptions{})
		if err != nil || !s.NotDurable {
			t.Errorf("one that was accepted: %+v, %v", s, err)
		}
		m.tried(t, 2)
		// A refusal holds for as long as the agent runs.
		m.directory.change(newPassword)
		m.want(t, m.get(t, "ci"), api.BadCredentials)
		m.end("jira")
		pass(5 * time.Minute)
		m.want(t, m.get(t, "jira"), api.Latched)
		m.tried(t, 3)
	})
}

// TestRetryThatIsLost: --retry is one attempt. If its answer is lost, a password
// that was refused does not become a good one because it was accepted once.
func TestRetryThatIsLost(t *testing.T) {
	for _, code := range []api.Code{api.BadCredentials, api.Captcha, api.UnexpectedStatus} {
		synctest.Test(t, func(t *testing.T) {
			m := startTeam(t, rightPassword, rightPassword)
			m.want(t, m.get(t, "jira"), "") // accepted
			m.end("jira")
			pass(5 * time.Minute)
			jira := m.sites["jira"]
			jira.set(func() {
				jira.taken = func(context.Context, login.Password) error { return &api.Error{Code: code} }
			})
			m.want(t, m.get(t, "jira"), code)
			jira.set(func() { jira.taken = lost })
			m.want(t, m.login(t, "jira", LoginOptions{Retry: true}), api.Timeout)
			m.tried(t, 3)
			for range 60 {
				m.want(t, m.get(t, "jira"), api.Latched)
				pass(time.Minute)
			}
			m.want(t, m.restarted(t).get(t, "jira"), api.Latched)
			m.tried(t, 3)
		})
	}
}

// TestSecondFactor: a password that is right and not enough is not tried there again,
// and is good elsewhere.
func TestSecondFactor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, rightPassword)
		jira := m.sites["jira"]
		jira.set(func() {
			jira.taken = func(_ context.Context, p login.Password) error {
				p.Accepted()
				return &api.Error{Code: api.SecondFactor}
			}
		})
		m.want(t, m.get(t, "jira"), api.SecondFactor)
		for range 10 {
			m.want(t, m.get(t, "jira"), api.Latched)
			pass(time.Hour)
		}
		m.tried(t, 1)
		m.want(t, m.get(t, "wiki"), "")
		m.want(t, m.restarted(t).get(t, "jira"), api.Latched)
		m.tried(t, 2)
		jira.set(func() { jira.taken = nil }) // it no longer wants one
		m.want(t, m.login(t, "jira", LoginOptions{Retry: true}), "")
	})
}

// TestListKnowsLatches: what stands is shown although nobody has asked since, and
// not shown when it has gone by way of another site.
func TestListKnowsLatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, newPassword, rightPassword)
		states := func(m *team, want State) {
			t.Helper()
			for _, s := range m.List() {
				if s.State != want || (s.Failure == nil) != (want != Latched) {
					t.Errorf("%s: state %d, %v, want %d", s.Site.Name, s.State, s.Failure, want)
				}
				if want == Latched && !strings.Contains(s.Failure.Remedy, "sessionctl login "+s.Site.Name+" --retry") {
					t.Errorf("%s: remedy %q", s.Site.Name, s.Failure.Remedy)
				}
			}
		}
		states(m, None)
		m.want(t, m.get(t, "jira"), api.BadCredentials)
		states(m, Latched) // at all sites of the credential
		states(m.restarted(t), Latched)
		m.want(t, m.get(t, "wiki"), api.Latched)
		m.want(t, m.login(t, "ci", LoginOptions{Password: []byte(newPassword)}), "")
		m.want(t, m.get(t, "jira"), "")
		if s := m.List()[slices.Index(names, "wiki")]; s.State != None || s.Failure != nil {
			t.Errorf("wiki: %+v", s)
		}
		m.tried(t, 3)
	})
}

// TestPasswordNotKept: the site accepts a password that the store then does not
// take: the session is there, and the person who brought it learns the rest.
func TestPasswordNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startTeam(t, rightPassword, "")
		m.stored.failing = errors.New("no space left on device")
		err := m.login(t, "jira", LoginOptions{Password: []byte(rightPassword)})
		m.want(t, err, api.StoreFailed, "logged in as", "could not be stored")
		m.want(t, m.get(t, "jira"), "")
		m.want(t, m.get(t, "wiki"), api.NoSecret)
		m.tried(t, 1)
	})
}

func TestCaptcha(t *testing.T) {
	picture := &api.Error{Code: api.Captcha, Detail: "the site wants a CAPTCHA solved", Remedy: "solve it"}
	t.Run("ticket", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			jira, wiki := &site{loginE: picture}, &site{}
			sessions, latches := newRecords(), newRecords()
			k := keep(t, sessions, NewLatches(latches, mac), jira.named("jira"), wiki.named("wiki"))
			refused := func(k *Keeper, code api.Code, remedy string) {
				t.Helper()
				_, err := k.Get(t.Context(), "jira", GetOptions{})
				if e := api.AsError(err); e == nil || e.Code != code || e.Remedy != remedy {
					t.Errorf("got %+v, want %s", e, code)
				}
			}
			const remedy = "solve it, then: sessionctl login jira --retry"
			refused(k, api.Captcha, remedy)
			jira.set(func() { jira.loginE = nil })
			pass(24 * time.Hour)
			refused(k, api.Latched, remedy)
			refused(keep(t, sessions.clone(), NewLatches(latches.clone(), mac), jira.named("jira")), api.Latched, remedy)
			if _, err := k.Login(t.Context(), "jira", LoginOptions{}); api.CodeOf(err) != api.Latched {
				t.Errorf("without retry: %v", err)
			}
			if jira.logins != 1 {
				t.Errorf("%d logins", jira.logins)
			}
			if _, err := k.Get(t.Context(), "wiki", GetOptions{}); err != nil {
				t.Errorf("another site of the same account: %v", err)
			}
			if _, err := k.Login(t.Context(), "jira", LoginOptions{Retry: true}); err != nil {
				t.Errorf("with retry: %v", err)
			}
			if jira.logins != 2 {
				t.Errorf("%d logins", jira.logins)
			}
		})
	})
	for name, c := range map[string]struct {
		wants    func(s *site, e error)
		attempts int
	}{
		"with the password":   {func(s *site, e error) { s.taken = func(context.Context, login.Password) error { return e } }, 1},
		"before the password": {func(s *site, e error) { s.page = e }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := startTeam(t, rightPassword, rightPassword)
				m.want(t, m.get(t, "wiki"), "")
				m.tried(t, 1)
				jira := m.sites["jira"]
				jira.set(func() { c.wants(jira, picture) })
				e := m.get(t, "jira")
				m.want(t, e, api.Captcha)
				const remedy = "solve it, then: sessionctl login jira --retry" // another password solves nothing
				if e.Remedy != remedy {
					t.Errorf("remedy %q", e.Remedy)
				}
				jira.set(func() { jira.taken, jira.page = nil, nil })
				pass(24 * time.Hour)
				for _, n := range []*team{m, m.restarted(t)} {
					e := n.get(t, "jira")
					m.want(t, e, api.Latched, "(captcha)")
					if e.Remedy != remedy {
						t.Errorf("remedy %q", e.Remedy)
					}
				}
				m.tried(t, 1+c.attempts)
				m.want(t, m.get(t, "ci"), "") // the other sites go on
				m.want(t, m.setUpAnew(t, "jira", "f2").get(t, "jira"), "")
				m.tried(t, 3+c.attempts)
				m.want(t, m.login(t, "jira", LoginOptions{Retry: true}), "")
				m.want(t, m.get(t, "jira"), "")
				m.tried(t, 4+c.attempts)
			})
		})
	}
}

var printed = regexp.MustCompile(`sessionctl login (\S+)((?: --[a-z-]+)*)`)

// follow does what a remedy prints last, literally, with the password or the
// cookies that somebody has.
func (m *team) follow(t *testing.T, e *api.Error, password string) *api.Error {
	t.Helper()
	commands := printed.FindAllStringSubmatch(e.Remedy, -1)
	if len(commands) == 0 {
		t.Fatalf("no command in %q", e.Remedy)
	}
	return m.run(t, commands[len(commands)-1], password)
}

func (m *team) run(t *testing.T, command []string, password string) *api.Error {
	t.Helper()
	var o LoginOptions
	for _, flag := range strings.Fields(command[2]) {
		switch flag {
		case "--retry":
			o.Retry = true
		case "--password-stdin":
			o.Password = []byte(password)
		case "--cookie-stdin":
			o.Adopt = new(web.Jar)
			o.Adopt.Set(siteURL, []string{"session=" + m.sites[command[1]].current}, time.Now())
		default:
			t.Fatalf("there is no flag %s", flag)
		}
	}
	return m.login(t, command[1], o)
}

// TestPrintedCommands: whoever brings the first password, and then does literally
// what is printed, has a session in the end, and does not repeat an attempt.
func TestPrintedCommands(t *testing.T) {
	const again = "sessionctl login jira --password-stdin --retry"
	for name, c := range map[string]struct {
		trouble, over func(*site)
		code          api.Code
		remedy        string // of the first failure
		latched       string // of the same once more
	}{
		"captcha": {
			func(s *site) {
				s.taken = func(context.Context, login.Password) error {
					return &api.Error{Code: api.Captcha, Detail: "a picture", Remedy: "solve it"}
				}
			},
			func(s *site) { s.taken = nil },
			api.Captcha, "solve it, then: " + again, "solve it, then: " + again,
		},
		"captcha on the page": {
			func(s *site) { s.page = &api.Error{Code: api.Captcha, Detail: "a picture", Remedy: "solve it"} },
			func(s *site) { s.page = nil },
			api.Captcha, "solve it, then: " + again, "solve it, then: " + again,
		},
		"wrong": {
			func(s *site) { s.directory.change(newPassword) },
			func(s *site) { s.directory.change(rightPassword) },
			api.BadCredentials, seeAt + "sessionctl login jira --password-stdin, or: " + again, seeAt + "sessionctl login jira --password-stdin, or: " + again,
		},
		"no login after all": {
			func(s *site) { s.directory.silent, s.probeE = true, &api.Error{Code: api.Expired, Detail: "401"} },
			func(s *site) { s.probeE = nil },
			api.LoginOKButProbeFailed, "check the site's url, and its probe_url and identity_… if it has them",
			"check the site's url, and its probe_url and identity_… if it has them" + loginPage + "sessionctl login jira --password-stdin, or: " + again,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := startTeam(t, rightPassword, "")
				jira := m.sites["jira"]
				none := m.get(t, "jira")
				m.want(t, none, api.NoSecret)
				ways := printed.FindAllStringSubmatch(none.Remedy, -1)
				if len(ways) != 2 {
					t.Fatalf("remedy %q", none.Remedy)
				}
				jira.set(func() { c.trouble(jira) })
				e := m.run(t, ways[0], rightPassword)
				m.want(t, e, c.code)
				if e.Remedy != c.remedy {
					t.Errorf("remedy %q", e.Remedy)
				}
				jira.set(func() { c.over(jira) })
				m.want(t, m.get(t, "jira"), api.NoSecret) // it is not at hand
				tried := m.directory.tried()
				same := m.run(t, ways[0], rightPassword)
				m.want(t, same, api.Latched, "("+string(c.code)+")")
				if same.Remedy != c.latched {
					t.Errorf("remedy %q", same.Remedy)
				}
				m.tried(t, tried)
				m.want(t, m.follow(t, same, rightPassword), "")
				m.tried(t, tried+1)
				for _, name := range names {
					m.want(t, m.get(t, name), "")
				}
			})
		})
	}
	t.Run("another password", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := startTeam(t, rightPassword, "")
			e := m.login(t, "jira", LoginOptions{Password: []byte(wrongPassword)})
			m.want(t, e, api.BadCredentials)
			m.want(t, m.run(t, printed.FindStringSubmatch(e.Remedy), rightPassword), "")
			m.tried(t, 2)
		})
	})
	t.Run("a cookie", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := startTeam(t, rightPassword, "")
			m.sites["jira"].current = "CANARY-browser"
			m.want(t, m.follow(t, m.get(t, "jira"), ""), "")
			m.want(t, m.get(t, "jira"), "")
			m.tried(t, 0)
		})
	})
}
