package rig_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"
)

// visitor is a client of a fake site, with cookies of its own. It follows no
// redirect.
type visitor struct {
	t    *testing.T
	base string
	jar  http.CookieJar // nil: takes no cookies
}

func newVisitor(t *testing.T, base string) *visitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &visitor{t: t, base: base, jar: jar}
}

// reply is what a site said.
type reply struct {
	t      *testing.T
	status int
	header http.Header
	body   string
}

// do sends a request; header is names and values in turn.
func (v *visitor) do(method, path, body string, header ...string) *reply {
	v.t.Helper()
	req, err := http.NewRequestWithContext(v.t.Context(), method, v.base+path, strings.NewReader(body))
	if err != nil {
		v.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{
		Jar:           v.jar,
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		v.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	a := &reply{v.t, resp.StatusCode, resp.Header, string(b)}
	for _, password := range []string{"CANARY-password", "CANARY-wrong", "CANARY-new"} {
		if strings.Contains(a.text(), password) {
			v.t.Errorf("%s %s: the answer repeats %s", method, path, password)
		}
	}
	return a
}

func (v *visitor) get(path string, header ...string) *reply {
	v.t.Helper()
	return v.do("GET", path, "", header...)
}

// post sends JSON.
func (v *visitor) post(path, body string, header ...string) *reply {
	v.t.Helper()
	return v.do("POST", path, body, append([]string{"Content-Type", "application/json"}, header...)...)
}

// text returns the body and the header fields.
func (a *reply) text() string {
	all := a.body
	for name, values := range a.header {
		for _, v := range values {
			all += "\n" + name + ": " + v
		}
	}
	return all
}

// want fails the test unless the answer has the status, and the text in its body
// or in one of its header fields.
func (a *reply) want(status int, texts ...string) *reply {
	a.t.Helper()
	all := a.text()
	if a.status != status {
		a.t.Errorf("status %d, want %d: %s", a.status, status, all)
	}
	for _, text := range texts {
		if !strings.Contains(all, text) {
			a.t.Errorf("%q is missing in: %s", text, all)
		}
	}
	return a
}

// into decodes the answer's JSON.
func (a *reply) into(v any) {
	a.t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		a.t.Fatalf("%v: %s", err, a.body)
	}
}

// cookie returns the Set-Cookie line of a name, "" for none.
func (a *reply) cookie(name string) string {
	for _, line := range a.header.Values("Set-Cookie") {
		if strings.HasPrefix(line, name+"=") {
			return line
		}
	}
	return ""
}
