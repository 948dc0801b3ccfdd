package rig_test

import (
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// As the recording that IBM/ELM-Python-Client has, without its detours.
func TestJazzOAuth(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{})
	b := newJazzClient(t)
	rm, jts := j.URL("rm"), j.URL("jts")
	a := b.get(rm+"/whoami").want(401, "CRJZS0360I", "Www-Authenticate: OAuth realm="+jts+"/oauth-authorize",
		"jfs-oauth-access-token0=; Max-Age=0", "jfs-oauth-access_token-secret0=; Max-Age=0")
	to := a.header.Get("X-jazz-web-oauth-url")
	token, ok := strings.CutPrefix(to, jts+"/oauth-authorize?oauth_token=")
	if !ok || len(token) != 32 {
		t.Fatalf("%q", to)
	}
	if ok, _ := regexp.MatchString(`^jfs-request-token-`+token+`="CANARY-[0-9A-F]{32}"; Version=1; Max-Age=600; Path=/rm; HttpOnly$`, a.cookie("jfs-request-token-"+token)); !ok {
		t.Errorf("%q", a.header)
	}
	b.walk(to).want(200, required, "JazzFormAuth=Form; Path=/jts")
	a = b.check(jts, "CANARY-password").want(302, "Location: "+jts+"/secure/authenticated/identity?redirectPath=%2Fjts%2Foauth-authorize%3Foauth_token%3D"+token)
	a = b.next(a).want(302, "Location: "+jts+"/oauth-authorize?oauth_token="+token)
	a = b.next(a).want(302, "Location: "+rm+"/oauthCallback?oauth_token="+token+"&oauth_verifier=")
	callback := a.header.Get("Location")
	a = b.next(a).want(200, "JAZZ_AUTH_TOKEN=CANARY-", "jfs-oauth-access-token0=CANARY-", "jfs-oauth-access_token-secret0=CANARY-", "jfs-request-token-"+token+"=; Max-Age=0")
	set := a.cookie("JAZZ_AUTH_TOKEN")
	if a = b.get(rm+"/process/project-areas").want(200, "<projects>"); a.cookie("JAZZ_AUTH_TOKEN") != set || !strings.HasSuffix(set, "; Path=/rm; HttpOnly") || b.sent != 9 {
		t.Errorf("%q %q after %d requests", a.body, a.header, b.sent)
	}
	if a = b.get(jts + "/whoami").want(200); a.body != jts+"/users/fred" {
		t.Errorf("%q", a.body)
	}
	b.get(rm + "/whoami").want(404) // the JTS has it
	wantJazz(t, j, rig.JazzCounts{Requests: 11, Logins: 1, Passwords: 1, Sessions: map[string]int{"jts": 1, "rm": 1}})

	b.get(callback).want(401, "invalid") // the request token's cookie is gone
	// Who is logged in at the JTS comes in without a password.
	b.walk(newer(b, rm)).want(200, "JAZZ_AUTH_TOKEN=CANARY-")
	b.get(rm + "/process/project-areas").want(200)
	if n := j.Counts(); n.Passwords != 1 {
		t.Errorf("%+v", n)
	}
}

// newer is where an application leads to that delegates its login and has lost it.
func newer(b *jazzClient, context string) string {
	b.t.Helper()
	ref := newJazzClient(b.t).get(context + "/whoami").want(401).header.Get("X-jazz-web-oauth-url")
	a := b.get(context+"/whoami", "Cookie", "JAZZ_AUTH_TOKEN=none")
	if a.status == 401 {
		ref = a.header.Get("X-jazz-web-oauth-url")
	}
	return ref
}

func TestJazzOAuthTokens(t *testing.T) {
	now := time.Now()
	j := startJazz(t, rig.JazzOptions{Now: func() time.Time { return now }})
	b := newJazzClient(t)
	b.logIn(j.URL("ccm"))
	rm, jts := j.URL("rm"), j.URL("jts")
	lead := func() string { return b.get(rm + "/whoami").want(401).header.Get("X-jazz-web-oauth-url") }

	b.get(jts+"/oauth-authorize?oauth_token=none").want(401, "invalid")
	to := lead()
	b.get(strings.Replace(to, jts+"/oauth-authorize", rm+"/oauthCallback", 1)).want(401, "invalid") // nobody has let it in
	a := b.get(to).want(302)
	callback := a.header.Get("Location")
	newJazzClient(t).get(callback).want(401, "invalid") // without the cookie
	b.get(callback+"0").want(401, "invalid")
	b.get(strings.Replace(callback, "oauth_verifier=", "no=", 1)).want(401, "invalid")
	b.get(strings.Replace(callback, "/rm/", "/ccm/", 1)).want(200, "Welcome") // it is no callback there

	// It has to be used soon.
	now = now.Add(10 * time.Minute)
	b.get(to).want(401, "invalid")

	j.Set(rig.JazzModes{ReuseState: true})
	b.walk(lead()).want(401, "used before")
	b.get(rm + "/whoami").want(401)
	b.walk(lead()).want(200)
	b.get(rm + "/process/project-areas").want(200)
	if n := j.Counts(); n.StateReused != 1 || n.Sessions["rm"] != 1 {
		t.Errorf("%+v", n)
	}

	// An application that nobody has said to be trusted.
	j.DropApps()
	j.Set(rig.JazzModes{Consent: true})
	to = lead()
	token := to[strings.LastIndexByte(to, '=')+1:]
	b.walk(to).want(200, `name="authorize"`, token)
	deny := url.Values{"oauth_token": {token}, "authorize": {"false"}}.Encode()
	b.do("POST", jts+"/oauth-authorize", deny, "Content-Type", "application/x-www-form-urlencoded").want(200, `name="authorize"`)
	b.get(rm + "/whoami").want(401)
	allow := strings.Replace(deny, "false", "true", 1)
	b.next(b.do("POST", jts+"/oauth-authorize", allow, "Content-Type", "application/x-www-form-urlencoded").want(302)).want(200, "JAZZ_AUTH_TOKEN=")
	b.get(rm + "/process/project-areas").want(200)

	j.DropApps()
	j.Set(rig.JazzModes{ForeignRedirect: "https://evil.example/"})
	b.get(lead()).want(302).leads("https://evil.example/")
}

// A request token is one application's.
func TestJazzOAuthApplications(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{Delegated: []string{"rm", "gc"}})
	b := newJazzClient(t)
	b.logIn(j.URL("ccm"))
	a := b.get(j.URL("rm") + "/whoami").want(401)
	to := a.header.Get("X-jazz-web-oauth-url")
	cookie, _, _ := strings.Cut(a.cookie("jfs-request-token-"+to[strings.LastIndexByte(to, '=')+1:]), ";")
	callback := b.get(to).want(302).header.Get("Location")
	b.get(strings.Replace(callback, "/rm/", "/gc/", 1), "Cookie", cookie).want(401, "invalid")
	b.get(callback).want(200)
	b.get(j.URL("gc") + "/whoami").want(401)
	b.get(j.URL("rm") + "/process/project-areas").want(200)
}

// The JTS's own login can be any.
func TestJazzOAuthOverOthers(t *testing.T) {
	b := newJazzClient(t)
	j := startJazz(t, rig.JazzOptions{Auth: "jas", Delegated: []string{"rm"}})
	to := b.get(j.URL("rm") + "/whoami").want(401).header.Get("X-jazz-web-oauth-url")
	b.walk(authorization(b.get(to)), "Authorization", good()).want(200, "JAZZ_AUTH_TOKEN=")
	b.get(j.URL("rm")+"/process/project-areas").want(200, "Sample")

	// IBM/ELM-Python-Client's httpops.py has this for jazz.net.
	b = newJazzClient(t)
	j = startJazz(t, rig.JazzOptions{Auth: "basic", Delegated: []string{"rm"}})
	to = b.get(j.URL("rm")+"/whoami", "Authorization", good()).want(401, "OAuth").header.Get("X-jazz-web-oauth-url")
	b.get(to).want(401, "Basic realm=")
	b.walk(to, "Authorization", good()).want(200, "JAZZ_AUTH_TOKEN=")
	b.get(j.URL("rm")+"/process/project-areas").want(200, "Sample")
	wantJazz(t, j, rig.JazzCounts{Logins: 1, Passwords: 2, Preemptive: 1, Sessions: map[string]int{"jts": 1, "rm": 1}})
}
