package login

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// TestProofIdentity is about the three ways to find the user's name, and
// about pages that name nobody.
func TestProofIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		p            proof
		header, body string
		status       int
		want         string
		code         api.Code
	}{
		"json":             {proof{IdentityJSON: "$.user.0.name"}, "", `{"user":[{"name":"build"}]}`, 200, "build", ""},
		"json number":      {proof{IdentityJSON: "id"}, "", `{"id":12345678901234567890}`, 200, "12345678901234567890", ""},
		"json absent":      {proof{IdentityJSON: "user"}, "", `{"users":"x"}`, 200, "", api.Expired},
		"json object":      {proof{IdentityJSON: "user"}, "", `{"user":{}}`, 200, "", api.Expired},
		"login page":       {proof{IdentityJSON: "user"}, "", `<html>log in</html>`, 200, "", api.Expired},
		"header":           {proof{IdentityHeader: "x-remote-user"}, " build ", "", 200, "build", ""},
		"header absent":    {proof{IdentityHeader: "X-Other"}, "build", "", 200, "", api.Expired},
		"regexp":           {proof{IdentityRegexp: `Logged in as <b>(\w+)</b>`}, "", "<p>Logged in as <b>build</b>", 200, "build", ""},
		"regexp no match":  {proof{IdentityRegexp: `as (\w+)`}, "", "please log in", 200, "", api.Expired},
		"401":              {proof{IdentityJSON: "user"}, "", `{"user":"build"}`, 401, "", api.Expired},
		"302":              {proof{IdentityJSON: "user"}, "", `{"user":"build"}`, 302, "", api.Expired},
		"403":              {proof{IdentityJSON: "user"}, "", `{"user":"build"}`, 403, "", api.Forbidden},
		"404":              {proof{IdentityJSON: "user"}, "", `{"user":"build"}`, 404, "", api.UnexpectedStatus},
		"500":              {proof{IdentityJSON: "user"}, "", `{"user":"build"}`, 500, "", api.Server5xx},
		"json, then more":  {proof{IdentityJSON: "user"}, "", `{"user":"build"} <html>log in</html>`, 200, "", api.Expired},
		"two documents":    {proof{IdentityJSON: "user"}, "", `{"user":"build"}{"user":"root"}`, 200, "", api.Expired},
		"cut off":          {proof{IdentityJSON: "user"}, "", `{"user":"build"`, 200, "", api.Expired},
		"twice":            {proof{IdentityJSON: "user"}, "", `{"user":"root","user":"build"}`, 200, "", api.WrongIdentity},
		"twice, escaped":   {proof{IdentityJSON: "user"}, "", `{"user":"root","\u0075ser":"build"}`, 200, "", api.WrongIdentity},
		"twice above":      {proof{IdentityJSON: "a.user"}, "", `{"a":{"user":"root"},"a":{"user":"build"}}`, 200, "", api.WrongIdentity},
		"twice, elsewhere": {proof{IdentityJSON: "user"}, "", `{"x":1,"x":2,"user":"build","y":{"user":"x","user":"y"}}`, 200, "build", ""},
		"null":             {proof{IdentityJSON: "user"}, "", `{"user":null}`, 200, "", api.Expired},
		"204":              {proof{IdentityHeader: "X-Remote-User"}, "build", "", 204, "", api.UnexpectedStatus},
	} {
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Remote-User", c.header)
			w.Header().Set("Location", "/login")
			w.WriteHeader(c.status)
			w.Write([]byte(c.body))
		}), new(web.Jar), nil)
		id, err := c.p.Probe(t.Context(), x)
		if id.Name != c.want || api.CodeOf(err) != c.code {
			t.Errorf("%s: %q %v, want %q %q", name, id.Name, err, c.want, c.code)
		}
	}
}

// TestProofIdentityHeaderTwice: a proxy that adds its own value to the one of
// the request behind it names two people.
func TestProofIdentityHeaderTwice(t *testing.T) {
	x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["X-Remote-User"] = []string{"build", "root"}
	}), new(web.Jar), nil)
	if id, err := (&proof{IdentityHeader: "X-Remote-User"}).Probe(t.Context(), x); api.CodeOf(err) != api.WrongIdentity {
		t.Errorf("%+v %v", id, err)
	}
}

// TestProofUnproven: without a name, only the difference between with and
// without cookies proves anything.
func TestProofUnproven(t *testing.T) {
	for name, c := range map[string]struct {
		without int
		code    api.Code
	}{"refused without": {401, ""}, "redirected without": {302, ""}, "the same without": {200, api.LoginOKButProbeFailed}, "down without": {503, api.Maintenance}} {
		jar := new(web.Jar)
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Cookie") == "" {
				w.WriteHeader(c.without)
			}
		}), jar, nil)
		base, err := x.URL("")
		if err != nil {
			t.Fatal(err)
		}
		jar.Set(base, []string{"s=CANARY-session; Path=/"}, time.Now())
		id, err := new(proof).Probe(t.Context(), x)
		if api.CodeOf(err) != c.code || err == nil && !id.Unproven {
			t.Errorf("%s: %+v %v, want %q", name, id, err, c.code)
		}
	}
}

func TestProofCheck(t *testing.T) {
	base := &url.URL{Scheme: "https", Host: "app.corp.example"}
	o := web.Options{Base: base, LoginHosts: []web.Origin{{Scheme: "https", Host: "login.corp.example", Port: "443"}}}
	json := func(login, probe string) proof {
		return proof{IdentityJSON: "user", LoginURL: login, ProbeURL: probe}
	}
	for name, c := range map[string]struct {
		p        proof
		identity string
		want     string // in the message, "" if it is right
	}{
		"json": {json("", ""), "", ""}, "unproven": {proof{}, Unproven, ""}, "nothing": {proof{}, "", "identity_json"},
		"name without a way": {proof{}, "build", "identity_json"}, "two ways": {proof{IdentityJSON: "a", IdentityHeader: "b"}, "", "only one"},
		"unproven and a way": {proof{IdentityJSON: "a"}, Unproven, "contradicts"}, "bad regexp": {proof{IdentityRegexp: "("}, "", "identity_regexp"},
		"no group":      {proof{IdentityRegexp: "x"}, "", "group"},
		"bad url":       {json("", "https://u:CANARY-password@x y/"), "", "probe_url"},
		"login host":    {json("https://login.corp.example/sso", "https://app.corp.example:443/me"), "", ""},
		"foreign login": {json("https://sso.corp.example/", ""), "", "login_url leads to https://sso.corp.example, which is not one of the site's hosts; if that host belongs to the login, add \"https://sso.corp.example\" to the site's login_hosts"},
		"foreign probe": {json("", "https://app.corp.example.evil.example/me"), "", "probe_url leads to https://app.corp.example.evil.example"},
		"http":          {json("", "http://app.corp.example/me"), "", "insecure_http"},
		"user in url":   {json("https://u:CANARY-password@app.corp.example/", ""), "", "user name"},
		"another kind":  {json("file:///etc/passwd", ""), "", "login_url leads to what is not a web address"},
	} {
		err := c.p.Check(o, c.identity)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "CANARY")) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzJSONPath(f *testing.F) {
	f.Add([]byte(`{"user":[{"name":"build"}]}`), "$.user.0.name")
	f.Add([]byte(`[1,[2,[3]]]`), "1.1.0")
	f.Fuzz(func(t *testing.T, doc []byte, path string) {
		name, err := jsonPath(doc, path)
		if err != nil && name != "" {
			t.Errorf("%q at %q gave %q and %v", doc, path, name, err)
		}
		// A name that is there is found, whatever it is called.
		member, _ := json.Marshal(map[string]string{path: "build"})
		if valid := utf8.ValidString(path) && !strings.ContainsAny(path, ".$"); valid {
			if name, err := jsonPath(member, path); err != nil || name != "build" {
				t.Errorf("%s at %q gave %q, %v", member, path, name, err)
			}
		}
	})
}
