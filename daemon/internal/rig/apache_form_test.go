package rig_test

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// passwordUsers are those who may log in with a password.
var passwordUsers = map[string]string{"anna": "CANARY-anna", "bert <&>": "CANARY-bert<&\""}

// wantNoSecrets looks for passwords in the logs of a server.
func wantNoSecrets(t *testing.T, dir string, logs ...string) {
	t.Helper()
	for _, file := range logs {
		b, err := os.ReadFile(filepath.Join(dir, file))
		must(t, err)
		if strings.Contains(string(b), "CANARY-") {
			t.Errorf("a secret in %s", file)
		}
	}
}

func TestApacheForm(t *testing.T) {
	rig.Require(t, "apache2", "mod_ssl", "mod_auth_form", "mod_session_crypto")
	a, err := rig.StartApache(t.Context(), t.TempDir(), rig.ApacheOptions{Users: passwordUsers})
	must(t, err)
	t.Cleanup(a.Stop)
	newVisitor(t, a.URL()).get("/spnego/").want(404) // for want of a keytab
	login := func(v *visitor, path, user, password string) *reply {
		t.Helper()
		return v.submit(path, "httpd_username", user, "httpd_password", password, "login", "Log in")
	}
	session := func(r *reply, page string) string {
		t.Helper()
		line := r.cookie(page + "_session")
		cookie, attributes, _ := strings.Cut(line, ";")
		if !strings.Contains(attributes, "path=/"+page) {
			t.Errorf("Set-Cookie: %s", line)
		}
		if strings.Contains(line, "CANARY-") != (page == "clear") {
			t.Errorf("the password is in %s's cookie: %v", page, page != "clear")
		}
		return cookie
	}

	// Apart from the pages: nobody's session, a form elsewhere.
	v := newVisitor(t, a.URL())
	nobody := session(v.get("/form/whoami").want(302, "Location: /login/form.html"), "form")
	v.get("/login/form.html").want(200, `action="/form/login"`, `name="httpd_username"`, `name="httpd_password"`)
	v.get("/form/login").want(405)
	refused := login(v, "/form/login", "anna", "CANARY-wrong").want(302, "Location: /login/form.html")
	if session(refused, "form") == nobody {
		t.Error("the cookie of a refusal is the one of before")
	}
	login(v, "/form/login", "nobody", "CANARY-wrong").want(302, "Location: /login/form.html")
	in := session(login(v, "/form/login", "anna", "CANARY-anna").want(302, "Location: /form/"), "form")
	if again := session(v.get("/form/whoami").want(200, `{"user":"anna"}`, "X-Remote-User: anna"), "form"); again == in {
		t.Error("the cookie stays the same")
	}
	stranger := &visitor{t: t, base: a.URL()}
	stranger.get("/form/whoami", "Cookie", in).want(200) // also the old one
	v.get("/form/logout").want(307, "Location: /login/form.html")
	v.get("/form/whoami").want(302)
	stranger.get("/form/whoami", "Cookie", in).want(200) // the server keeps no sessions

	// The page itself takes the form.
	v = newVisitor(t, a.URL())
	if r := v.get("/inline/whoami").want(401, `action=""`, "Cache-Control: no-store"); r.header.Get("WWW-Authenticate") != "" {
		t.Errorf("%v", r.header)
	}
	login(v, "/inline/whoami", "anna", "CANARY-wrong").want(401, `name="httpd_password"`)
	inline := session(login(v, "/inline/whoami", "bert <&>", "CANARY-bert<&\"").want(200, `{"user":"bert <&>"}`), "inline")
	v.get("/inline/").want(200)

	// Without mod_session_crypto.
	clear := session(login(newVisitor(t, a.URL()), "/clear/", "anna", "CANARY-anna").want(200), "clear")
	if clear != "clear_session=rig-user=anna&rig-pw=CANARY-anna" {
		t.Errorf("%s", clear)
	}

	port := strings.TrimPrefix(a.URL(), "http://localhost:")
	foreign := "Location: http://127.0.0.1:" + port
	login(newVisitor(t, a.URL()), "/away/login", "anna", "CANARY-anna").want(302, foreign+"/away/")
	stranger.get("/away/").want(302, "Location: /login/away.html")
	stranger.get("/abroad/").want(302, foreign+"/login/form.html")

	for prefix, want := range map[string]int{"/form/": 3, "/form/login": 3, "/inline/": 2, "/clear/": 1, "/away/": 1, "/": 7} {
		if n, err := a.Posts(prefix); err != nil || n != want {
			t.Errorf("%s: %d passwords (%v), want %d", prefix, n, err, want)
		}
	}
	// The page of an ErrorDocument is no request.
	if got, want := hits(t, a, "/login/"), (rig.Hits{Total: 1, Cookie: 0}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}

	// Nobody can be looked up.
	users := filepath.Join(a.Dir(), "users")
	must(t, os.Rename(users, users+".away"))
	login(newVisitor(t, a.URL()), "/form/login", "anna", "CANARY-anna").want(500)
	login(newVisitor(t, a.URL()), "/inline/", "anna", "CANARY-anna").want(500)
	stranger.get("/form/", "Cookie", in).want(500)
	must(t, os.Rename(users+".away", users))

	must(t, a.Restart(t.Context(), false))
	stranger.get("/form/", "Cookie", in).want(200)
	must(t, a.Restart(t.Context(), true))
	stranger.get("/form/", "Cookie", in).want(302)
	stranger.get("/inline/", "Cookie", inline).want(401)
	wantNoSecrets(t, a.Dir(), "error.log", "apache2.out")
}

func TestApacheBasic(t *testing.T) {
	rig.Require(t, "apache2", "mod_ssl")
	a, err := rig.StartApache(t.Context(), t.TempDir(), rig.ApacheOptions{Users: passwordUsers})
	must(t, err)
	t.Cleanup(a.Stop)
	basic := func(user, password string) []string {
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(user, password)
		return []string{"Authorization", r.Header.Get("Authorization")}
	}
	v := &visitor{t: t, base: a.URL()}
	for page, cookie := range map[string]string{"/password/": "", "/tracked/": "route=rig"} {
		v.get(page+"whoami").want(401, `Basic realm="rig"`)
		v.get(page+"whoami", basic("anna", "CANARY-wrong")...).want(401, `Basic realm="rig"`)
		r := v.get(page+"whoami", basic("anna", "CANARY-anna")...).want(200, `{"user":"anna"}`)
		if got, _, _ := strings.Cut(r.cookie("route"), ";"); got != cookie {
			t.Errorf("%s: Set-Cookie: %q", page, got)
		}
		v.get(page, "Cookie", "route=rig").want(401)
		if got, want := hits(t, a, page), (rig.Hits{Total: 4, Basic: 2, Cookie: 1}); got != want {
			t.Errorf("%s: %+v, want %+v", page, got, want)
		}
	}
	// A password in a query is nobody's.
	v.get("/password/?" + url.Values{"httpd_username": {"anna"}, "httpd_password": {"CANARY-anna"}}.Encode()).want(401)
	wantNoSecrets(t, a.Dir(), "error.log", "apache2.out")
}
