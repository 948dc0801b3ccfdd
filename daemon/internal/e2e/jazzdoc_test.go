package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const jazzPage = "docs/jazz.md"

const (
	elmPassword    = "CANARY-elm"
	elmAppPassword = "CANARY-app-password"
)

// What the page calls what the rig has in its way.
const (
	elmHost = "https://elm.corp.example"
	jasHost = "jas.corp.example:9643"
	elmArea = "_RZbkgDrKEd6"
	rigArea = "_sampleAreaOfNoSecrets" // the rig's only one
)

// elm is a Jazz server as docs/jazz.md has it, and the home of somebody who does what
// that says.
type elm struct {
	*world
	*home
	*rig.Jazz
	keytab string // of svc-build
}

// newELM sets up a configuration under a heading of the page; n says which, from 0.
func newELM(t *testing.T, o rig.JazzOptions, title string, n int) *elm {
	t.Helper()
	e := &elm{world: inProcess(t)}
	e.kdc.AddPrincipal("svc-build", "CANARY-svc-build")
	e.keytab = write(t, filepath.Join(t.TempDir(), "svc-build.keytab"), string(e.kdc.Keytab("svc-build")))
	e.home = newHome(t, e.world)
	o.Keytab = e.kdc.Keytab("HTTP/localhost")
	var err error
	e.Jazz, err = rig.StartJazz(o)
	must(t, err)
	t.Cleanup(e.Jazz.Stop)
	e.AddUser("alice", elmPassword)
	e.AddUser("svc-build", "")
	e.AddAppPassword("alice", elmAppPassword)
	write(t, e.config, e.here(withoutTLS(sectionBlocks(t, jazzPage, title, "toml")[n])))
	return e
}

// back are pairs of what is here and what it is on the page.
func (e *elm) back() []string {
	return []string{strings.TrimSuffix(e.URL("ccm"), "/ccm"), elmHost}
}

// here is a text of the page for this server.
func (e *elm) here(text string) string {
	return strings.NewReplacer(elmHost, e.back()[0], `"`+jasHost+`"`, `"`+e.JASURL()+`"`, keytabFile, e.keytab, elmArea, rigArea).Replace(text)
}

// same runs what the page shows under a heading.
func (e *elm) same(t *testing.T, secret, title string) {
	t.Helper()
	for _, c := range shownIn(t, jazzPage, title) {
		c.same(t, e.home, secret, e.back()...)
	}
}

// spent holds what the server has seen to what is said of it: that many logins, each
// with one password or token, none of which stood in a URL or went where nobody had
// asked for it.
func (e *elm) spent(t *testing.T, logins int) {
	t.Helper()
	n := e.Counts()
	if n.Logins != logins || n.Failures != 0 || n.Passwords+n.Tokens != logins || n.PasswordsInURL+n.Preemptive+n.StateReused != 0 {
		t.Errorf("want %d logins: %+v", logins, n)
	}
}

// TestJazzExample: one application of a server with a form, as docs/jazz.md has it,
// with what was found out, and the logout.
func TestJazzExample(t *testing.T) {
	rig.Require(t, "curl")
	for _, tracked := range []bool{false, true} {
		t.Run(fmt.Sprint("tracked ", tracked), func(t *testing.T) {
			e := newELM(t, rig.JazzOptions{LogoutTracked: tracked}, "One application", 0)
			a := e.start(t)
			e.same(t, elmPassword, "One application")
			e.same(t, "", "What is found out")
			e.spent(t, 1)
			commands := shownIn(t, jazzPage, "Logout")
			if len(commands) != 2 {
				t.Fatalf("%d logouts", len(commands))
			}
			if tracked {
				commands[1].same(t, e.home, "", e.back()...)
			} else {
				commands[0].same(t, e.home, "", e.back()...)
			}
			e.ok(t, "raw", "ccm")
			e.spent(t, 2) // the agent has forgotten its own token
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestELMExample: a server with all its applications: one login, sessions of their own,
// and what happens when an application forgets them.
func TestELMExample(t *testing.T) {
	const title = "A server with all its applications"
	e := newELM(t, rig.JazzOptions{}, title, 0)
	a := e.start(t)
	e.same(t, elmPassword, title)
	sites := []string{"ccm", "qm", "rm", "gc"}
	ids := map[string]bool{}
	for _, site := range sites {
		header := e.ok(t, "header", site)
		id := regexp.MustCompile(`JSESSIONID=([^;\n]+)`).FindStringSubmatch(header)
		if id == nil || !strings.Contains(header, "LtpaToken2=") && site != "rm" || !strings.Contains(header, "\nX-Jazz-CSRF-Prevent: "+id[1]+"\n") || ids[id[1]] {
			t.Errorf("%s: %s", site, header)
			continue
		}
		ids[id[1]] = true
	}
	e.spent(t, 1)
	e.DropApps()
	for _, site := range sites {
		e.ok(t, "reject", site)
	}
	e.spent(t, 1)
	e.DropSessions()
	for _, site := range sites {
		e.ok(t, "reject", site)
	}
	e.spent(t, 2)
	e.ok(t, "logout", "ccm")
	e.ok(t, "raw", "ccm")
	e.spent(t, 2)
	e.ok(t, "logout", "ccm", "--idp")
	e.ok(t, "raw", "qm")
	e.spent(t, 3)
	a.stop(t)
	noSecrets(t, a)
}

// TestJASExample: the Authorization Server of docs/jazz.md, by Basic and by its form;
// and where it is not among the login_hosts.
func TestJASExample(t *testing.T) {
	const title = "The Authorization Server"
	for _, form := range []bool{false, true} {
		t.Run(fmt.Sprint("form ", form), func(t *testing.T) {
			e := newELM(t, rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{NoBasic: form}}, title, 0)
			if form {
				e.rewrite(t, "[idp.elm]\n", "[idp.elm]\njas_form = true\n")
			}
			a := e.start(t)
			if r := e.bring(t, "ccm", elmPassword); r.status != 0 || r.stderr != "sessionctl: ccm: logged in as alice\n" {
				t.Fatalf("%v", r)
			}
			header := e.ok(t, "header", "ccm")
			if !strings.Contains(header, "JSESSIONID=") || !strings.Contains(header, "\nX-Jazz-CSRF-Prevent: ") || strings.Contains(header, "jazzop") || strings.Contains(header, "oidc") {
				t.Errorf("%s", header)
			}
			e.spent(t, 1)
			e.DropApps()
			e.ok(t, "reject", "ccm")
			e.spent(t, 1)
			a.stop(t)
			noSecrets(t, a)
		})
	}
	t.Run("not configured", func(t *testing.T) {
		e := newELM(t, rig.JazzOptions{Auth: "jas"}, title, 0)
		e.rewrite(t, fmt.Sprintf("login_hosts = [%q]\n", e.JASURL()), "")
		e.start(t)
		r := e.bring(t, "ccm", elmPassword)
		wantFailure(t, r, 5, "sso_redirect")
		if !strings.Contains(r.stderr, strings.TrimPrefix(e.JASURL(), "http://")) {
			t.Errorf("%v", r)
		}
		e.spent(t, 0)
	})
}

// TestAppPasswordExample: what docs/jazz.md says of application passwords, and that
// without one no password goes out.
func TestAppPasswordExample(t *testing.T) {
	for _, external := range []string{"saml", "oidc"} {
		t.Run(external, func(t *testing.T) {
			const title = "Application passwords"
			e := newELM(t, rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: external}}, title, 0)
			a := e.start(t)
			e.same(t, elmAppPassword, title)
			e.spent(t, 1)
			e.rewrite(t, "app_password = true\n", "")
			e.ok(t, "reload")
			r := e.fails(t, 5, "app_password_required", "raw", "rm")
			if !strings.Contains(r.stderr, "personalTokenManagement") {
				t.Errorf("%v", r)
			}
			e.spent(t, 1)
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestJazzByTicket: the configuration with a keytab, where the container asks for
// Negotiate, and where JAS does.
func TestJazzByTicket(t *testing.T) {
	for name, o := range map[string]rig.JazzOptions{
		"container": {Auth: "negotiate"},
		"jas":       {Auth: "jas", JAS: rig.JazzJAS{Kerberos: true}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newELM(t, o, "Kerberos", 0)
			if name == "container" { // which has no JAS
				e.rewrite(t, fmt.Sprintf("login_hosts = [%q]\n", e.JASURL()), "")
			}
			a := e.start(t)
			if r := e.sessionctl(t, "login", "ccm"); r.status != 0 || !strings.HasPrefix(r.stderr, "sessionctl: ccm: logged in as svc-build") {
				t.Errorf("%v", r)
			}
			e.ok(t, "raw", "ccm")
			e.spent(t, 1)
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestJazzTable: what a server shows leads to the login or the code that docs/jazz.md
// has, and no password goes out where there is a code.
func TestJazzTable(t *testing.T) {
	type server struct {
		o     rig.JazzOptions
		modes rig.JazzModes
	}
	table := section(t, jazzPage, "What is found out") + section(t, jazzPage, "DOORS Next")
	for _, c := range []struct {
		row  string // a text of the page
		site string
		server
		code string // "": a login
	}{
		{"`X-com-ibm-team-repository-web-auth-msg: authrequired`", "ccm", server{o: rig.JazzOptions{Redirect: 303}}, ""},
		{"401 and `X-jazz-web-oauth-url`", "rm", server{}, ""},
		{"401, `Bearer realm=\"JSA\"`", "ccm", server{o: rig.JazzOptions{Auth: "jas"}}, ""},
		{"the same with `X-JSA-APP-PASSWORD-REDIRECT`", "ccm", server{o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "saml"}}}, "app_password_required"},
		{"401 and `Basic` alone, at a server whose `rootservices` are Jazz's", "ccm", server{o: rig.JazzOptions{Auth: "basic"}}, ""},
		{"401 and `Bearer`, without any `X-JSA-`", "ccm", server{o: rig.JazzOptions{Auth: "bearer"}}, "challenge_unsupported"},
		{"401 and `JAuth`", "ccm", server{o: rig.JazzOptions{Auth: "jauth"}}, "challenge_unsupported"},
		{"http that leads to https", "ccm", server{modes: rig.JazzModes{InsecureRedirect: true}}, "insecure_redirect"},
		{"**Consent.**", "rm", server{modes: rig.JazzModes{Consent: true}}, "consent_required"},
	} {
		t.Run(c.row, func(t *testing.T) {
			if !strings.Contains(table, c.row) || c.code != "" && !strings.Contains(table, "`"+c.code+"`") {
				t.Errorf("the page does not have that")
			}
			e := newELM(t, c.o, "The Authorization Server", 0)
			e.Set(c.modes)
			own := "credential  = \"alice\""
			if c.o.Auth == "jas" {
				own += fmt.Sprintf("\nlogin_hosts = [%q]", e.JASURL())
			}
			write(t, e.config, strings.NewReplacer("idp         = \"elm\"", own, "/ccm", "/"+c.site, "site.ccm", "site."+c.site).Replace(
				regexp.MustCompile(`(?s)\[idp\.elm\].*?\n\n`).ReplaceAllString(e.here(withoutTLS(sectionBlock(t, jazzPage, "The Authorization Server", "toml"))), "")))
			e.start(t)
			r := e.bring(t, c.site, elmPassword)
			n := e.Counts()
			switch {
			case c.code == "":
				if r.status != 0 || n.Logins != 1 {
					t.Errorf("%v\n%+v", r, n)
				}
			case c.code == "consent_required": // which is found out at the end
				wantFailure(t, r, 5, c.code)
			default:
				if wantFailure(t, r, 5, c.code); n.Passwords != 0 {
					t.Errorf("%+v", n)
				}
			}
		})
	}
}

// TestJazzCodes: what Jazz answers is the code that docs/jazz.md has, and a password
// that is refused goes out once.
func TestJazzCodes(t *testing.T) {
	table := section(t, jazzPage, "Codes")
	const right, wrong = elmPassword, "CANARY-wrong"
	for _, c := range []struct {
		name     string
		row      string // a text of the page
		title    string // of the configuration
		o        rig.JazzOptions
		modes    rig.JazzModes
		password string
		code     string
		status   int
	}{
		{"authfailed", "`auth/authfailed`, as a redirect", "One application", rig.JazzOptions{}, rig.JazzModes{}, wrong, "bad_credentials", 5},
		{"authfailed at once", "or with 200 at once", "One application", rig.JazzOptions{FailDirect: true}, rig.JazzModes{}, wrong, "bad_credentials", 5},
		{"Basic", "401 to Basic, at JAS or at the application", "One application", rig.JazzOptions{Auth: "basic"}, rig.JazzModes{}, wrong, "bad_credentials", 5},
		{"Basic at JAS", "401 to Basic, at JAS or at the application", "The Authorization Server", rig.JazzOptions{Auth: "jas"}, rig.JazzModes{}, wrong, "bad_credentials", 5},
		{"wrong user", "`whoami` names another user", "One application", rig.JazzOptions{}, rig.JazzModes{WrongUser: "mallory"}, right, "wrong_identity", 5},
		{"foreign host", "the login on a host that is not configured", "One application", rig.JazzOptions{}, rig.JazzModes{ForeignRedirect: "http://elsewhere.localhost/"}, right, "sso_redirect", 5},
		{"server error", "5xx or 503 half-way", "One application", rig.JazzOptions{}, rig.JazzModes{FailAfterLogin: 500}, right, "server_5xx", 7},
		{"maintenance", "5xx or 503 half-way", "One application", rig.JazzOptions{}, rig.JazzModes{Unavailable: 503}, right, "maintenance", 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !regexp.MustCompile(`(?m)^\| [^|]*` + regexp.QuoteMeta(c.row) + "[^|]*\\| [^|]*`" + c.code + "`").MatchString(table) {
				t.Error("the page does not have that")
			}
			e := newELM(t, c.o, c.title, 0)
			e.Set(c.modes)
			a := e.start(t)
			for _, code := range []string{c.code, "latched"} {
				if r := e.bring(t, "ccm", c.password); r.status != c.status || !strings.Contains(r.stderr, "("+code+")") {
					t.Errorf("%v", r)
				}
				if c.password == right {
					break
				}
			}
			if n := e.Counts(); n.Passwords > 1 || n.PasswordsInURL+n.Preemptive != 0 || c.password == wrong && n.Failures != 1 {
				t.Errorf("%+v", n)
			}
			a.stop(t)
			noSecrets(t, a)
		})
	}
	if !strings.Contains(table, "| 403 otherwise, to the proof | `forbidden` |") {
		t.Error("the page does not have that")
	}
	e := newELM(t, rig.JazzOptions{}, "One application", 0)
	e.start(t)
	if r := e.bring(t, "ccm", right); r.status != 0 {
		t.Fatalf("%v", r)
	}
	e.Set(rig.JazzModes{FailAfterLogin: 403})
	e.fails(t, 5, "forbidden", "reject", "ccm")
}

// TestJazzScripts: the commands and scripts of docs/jazz.md for ELM read and write,
// survive that all sessions are gone, by one login, and do not go on as nobody.
func TestJazzScripts(t *testing.T) {
	rig.Require(t, "dash", "curl", "jirashell") // which brings requests
	for _, auth := range []string{"form", "jas"} {
		for _, c := range []struct {
			file string
			argv []string
			want string
		}{
			{"create.sh", []string{"dash", "create.sh", rigArea, "one.json", "two.json"}, "^one.json 201\ntwo.json 201\n$"},
			{"workitems.py", []string{interpreter(t, "jirashell"), "workitems.py", rigArea, "The build is broken"}, "(?s)^made [0-9]+\n1 .*\n[0-9]+ The build is broken\n$"},
		} {
			t.Run(c.file+" by "+auth, func(t *testing.T) {
				e := newELM(t, rig.JazzOptions{Auth: auth}, "The Authorization Server", 0)
				if auth == "form" {
					e.rewrite(t, fmt.Sprintf("login_hosts = [%q]\n", e.JASURL()), "")
				}
				a := e.start(t)
				if r := e.bring(t, "ccm", elmPassword); r.status != 0 {
					t.Fatalf("%v", r)
				}
				dir := t.TempDir()
				write(t, filepath.Join(dir, c.file), e.here(program(t, c.file).text))
				for _, item := range []string{"one.json", "two.json"} {
					write(t, filepath.Join(dir, item), `{"dc:title": "`+item+`"}`)
				}
				run := func() result {
					t.Helper()
					r := e.program(t, dir, c.argv...)
					if strings.Contains(r.stdout+r.stderr, "CANARY") {
						t.Errorf("a secret shows: %v", r)
					}
					return r
				}
				for name, before := range map[string]func(){"warm": func() {}, "gone at the application": e.DropApps, "gone": e.DropSessions} {
					before()
					if r := run(); r.status != 0 || !regexp.MustCompile(c.want).MatchString(r.stdout) {
						t.Errorf("%s: %v", name, r)
					}
				}
				e.spent(t, 2)
				a.stop(t)
				noSecrets(t, a)
				requests := e.Counts().Requests
				if r := run(); r.status == 0 {
					t.Errorf("without an agent: %v", r)
				}
				if n := e.Counts().Requests - requests; n != 0 {
					t.Errorf("without an agent: %d requests", n)
				}
			})
		}
	}
	t.Run("commands", func(t *testing.T) {
		e := newELM(t, rig.JazzOptions{}, "One application", 0)
		e.start(t)
		if r := e.bring(t, "ccm", elmPassword); r.status != 0 {
			t.Fatalf("%v", r)
		}
		found := 0
		for _, b := range blocks(t, jazzPage, "sh") {
			if b.file != "" {
				continue
			}
			found++
			r := e.program(t, t.TempDir(), "dash", "-c", e.here(b.text))
			if r.status != 0 || r.stderr != "" || !regexp.MustCompile(`(?s)Sample.*"dc:title":"The first work item".*"dc:title":"The build is broken"`).MatchString(r.stdout) {
				t.Errorf("%v", r)
			}
		}
		if found != 1 {
			t.Errorf("%d blocks", found)
		}
		// Without the header that docs/jazz.md names, nothing is written.
		r := e.program(t, t.TempDir(), "dash", "-c", e.here(`printf 'Cookie: %s\n' "$(sessionctl raw ccm)" | curl -sS -H @- -o /dev/null -w '%{http_code}' -d '{"dc:title":"x"}' `+elmHost+`/ccm/oslc/contexts/`+elmArea+`/workitems`))
		if r.stdout != "403" {
			t.Errorf("%v", r)
		}
	})
}

// program runs a program of the page in a directory.
func (e *elm) program(t *testing.T, dir string, argv ...string) result {
	t.Helper()
	return (&family{world: e.world, home: e.home}).program(t, dir, argv...)
}

// TestJazzLife: the lives of sessions that docs/jazz.md lists as documented are those
// in the code.
func TestJazzLife(t *testing.T) {
	rows := regexp.MustCompile("(?m)^\\| `(LtpaToken2|JSESSIONID)` \\| ([0-9]+) minutes").FindAllStringSubmatch(section(t, jazzPage, "Proof and life"), -1)
	if len(rows) != 2 {
		t.Fatalf("%q", rows)
	}
	d := login.New("jazz").(login.Detector)
	life := func(found string) login.Life {
		return d.As(login.Findings{Product: "jazz", Login: found}).(login.Lasting).Life()
	}
	got := map[string]time.Duration{"LtpaToken2": life("form").Absolute, "JSESSIONID": life("jas").Idle}
	for _, row := range rows {
		if want := row[2] + "m0s"; fmt.Sprint(int(got[row[1]].Minutes()))+"m0s" != want {
			t.Errorf("%s lives %v, the page has %s", row[1], got[row[1]], want)
		}
	}
	if !slices.Contains(login.Kinds(), "jazz") {
		t.Error("there is no kind jazz")
	}
}
