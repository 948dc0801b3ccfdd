package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// realKDC is what the real KDCs have in common.
type realKDC interface {
	rig.Realm
	Stop()
	Krb5ConfFile() string
	AddPrincipal(ctx context.Context, name, password string, attributes ...rig.Attribute) error
	AddService(ctx context.Context, spn string, attributes ...rig.Attribute) error
	Keytab(ctx context.Context, path string, names ...string) error
	Counts() (rig.Counts, error)
}

// ground is where a row of the matrix is tried: KDCs, the keytab of the servers,
// and the accounts that log in at them.
type ground struct {
	dir      string
	krb5Conf string // of the servers
	keytab   string // of the servers
	kdcs     []realKDC
	accounts []account
}

// account is who logs in, and how the agent finds its way: one row of the table in
// docs/kerberos.md.
type account struct {
	row       string
	krb5Conf  string
	principal string // as the configuration has it
	options   string // further lines of the credential: where its keys are
	spn       string // of the servers, "": by their host
	user      string // whom the servers take it for
}

// newGround starts nothing but a KDC's first users: build with its keytab, and the
// servers' HTTP/localhost.
func newGround(t *testing.T, k realKDC) *ground {
	t.Helper()
	t.Cleanup(k.Stop)
	g := &ground{dir: t.TempDir(), krb5Conf: k.Krb5ConfFile(), kdcs: []realKDC{k}}
	g.keytab = filepath.Join(g.dir, "http.keytab")
	must(t, k.AddPrincipal(t.Context(), "build", password))
	must(t, k.AddService(t.Context(), "HTTP/localhost"))
	must(t, k.Keytab(t.Context(), g.keytab, "HTTP/localhost"))
	must(t, k.Keytab(t.Context(), g.buildKeytab(), "build"))
	return g
}

func (g *ground) buildKeytab() string { return filepath.Join(g.dir, "build.keytab") }

// build is the account of the keytab of build.
func (g *ground) build(row string) account {
	user := "build@" + g.kdcs[0].Realm()
	return account{row: row, krb5Conf: g.krb5Conf, principal: user, user: user, options: fmt.Sprintf("keytab = %q", g.buildKeytab())}
}

// messages returns how many messages the KDCs have answered.
func (g *ground) messages(t *testing.T) int {
	t.Helper()
	n := 0
	for _, k := range g.kdcs {
		c, err := k.Counts()
		must(t, err)
		n += c.AS + c.TGS
	}
	return n
}

// twoRealms has the user in one of MIT's realms and the servers in the other one.
func twoRealms(t *testing.T) *ground {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local")
	dir := t.TempDir()
	users, err := rig.StartMIT(t.Context(), filepath.Join(dir, "users"), realm)
	must(t, err)
	t.Cleanup(users.Stop)
	servers, err := rig.StartMIT(t.Context(), filepath.Join(dir, "servers"), "WEB.EXAMPLE")
	must(t, err)
	t.Cleanup(servers.Stop)
	must(t, users.Trust(t.Context(), servers))
	const host = "HTTP/app.web.example"
	g := &ground{dir: dir, krb5Conf: servers.Krb5ConfFile(), keytab: filepath.Join(dir, "http.keytab"), kdcs: []realKDC{users, servers}}
	must(t, users.AddPrincipal(t.Context(), "build", password))
	must(t, users.Keytab(t.Context(), g.buildKeytab(), "build"))
	for _, spn := range []string{"HTTP/localhost", host} {
		must(t, servers.AddService(t.Context(), spn))
		must(t, servers.Keytab(t.Context(), g.keytab, spn))
	}
	// The first realm of a krb5.conf of package rig has localhost.
	known, referred := g.build(knownRealm), g.build(referredRealm)
	known.krb5Conf = filepath.Join(dir, "known.conf")
	must(t, rig.Krb5Conf{Realms: []rig.Realm{servers, users}}.WriteFile(known.krb5Conf))
	// Whose the host is, only the KDC of the user's realm knows.
	referred.krb5Conf, referred.spn = filepath.Join(dir, "referred.conf"), host
	must(t, rig.Krb5Conf{Realms: []rig.Realm{users, servers}, Referrals: true}.WriteFile(referred.krb5Conf))
	g.accounts = []account{known, referred}
	return g
}

func samba(t *testing.T) *ground {
	rig.Require(t, rig.SambaNeeds()...)
	k, err := rig.StartSamba(t.Context(), filepath.Join(t.TempDir(), "kdc"), "AD.EXAMPLE")
	must(t, err)
	g := newGround(t, k)
	g.accounts = []account{g.build(sambaRow)}
	return g
}

func heimdal(t *testing.T) *ground {
	rig.Require(t, rig.HeimdalNeeds()...)
	k, err := rig.StartHeimdal(t.Context(), filepath.Join(t.TempDir(), "kdc"), "HEIMDAL.EXAMPLE")
	must(t, err)
	g := newGround(t, k)
	g.accounts = []account{g.build(heimdalRow)}
	return g
}

// server is one column: a server that wants tickets, and a site that is reached by
// it.
type server struct {
	config func(account) string // [site.app] and what it needs but [credential.build]
	stdin  string               // a password to be brought first, or ""
	whoami string               // a page that says who a session is
	user   string               // whom it names, "": the account's
	logins func(*testing.T) int // how many tokens of the account the server has accepted, with a login
	forget func(*testing.T)     // ends all sessions
}

// negotiating is a [site.app] that asks for Negotiate.
func negotiating(url, more string) func(account) string {
	return func(a account) string {
		return fmt.Sprintf("[site.app]\nurl = %q\nkind = \"spnego\"\ncredential = \"build\"\ninsecure_http = true\nprobe_url = \"whoami\"\nidentity_json = \"user\"\nrecheck = \"0s\"\nspn = %q\n%s", url, a.spn, more)
	}
}

func apache(t *testing.T, g *ground) *server {
	rig.Require(t, "apache2", "mod_auth_gssapi", "mod_ssl")
	a, err := rig.StartApache(t.Context(), filepath.Join(g.dir, "apache"), rig.ApacheOptions{Krb5ConfFile: g.krb5Conf, KeytabFile: g.keytab})
	must(t, err)
	t.Cleanup(a.Stop)
	return &server{
		config: negotiating(a.URL()+"/spnego/", ""),
		whoami: a.URL() + "/spnego/whoami",
		logins: func(t *testing.T) int {
			h, err := a.Hits("/")
			must(t, err)
			return h.Negotiate
		},
		forget: func(t *testing.T) { must(t, a.Restart(t.Context(), true)) },
	}
}

func tomcat(t *testing.T, g *ground) *server {
	rig.Require(t, rig.TomcatNeeds()...)
	s, err := rig.StartTomcat(t.Context(), filepath.Join(g.dir, "tomcat"), rig.TomcatOptions{Krb5ConfFile: g.krb5Conf, KeytabFile: g.keytab})
	must(t, err)
	t.Cleanup(s.Stop)
	return &server{
		config: negotiating(s.URL()+"/spn/", ""),
		whoami: s.URL() + "/spn/whoami",
		logins: func(t *testing.T) int {
			h, err := s.Hits(t.Context(), "/")
			must(t, err)
			return h.Negotiate
		},
		forget: func(t *testing.T) { must(t, s.ForgetSessions(t.Context())) },
	}
}

// squid stands in front of a site that knows nothing of Kerberos: everybody gets its
// login form.
func squid(t *testing.T, g *ground) *server {
	rig.Require(t, "squid")
	p, err := rig.StartSquid(t.Context(), filepath.Join(g.dir, "squid"), rig.SquidOptions{Krb5ConfFile: g.krb5Conf, KeytabFile: g.keytab})
	must(t, err)
	t.Cleanup(p.Stop)
	f, err := rig.StartForm()
	must(t, err)
	t.Cleanup(f.Stop)
	f.AddUser("anna", "CANARY-anna")
	return &server{
		config: func(a account) string {
			return fmt.Sprintf("[credential.anna]\nusername = \"anna\"\n[proxy.squid]\nurl = %q\ncredential = \"build\"\nspn = %q\n", p.URL(), a.spn) +
				fmt.Sprintf("[site.app]\nurl = %q\nkind = \"form\"\ncredential = \"anna\"\nproxy = \"squid\"\ninsecure_http = true\nprobe_url = \"whoami\"\nidentity_json = \"user\"\nrecheck = \"0s\"\n", f.URL()+"/app/")
		},
		stdin:  "CANARY-anna\n",
		whoami: f.URL() + "/app/whoami",
		user:   "anna",
		logins: func(t *testing.T) int {
			t.Helper()
			hits, err := p.Hits(t.Context())
			must(t, err)
			for _, hit := range hits {
				if hit.Status != http.StatusProxyAuthRequired && !slices.ContainsFunc(g.accounts, func(a account) bool { return a.user == hit.User }) {
					t.Errorf("Squid has let %q through: %+v", hit.User, hit)
				}
			}
			return f.Counts().Logins
		},
		forget: func(t *testing.T) {
			// The proxy forgets who a connection is of, the site its sessions.
			p.Stop()
			must(t, p.Start(t.Context()))
			f.DropSessions()
		},
	}
}

// at makes a home whose site app is at the server, and logs in as the account.
func (s *server) at(t *testing.T, a account, more ...string) *home {
	t.Helper()
	h := newHome(t, &world{krb5Conf: a.krb5Conf})
	write(t, h.config, fmt.Sprintf("[credential.build]\nprincipal = %q\n%s\n%s%s\n", a.principal, a.options, s.config(a), strings.Join(more, "\n")))
	return h
}

// ask asks the server's site who a session's user is: the name, or the answer's
// status.
func (s *server) ask(t *testing.T, cookie string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.whoami, nil)
	must(t, err)
	req.Header.Set("Cookie", strings.TrimSuffix(cookie, "\n"))
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := tr.RoundTrip(req)
	must(t, err)
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return res.Status
	}
	var answer struct{ User string }
	must(t, json.NewDecoder(res.Body).Decode(&answer))
	return answer.User
}

// try is one cell: it returns how many messages the KDCs have had for the first
// session, and how many for what came after it.
func (s *server) try(t *testing.T, g *ground, a account) (messages, later int) {
	t.Helper()
	want := a.user
	if s.user != "" {
		want = s.user
	}
	h := s.at(t, a)
	h.start(t)
	before, logins := g.messages(t), s.logins(t)
	if s.stdin != "" {
		if r := h.run(t, s.stdin, filepath.Join(bin, "sessionctl"), "login", "app", "--password-stdin"); r.status != 0 {
			t.Fatalf("%v", r)
		}
	}
	first := h.ok(t, "raw", "app")
	if got := s.ask(t, first); got != want {
		t.Errorf("the session is of %q, want %q", got, want)
	}
	asked := g.messages(t)
	if n := s.logins(t) - logins; n != 1 {
		t.Errorf("%d logins", n)
	}
	for i, step := range []struct {
		name   string
		before func(*testing.T)
		logins int
	}{
		{"the second call", func(*testing.T) {}, 0},
		{"when all sessions were forgotten", s.forget, 1},
	} {
		step.before(t)
		if got := s.ask(t, first); i == 1 && got == want {
			t.Errorf("%s: the old session still is %s's", step.name, got)
		}
		logins := s.logins(t)
		if got := s.ask(t, h.ok(t, "raw", "app")); got != want {
			t.Errorf("%s: the session is of %q, want %q", step.name, got, want)
		}
		if n := s.logins(t) - logins; n != step.logins {
			t.Errorf("%s: %d logins", step.name, n)
		}
	}
	return asked - before, g.messages(t) - asked
}

// The rows and columns of the table in docs/kerberos.md.
const (
	knownRealm    = "MIT krb5, two realms, `[domain_realm]`"
	referredRealm = "MIT krb5, two realms, referral"
	sambaRow      = "Samba AD"
	heimdalRow    = "Heimdal"
)

var matrixColumns = []struct {
	name  string
	start func(*testing.T, *ground) *server
}{{"Apache mod_auth_gssapi", apache}, {"Tomcat SPNEGO", tomcat}, {"Squid", squid}}

// matrixRuns is how often a cell may be tried: a KDC that other work on the machine
// keeps for 300 ms is asked again over its other transport, and may tell of it late.
const matrixRuns = 3

// TestMatrix: the agent with every KDC at every server, and the table in
// docs/kerberos.md says how it went.
func TestMatrix(t *testing.T) {
	table := matrixTable(t)
	for _, kdc := range []struct {
		name string
		make func(*testing.T) *ground
		also func(*testing.T, *ground)
	}{
		{"MIT", twoRealms, func(*testing.T, *ground) {}},
		{"Samba", samba, func(t *testing.T, g *ground) {
			t.Run("spelling", func(t *testing.T) { testSpelling(t, g) })
			t.Run("groups", func(t *testing.T) { testGroups(t, g) })
		}},
		{"Heimdal", heimdal, func(*testing.T, *ground) {}},
	} {
		t.Run(kdc.name, func(t *testing.T) {
			t.Parallel()
			g := kdc.make(t)
			for _, column := range matrixColumns {
				t.Run(strings.Fields(column.name)[0], func(t *testing.T) {
					s := column.start(t, g)
					for _, a := range g.accounts {
						for run := 1; ; run++ {
							messages, later := s.try(t, g, a)
							got, said := fmt.Sprintf("works, %d messages", messages), table[a.row][column.name]
							if got == said && later == 0 {
								break
							}
							if run == matrixRuns {
								t.Errorf("%s: %s, and %d later; the table says %q, and none later", a.row, got, later, said)
								break
							}
							t.Logf("%s: %s, and %d later, in run %d", a.row, got, later, run)
						}
					}
				})
			}
			kdc.also(t, g)
		})
	}
}

// matrixTable returns the table in docs/kerberos.md, by row and column. None is
// missing, and none stands there that is not tried.
func matrixTable(t *testing.T) map[string]map[string]string {
	t.Helper()
	table := map[string]map[string]string{}
	var columns []string
	for line := range strings.Lines(readPage(t, "docs/kerberos.md")) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		switch {
		case !strings.HasPrefix(line, "|"):
			columns = nil
		case cells[0] == "KDC":
			columns = cells[1:]
		case columns != nil && !strings.HasPrefix(line, "|-") && len(cells) == len(columns)+1:
			table[cells[0]] = map[string]string{}
			for i, column := range columns {
				table[cells[0]][column] = cells[i+1]
			}
		}
	}
	rows := []string{knownRealm, referredRealm, sambaRow, heimdalRow}
	if got := slices.Sorted(maps.Keys(table)); !slices.Equal(got, slices.Sorted(slices.Values(rows))) {
		t.Errorf("the table has the rows %q, want %q", got, rows)
	}
	for row, cells := range table {
		for _, column := range matrixColumns {
			if cells[column.name] == "" {
				t.Errorf("%s, %s: the table says nothing", row, column.name)
			}
		}
		if len(cells) != len(matrixColumns) {
			t.Errorf("%s: the table has the columns %q", row, slices.Sorted(maps.Keys(cells)))
		}
	}
	return table
}

// testSpelling: in Active Directory, names are the same in any case, and a realm is
// a DNS name, which people write as they like.
func testSpelling(t *testing.T, g *ground) {
	s := apache(t, g)
	byKeytab := g.build("")
	byKeytab.principal = "BUILD@ad.example"
	byPassword := byKeytab
	byPassword.principal, byPassword.options = "Build@Ad.Example", ""
	for _, a := range []account{byKeytab, byPassword} {
		h := s.at(t, a)
		h.start(t)
		if a.options == "" {
			if r := h.run(t, password, filepath.Join(bin, "sessionctl"), "login", "app", "--password-stdin"); r.status != 0 {
				t.Errorf("%s: %v", a.principal, r)
			}
		}
		if got := s.ask(t, h.ok(t, "raw", "app")); !strings.EqualFold(got, a.user) {
			t.Errorf("%s: the session is of %q", a.principal, got)
		}
	}
}

// testGroups: whoever is in a thousand groups has tickets that no web server
// takes, unless they are without a PAC.
func testGroups(t *testing.T, g *ground) {
	k := g.kdcs[0].(*rig.Samba)
	must(t, k.AddPrincipal(t.Context(), "many", password))
	must(t, k.AddGroups(t.Context(), "many", 1000))
	a := g.build("")
	a.principal, a.user = "many@"+k.Realm(), "many@"+k.Realm()
	keytab := filepath.Join(g.dir, "many.keytab")
	must(t, k.Keytab(t.Context(), keytab, "many"))
	a.options = fmt.Sprintf("keytab = %q\n", keytab)
	for name, start := range map[string]func(*testing.T, *ground) *server{"Apache": apache, "Tomcat": tomcat} {
		t.Run(name, func(t *testing.T) {
			s := start(t, g)
			h := s.at(t, a)
			h.start(t)
			r := h.fails(t, 5, "unexpected_status", "raw", "app")
			if !regexp.MustCompile(`answers 400 to a token of 1\d{4} bytes`).MatchString(r.stderr) || !strings.Contains(r.stderr, "\n  next: set no_pac = true") {
				t.Errorf("%v", r)
			}
			ofCredential := a
			ofCredential.options += "no_pac = true\n"
			for name, h := range map[string]*home{"of the credential": s.at(t, ofCredential), "of the site": s.at(t, a, "no_pac = true")} {
				h.start(t)
				if got := s.ask(t, h.ok(t, "raw", "app")); got != a.user {
					t.Errorf("no_pac %s: the session is of %q", name, got)
				}
			}
		})
	}
}
