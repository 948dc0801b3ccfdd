package login

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// modelled is a model of a product with a user, and a driver for it.
type modelled struct {
	*rig.Atlassian
	t      *testing.T
	driver Detector
	base   *url.URL
}

// models start the products that are modelled.
var models = map[string]func(rig.AtlassianOptions) (*rig.Atlassian, error){
	"jira": rig.StartJira, "confluence": rig.StartConfluence, "bitbucket": rig.StartBitbucket, "bamboo": rig.StartBamboo, "crucible": rig.StartCrucible,
}

const rightPassword = `CANARY-"&<ü`

func model(t *testing.T, kind string, o rig.AtlassianOptions) *modelled {
	a, err := models[kind](o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	a.AddUser("build", rightPassword)
	base, err := url.Parse(a.URL())
	if err != nil {
		t.Fatal(err)
	}
	d := New(kind)
	if c, ok := d.(*crucible); ok {
		c.ProbeURL, c.IdentityRegexp = "profile", `id="headerUserDetails"><a[^>]*>([^<]+)<`
	}
	return &modelled{a, t, d.(Detector), base}
}

func (m *modelled) exchange(f Findings) *web.Exchange {
	x := web.NewExchange(web.Options{Base: m.base, InsecureHTTP: true}, new(web.Jar))
	m.t.Cleanup(x.Close)
	x.Below(f.Path)
	return x
}

// detect looks at the site.
func (m *modelled) detect() (Findings, error) {
	return m.driver.Detect(m.t.Context(), m.exchange(Findings{}))
}

// logIn looks at the site, and logs in as it was found.
func (m *modelled) logIn(password string) (*web.Exchange, Driver, *lent, error) {
	p := &account{offered{text: password}, "build"}
	f, err := m.detect()
	if err != nil {
		return nil, nil, &p.lent, err
	}
	x, d := m.exchange(f), m.driver.As(f)
	return x, d, &p.lent, d.Login(m.t.Context(), x, p)
}

// TestFamilyModel: all products, with each generation of their login, in the states
// that matter to a password.
func TestFamilyModel(t *testing.T) {
	const foreign = "https://login.foreign.example/"
	type end struct {
		login, probe   api.Code
		taken          bool
		back, accepted bool
	}
	for kind := range models {
		for _, two := range []bool{false, true} {
			if two && kind == "crucible" {
				continue
			}
			name := kind + map[bool]string{true: ", two-step"}[two]
			rest := kind == "jira" && !two
			accepted := rest || two // a form does not say so
			good := end{taken: true, accepted: accepted}
			unseen := func(c api.Code) end { return end{login: c} }
			refusedBy := func(c api.Code) end { return end{login: c, taken: true} }
			forbidden := end{login: api.Forbidden, taken: true, accepted: true}
			if kind == "crucible" {
				forbidden = refusedBy(api.BadCredentials) // its login page says no more
			} else if !accepted && kind == "bitbucket" {
				forbidden = refusedBy(api.BadCredentials)
			}
			type row struct {
				modes    rig.AtlassianModes
				password string
				before   int // wrong ones
				want     end
			}
			rows := map[string]row{
				"good":           {want: good},
				"wrong":          {password: "CANARY-wrong", want: refusedBy(api.BadCredentials)},
				"captcha":        {before: 5, want: refusedBy(api.Captcha)},
				"no captcha yet": {before: 2, want: good},
				"no right":       {modes: rig.AtlassianModes{NoPermission: true}, want: forbidden},
				"no session":     {modes: rig.AtlassianModes{NoSession: true}, want: end{login: api.NoSessionCookie, taken: true, accepted: accepted}},
				"anonymous":      {modes: rig.AtlassianModes{Anonymous: true}, want: end{probe: api.Expired, taken: true, accepted: accepted}},
				"two nodes":      {modes: rig.AtlassianModes{TwoNodes: true}, want: good},
				"maintenance":    {modes: rig.AtlassianModes{Maintenance: true}, want: unseen(api.Maintenance)},
				"starting":       {modes: rig.AtlassianModes{Starting: true}, want: unseen(api.Maintenance)},
				"broken":         {modes: rig.AtlassianModes{ServerError: true}, want: unseen(api.Server5xx)},
				"limited":        {modes: rig.AtlassianModes{RetryAfter: time.Minute}, want: unseen(api.RateLimited)},
				"SSO":            {modes: rig.AtlassianModes{SSO: foreign}, want: unseen(api.SSORedirect)},
				"others' logins": {modes: rig.AtlassianModes{IdentityProvider: foreign}, want: unseen(api.SSORedirect)},
				"a right wanted": {modes: rig.AtlassianModes{WebSudo: true}, want: end{probe: api.Forbidden, taken: true, accepted: accepted}},
				"not for all":    {modes: rig.AtlassianModes{NoAnonymous: true}, want: good},
			}
			set := func(name string, want end) {
				r := rows[name]
				r.want = want
				rows[name] = r
			}
			if two {
				second := end{login: api.SecondFactor, taken: true, accepted: true}
				rows["second factor"] = row{modes: rig.AtlassianModes{SecondFactor: true}, want: second}
				rows["enrolment"] = row{modes: rig.AtlassianModes{EnrolmentForced: true}, want: second}
				rows["the form back"] = row{modes: rig.AtlassianModes{LegacyLogin: true}, want: end{taken: true, accepted: kind == "jira"}}
				set("anonymous", second)
				set("a right wanted", end{login: api.Forbidden, taken: true, accepted: true})
				if kind != "bitbucket" { // whose whoami is a page
					set("SSO", refusedBy(api.SSORedirect))
				}
				set("others' logins", good) // the resource is there still
			}
			if rest {
				if kind != "bitbucket" { // whose whoami is a page
					set("SSO", refusedBy(api.SSORedirect))
				}
				set("others' logins", good)
			}
			if kind == "crucible" {
				delete(rows, "starting") // it has nothing that tells
				delete(rows, "a right wanted")
			}
			for state, c := range rows {
				m := model(t, kind, rig.AtlassianOptions{ContextPath: "/app", TwoStep: two})
				state = name + ": " + state
				for range c.before {
					if _, _, _, err := m.logIn("CANARY-wrong"); err == nil {
						t.Errorf("%s: a wrong password is right", state)
					}
				}
				m.SetModes(c.modes)
				if c.password == "" {
					c.password = rightPassword
				}
				x, d, p, err := m.logIn(c.password)
				quiet(t, state, err)
				if want := (lent{taken: c.want.taken, back: c.want.back, accepted: c.want.accepted}); api.CodeOf(err) != c.want.login || *p != want {
					t.Errorf("%s: %v, want %q; the password: %+v, want %+v", state, err, c.want.login, *p, want)
				}
				if err != nil {
					m.Stop()
					continue
				}
				id, err := d.Probe(t.Context(), x)
				quiet(t, state, err)
				if api.CodeOf(err) != c.want.probe || err == nil && id != (Identity{Name: "build"}) {
					t.Errorf("%s: %+v %v, want %q", state, id, err, c.want.probe)
				}
				if err == nil {
					m.leave(state, x, d)
				}
				m.Stop()
			}
		}
	}
}

// leave ends the session of a login, which nothing may bring back, and once more.
func (m *modelled) leave(name string, x *web.Exchange, d Driver) {
	m.t.Helper()
	if n := m.Counts(); n.Sessions != 1 || n.Remembered != 0 {
		m.t.Errorf("%s: %+v", name, n)
	}
	if strings.Contains(x.Jar().Header(mustURL(m.t, x, ""), time.Now()), "remember") {
		m.t.Errorf("%s: something remembers the user", name)
	}
	for range 2 {
		if err := d.(Logouter).Logout(m.t.Context(), x); err != nil {
			m.t.Errorf("%s: logout: %v", name, err)
		}
	}
	if n := m.Counts(); n.Sessions != 0 {
		m.t.Errorf("%s, after the logout: %+v", name, n)
	}
	if _, err := d.Probe(m.t.Context(), x); api.CodeOf(err) != api.Expired {
		m.t.Errorf("%s, after the logout: %v", name, err)
	}
}

// TestFamilyDetectModel: what is found out of the models.
func TestFamilyDetectModel(t *testing.T) {
	for kind := range models {
		for _, two := range []bool{false, true} {
			if two && kind == "crucible" {
				continue
			}
			want := Findings{Product: kind, Version: "1.2.3", Login: byForm}
			switch {
			case two:
				want.Login = byTSV
			case kind == "jira":
				want.Login = byREST
			}
			for _, context := range []string{"", "/app", "/apps/it"} {
				m := model(t, kind, rig.AtlassianOptions{ContextPath: context, TwoStep: two, Version: "1.2.3"})
				if f, err := m.detect(); err != nil || f != want {
					t.Errorf("%s below %q: %+v %v, want %+v", kind, context, f, err, want)
				}
				// The bare host leads there.
				m.SetModes(rig.AtlassianModes{RootRedirect: true})
				m.base.Path = ""
				below := want
				below.Path = context
				if f, err := m.detect(); err != nil || f != below {
					t.Errorf("%s, bare, below %q: %+v %v, want %+v", kind, context, f, err, below)
				}
				m.Stop()
			}
		}
		// Every other kind says what it is instead.
		m := model(t, kind, rig.AtlassianOptions{ContextPath: "/app"})
		for other := range models {
			m.driver = New(other).(Detector)
			_, err := m.detect()
			if e := api.AsError(err); other != kind && (e == nil || e.Code != api.ConfigInvalid || !strings.Contains(e.Remedy, `kind = "`+kind+`"`)) {
				t.Errorf("%s for %s: %+v", kind, other, err)
			}
		}
	}
}

// TestFamilyUpgrade: what was found of a product is no use after an upgrade. No
// password is spent on finding that out.
func TestFamilyUpgrade(t *testing.T) {
	for kind := range models {
		if kind == "crucible" {
			continue
		}
		for _, two := range []bool{true, false} {
			m := model(t, kind, rig.AtlassianOptions{ContextPath: "/app", TwoStep: !two, NoRestLogin: true})
			before, err := m.detect()
			if err != nil {
				t.Fatal(err)
			}
			m.Upgrade("", two)
			p := &account{offered{text: rightPassword}, "build"}
			err = m.driver.As(before).Login(t.Context(), m.exchange(before), p)
			if before.Login != byREST && api.CodeOf(err) != api.UnexpectedStatus || p.taken && !p.back && err != nil {
				t.Errorf("%s, two-step %v, as before: %v; the password: %+v", kind, two, err, p.lent)
			}
			if after, err := m.detect(); err != nil || after == before || after.Login == before.Login {
				t.Errorf("%s, two-step %v: %+v %v, before %+v", kind, two, after, err, before)
			}
			if kind == "jira" && !two {
				continue // which has no login by password then
			}
			if _, _, _, err := m.logIn(rightPassword); err != nil {
				t.Errorf("%s, two-step %v: %v", kind, two, err)
			}
		}
	}
}

// TestFamilyGateModel: which gates are found, by what they ask of whom.
func TestFamilyGateModel(t *testing.T) {
	k, err := rig.NewKDC("RIG.TEST")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	k.AddService("HTTP/localhost", rig.AES256SHA1)
	keys := k.Keytab("HTTP/localhost")
	for kind := range models {
		for name, c := range map[string]struct {
			guard *rig.IWAAC
			want  string
		}{
			"all":                  {nil, gateForAll},
			"any agent":            {&rig.IWAAC{}, gateForAll},
			"IWAAC":                {&rig.IWAAC{Agent: "Windows NT"}, gateForWindows},
			"Kantega's":            {&rig.IWAAC{Deny: []string{"HttpClient", "Java/", "JIRA-", "Confluence-", "Axis/"}}, gateForAll},
			"none of ours":         {&rig.IWAAC{Deny: []string{"sessionctl/"}}, ""},
			"from elsewhere":       {&rig.IWAAC{From: []string{"192.0.2.0/24"}}, ""},
			"somewhere else there": {&rig.IWAAC{URIs: []string{"/CANARY"}}, ""},
		} {
			m := model(t, kind, rig.AtlassianOptions{ContextPath: "/app", Keytab: keys, Guard: c.guard})
			f, err := m.detect()
			if err != nil || f.Gate != c.want || f.Product != kind {
				t.Errorf("%s, %s: %+v %v, want %q", kind, name, f, err, c.want)
			}
			if n := m.Counts(); n.Tokens+n.Begun()+n.Refused != 0 {
				t.Errorf("%s, %s: %+v", kind, name, n)
			}
			m.Stop()
		}
	}
}
