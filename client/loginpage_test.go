package client

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
)

func answer(status int, header http.Header, body string) *http.Response {
	u, err := url.Parse("https://jira.example/jira/rest")
	if err != nil {
		panic(err)
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: &http.Request{URL: u}}
}

const (
	jiraForm      = `<form action="/login.jsp"><INPUT id="login" type=text name='os_username'><input type="password" name="os_password"></form>`
	bitbucketForm = "<form>\n<input\n class=text name=j_username>\n<input type=password name = \"j_password\"></form>"
)

func TestJudge(t *testing.T) {
	html := http.Header{"Content-Type": {"text/html;charset=UTF-8"}}
	with := func(h http.Header, pairs ...string) http.Header {
		h = h.Clone()
		if h == nil {
			h = http.Header{}
		}
		for i := 0; i < len(pairs); i += 2 {
			h.Add(pairs[i], pairs[i+1])
		}
		return h
	}
	to := func(u string) http.Header { return with(nil, "Location", u) }
	for name, c := range map[string]struct {
		status int
		header http.Header
		body   string
		want   verdict
	}{
		"401":                      {401, nil, "", refused},
		"401, whoever it is":       {401, with(nil, "X-AUSERNAME", "fred"), "", refused},
		"403 of somebody":          {403, with(nil, "X-AUSERNAME", "fred"), "", accepted},
		"403 of nobody":            {403, with(nil, "X-AUSERNAME", "anonymous"), "", anonymous},
		"403":                      {403, nil, "", accepted},
		"200":                      {200, nil, jiraForm, accepted},
		"429 of nobody":            {429, with(nil, "X-AUSERNAME", "anonymous"), "", accepted},
		"503 with a login form":    {503, with(html, "X-Seraph-LoginReason", "OUT"), jiraForm, accepted},
		"to Jira's":                {302, to("/jira/login.jsp?os_destination=%2Fx"), "", refused},
		"to Confluence's":          {302, to("https://jira.example/login.action;jsessionid=0"), "", refused},
		"to Bamboo's":              {303, to("/userlogin!doDefault.action?os_destination=x"), "", refused},
		"to Bitbucket's":           {302, to("/login?next=/x"), "", refused},
		"to the SSO app's":         {307, to("/plugins/servlet/external-login"), "", refused},
		"to another host's":        {302, to("https://sso.example/cas/login?service=x"), "", refused},
		"to a relative one":        {301, to("login.jsp"), "", refused},
		"to a user's page":         {302, to("/browse/LOGIN-1?next=/login.jsp"), "", accepted},
		"to a directory":           {302, to("/login.jsp/x"), "", accepted},
		"to nowhere":               {302, nil, "", accepted},
		"to what is no URL":        {302, to("https://%zz/login"), "", accepted},
		"no redirect":              {304, to("/login.jsp"), "", accepted},
		"created":                  {201, to("/login"), "", accepted},
		"a redirect of nobody":     {302, with(to("/x"), "X-AUSERNAME", "anonymous"), "", anonymous},
		"wrong password":           {200, with(nil, "X-Seraph-LoginReason", "AUTHENTICATED_FAILED"), "", anonymous},
		"logged out":               {200, with(nil, "X-Seraph-LoginReason", "OK, out"), "", anonymous},
		"logged out, second line":  {200, with(nil, "X-Seraph-LoginReason", "OK", "X-Seraph-LoginReason", "OUT"), "", anonymous},
		"no right":                 {200, with(nil, "X-Seraph-LoginReason", "AUTHORISATION_FAILED"), "", accepted},
		"good":                     {200, with(nil, "X-Seraph-LoginReason", "OK"), "", accepted},
		"nobody":                   {200, with(html, "X-AUSERNAME", "anonymous"), "a page", anonymous},
		"somebody's page":          {200, with(html, "X-AUSERNAME", "fred"), jiraForm, accepted},
		"Jira's form":              {200, html, jiraForm, anonymous},
		"Bitbucket's form":         {200, html, bitbucketForm, anonymous},
		"a form in XHTML":          {200, http.Header{"Content-Type": {"application/xhtml+xml"}}, jiraForm, anonymous},
		"a form at the limit":      {200, html, strings.Repeat("x", maxPage-len(jiraForm)) + jiraForm, anonymous},
		"a form far below":         {200, html, strings.Repeat("x", maxPage) + jiraForm, accepted},
		"a form in text":           {200, http.Header{"Content-Type": {"text/plain"}}, jiraForm, accepted},
		"a form in JSON":           {200, http.Header{"Content-Type": {"application/json"}}, jiraForm, accepted},
		"a form, compressed":       {200, with(html, "Content-Encoding", "gzip"), jiraForm, accepted},
		"a form, of no type":       {200, http.Header{"Content-Type": {";"}}, jiraForm, accepted},
		"a form with 404":          {404, html, jiraForm, accepted},
		"another form":             {200, html, `<input name="password" type="password"><input name="username">`, accepted},
		"only a user":              {200, html, `<input name="os_username">`, accepted},
		"only a password":          {200, html, `<input type="password" name="os_password">`, accepted},
		"a page about the form":    {200, html, `&lt;input name="os_username"&gt;&lt;input name="os_password"&gt;`, accepted},
		"a page that names fields": {200, html, `os_username os_password`, accepted},
	} {
		t.Run(name, func(t *testing.T) {
			if c.header == nil {
				c.header = http.Header{}
			}
			r := answer(c.status, c.header, c.body)
			if got := judge(r); got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
			if body, err := io.ReadAll(r.Body); err != nil || string(body) != c.body {
				t.Errorf("the body has changed: %d bytes of %d, %v", len(body), len(c.body), err)
			}
		})
	}
}

// failsOnce fails, and then seems to be at its end.
type failsOnce struct{ err error }

func (f *failsOnce) Read([]byte) (int, error) {
	err := cmp.Or(f.err, io.EOF)
	f.err = nil
	return 0, err
}

// TestPeekFails: the failure of a body comes where it was.
func TestPeekFails(t *testing.T) {
	broken := errors.New("broken")
	closed := false
	r := answer(200, http.Header{"Content-Type": {"text/html"}}, "")
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(strings.NewReader("begin"), &failsOnce{broken}), closer(func() { closed = true })}
	if got := judge(r); got != accepted {
		t.Errorf("%d", got)
	}
	body, err := io.ReadAll(r.Body)
	if string(body) != "begin" || err != broken {
		t.Errorf("%q, %v", body, err)
	}
	if r.Body.Close(); !closed {
		t.Error("not closed")
	}
}

type closer func()

func (c closer) Close() error { c(); return nil }

func FuzzJudge(f *testing.F) {
	f.Add(200, "text/html", "", "", "", []byte(jiraForm))
	f.Add(302, "text/html", "https://sso.example/login;x", "OK,OUT", "anonymous", []byte("<input name=os_username"))
	f.Fuzz(func(t *testing.T, status int, kind, location, reason, user string, body []byte) {
		r := answer(status, http.Header{"Content-Type": {kind}, "Location": {location}, "X-Seraph-Loginreason": {reason}, "X-Ausername": {user}}, "")
		r.Body = io.NopCloser(iotest.HalfReader(bytes.NewReader(body)))
		got := judge(r)
		if got == refused && status != http.StatusUnauthorized && !isRedirect(status) {
			t.Errorf("status %d is taken for a refusal", status)
		}
		if rest, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(rest, body) {
			t.Errorf("the body has changed: %v", err)
		}
	})
}
