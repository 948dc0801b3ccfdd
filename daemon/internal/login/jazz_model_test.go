package login

import (
	"net/url"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// jazzModel is a model of a Jazz server that knows build.
type jazzModel struct {
	*rig.Jazz
	t     *testing.T
	found func() // called after each look
}

func newJazz(t *testing.T, o rig.JazzOptions) *jazzModel {
	j, err := rig.StartJazz(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Stop)
	j.AddUser("build", rightPassword)
	return &jazzModel{j, t, func() {}}
}

// exchange is a dialogue with an application.
func (m *jazzModel) exchange(context string, jar *web.Jar) *web.Exchange {
	base, err := url.Parse(m.URL(context))
	if err != nil {
		m.t.Fatal(err)
	}
	o := web.Options{Base: base, InsecureHTTP: true}
	if jas, err := url.Parse(m.JASURL()); err == nil && jas.Host != "" {
		o.LoginHosts = []web.Origin{web.OriginOf(jas)}
	}
	x := web.NewExchange(o, jar)
	m.t.Cleanup(x.Close)
	return x
}

// jazzEnd is how a login and its proof end, and what that has cost.
type jazzEnd struct {
	code     api.Code // of the login, or its proof
	who      string
	found    Findings
	requests int // of the login and its proof
	spent    rig.JazzCounts
	lent     lent
	err      error
	jar      *web.Jar
}

// logIn looks at an application, logs in and has itself proven.
func (m *jazzModel) logIn(context, password string, change func(*jazz)) (end jazzEnd) {
	driver := New("jazz").(*jazz)
	change(driver)
	p := &account{offered{text: password}, "build"}
	found, err := driver.Detect(m.t.Context(), m.exchange(context, new(web.Jar)))
	if n := m.Counts(); n.Passwords+n.Tokens > 0 {
		m.t.Errorf("a look has cost %+v", n)
	}
	m.found()
	before := m.Counts().Requests
	end.found, end.err = found, err
	if err == nil {
		d, x := driver.As(found), m.exchange(context, new(web.Jar))
		end.err, end.jar = d.Login(m.t.Context(), x, p), x.Jar()
		if end.err == nil {
			proof := m.exchange(context, x.Jar().Clone())
			var id Identity
			id, end.err = d.Probe(m.t.Context(), proof)
			end.who, end.jar = id.Name, proof.Jar()
		}
	}
	end.spent, end.lent, end.code = m.Counts(), p.lent, api.CodeOf(end.err)
	end.requests = end.spent.Requests - before
	if end.err != nil && strings.Contains(end.err.Error()+api.AsError(end.err).Remedy, "CANARY") {
		m.t.Errorf("the failure tells a secret: %v", end.err)
	}
	if end.spent.PasswordsInURL+end.spent.Preemptive > 0 {
		m.t.Errorf("passwords where they must not be: %+v", end.spent)
	}
	return end
}

func asIs(*jazz) {}

// TestJazzWays: every way that a server may want a login, found without a credential,
// and gone with one password.
func TestJazzWays(t *testing.T) {
	appPassword := func(j *jazz) { j.AppPassword = true }
	for name, c := range map[string]struct {
		options  rig.JazzOptions
		context  string
		change   func(*jazz)
		way      string
		requests int // of the login and its proof, at most
		cookies  string
	}{
		"form":                  {rig.JazzOptions{}, "ccm", asIs, byForm, 6, "JSESSIONID LtpaToken2"},
		"form, 303":             {rig.JazzOptions{Redirect: 303}, "qm", asIs, byForm, 6, "JSESSIONID LtpaToken2"},
		"form, 307":             {rig.JazzOptions{Redirect: 307}, "gc", asIs, byForm, 6, "JSESSIONID LtpaToken2"},
		"form, failing at once": {rig.JazzOptions{FailDirect: true}, "jts", asIs, byForm, 6, "JSESSIONID LtpaToken2"},
		"form, Tomcat":          {rig.JazzOptions{NoLTPA: true}, "ccm", asIs, byForm, 6, "JSESSIONID"},
		"form, other cookie":    {rig.JazzOptions{CookieName: "CorpToken"}, "ccm", func(j *jazz) { j.SSOCookie = "CorpToken" }, byForm, 6, "JSESSIONID CorpToken"},
		"other root":            {rig.JazzOptions{Context: "jazz"}, "jazz", asIs, byForm, 6, "JSESSIONID LtpaToken2"},
		"delegated":             {rig.JazzOptions{}, "rm", asIs, byOAuth + byForm, 10, "JAZZ_AUTH_TOKEN LtpaToken2"},
		"delegated, 303":        {rig.JazzOptions{Redirect: 303}, "rm", asIs, byOAuth + byForm, 10, "JAZZ_AUTH_TOKEN LtpaToken2"},
		"jas":                   {rig.JazzOptions{Auth: "jas"}, "ccm", asIs, byJAS, 7, "JSESSIONID"},
		"jas, its form":         {rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{NoBasic: true}}, "ccm", func(j *jazz) { j.JASForm = true }, byJAS, 7, "JSESSIONID"},
		"jas, delegated":        {rig.JazzOptions{Auth: "jas", Delegated: []string{"rm"}}, "rm", asIs, byOAuth + byJAS, 14, "JAZZ_AUTH_TOKEN"},
		"jas, rm":               {rig.JazzOptions{Auth: "jas"}, "rm", asIs, byJAS, 12, "JSESSIONID"},
		"application passwords": {rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "saml"}}, "ccm", appPassword, byAppPassword, 4, "JSESSIONID"},
		"the same, oidc":        {rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "oidc"}}, "ccm", appPassword, byAppPassword, 4, "JSESSIONID"},
		"basic":                 {rig.JazzOptions{Auth: "basic", NoLTPA: true}, "ccm", asIs, byBasic, 3, ""},
		"basic with a token":    {rig.JazzOptions{Auth: "basic"}, "ccm", asIs, byBasic, 4, "JSESSIONID LtpaToken2"},
	} {
		m := newJazz(t, c.options)
		password := rightPassword
		if strings.HasSuffix(c.way, byAppPassword) {
			password = "CANARY-app-password"
			m.AddAppPassword("build", password)
		}
		end := m.logIn(c.context, password, c.change)
		if end.code != "" || end.who != "build" || end.found.Login != c.way || end.found.Product != "jazz" {
			t.Errorf("%s: %v, %q, found %+v", name, end.err, end.who, end.found)
			continue
		}
		if end.requests > c.requests || end.spent.Logins != 1 && c.cookies != "" || end.spent.Failures != 0 { // each request is one, without cookies
			t.Errorf("%s: %d requests, at most %d; %+v", name, end.requests, c.requests, end.spent)
		}
		t.Logf("%s: found %q, %d requests", name, end.found.Login, end.requests)
		for want := range strings.FieldsSeq(c.cookies) {
			if end.jar.Named(want).Len() == 0 {
				t.Errorf("%s: no cookie %s", name, want)
			}
		}
		if c.cookies == "" && (end.jar.Len() > 0 || end.jar.Authorization().Empty()) {
			t.Errorf("%s: %d cookies", name, end.jar.Len())
		}
		if n := end.jar.Filter(func(c *web.Cookie) bool { return transient(c.Name) || ofJAS(c.Name) }).Len(); n > 0 {
			t.Errorf("%s: %d cookies of the login are left", name, n)
		}
	}
}

// TestJazzRefusals: each way with a wrong password, and in each state of a server that
// matters to a right one.
func TestJazzRefusals(t *testing.T) {
	const wrong = "CANARY-wrong"
	form, jas := rig.JazzOptions{}, rig.JazzOptions{Auth: "jas"}
	for name, c := range map[string]struct {
		options  rig.JazzOptions
		modes    rig.JazzModes
		context  string
		password string
		change   func(*jazz)
		code     api.Code
		spent    int // passwords that the server has seen
		accepted bool
	}{
		"form, wrong":             {form, rig.JazzModes{}, "ccm", wrong, asIs, api.BadCredentials, 1, false},
		"form, wrong, directly":   {rig.JazzOptions{FailDirect: true}, rig.JazzModes{}, "ccm", wrong, asIs, api.BadCredentials, 1, false},
		"form, wrong, Tomcat":     {rig.JazzOptions{NoLTPA: true}, rig.JazzModes{}, "ccm", wrong, asIs, api.BadCredentials, 1, false},
		"delegated, wrong":        {form, rig.JazzModes{}, "rm", wrong, asIs, api.BadCredentials, 1, false},
		"jas, wrong":              {jas, rig.JazzModes{}, "ccm", wrong, asIs, api.BadCredentials, 1, false},
		"jas, its form, wrong":    {jas, rig.JazzModes{}, "ccm", wrong, func(j *jazz) { j.JASForm = true }, api.BadCredentials, 1, false},
		"app password, wrong":     {rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "saml"}}, rig.JazzModes{}, "ccm", wrong, func(j *jazz) { j.AppPassword = true }, api.BadCredentials, 1, false},
		"basic, wrong":            {rig.JazzOptions{Auth: "basic"}, rig.JazzModes{}, "ccm", wrong, asIs, api.BadCredentials, 1, false},
		"external, saml":          {rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "saml"}}, rig.JazzModes{}, "ccm", rightPassword, asIs, api.AppPasswordRequired, 0, false},
		"external, oidc":          {rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "oidc"}}, rig.JazzModes{}, "ccm", rightPassword, asIs, api.AppPasswordRequired, 0, false},
		"no app passwords":        {jas, rig.JazzModes{}, "ccm", rightPassword, func(j *jazz) { j.AppPassword = true }, api.ConfigInvalid, 0, false},
		"no app passwords, form":  {form, rig.JazzModes{}, "ccm", rightPassword, func(j *jazz) { j.AppPassword = true }, api.ConfigInvalid, 0, false},
		"jas without Basic":       {rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{NoBasic: true}}, rig.JazzModes{}, "ccm", rightPassword, asIs, api.UnexpectedStatus, 1, false},
		"bearer":                  {rig.JazzOptions{Auth: "bearer"}, rig.JazzModes{}, "ccm", rightPassword, asIs, api.ChallengeUnsupported, 0, false},
		"jauth":                   {rig.JazzOptions{Auth: "jauth"}, rig.JazzModes{}, "ccm", rightPassword, asIs, api.ChallengeUnsupported, 0, false},
		"not there":               {form, rig.JazzModes{}, "scm", rightPassword, asIs, api.UnexpectedStatus, 0, false},
		"starting":                {form, rig.JazzModes{Unavailable: 503}, "ccm", rightPassword, asIs, api.Maintenance, 0, false},
		"https only":              {form, rig.JazzModes{InsecureRedirect: true}, "ccm", rightPassword, asIs, api.InsecureRedirect, 0, false},
		"away after the password": {form, rig.JazzModes{ForeignRedirect: "https://foreign.example/"}, "ccm", rightPassword, asIs, api.SSORedirect, 1, true},
		"jas, away after it":      {jas, rig.JazzModes{ForeignRedirect: "https://foreign.example/"}, "ccm", rightPassword, asIs, api.SSORedirect, 1, false},
		"fails after it":          {form, rig.JazzModes{FailAfterLogin: 500}, "ccm", rightPassword, asIs, api.Server5xx, 1, true},
		"jas, fails after it":     {jas, rig.JazzModes{FailAfterLogin: 500}, "ccm", rightPassword, asIs, api.Server5xx, 1, true},
		"delegated, fails":        {form, rig.JazzModes{FailAfterLogin: 500}, "rm", rightPassword, asIs, api.Server5xx, 1, true},
		"consent":                 {form, rig.JazzModes{Consent: true}, "rm", rightPassword, asIs, api.ConsentRequired, 1, true},
		"state used up":           {jas, rig.JazzModes{ReuseState: true}, "ccm", rightPassword, asIs, "", 1, true},
		"token used up":           {form, rig.JazzModes{ReuseState: true}, "rm", rightPassword, asIs, "", 1, false},
		"hidden root services":    {form, rig.JazzModes{HideRootservices: true}, "ccm", rightPassword, asIs, "", 1, true},
		"hidden, basic":           {rig.JazzOptions{Auth: "basic"}, rig.JazzModes{HideRootservices: true}, "ccm", rightPassword, asIs, api.ChallengeUnsupported, 0, false},
	} {
		m := newJazz(t, c.options)
		if c.modes.ReuseState { // which a look would use up
			m.found = func() { m.Set(c.modes) }
		} else {
			m.Set(c.modes)
		}
		end := m.logIn(c.context, c.password, c.change)
		if end.code != c.code || end.spent.Passwords != c.spent || end.lent.accepted != c.accepted {
			t.Errorf("%s: %v, want %q; passwords %d, want %d; accepted %v", name, end.err, c.code, end.spent.Passwords, c.spent, end.lent.accepted)
		}
		if c.modes.ReuseState && end.spent.StateReused != 1 {
			t.Errorf("%s: %d states were used up", name, end.spent.StateReused)
		}
	}
}

// TestJazzWrongUser: the proof says whom the server names.
func TestJazzWrongUser(t *testing.T) {
	m := newJazz(t, rig.JazzOptions{})
	m.Set(rig.JazzModes{WrongUser: "other"})
	if end := m.logIn("ccm", rightPassword, asIs); end.who != "other" {
		t.Errorf("%q %v", end.who, end.err)
	}
}

// TestJazzMembers: the single sign-on of one login opens all applications, and its
// proof is that it does.
func TestJazzMembers(t *testing.T) {
	for name, o := range map[string]rig.JazzOptions{"form": {}, "jas": {Auth: "jas"}, "jas, delegated": {Auth: "jas", Delegated: []string{"rm"}}} {
		m := newJazz(t, o)
		provider := New("jazz").(Provider).Provider()
		x := m.exchange("jts", new(web.Jar))
		if err := provider.Login(t.Context(), x, &account{offered{text: rightPassword}, "build"}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		shared := x.Jar()
		if id, err := provider.Probe(t.Context(), m.exchange("jts", shared.Clone())); err != nil || id.Name != "build" {
			t.Errorf("%s: the provider's proof: %q %v", name, id.Name, err)
		}
		for _, context := range []string{"ccm", "qm", "rm", "gc", "jts"} {
			found, err := New("jazz").(Detector).Detect(t.Context(), m.exchange(context, new(web.Jar)))
			if err != nil {
				t.Errorf("%s: %s: %v", name, context, err)
			}
			member := New("jazz").(Detector).As(found)
			x := m.exchange(context, shared.Clone())
			if err := member.(Member).Enter(t.Context(), x); err != nil {
				t.Errorf("%s: %s: %v", name, context, err)
				continue
			}
			if id, err := member.Probe(t.Context(), m.exchange(context, x.Jar().Clone())); err != nil || id.Name != "build" {
				t.Errorf("%s: %s: %q %v", name, context, id.Name, err)
			}
			if x.Jar().Filter(func(c *web.Cookie) bool { return ofJAS(c.Name) }).Len() > 0 {
				t.Errorf("%s: %s: the authorization server's cookies are served", name, context)
			}
		}
		if n := m.Counts(); n.Logins != 1 || n.Passwords != 1 || (n.Silent > 0) != (o.Auth == "jas") {
			t.Errorf("%s: %+v", name, n)
		}
		m.DropSessions()
		if err := New("jazz").(Member).Enter(t.Context(), m.exchange("ccm", shared.Clone())); api.CodeOf(err) != api.Expired {
			t.Errorf("%s: dead, and %v", name, err)
		}
		if _, err := provider.Probe(t.Context(), m.exchange("jts", shared.Clone())); api.CodeOf(err) != api.Expired {
			t.Errorf("%s: the provider's is dead, and %v", name, err)
		}
	}
}

// TestJazzLogout: the session ends at the server, or it is said what does not.
func TestJazzLogout(t *testing.T) {
	for name, c := range map[string]struct {
		options rig.JazzOptions
		context string
		code    api.Code
		logouts int
	}{
		"tracked":     {rig.JazzOptions{LogoutTracked: true}, "ccm", "", 1},
		"not tracked": {rig.JazzOptions{}, "ccm", api.UnexpectedStatus, 1},
		"Tomcat":      {rig.JazzOptions{NoLTPA: true}, "ccm", "", 1},
		"jas":         {rig.JazzOptions{Auth: "jas"}, "ccm", "", 1},
		"delegated":   {rig.JazzOptions{}, "rm", api.UnexpectedStatus, 1},
		"delegated 2": {rig.JazzOptions{LogoutTracked: true}, "rm", "", 1},
		"basic":       {rig.JazzOptions{Auth: "basic", NoLTPA: true}, "ccm", api.UnexpectedStatus, 0},
	} {
		m := newJazz(t, c.options)
		end := m.logIn(c.context, rightPassword, asIs)
		if end.code != "" {
			t.Fatal(end.err)
		}
		d := New("jazz").(Detector).As(end.found)
		if err := d.(Logouter).Logout(t.Context(), m.exchange(c.context, end.jar.Clone())); api.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
		if n := m.Counts().Logouts; n != c.logouts {
			t.Errorf("%s: %d logouts", name, n)
		}
	}
}
