package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/client/clienttest"
)

// world is a site with sessions, and the agent that logs in there.
type world struct {
	*clienttest.Agent
	site *httptest.Server
	// logins counts those of the agent; fails, if set, is how they end.
	logins atomic.Int32
	fails  atomic.Pointer[api.Error]
	// live is the cookie that the site takes.
	live atomic.Pointer[string]
	// dead is the site's answer to a request without a living session. It may
	// carry the request out.
	dead http.HandlerFunc

	mu       sync.Mutex
	requests []seen
}

// seen is a request as the site got it.
type seen struct {
	http.Header
	method, path, body string
	good               bool // with the living session
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dead: func(rw http.ResponseWriter, _ *http.Request) {
		http.Error(rw, "who are you?", http.StatusUnauthorized)
	}}
	w.site = httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(w.site.Close)
	var err error
	if w.Agent, err = clienttest.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	w.AddSite(clienttest.Site{Name: "jira", URL: w.site.URL + "/jira", Login: w.login})
	return w
}

func (w *world) login() (clienttest.Session, error) {
	n := w.logins.Add(1)
	if e := w.fails.Load(); e != nil {
		return clienttest.Session{}, e
	}
	cookie := fmt.Sprintf(`JSESSIONID=CANARY-"%d`, n)
	w.live.Store(&cookie)
	return clienttest.Session{User: "build", Header: http.Header{"Cookie": {cookie}, "User-Agent": {"sessionctl/test"}, "X-Atlassian-Token": {"no-check"}}}, nil
}

// end ends the session at the site.
func (w *world) end() {
	w.live.Store(nil)
	w.Expire("jira")
}

// prime makes the agent log in, and ends that session.
func (w *world) prime(t *testing.T) {
	t.Helper()
	if _, err := w.Client().Session(t.Context(), client.Query{Site: "jira"}); err != nil {
		t.Fatal(err)
	}
	w.end()
}

func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	live := w.live.Load()
	good := live != nil && r.Header.Get("Cookie") == *live
	w.mu.Lock()
	w.requests = append(w.requests, seen{r.Header, r.Method, r.URL.Path, string(body), good})
	w.mu.Unlock()
	switch {
	case !good:
		w.dead(rw, r)
	case r.URL.Path == "/jira/end": // does so, and leads where one logs in
		w.end()
		http.Redirect(rw, r, loginURL, http.StatusFound)
	case strings.HasPrefix(r.URL.Path, "/to/"):
		http.Redirect(rw, r, r.URL.Query().Get("to"), http.StatusFound)
	default:
		fmt.Fprintf(rw, "%s for build", r.Method)
	}
}

func (w *world) seen() []seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.requests)
}

func (w *world) transport() *client.Transport {
	return &client.Transport{Site: "jira", Client: w.Client()}
}

// do makes a request with the transport alone, and returns its answer.
func (w *world) do(t *testing.T, method, url string, body io.Reader) (status int, text string, err error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return w.send(t, r)
}

func (w *world) send(t *testing.T, r *http.Request) (status int, text string, err error) {
	t.Helper()
	before := r.Header.Clone()
	resp, err := w.transport().RoundTrip(r)
	if !reflect.DeepEqual(before, r.Header) {
		t.Error("the caller's request has changed")
	}
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	if resp.Request != r {
		t.Error("the answer's request is not the caller's")
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, string(b), nil
}

const (
	methods  = "GET HEAD OPTIONS POST PUT PATCH DELETE BREW"
	unsafely = "POST PUT PATCH DELETE BREW"
	loginURL = "/jira/login.jsp"
	form     = `<html><form><input name="os_username"><input type="password" name="os_password"></form></html>`
)

func TestTransport(t *testing.T) {
	w := newWorld(t)
	for method := range strings.SplitSeq(methods, " ") {
		r, err := http.NewRequestWithContext(t.Context(), method, w.site.URL+"/jira/rest?q=1", strings.NewReader("body of it"))
		if err != nil {
			t.Fatal(err)
		}
		// A cookie of one's own and an Authorization header make a good session bad.
		r.Header.Set("Cookie", "JSESSIONID=CANARY-old")
		r.Header.Set("Authorization", "Bearer CANARY-old")
		r.Header.Set("Accept", "application/json")
		status, _, err := w.send(t, r)
		if err != nil || status != 200 {
			t.Errorf("%s: %d, %v", method, status, err)
		}
		all := w.seen()
		got := all[len(all)-1]
		if len(got.Values("Cookie")) != 1 || got.Get("Authorization") != "" || got.Get("User-Agent") != "sessionctl/test" ||
			got.Get("X-Atlassian-Token") != "no-check" || got.Get("Accept") != "application/json" || got.method != method || got.body != "body of it" {
			t.Errorf("%s: the site saw %v", method, got)
		}
	}
	if n := w.logins.Load(); n != 1 || w.Calls("RefreshSession") != 0 || len(w.seen()) != len(strings.Fields(methods)) {
		t.Errorf("%d logins, %d reports, %d requests", n, w.Calls("RefreshSession"), len(w.seen()))
	}
}

// TestTransportJar: http.Client's own jar does not come in between.
func TestTransportJar(t *testing.T) {
	w := newWorld(t)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(w.site.URL)
	if err != nil {
		t.Fatal(err)
	}
	jar.SetCookies(u, []*http.Cookie{{Name: "JSESSIONID", Value: "CANARY-old", Path: "/jira"}})
	h := &http.Client{Transport: w.transport(), Jar: jar}
	resp, err := h.Get(w.site.URL + "/jira/rest")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := w.seen(); resp.StatusCode != 200 || len(got) != 1 || strings.Contains(got[0].Get("Cookie"), "old") {
		t.Errorf("%d: the site saw %v", resp.StatusCode, got)
	}
}

// refusals are answers that show that nothing was done.
func refusals() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"401": func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "first answer", http.StatusUnauthorized) },
		"401 with a login page": func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("X-AUSERNAME", "anonymous")
			rw.WriteHeader(http.StatusUnauthorized)
			io.WriteString(rw, form)
		},
	}
}

// doubts are answers as to nobody, after which nobody knows what was done.
func doubts() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"302": func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, loginURL, http.StatusFound) },
		"307": func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, "https://sso.example/login", http.StatusTemporaryRedirect)
		},
		"login page": func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, form) },
		"X-AUSERNAME": func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("X-AUSERNAME", "anonymous")
			io.WriteString(rw, "first answer")
		},
		"X-Seraph-LoginReason": func(rw http.ResponseWriter, _ *http.Request) { // JRA-41559: 200 and nothing else
			rw.Header().Set("X-Seraph-LoginReason", "AUTHENTICATED_FAILED")
		},
	}
}

// TestTransportHeals: a refused request is sent again, with its body, once.
func TestTransportHeals(t *testing.T) {
	for name, dead := range refusals() {
		for method := range strings.SplitSeq(methods, " ") {
			w := newWorld(t)
			w.dead = dead
			w.prime(t)
			status, text, err := w.do(t, method, w.site.URL+"/jira/rest", strings.NewReader("body of it"))
			if err != nil || status != 200 || method != "HEAD" && text != method+" for build" {
				t.Errorf("%s, %s: %d %q, %v", name, method, status, text, err)
			}
			got := w.seen()
			if len(got) != 2 || got[0].good || !got[1].good || got[0].body != "body of it" || got[1].body != "body of it" {
				t.Errorf("%s, %s: the site saw %v", name, method, got)
			}
			if w.Calls("RefreshSession") != 1 || w.logins.Load() != 2 {
				t.Errorf("%s, %s: %d reports, %d logins", name, method, w.Calls("RefreshSession"), w.logins.Load())
			}
		}
	}
}

// TestTransportDoubts: what may have been done is not done again, but the
// session is reported: the next request is good.
func TestTransportDoubts(t *testing.T) {
	for name, dead := range doubts() {
		for method := range strings.SplitSeq(methods, " ") {
			w := newWorld(t)
			w.dead = dead
			w.prime(t)
			if method == "HEAD" && name == "login page" {
				continue // has no page
			}
			status, text, err := w.do(t, method, w.site.URL+"/jira/rest", strings.NewReader("body of it"))
			requests := 2
			if strings.Contains(unsafely, method) {
				requests = 1
				if first := answerOf(dead, method); err != nil || status != first.Code || text != first.Body.String() {
					t.Errorf("%s, %s: %d %q, %v; want the first answer", name, method, status, text, err)
				}
			} else if err != nil || status != 200 || method != "HEAD" && text != method+" for build" {
				t.Errorf("%s, %s: %d %q, %v", name, method, status, text, err)
			}
			if got := w.seen(); len(got) != requests || w.logins.Load() != 2 {
				t.Errorf("%s, %s: %d logins, the site saw %v", name, method, w.logins.Load(), got)
			}
			if status, _, err := w.do(t, method, w.site.URL+"/jira/rest", nil); err != nil || status != 200 || len(w.seen()) != requests+1 {
				t.Errorf("%s, %s: the next request: %d, %v", name, method, status, err)
			}
		}
	}
}

// answerOf is what a handler answers.
func answerOf(h http.HandlerFunc, method string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h(w, httptest.NewRequest(method, "/jira/rest", nil))
	return w
}

// TestTransportEnds: what ends the session by itself, and leads to the login
// page when it has done so, is done once, and reported.
func TestTransportEnds(t *testing.T) {
	for method := range strings.SplitSeq(unsafely, " ") {
		w := newWorld(t)
		status, _, err := w.do(t, method, w.site.URL+"/jira/end", strings.NewReader("body of it"))
		if got := w.seen(); err != nil || status != http.StatusFound || len(got) != 1 || !got[0].good || w.Calls("RefreshSession") != 1 || w.logins.Load() != 2 {
			t.Errorf("%s: %d, %v; %d logins, the site saw %v", method, status, err, w.logins.Load(), got)
		}
	}
}

// TestTransportNoRefresh: when there is no session to be had, the failure is
// told rather than a login page, unless the request may have been carried out.
func TestTransportNoRefresh(t *testing.T) {
	for _, code := range []api.Code{api.Latched, api.KDCUnreachable} {
		for method := range strings.SplitSeq("GET POST", " ") {
			for name, dead := range refusals() {
				w := newWorld(t)
				w.dead = dead
				w.prime(t)
				w.fails.Store(&api.Error{Code: code, Detail: "detail of it", Remedy: "do this"})
				_, _, err := w.do(t, method, w.site.URL+"/jira/rest", strings.NewReader("body of it"))
				if e := api.AsError(err); e == nil || e.Code != code || e.Remedy != "do this" || len(w.seen()) != 1 {
					t.Errorf("%s, %s, %s: %v after %d requests", code, method, name, err, len(w.seen()))
				}
			}
			for name, dead := range doubts() {
				w := newWorld(t)
				w.dead = dead
				w.prime(t)
				w.fails.Store(&api.Error{Code: code, Detail: "detail of it"})
				status, _, err := w.do(t, method, w.site.URL+"/jira/rest", nil)
				if method == "GET" && api.CodeOf(err) != code || method == "POST" && (err != nil || status != answerOf(dead, method).Code) || len(w.seen()) != 1 {
					t.Errorf("%s, %s, %s: %d, %v after %d requests", code, method, name, status, err, len(w.seen()))
				}
			}
		}
	}
}

// TestTransportDrops: an answer that no caller gets is closed.
func TestTransportDrops(t *testing.T) {
	w := newWorld(t)
	w.prime(t)
	w.fails.Store(&api.Error{Code: api.Latched, Detail: "refused"})
	first := &body{left: 10}
	tr := &client.Transport{Site: "jira", Client: w.Client(), Base: roundTrip(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusUnauthorized, Header: http.Header{}, Body: first}, nil
	})}
	r, err := http.NewRequestWithContext(t.Context(), "GET", w.site.URL+"/jira/rest", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := tr.RoundTrip(r); resp != nil || api.CodeOf(err) != api.Latched || !first.closed {
		t.Errorf("%v, %v, closed %v", resp, err, first.closed)
	}
}

// TestTransportLives: the agent finds the session alive. The answer was meant.
func TestTransportLives(t *testing.T) {
	for _, answers := range []map[string]http.HandlerFunc{refusals(), doubts()} {
		for name, dead := range answers {
			w := newWorld(t)
			w.dead = dead
			if _, err := w.Client().Session(t.Context(), client.Query{Site: "jira"}); err != nil {
				t.Fatal(err)
			}
			w.live.Store(nil) // but not expired as far as the agent can see
			first := answerOf(dead, "GET")
			status, text, err := w.do(t, "GET", w.site.URL+"/jira/rest", nil)
			if err != nil || status != first.Code || text != first.Body.String() || len(w.seen()) != 1 || w.logins.Load() != 1 {
				t.Errorf("%s: %d %q, %v after %d requests and %d logins", name, status, text, err, len(w.seen()), w.logins.Load())
			}
		}
	}
}

// TestTransportNeverLoops: the second answer is the last, whatever it is.
func TestTransportNeverLoops(t *testing.T) {
	for _, answers := range []map[string]http.HandlerFunc{refusals(), doubts()} {
		for name, dead := range answers {
			w := newWorld(t)
			w.prime(t)
			w.dead = dead
			// Each session has ended when it comes to be used: by another's logout, say.
			base := &http.Transport{}
			t.Cleanup(base.CloseIdleConnections)
			tr := &client.Transport{Site: "jira", Client: w.Client(), Base: roundTrip(func(r *http.Request) (*http.Response, error) {
				w.end()
				return base.RoundTrip(r)
			})}
			r, err := http.NewRequestWithContext(t.Context(), "GET", w.site.URL+"/jira/rest", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != answerOf(dead, "GET").Code || len(w.seen()) != 2 || w.Calls("RefreshSession") != 1 {
				t.Errorf("%s: %d after %d requests and %d reports", name, resp.StatusCode, len(w.seen()), w.Calls("RefreshSession"))
			}
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestTransportBodies: who is closed, and who is sent again. Nothing is read of
// an answer that no caller gets.
func TestTransportBodies(t *testing.T) {
	const text = "first answer"
	for name, c := range map[string]struct {
		getBody  func() (io.ReadCloser, error)
		requests int
	}{
		"cannot be read again": {nil, 1},
		"fails to be":          {func() (io.ReadCloser, error) { return nil, errors.New("gone") }, 1},
		"can be":               {func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("body of it")), nil }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.prime(t)
			var firsts []*body
			var requests []string
			tr := &client.Transport{Site: "jira", Client: w.Client(), Base: roundTrip(func(r *http.Request) (*http.Response, error) {
				b, err := io.ReadAll(r.Body)
				r.Body.Close()
				requests = append(requests, string(b))
				if len(requests) > 1 && (firsts[0].left != len(text) || !firsts[0].closed) {
					t.Error("sent again, and the first answer was read or is not closed")
				}
				answer := &body{left: len(text)}
				firsts = append(firsts, answer)
				return &http.Response{StatusCode: 401, Header: http.Header{}, Body: answer}, err
			})}
			sent := &body{left: 10}
			r, err := http.NewRequestWithContext(t.Context(), "POST", w.site.URL+"/jira/rest", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Body, r.GetBody, r.ContentLength = sent, c.getBody, 10
			resp, err := tr.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			if len(requests) != c.requests || !sent.closed || w.Calls("RefreshSession") != 1 {
				t.Errorf("sent %q, closed %v, %d reports", requests, sent.closed, w.Calls("RefreshSession"))
			}
			last := firsts[len(firsts)-1]
			if last.closed || last.left != len(text) {
				t.Errorf("the answer was touched: %+v", last)
			}
			if b, err := io.ReadAll(resp.Body); len(b) != len(text) || err != nil || last.left != 0 {
				t.Errorf("the answer gives %q, %v", b, err)
			}
			if resp.Body.Close(); !last.closed {
				t.Error("the answer cannot be closed")
			}
		})
	}
}

// body gives so many bytes.
type body struct {
	left   int
	closed bool
}

func (b *body) Read(p []byte) (int, error) {
	n := min(b.left, len(p))
	copy(p, bytes.Repeat([]byte{'x'}, n))
	if b.left -= n; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (b *body) Close() error { b.closed = true; return nil }

// TestTransportStalls: a refusal that does not come to its end is not waited for.
func TestTransportStalls(t *testing.T) {
	w := newWorld(t)
	w.dead = func(rw http.ResponseWriter, r *http.Request) {
		rw.WriteHeader(http.StatusUnauthorized)
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	w.prime(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", w.site.URL+"/jira/rest", nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, text, err := w.send(t, r); status != 200 || text != "GET for build" || err != nil {
		t.Errorf("%d %q, %v", status, text, err)
	}
}

// TestTransportEnding: a request's context ends with its answer's body, and not
// before.
func TestTransportEnding(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		body io.ReadCloser
		fail error
		end  func(*http.Response)
	}{
		"closed":       {body: &body{left: 10}, end: func(r *http.Response) { r.Body.Close() }},
		"read":         {body: &body{left: 10}, end: func(r *http.Response) { io.ReadAll(r.Body) }},
		"no body":      {body: http.NoBody},
		"a fake's nil": {},
		"no answer":    {fail: errors.New("broken")},
	} {
		var ctx context.Context
		tr := &client.Transport{Site: "jira", Client: w.Client(), Base: roundTrip(func(r *http.Request) (*http.Response, error) {
			ctx = r.Context()
			if ctx.Err() != nil {
				t.Errorf("%s: ended when it began", name)
			}
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: c.body}, c.fail
		})}
		r, err := http.NewRequestWithContext(t.Context(), "GET", w.site.URL+"/jira/rest", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(r)
		if err != c.fail {
			t.Errorf("%s: %v", name, err)
		}
		if c.end != nil {
			if ctx.Err() != nil {
				t.Errorf("%s: ended too soon", name)
			}
			c.end(resp)
		}
		if ctx.Err() == nil || r.Context().Err() != nil {
			t.Errorf("%s: not ended, or the caller's", name)
		}
	}
}

// TestTransportKeepsAlive: a connection whose answer was read serves the next
// request.
func TestTransportKeepsAlive(t *testing.T) {
	w := newWorld(t)
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	h := &http.Client{Transport: &client.Transport{Site: "jira", Client: w.Client(), Base: base}}
	var made atomic.Int32
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if !i.Reused {
			made.Add(1)
		}
	}}
	for _, method := range []string{"GET", "HEAD", "GET", "GET"} {
		r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), method, w.site.URL+"/jira/rest", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := h.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Error(err)
		}
		resp.Body.Close()
	}
	if made.Load() != 1 {
		t.Errorf("%d connections", made.Load())
	}
}

// TestTransportUpgrade: the body after 101 can be written to.
func TestTransportUpgrade(t *testing.T) {
	w := newWorld(t)
	w.site.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		conn, both, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.CopyN(conn, both, 4)
	})
	r, err := http.NewRequestWithContext(t.Context(), "GET", w.site.URL+"/jira/socket", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "echo")
	resp, err := w.transport().RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, ok := resp.Body.(io.Writer)
	if !ok || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%d, %T", resp.StatusCode, resp.Body)
	}
	if _, err := io.WriteString(body, "ping"); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(resp.Body); string(b) != "ping" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// TestTransportOpaque: a URL that a proxy would take for another host's.
func TestTransportOpaque(t *testing.T) {
	w := newWorld(t)
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Cookie") != "" {
			t.Errorf("the proxy was asked for %s with the session", r.URL)
		}
	}))
	defer proxy.Close()
	to, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	base := &http.Transport{Proxy: http.ProxyURL(to)}
	defer base.CloseIdleConnections()
	tr := &client.Transport{Site: "jira", Client: w.Client(), Base: base}
	site := strings.TrimPrefix(w.site.URL, "http://")
	for _, opaque := range []string{"//evil.example/steal", "//" + site + "/jira/rest", "http://evil.example/"} {
		sent := &body{left: 10}
		r := &http.Request{Method: "POST", URL: &url.URL{Scheme: "http", Host: site, Opaque: opaque}, Header: http.Header{}, Body: sent}
		resp, err := tr.RoundTrip(r.WithContext(t.Context()))
		if resp != nil || api.CodeOf(err) != api.InvalidRequest || !sent.closed || asked.Load() != 0 {
			t.Errorf("%s: %v, %v", opaque, resp, err)
		}
	}
}

// TestTransportErrors: no session, no request.
func TestTransportErrors(t *testing.T) {
	w := newWorld(t)
	w.fails.Store(&api.Error{Code: api.BadCredentials, Detail: "refused"})
	r := func(u string) (*http.Request, *body) {
		b := &body{left: 10}
		r, err := http.NewRequestWithContext(t.Context(), "POST", u, b)
		if err != nil {
			t.Fatal(err)
		}
		return r, b
	}
	gone := &client.Client{Socket: w.Socket() + ".gone"}
	for name, c := range map[string]struct {
		transport *client.Transport
		code      api.Code
	}{
		"no site":      {&client.Transport{Client: w.Client()}, api.InvalidRequest},
		"unknown site": {&client.Transport{Site: "other", Client: w.Client()}, api.UnknownSite},
		"refused":      {w.transport(), api.BadCredentials},
		"no agent":     {&client.Transport{Site: "jira", Client: gone}, api.NoAgent},
	} {
		request, body := r(w.site.URL + "/jira/rest")
		resp, err := c.transport.RoundTrip(request)
		if resp != nil || api.CodeOf(err) != c.code || !body.closed {
			t.Errorf("%s: %v, %v, body closed %v", name, resp, err, body.closed)
		}
	}
	// Not what seems to be another origin, if the agent takes the site for another.
	request, body := r("http://evil.example/")
	if resp, err := (&client.Transport{Site: "other", Client: w.Client()}).RoundTrip(request); resp != nil || api.CodeOf(err) != api.UnknownSite || !body.closed {
		t.Errorf("unknown site, other origin: %v, %v", resp, err)
	}
	request, body = r(w.site.URL)
	request.URL = nil
	if resp, err := w.transport().RoundTrip(request); resp != nil || api.CodeOf(err) != api.InvalidRequest || !body.closed {
		t.Errorf("no URL: %v, %v", resp, err)
	}
	w.fails.Store(nil)
	request, body = r(w.site.URL)
	request.Host = "evil.example"
	if resp, err := w.transport().RoundTrip(request); resp != nil || api.CodeOf(err) != api.InvalidRequest || !body.closed {
		t.Errorf("another Host: %v, %v", resp, err)
	}
	if len(w.seen()) != 0 {
		t.Errorf("the site saw %v", w.seen())
	}
	// The base's failure is its own.
	broken := errors.New("broken")
	request, _ = r(w.site.URL)
	tr := &client.Transport{Site: "jira", Client: w.Client(), Base: roundTrip(func(r *http.Request) (*http.Response, error) { return nil, broken })}
	if resp, err := tr.RoundTrip(request); resp != nil || err != broken {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestTransportElsewhere: what goes to another origin has nothing of the
// session, and is sent all the same.
func TestTransportElsewhere(t *testing.T) {
	w := newWorld(t)
	var elsewhere []http.Header
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { elsewhere = append(elsewhere, r.Header) }))
	defer other.Close()
	// Another name of the same server is another origin, too.
	alias := strings.Replace(w.site.URL, "127.0.0.1", "localhost", 1)
	h := &http.Client{Transport: w.transport()}
	for _, to := range []string{other.URL + "/x?token=CANARY-signed", alias + "/jira/rest"} {
		for _, first := range []string{w.site.URL + "/to/?to=" + url.QueryEscape(to), to} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", first, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Accept", "application/json")
			resp, err := h.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if !strings.HasPrefix(to, resp.Request.URL.Scheme+"://"+resp.Request.URL.Host) {
				t.Errorf("ended at %s", resp.Request.URL)
			}
		}
	}
	for _, s := range w.seen() {
		if s.path == "/jira/rest" {
			elsewhere = append(elsewhere, s.Header)
		}
	}
	if len(elsewhere) != 4 {
		t.Fatalf("%d requests came elsewhere", len(elsewhere))
	}
	for _, h := range elsewhere {
		if h.Get("Accept") != "application/json" || h.Get("User-Agent") == "sessionctl/test" || h.Get("X-Atlassian-Token") != "" || strings.Contains(fmt.Sprint(h), "CANARY-\"") {
			t.Errorf("elsewhere saw %v", h)
		}
	}
	// A page at the same origin is asked for with the session again.
	resp, err := h.Get(w.site.URL + "/to/?to=/jira/other")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := w.seen(); resp.StatusCode != 200 || !got[len(got)-1].good || got[len(got)-1].path != "/jira/other" {
		t.Errorf("%d: the site saw %v", resp.StatusCode, got)
	}
	if w.Calls("RefreshSession") != 0 {
		t.Error("a redirect is taken for a dead session")
	}
}

// TestTransportParallel: a hundred find the session dead. It is one login, and
// each request is sent at most twice.
func TestTransportParallel(t *testing.T) {
	const n = 100
	w := newWorld(t)
	w.prime(t)
	tr := w.transport()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), "POST", fmt.Sprintf("%s/jira/%d", w.site.URL, i), strings.NewReader("body of it"))
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := tr.RoundTrip(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(b) != "POST for build" {
				t.Errorf("%d %q, %v", resp.StatusCode, b, err)
			}
		})
	}
	wg.Wait()
	times, good := map[string]int{}, map[string]int{}
	for _, s := range w.seen() {
		times[s.path]++
		if s.good {
			good[s.path]++
		}
	}
	for path, k := range times {
		if k > 2 || good[path] != 1 {
			t.Errorf("%s was sent %d times, %d times well", path, k, good[path])
		}
	}
	refused := len(w.seen()) - n
	if w.logins.Load() != 2 || len(times) != n || refused < 1 || w.Calls("RefreshSession") != refused {
		t.Errorf("%d logins, %d reports, %d requests for %d", w.logins.Load(), w.Calls("RefreshSession"), len(w.seen()), len(times))
	}
}

// TestTransportContext: the request's context ends the login's wait, too.
func TestTransportContext(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	hold := make(chan struct{})
	w.AddSite(clienttest.Site{Name: "slow", URL: w.site.URL, Login: func() (clienttest.Session, error) {
		cancel()
		<-hold
		return w.login()
	}})
	h := &http.Client{Transport: &client.Transport{Site: "slow", Client: w.Client()}}
	r, err := http.NewRequestWithContext(ctx, "GET", w.site.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Do(r); api.CodeOf(err) != api.Deadline || !errors.Is(err, context.Canceled) || len(w.seen()) != 0 {
		t.Errorf("%v", err)
	}
	close(hold)
}

// TestTransportZero: a site's name is enough.
func TestTransportZero(t *testing.T) {
	w := newWorld(t)
	t.Setenv(api.SocketVariable, w.Socket())
	tr := &client.Transport{Site: "jira"}
	h := &http.Client{Transport: tr}
	for range 2 {
		resp, err := h.Get(w.site.URL + "/jira/rest")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%d", resp.StatusCode)
		}
		// Nothing is left, and the next request connects again.
		h.CloseIdleConnections()
	}
}

// TestTransportBusy: what is under way is not idle.
func TestTransportBusy(t *testing.T) {
	w := newWorld(t)
	t.Setenv(api.SocketVariable, w.Socket())
	begun, finish := make(chan struct{}), make(chan struct{})
	w.AddSite(clienttest.Site{Name: "slow", URL: w.site.URL, Login: func() (clienttest.Session, error) {
		close(begun)
		<-finish
		return w.login()
	}})
	h := &http.Client{Transport: &client.Transport{Site: "slow"}}
	go func() {
		<-begun
		h.CloseIdleConnections()
		close(finish)
	}()
	resp, err := h.Get(w.site.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if n := w.Calls("GetSession"); resp.StatusCode != http.StatusOK || n != 1 {
		t.Errorf("%d after %d calls", resp.StatusCode, n)
	}
	h.CloseIdleConnections()
}

// TestTransportSecrets: nothing that a caller gets shows a cookie.
func TestTransportSecrets(t *testing.T) {
	w := newWorld(t)
	w.prime(t)
	w.fails.Store(&api.Error{Code: api.Latched, Detail: "refused"})
	r, err := http.NewRequestWithContext(t.Context(), "GET", w.site.URL+"/jira/rest?x=CANARY-query", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.transport().RoundTrip(r)
	if err == nil || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, api.AsError(err)), "CANARY") {
		t.Errorf("%v", err)
	}
	if s := fmt.Sprintf("%+v", r); strings.Contains(s, `CANARY-"`) {
		t.Errorf("the caller's request shows %s", s)
	}
	w.fails.Store(nil)
	resp, err := w.transport().RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if s := fmt.Sprintf("%+v %+v", resp, resp.Request); strings.Contains(s, `CANARY-"`) {
		t.Errorf("the answer shows %s", s)
	}
}
