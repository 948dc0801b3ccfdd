package rig_test

import (
	"encoding/base64"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

var (
	nonsense = "Negotiate " + base64.StdEncoding.EncodeToString([]byte("nonsense"))
	ntlm     = "Negotiate " + base64.StdEncoding.EncodeToString([]byte("NTLMSSP\x00\x01"))
)

// visit walks to a page, and brings a token where it is asked for one.
func (b *jazzClient) visit(ref, token string) *reply {
	b.t.Helper()
	a := b.walk(ref).want(401)
	if h := a.header.Values("WWW-Authenticate"); len(h) != 1 || h[0] != "Negotiate" {
		b.t.Fatalf("challenges %q", h)
	}
	return b.get(b.at, "Authorization", token)
}

func TestJazzNegotiate(t *testing.T) {
	token, keytabFile := tokens(t)
	j := startJazz(t, rig.JazzOptions{Auth: "negotiate", Keytab: keytabFile})
	b := newJazzClient(t)
	ccm := j.URL("ccm")
	for _, bad := range []string{nonsense, ntlm, "Negotiate !", "Negotiate", good()} {
		if a := b.visit(ccm+"/whoami", bad).want(401, "NTLM"); a.header.Get("WWW-Authenticate") != "" {
			t.Errorf("%v", a.header)
		}
	}
	stranger := token()
	b.visit(ccm+"/whoami", stranger).want(403, "Www-Authenticate: Negotiate oR")                 // nobody whom Jazz knows
	if a := b.visit(ccm+"/whoami", stranger).want(403); a.header.Get("WWW-Authenticate") != "" { // was there before
		t.Errorf("%v", a.header)
	}
	j.AddUser("svc", "")
	a := b.visit(ccm+"/whoami", token()).want(302, "Location: "+ccm+"/whoami", "LtpaToken2=CANARY-", "Www-Authenticate: Negotiate oR")
	b.next(a).want(200, "/users/svc")
	b.get(j.URL("qm")+"/whoami").want(200, "/users/svc")
	b.walk(b.get(j.URL("rm")+"/whoami").want(401).header.Get("X-jazz-web-oauth-url")).want(200, "JAZZ_AUTH_TOKEN=")
	b.get(j.URL("rm")+"/process/project-areas").want(200, "Sample")
	b.check(ccm, "CANARY-password").want(403) // there is no form
	wantJazz(t, j, rig.JazzCounts{Logins: 1, Failures: 7, Tokens: 7, Passwords: 2, Preemptive: 1, Sessions: map[string]int{"ccm": 1, "qm": 1, "jts": 1, "rm": 1}})
}

// Who brings a bad token gets the form, and no word of it.
func TestJazzFailOver(t *testing.T) {
	token, keytabFile := tokens(t)
	j := startJazz(t, rig.JazzOptions{Auth: "negotiate", Keytab: keytabFile, FailOver: true})
	b := newJazzClient(t)
	b.next(b.visit(j.URL("ccm")+"/whoami", nonsense).want(302, "Location: "+j.URL("ccm")+"/auth/authrequired", "WASReqURL=")).want(200, required)
	a := b.check(j.URL("ccm"), "CANARY-password")
	for a.status/100 == 3 {
		a = b.next(a)
	}
	a.want(200, "/users/fred")
	j.AddUser("svc", "")
	b = newJazzClient(t)
	b.next(b.visit(j.URL("ccm")+"/whoami", token())).want(200, "/users/svc")
	wantJazz(t, j, rig.JazzCounts{Logins: 2, Failures: 1, Tokens: 2, Passwords: 1, Sessions: map[string]int{"ccm": 2}})
}

// Without a single sign-on cookie every request needs a token.
func TestJazzNegotiateAlways(t *testing.T) {
	token, keytabFile := tokens(t)
	j := startJazz(t, rig.JazzOptions{Auth: "negotiate", Keytab: keytabFile, NoLTPA: true})
	j.AddUser("svc", "")
	b := newJazzClient(t)
	for range 2 {
		if a := b.visit(j.URL("ccm")+"/whoami", token()).want(200, "/users/svc", "Www-Authenticate: Negotiate oR"); a.cookie("LtpaToken2") != "" {
			t.Errorf("%v", a.header)
		}
	}
	wantJazz(t, j, rig.JazzCounts{Requests: 4, Logins: 2, Tokens: 2, Sessions: map[string]int{"ccm": 1}})
}

func TestJazzJASNegotiate(t *testing.T) {
	token, keytabFile := tokens(t)
	for _, failOver := range []bool{false, true} {
		j := startJazz(t, rig.JazzOptions{Auth: "jas", Keytab: keytabFile, FailOver: failOver, JAS: rig.JazzJAS{Kerberos: true, Agent: "Mozilla"}})
		j.AddUser("svc", "")
		// Another agent gets the form.
		b := newJazzClient(t)
		b.walk(authorization(b.get(j.URL("ccm")+"/whoami"))+"&prompt=none").want(200, loginRequired)
		b.walk(authorization(b.get(j.URL("ccm")+"/whoami"))).want(200, "form-login")

		b = newJazzClient(t, "User-Agent", "Mozilla/5.0")
		to := authorization(b.get(j.URL("ccm") + "/whoami"))
		a := b.visit(to, nonsense)
		if failOver {
			b.next(a.want(302, "/jazzop/form/login")).want(200, "form-login")
		} else {
			a.want(401, "NTLM")
		}
		a = b.visit(to+"&prompt=none", token()).want(302, "jazzop_sso_cookie=CANARY-", "Www-Authenticate: Negotiate oR", "Location: "+j.URL("ccm")+"/jsa?")
		b.next(b.next(a)).want(200, "/users/svc")
		b.walk(authorization(b.get(j.URL("qm")+"/whoami"))).want(200, "/users/svc") // without another token
		// A password comes before.
		b = newJazzClient(t, "User-Agent", "Mozilla/5.0")
		b.walk(authorization(b.get(j.URL("ccm")+"/whoami")), "Authorization", good()).want(200, "/users/fred")
		wantJazz(t, j, rig.JazzCounts{Logins: 2, Failures: 1, Tokens: 2, Passwords: 1, Sessions: map[string]int{"ccm": 2, "qm": 1}})
	}
}
