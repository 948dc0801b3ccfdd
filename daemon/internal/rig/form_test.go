package rig_test

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// csrfToken returns what a page's form has to bring back.
func csrfToken(a *reply) string {
	a.t.Helper()
	m := regexp.MustCompile(`name="csrf_token" value="([^"]+)"`).FindStringSubmatch(a.body)
	if m == nil {
		a.t.Fatalf("no token in %s", a.body)
	}
	return m[1]
}

func (v *visitor) submit(path string, fields ...string) *reply {
	v.t.Helper()
	form := make(url.Values)
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	return v.do("POST", path, form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
}

func TestForm(t *testing.T) {
	f, err := rig.StartForm()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Stop)
	f.AddUser("fred", "CANARY-password")
	v := newVisitor(t, f.URL())
	v.get("/app/").want(302, "Location: /login?next=%2Fapp%2F")
	v.get("/app/whoami").want(302, "Location: /login?next=%2Fapp%2Fwhoami")
	page := v.get("/login?next=/app/\"").want(200, `name="username"`, `name="password"`, "/app/&#34;", "HttpOnly")
	before, token := page.cookie("sessionid"), csrfToken(page)

	v.submit("/login", "username", "fred", "password", "CANARY-password").want(403)
	v.submit("/login", "csrf_token", "CANARY-other", "username", "fred", "password", "CANARY-password").want(403)
	(&visitor{t: t, base: f.URL()}).submit("/login", "csrf_token", token, "username", "fred", "password", "CANARY-password").want(403)
	v.submit("/login", "csrf_token", token, "username", "fred", "password", "CANARY-wrong", "next", "/app/x").want(200, "Wrong user name or password.", `name="password"`, `value="/app/x"`)
	v.submit("/login", "csrf_token", token, "username", "nobody", "password", "CANARY-password").want(200, "Wrong user name or password.")
	v.get("/app/").want(302)

	login := v.submit("/login", "csrf_token", token, "username", "fred", "password", "CANARY-password", "next", "/app/whoami").want(303, "Location: /app/whoami")
	if !regexp.MustCompile(`^sessionid=CANARY-[0-9A-F]{32}; Path=/; HttpOnly; SameSite=Lax$`).MatchString(login.cookie("sessionid")) || login.cookie("sessionid") == before {
		t.Errorf("cookie %q after %q", login.cookie("sessionid"), before)
	}
	v.get("/app/whoami").want(200, `{"user":"fred"}`)
	old, _, _ := strings.Cut(before, ";")
	(&visitor{t: t, base: f.URL()}).get("/app/whoami", "Cookie", old).want(302)
	home := v.get("/app/").want(200, "fred")

	if n, want := f.Counts(), (rig.FormCounts{Logins: 1, Failures: 2, Sessions: 1}); n != want {
		t.Errorf("counts %+v, want %+v", n, want)
	}
	v.submit("/logout").want(403)
	v.submit("/logout", "csrf_token", csrfToken(home)).want(303, "Location: /login", "Max-Age=0")
	v.get("/app/whoami").want(302)
	v.get("/logout").want(404)

	// Foreign destinations are not followed; sessions outlive a stop and can be dropped.
	for _, next := range []string{"//other.example", "http://other.example/", `/\other.example`, ""} {
		token := csrfToken(v.get("/login").want(200))
		v.submit("/login", "csrf_token", token, "username", "fred", "password", "CANARY-password", "next", next).want(303, "Location: /app/")
	}
	if n := f.Counts(); n.Logins != 5 || n.Sessions != 1 {
		t.Errorf("counts %+v: each login ends the session before it", n)
	}
	f.Stop()
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	v.get("/app/whoami").want(200)
	f.DropSessions()
	v.get("/app/whoami").want(302)
	if n := f.Hits("/login"); n.Total != 15 {
		t.Errorf("hits %+v", n)
	}
	(&visitor{t: t, base: f.URL()}).do("POST", "/login", "%zz", "Content-Type", "application/x-www-form-urlencoded").want(400)
}
