package rig_test

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

var (
	jazzSession = regexp.MustCompile(`^JSESSIONID=CANARY-[0-9A-F]{32}:[0-9a-f]{8}; Path=/ccm; HttpOnly$`)
	ltpaToken   = regexp.MustCompile(`^LtpaToken2=CANARY-[0-9A-F]{32}\+/=; Path=/; HttpOnly$`)
)

// The messages of the recording that IBM/ELM-Python-Client has, one by one.
func TestJazzForm(t *testing.T) {
	for _, status := range []int{302, 303, 307} {
		j := startJazz(t, rig.JazzOptions{Redirect: status})
		b := newJazzClient(t)
		ccm := j.URL("ccm")
		origin := strings.TrimSuffix(ccm, "/ccm")
		a := b.get(ccm+"/whoami?a=b").want(status, "Location: "+ccm+"/secure/authenticated/identity?redirectPath=%2Fccm%2Fwhoami%3Fa%3Db")
		if !jazzSession.MatchString(a.cookie("JSESSIONID")) {
			t.Errorf("cookie %q", a.cookie("JSESSIONID"))
		}
		a = b.next(a).want(status, "Location: "+ccm+"/auth/authrequired")
		// The host's place is empty.
		if want := "WASReqURL=http://" + strings.TrimPrefix(origin, "http://localhost") + "/ccm/secure/authenticated/identity?redirectPath=%2Fccm%2Fwhoami%3Fa%3Db; Path=/; HttpOnly"; a.cookie("WASReqURL") != want {
			t.Errorf("cookie %q, want %q", a.cookie("WASReqURL"), want)
		}
		a = b.next(a).want(200, required, "Javascript is either disabled")
		if a.cookie("JazzFormAuth") != "JazzFormAuth=Form; Path=/ccm" || strings.Contains(a.body, "<form") {
			t.Errorf("%v %s", a.header, a.body)
		}

		a = b.check(ccm, "CANARY-wrong").want(302, "Location: "+ccm+"/auth/authfailed")
		if len(a.header.Values("Set-Cookie")) != 0 || strings.Contains(a.text(), "Web-Auth-Msg") {
			t.Errorf("%v", a.header)
		}
		b.next(a).want(200, failed)
		b.check(ccm, "").want(302, "/auth/authfailed")
		b.get(ccm+"/whoami").want(status, "/secure/")

		b.sent = 3
		a = b.check(ccm, "CANARY-password").want(302, "Location: "+ccm+"/secure/authenticated/identity?redirectPath=%2Fccm%2Fwhoami%3Fa%3Db",
			`WASReqURL=""; Expires=Thu, 01 Dec 1994 16:00:00 GMT; Path=/`)
		if !ltpaToken.MatchString(a.cookie("LtpaToken2")) {
			t.Errorf("cookie %q", a.cookie("LtpaToken2"))
		}
		a = b.next(a).want(302, "Location: "+ccm+"/whoami?a=b", "X-com-ibm-team-foundation-auth-loop-avoidance=false")
		if a = b.next(a).want(200, "text/plain"); a.body != j.URL("jts")+"/users/fred" || b.sent != 6 {
			t.Errorf("%q after %d requests", a.body, b.sent)
		}
		// The others know the user by that, without a word, but for rm.
		for _, context := range []string{"jts", "qm", "gc"} {
			b.get(j.URL(context)+"/whoami").want(200, "/users/fred", "JSESSIONID=CANARY-")
		}
		b.get(j.URL("rm") + "/whoami").want(401)
		wantJazz(t, j, rig.JazzCounts{Requests: 14, Logins: 1, Failures: 2, Passwords: 3, Sessions: map[string]int{"ccm": 1, "jts": 1, "qm": 1, "gc": 1}})
	}
}

// What clients do besides.
func TestJazzFormClients(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{FailDirect: true})
	ccm := j.URL("ccm")
	b := newJazzClient(t)
	// rtcclient: below /authenticated, and the page before is /authenticated/identity.
	b.walk(ccm+"/authenticated/identity").want(200, required)
	b.do("POST", ccm+"/authenticated/j_security_check", "j_username=fred&j_password=CANARY-wrong", "Content-Type", "application/x-www-form-urlencoded").want(200, failed)
	a := b.do("POST", ccm+"/authenticated/j_security_check", "j_username=fred&j_password=CANARY-password", "Content-Type", "application/x-www-form-urlencoded")
	b.next(a.want(302, "Location: "+ccm+"/authenticated/identity", "LtpaToken2=")).want(200, `"userId":"fred"`)

	// IBM/ELM-Python-Client's httpops.py: the password to the page itself, and then in
	// the URL, which is counted.
	b = newJazzClient(t)
	b.walk(j.URL("jts")+"/whoami").want(200, required)
	form := url.Values{"j_username": {"fred"}, "j_password": {"CANARY-password"}}.Encode()
	b.do("POST", j.URL("jts")+"/auth/authrequired", form, "Content-Type", "application/x-www-form-urlencoded").want(200, required)
	b.walk(j.URL("jts")+"/j_security_check?"+form).want(200, "/users/fred")
	wantJazz(t, j, rig.JazzCounts{Logins: 2, Failures: 1, Passwords: 4, PasswordsInURL: 1, Sessions: map[string]int{"ccm": 1, "jts": 1}})
	b.get(ccm + "/whoami?next=" + url.QueryEscape("a CANARY-password"))
	b.get(ccm + "/whoami?a=%zz").want(400)
	if n := j.Counts(); n.PasswordsInURL != 2 {
		t.Errorf("%+v", n)
	}

	// No page before: the context root. The URL of another host is no place to go to.
	b = newJazzClient(t)
	b.check(ccm, "CANARY-password").want(302, "LtpaToken2=").leads(ccm + "/")
	b.do("POST", ccm+"/j_security_check", form, "Content-Type", "application/x-www-form-urlencoded", "Cookie", "WASReqURL=http://elm.example/ccm/whoami").want(500)
	b.do("POST", ccm+"/j_security_check", form, "Content-Type", "application/x-www-form-urlencoded", "Cookie", "WASReqURL=http://%zz").want(500)
	b.do("POST", ccm+"/j_security_check", form, "Content-Type", "application/x-www-form-urlencoded", "Cookie", "WASReqURL=http://localhost/ccm/whoami").want(302, "Location: "+ccm+"/whoami")

	// A password by Basic is nothing to a form.
	b = newJazzClient(t)
	before := j.Counts()
	b.get(ccm+"/whoami", "Authorization", good()).want(302)
	if n := j.Counts(); n.Preemptive != before.Preemptive+1 || n.Logins != before.Logins || n.Passwords != before.Passwords+1 {
		t.Errorf("%+v", n)
	}
}

// Another user's login has another session.
func TestJazzUsers(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{})
	j.AddUser("bob@example", "CANARY-bob")
	b := newJazzClient(t)
	b.logIn(j.URL("ccm"))
	before := b.session(j.URL("ccm"))
	b.do("POST", j.URL("ccm")+"/j_security_check", "j_username=bob%40example&j_password=CANARY-bob", "Content-Type", "application/x-www-form-urlencoded").want(302)
	b.get(j.URL("ccm")+"/whoami").want(200, "/users/bob%40example")
	if b.session(j.URL("ccm")) == before {
		t.Error("it is the same session")
	}
	wantJazz(t, j, rig.JazzCounts{Logins: 2, Passwords: 2, Sessions: map[string]int{"ccm": 2}})
}

// Tomcat shows the form in place, wants it to be shown before, and the page to be
// visited after it; the login is one application's.
func TestJazzTomcat(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{NoLTPA: true})
	ccm := j.URL("ccm")
	b := newJazzClient(t)
	b.check(ccm, "CANARY-wrong").want(200, failed)
	b.check(ccm, "CANARY-password").want(408)
	b.get(ccm + "/whoami").want(302)
	b.check(ccm, "CANARY-password").want(400)
	a := b.walk(ccm+"/whoami").want(200, required, "JazzFormAuth=Form; Path=/ccm")
	if a.cookie("WASReqURL") != "" {
		t.Errorf("%v", a.header)
	}
	b.check(ccm, "CANARY-wrong").want(200, failed)
	before := b.session(ccm)
	a = b.check(ccm, "CANARY-password").want(303, "Location: /ccm/secure/authenticated/identity?redirectPath=%2Fccm%2Fwhoami")
	if after := b.session(ccm); after == before || a.cookie("LtpaToken2") != "" {
		t.Errorf("%q %v", after, a.header)
	}
	newJazzClient(t).get(ccm+"/whoami", "Cookie", "JSESSIONID="+before).want(302, "JSESSIONID=CANARY-") // the old one has ended
	b.get(ccm + "/whoami").want(302)                                                                    // not yet
	a = b.next(b.do("GET", ccm+"/secure/authenticated/identity?redirectPath=%2Fccm%2Fwhoami", "").want(302, "/ccm/whoami"))
	a.want(200, "/users/fred")
	b.get(ccm + "/whoami").want(200)
	b.get(j.URL("qm") + "/whoami").want(302)
	wantJazz(t, j, rig.JazzCounts{Logins: 3, Failures: 2, Passwords: 5, Sessions: map[string]int{"ccm": 1}})

	// The same by redirects.
	newJazzClient(t).logIn(ccm)
	j.DropApps()
	b.get(ccm + "/whoami").want(302)
}

// By Basic each request brings the password, or the cookie that the first one set.
func TestJazzBasic(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{Auth: "basic"})
	b := newJazzClient(t)
	if a := b.get(j.URL("ccm") + "/whoami").want(401); a.header.Get("WWW-Authenticate") != `Basic realm="`+j.URL("ccm")+`"` {
		t.Errorf("%v", a.header)
	}
	b.get(j.URL("ccm")+"/whoami", "Authorization", wrong()).want(401, "Basic realm=")
	b.get(j.URL("ccm")+"/whoami", "Authorization", good()).want(200, "/users/fred", "LtpaToken2=CANARY-")
	b.get(j.URL("rm") + "/whoami").want(200)
	b.get(j.URL("ccm")+"/j_security_check").want(200, "Welcome") // there is no form
	wantJazz(t, j, rig.JazzCounts{Logins: 1, Failures: 1, Passwords: 2, Sessions: map[string]int{"ccm": 1, "rm": 1}})

	j = startJazz(t, rig.JazzOptions{Auth: "basic", NoLTPA: true})
	b = newJazzClient(t)
	if a := b.get(j.URL("ccm")+"/whoami", "Authorization", good()).want(200, "/users/fred"); a.cookie("LtpaToken2") != "" {
		t.Errorf("%v", a.header)
	}
	b.get(j.URL("ccm") + "/whoami").want(401)
	b.get(j.URL("ccm")+"/whoami", "Authorization", good()).want(200)
	wantJazz(t, j, rig.JazzCounts{Logins: 2, Passwords: 2, Sessions: map[string]int{"ccm": 1}})
}
