package rig_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// byHTTP10 sends a request of HTTP/1.0, as some old proxies do.
func byHTTP10(t *testing.T, base, method, path, cookie, body string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", strings.Replace(strings.TrimPrefix(base, "http://"), "localhost", "127.0.0.1", 1))
	must(t, err)
	defer c.Close()
	_, err = fmt.Fprintf(c, "%s %s HTTP/1.0\r\nHost: localhost\r\nCookie: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", method, path, cookie, len(body), body)
	must(t, err)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	must(t, err)
	_, err = io.Copy(io.Discard, res.Body)
	must(t, err)
	return res
}

func TestTomcatForm(t *testing.T) {
	rig.Require(t, rig.TomcatNeeds()...)
	s, err := rig.StartTomcat(t.Context(), t.TempDir(), rig.TomcatOptions{Users: passwordUsers, KeepSessions: true})
	must(t, err)
	t.Cleanup(s.Stop)
	newVisitor(t, s.URL()).get("/spn/").want(404) // for want of a keytab
	login := func(v *visitor, user, password string) *reply {
		t.Helper()
		return v.submit("/form/j_security_check", "j_username", user, "j_password", password)
	}
	session := func(r *reply) string {
		cookie, _, _ := strings.Cut(r.cookie("JSESSIONID"), ";")
		return cookie
	}

	v := newVisitor(t, s.URL())
	page := v.get("/form/whoami?x=1").want(200, `action="j_security_check"`, `name="j_username"`, `name="j_password"`, "Path=/form;", "HttpOnly")
	for _, user := range []string{"anna", "nobody"} {
		if r := login(v, user, "CANARY-wrong").want(200, "Wrong user name or password."); session(r) != "" || strings.Contains(r.body, "<form") {
			t.Errorf("a refusal: %s", r.text())
		}
	}
	in := login(v, "anna", "CANARY-anna").want(303, "Location: /form/whoami?x=1", "Path=/form;")
	if session(in) == "" || session(in) == session(page) {
		t.Errorf("the login begins %q after %q", session(in), session(page))
	}
	v.get("/form/whoami").want(200, `{"user":"anna"}`)
	stranger := &visitor{t: t, base: s.URL()}
	stranger.get("/form/whoami", "Cookie", session(page)).want(200, "j_security_check")
	login(v, "anna", "CANARY-anna").want(404) // who is in already

	// Out of turn.
	login(stranger, "anna", "CANARY-anna").want(408)
	stranger.get("/form/j_security_check").want(400)
	other := newVisitor(t, s.URL())
	other.get("/form/login.html").want(200, "j_security_check")
	login(other, "bert <&>", "CANARY-bert<&\"").want(303, "Location: /form/login.html")
	other.get("/form/login.html").want(200, "j_security_check") // to a user as well
	other.get("/form/whoami").want(200, `{"user":"bert <&>"}`)

	v.get("/form/away").want(302, "Location: http://127.0.0.1"+strings.TrimPrefix(s.URL(), "http://localhost")+"/open/")
	v.get("/form/broken").want(500)

	old := byHTTP10(t, s.URL(), "GET", "/form/", "", "")
	cookie, _, _ := strings.Cut(old.Header.Get("Set-Cookie"), ";")
	old = byHTTP10(t, s.URL(), "POST", "/form/j_security_check", cookie, url.Values{"j_username": {"anna"}, "j_password": {"CANARY-anna"}}.Encode())
	if old.StatusCode != 302 || old.Header.Get("Location") != "http://localhost/form/" {
		t.Errorf("by HTTP/1.0: %s %v", old.Status, old.Header)
	}

	for prefix, want := range map[string]int{"/form/j_security_check": 7, "/form/whoami": 0, "/": 7} {
		if n, err := s.Posts(t.Context(), prefix); err != nil || n != want {
			t.Errorf("%s: %d passwords (%v), want %d", prefix, n, err, want)
		}
	}

	// BASIC begins a session, too.
	stranger.get("/basic/whoami").want(401, `Basic realm="rig"`)
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth("anna", "CANARY-wrong")
	stranger.get("/basic/whoami", "Authorization", r.Header.Get("Authorization")).want(401)
	r.SetBasicAuth("anna", "CANARY-anna")
	basic := session(stranger.get("/basic/whoami", "Authorization", r.Header.Get("Authorization")).want(200, `{"user":"anna"}`, "Path=/basic;"))
	stranger.get("/basic/whoami", "Cookie", basic).want(200, `{"user":"anna"}`)
	if got, want := tomcatHits(t, s, "/basic/"), (rig.Hits{Total: 4, Basic: 2, Cookie: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}

	s.Stop()
	must(t, s.Start(t.Context()))
	v.get("/form/whoami").want(200, `{"user":"anna"}`)
	stranger.get("/basic/whoami", "Cookie", basic).want(200)
	must(t, s.ForgetSessions(t.Context()))
	v.get("/form/whoami").want(200, "j_security_check")
	stranger.get("/basic/whoami", "Cookie", basic).want(401)
	wantNoSecrets(t, s.Dir(), "access.log", "tomcat.out")
}
