package rig_test

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// authorization is where an application leads to JAS.
func authorization(a *reply) string {
	a.t.Helper()
	ref := a.want(401).header.Get("X-JSA-AUTHORIZATION-REDIRECT")
	if ref == "" {
		a.t.Fatalf("no redirect in %v", a.header)
	}
	return ref
}

const loginRequired = "X-Jsa-Login-Required: true"

// As jenkinsci/teamconcert-plugin goes: prompt=none, nothing, and the password once.
func TestJazzJAS(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{Auth: "jas"})
	ccm := j.URL("ccm")
	b := newJazzClient(t)
	a := b.get(ccm + "/whoami?a=b")
	to := authorization(a)
	ok, _ := regexp.MatchString(`^`+regexp.QuoteMeta(j.JASURL())+`/oidc/endpoint/jazzop/authorize\?client_id=[0-9a-f]{32}&response_type=code`+
		`&state=security_token1%3D.+%26security_token2%3D.+%26return%3Dhttp%253A%252F%252Flocalhost%253A\d+%252Fccm%252Fwhoami%253Fa%253Db%26scope%3Dopenid%2Bgeneral%2Bprofile%2Bemail%2B%26impersonation%3Dtrue&scope=openid`, to)
	if !ok || a.header.Get("X-JSA-AUTHORIZATION-URL") != j.JASURL()+"/oidc/endpoint/jazzop" || len(a.header.Values("WWW-Authenticate")) != 2 {
		t.Errorf("%v", a.header)
	}
	a = b.get(to+"&prompt=none").want(302, "Location: "+ccm+"/jsa?error=login_required&state=")
	b.next(a).want(200, loginRequired)
	a = b.get(to).want(302, "Location: "+j.JASURL()+"/jazzop/form/login", "WASReqURL=http://:", "WASReLoginURL=")
	if a = b.next(a).want(200, "X-Com-Ibm-Team-Integration-Jazzop-Auth-Msg: form-login"); strings.Contains(a.body, "<form") {
		t.Error(a.body)
	}
	b.get(to, "Authorization", wrong()).want(401, "Basic realm=")
	a = b.get(to, "Authorization", good()).want(302, "oidc_bsc=CANARY-", "Location: "+ccm+"/jsa?session_state=", "&code=CANARY-", "&state=security_token1%3D")
	if ok, _ := regexp.MatchString(`^jazzop_sso_cookie=CANARY-[0-9A-F]{32}\+/=; Path=/; HttpOnly$`, a.cookie("jazzop_sso_cookie")); !ok {
		t.Errorf("%q", a.cookie("jazzop_sso_cookie"))
	}
	code := a.header.Get("Location")
	before := b.session(ccm)
	a = b.next(a).want(302, "Location: "+ccm+"/whoami?a=b", "JSESSIONID=CANARY-")
	if b.session(ccm) == before {
		t.Error("the session keeps its id over a login")
	}
	newJazzClient(t).get(ccm+"/whoami", "Cookie", "JSESSIONID="+before).want(401, "JSESSIONID=CANARY-") // the old one has ended
	if a = b.next(a).want(200); a.body != j.URL("jts")+"/users/fred" {
		t.Errorf("%q", a.body)
	}
	wantJazz(t, j, rig.JazzCounts{Requests: 10, Logins: 1, Failures: 1, Passwords: 2, Sessions: map[string]int{"ccm": 1}})

	// State and code are good once.
	b.get(code).want(400, "used before")
	b.walk(to).want(400, "used before")
	// The other applications know nobody, and let the user in without a password.
	b.walk(authorization(b.get(j.URL("rm")+"/whoami"))+"&prompt=none").want(200, "/users/fred")
	wantJazz(t, j, rig.JazzCounts{Logins: 1, Failures: 1, Passwords: 2, StateReused: 2, Sessions: map[string]int{"ccm": 1, "rm": 1}})

	// JAS's session outlives the applications', and these outlive JAS's.
	j.DropApps()
	b.walk(authorization(b.get(ccm+"/whoami"))+"&prompt=none").want(200, "/users/fred")
	b.get(j.JASURL()+"/oidc/endpoint/jazzop/end_session").want(200, `jazzop_sso_cookie=""`)
	b.get(ccm + "/whoami").want(200)
	b.walk(authorization(b.get(j.URL("qm")+"/whoami"))+"&prompt=none").want(200, loginRequired)
	b.walk(authorization(b.get(j.URL("qm")+"/whoami")), "Authorization", good()).want(200)
	j.DropSessions()
	b.walk(authorization(b.get(ccm+"/whoami"))+"&prompt=none").want(200, loginRequired)
}

// The shortest way: 401, the password, two redirects, the page.
func TestJazzJASShort(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{Auth: "jas"})
	b := newJazzClient(t)
	b.walk(authorization(b.get(j.URL("ccm")+"/whoami")), "Authorization", good()).want(200, "/users/fred")
	if b.sent != 4 {
		t.Errorf("%d requests", b.sent)
	}
	// With prompt=none: a good password does, and is not asked for; of a wrong one
	// nothing is said.
	b = newJazzClient(t)
	b.walk(authorization(b.get(j.URL("ccm")+"/whoami"))+"&prompt=none", "Authorization", wrong()).want(200, loginRequired)
	b.walk(authorization(b.get(j.URL("ccm")+"/whoami"))+"&prompt=none", "Authorization", good()).want(200, "/users/fred")
	// A password that the application has not asked for is taken.
	b = newJazzClient(t)
	b.get(j.URL("ccm")+"/whoami", "Authorization", wrong()).want(401)
	b.get(j.URL("ccm")+"/whoami", "Authorization", good()).want(200, "/users/fred")
	b.get(j.URL("ccm")+"/auth/authrequired", "Authorization", good()).want(200, "Welcome") // there is no form
	wantJazz(t, j, rig.JazzCounts{Logins: 3, Failures: 2, Passwords: 6, Preemptive: 5, Sessions: map[string]int{"ccm": 3}})
}

func TestJazzJASForm(t *testing.T) {
	for _, status := range []int{302, 303} {
		j := startJazz(t, rig.JazzOptions{Auth: "jas", Redirect: status, JAS: rig.JazzJAS{NoBasic: true}})
		b := newJazzClient(t)
		to := authorization(b.get(j.URL("ccm") + "/whoami"))
		b.get(to, "Authorization", good()).want(status, "Location: "+j.JASURL()+"/jazzop/form/login")
		a := b.check(j.JASURL()+"/jazzop", "CANARY-wrong").want(302, "Location: "+j.JASURL()+"/jazzop/form/login?error=error")
		b.next(a).want(200, "form-login")
		b.check(j.JASURL()+"/jazzop", "").want(302, "?error=error")
		a = b.check(j.JASURL()+"/jazzop", "CANARY-password").want(302, "jazzop_sso_cookie=CANARY-", `WASReqURL=""`, "Location: "+j.JASURL()+"/oidc/endpoint/jazzop/authorize?client_id=")
		for a.status/100 == 3 {
			a = b.next(a)
		}
		a.want(200, "/users/fred")
		wantJazz(t, j, rig.JazzCounts{Requests: 9, Logins: 1, Failures: 2, Passwords: 4, Sessions: map[string]int{"ccm": 1}})

		// As jazz.net's page ELMAndOAuth20 has it: no page before.
		b = newJazzClient(t)
		a = b.check(j.JASURL()+"/jazzop", "CANARY-password").want(302, "jazzop_sso_cookie=CANARY-").leads(j.JASURL() + "/jazzop/")
		b.next(a).want(200)
		b.walk(authorization(b.get(j.URL("qm")+"/whoami"))).want(200, "/users/fred")
		b.do("POST", j.JASURL()+"/jazzop/j_security_check", "", "Cookie", "WASReqURL=http://evil.example/").want(500)
	}
}

// Nobody but a registered client gets a code, and nobody but who has both gets in.
func TestJazzJASStates(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{Auth: "jas"})
	b := newJazzClient(t)
	to := authorization(b.get(j.URL("ccm") + "/whoami"))
	for _, other := range []string{
		strings.Replace(to, "client_id=", "client_id=a", 1),
		strings.Replace(to, "response_type=code", "response_type=token", 1),
		strings.Replace(to, "%2Fccm%2Fjsa", "%2Fqm%2Fjsa", 1),
		strings.Replace(to, "redirect_uri=http%3A%2F%2Flocalhost", "redirect_uri=http%3A%2F%2Fevil.example", 1),
	} {
		if other == to {
			t.Fatal("nothing is replaced")
		}
		b.get(other, "Authorization", good()).want(400)
	}
	back := b.get(to, "Authorization", good()).want(302).header.Get("Location")
	b.get(strings.Replace(back, "code=CANARY", "code=", 1)).want(400, "code")
	b.get(strings.Replace(back, "/ccm/", "/qm/", 1)).want(400, "state")
	b.get(strings.Replace(back, "state=security", "state=", 2)).want(400, "state")
	b.get(j.URL("ccm")+"/jsa").want(400, "state")
	another := authorization(b.get(j.URL("ccm") + "/whoami"))
	u, err := url.Parse(another)
	if err != nil {
		t.Fatal(err)
	}
	v, err := url.Parse(back)
	if err != nil {
		t.Fatal(err)
	}
	b.get(j.URL("ccm")+"/jsa?code="+v.Query().Get("code")+"&state="+url.QueryEscape(u.Query().Get("state"))).want(400, "code") // and is used up
	b.get(back).want(400, "code")
	b.get(j.URL("ccm")+"/jsa?appPassword=true&state="+url.QueryEscape(u.Query().Get("state")), "Authorization", good()).want(400, "application passwords")
	b.walk(another).want(200, "/users/fred")
	wantJazz(t, j, rig.JazzCounts{Logins: 1, Passwords: 6, Sessions: map[string]int{"ccm": 1}})

	j.Set(rig.JazzModes{ReuseState: true})
	b.walk(authorization(b.get(j.URL("qm")+"/whoami"))).want(400, "used before")
	b.walk(authorization(b.get(j.URL("qm")+"/whoami"))).want(200, "/users/fred")
	if n := j.Counts(); n.StateReused != 1 {
		t.Errorf("%+v", n)
	}
	j.Set(rig.JazzModes{ForeignRedirect: "https://evil.example/"})
	b.get(authorization(b.get(j.URL("gc") + "/whoami"))).want(302).leads("https://evil.example/")
}

// Logins that JAS delegates end at another host; an application password gets in.
func TestJazzApplicationPasswords(t *testing.T) {
	for _, external := range []string{"saml", "oidc"} {
		j := startJazz(t, rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: external}})
		j.AddAppPassword("fred", "CANARY-application")
		b := newJazzClient(t, "User-Agent", "Jazz Native Client app-password-enabled")
		rm := j.URL("rm")
		a := b.get(rm + "/whoami")
		to := authorization(a)
		app := a.header.Get("X-JSA-APP-PASSWORD-REDIRECT")
		if !strings.HasPrefix(app, rm+"/jsa?appPassword=true&state=security_token1%3D") {
			t.Fatalf("%v", a.header)
		}
		a = b.get(to + "&prompt=none")
		if external == "saml" {
			a.want(200, `<input type="hidden" name="SAMLRequest"`)
		} else {
			a.want(302, "WASOidcState", "WASOidcNonce", "Location: http://idp.localhost:")
			a = b.next(a).want(200, "The company")
		}
		if strings.Contains(a.text(), loginRequired) {
			t.Errorf("%v", a.header)
		}
		b.get(to, "Authorization", good()).want(leading(external)) // no password of a user's is looked at
		b.check(j.JASURL()+"/jazzop", "CANARY-password").want(302, "?error=error")
		b.get(app).want(401, "Basic realm=")
		b.get(app, "Authorization", good()).want(401)
		b.get(app, "Authorization", basicOf("bob", "CANARY-application")).want(401)
		b.get(app, "Authorization", basicOf("", "")).want(401)
		b.get(rm+"/whoami", "Authorization", good()).want(401)
		a = b.get(app, "Authorization", basicOf("fred", "CANARY-application")).want(302, "Location: "+rm+"/whoami", "JSESSIONID=CANARY-")
		b.next(a).want(200, "/users/fred")
		b.get(app, "Authorization", basicOf("fred", "CANARY-application")).want(400, "used before")
		wantJazz(t, j, rig.JazzCounts{Logins: 1, Failures: 5, Passwords: 8, Preemptive: 1, StateReused: 1, Sessions: map[string]int{"rm": 1}})
		b.get(rm + "/whoami?a=CANARY-application")
		if n := j.Counts(); n.PasswordsInURL != 1 {
			t.Errorf("%+v", n)
		}
	}
}

// leading is how JAS leads to another identity provider.
func leading(external string) int {
	if external == "saml" {
		return 200
	}
	return 302
}
