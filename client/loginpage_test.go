package client

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
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
		"to Jira's":                {302, to("/jira/login.jsp?os_destination=%2Fx"), "", anonymous},
		"to Confluence's":          {302, to("https://jira.example/login.action;jsessionid=0"), "", anonymous},
		"to Bamboo's":              {303, to("/userlogin!doDefault.action?os_destination=x"), "", anonymous},
		"to Bitbucket's":           {302, to("/login?next=/x"), "", anonymous},
		"to the SSO app's":         {307, to("/plugins/servlet/external-login"), "", anonymous},
		"to another host's":        {302, to("https://sso.example/cas/login?service=x"), "", anonymous},
		"to a relative one":        {301, to("login.jsp"), "", anonymous},
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

// A slowSite answers with HTML, in parts, after a time each.
type slowSite struct {
	gzip  bool
	parts []slowPart
	// left is closed when the client has gone before the end.
	left chan struct{}
}

type slowPart struct {
	after time.Duration
	text  string
}

func (s *slowSite) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html")
	body := io.Writer(w)
	flush := w.(http.Flusher).Flush
	if s.gzip {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		defer z.Close()
		body, flush = z, func() { _ = z.Flush(); w.(http.Flusher).Flush() }
	}
	w.(http.Flusher).Flush() // the header alone
	for _, p := range s.parts {
		select {
		case <-time.After(p.after):
			_, _ = io.WriteString(body, p.text)
			flush()
		case <-r.Context().Done():
			close(s.left)
			return
		}
	}
}

// pipes is a listener whose connections are pipes, so that a bubble's clock runs
// while they are waited for.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error { close(p.closed); return nil }

func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// get answers as Transport does, but for the agent.
func (s *slowSite) get(t *testing.T, ctx context.Context) (*http.Response, verdict) {
	t.Helper()
	s.left = make(chan struct{})
	l := pipes{make(chan net.Conn), make(chan struct{})}
	server := &http.Server{Handler: s}
	go func() { _ = server.Serve(l) }()
	base := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		l.conns <- there
		return here, nil
	}}
	t.Cleanup(func() {
		base.CloseIdleConnections()
		server.Close()
	})
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://jira.example/jira", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&Transport{Base: base}).send(r, nil, &Session{origin: originOf(r.URL), dress: dresser(nil)})
	if err != nil {
		t.Fatal(err)
	}
	return resp, judge(resp)
}

// slowSites calls f for pages that come slowly, each in a bubble.
func slowSites(t *testing.T, f func(t *testing.T, s *slowSite)) {
	const never = 24 * time.Hour
	for name, parts := range map[string][]slowPart{
		"header":          {{never, "late"}},
		"begin":           {{0, "begin"}, {never, "late"}},
		"parts":           {{time.Second, "one "}, {maxWait, "two "}, {maxWait, "three"}},
		"drops":           slices.Repeat([]slowPart{{maxWait / 4, "x"}}, 20),
		"much":            {{0, strings.Repeat("x", maxPage/2)}, {never, strings.Repeat("y", 2*maxPage)}},
		"login form, end": {{0, jiraForm}, {never, "</html>"}},
	} {
		for _, compressed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, compressed %v", name, compressed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { f(t, &slowSite{gzip: compressed, parts: parts}) })
			})
		}
	}
}

// TestPeekLate: what comes slowly is not waited for. It comes all the same, each
// part when it is there.
func TestPeekLate(t *testing.T) {
	slowSites(t, func(t *testing.T, s *slowSite) {
		begin := time.Now()
		resp, got := s.get(t, t.Context())
		if d := time.Since(begin); got != accepted || d != maxWait {
			t.Fatalf("%d after %v", got, d)
		}
		var due time.Duration
		for _, p := range s.parts {
			due += p.after
			text := make([]byte, len(p.text))
			_, err := io.ReadFull(resp.Body, text)
			if d := time.Since(begin); err != nil || string(text) != p.text || d != max(due, maxWait) {
				t.Fatalf("%d bytes after %v, %v; want %d after %v", len(text), d, err, len(p.text), due)
			}
		}
		if rest, err := io.ReadAll(resp.Body); len(rest) != 0 || err != nil {
			t.Errorf("and then %q, %v", rest, err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestPeekLeaves: Close, and the end of the caller's context, end all that is
// under way, at once. A goroutine that is left keeps the bubble from ending.
func TestPeekLeaves(t *testing.T) {
	slowSites(t, func(t *testing.T, s *slowSite) {
		resp, _ := s.get(t, t.Context())
		begin := time.Now()
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
		<-s.left
		if d := time.Since(begin); d != 0 {
			t.Errorf("after %v", d)
		}
	})
	slowSites(t, func(t *testing.T, s *slowSite) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		resp, _ := s.get(t, ctx)
		go func() {
			<-time.After(maxWait / 8)
			cancel()
		}()
		begin := time.Now()
		if _, err := io.ReadAll(resp.Body); err != context.Canceled {
			t.Errorf("%v", err)
		}
		<-s.left
		if d := time.Since(begin); d != maxWait/8 {
			t.Errorf("after %v", d)
		}
		resp.Body.Close()
	})
}

// TestPeekGone: the caller leaves while the page is waited for.
func TestPeekGone(t *testing.T) {
	slowSites(t, func(t *testing.T, s *slowSite) {
		ctx, cancel := context.WithTimeout(t.Context(), maxWait/8)
		defer cancel()
		begin := time.Now()
		resp, got := s.get(t, ctx)
		if _, err := io.ReadAll(resp.Body); err != context.DeadlineExceeded {
			t.Errorf("%v", err)
		}
		<-s.left
		if d := time.Since(begin); d != maxWait/8 {
			t.Errorf("%d after %v", got, d)
		}
		resp.Body.Close()
	})
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
		if (got == refused) != (status == http.StatusUnauthorized) {
			t.Errorf("status %d: %d", status, got)
		}
		if rest, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(rest, body) {
			t.Errorf("the body has changed: %v", err)
		}
	})
}
