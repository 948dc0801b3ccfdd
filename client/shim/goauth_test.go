package shim

import (
	"bytes"
	"context"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	sessionctlv1 "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// goSite is a site of goAgent.
type goSite struct {
	url     string
	cached  *sessionctlv1.Session // what is at hand; nil: nothing
	code    api.Code              // why there is no other
	headers []*sessionctlv1.Header
}

// goAgent is an agent that does with names and URLs what the real one does.
type goAgent struct {
	sites map[string]goSite

	mu    sync.Mutex // a caller may be gone before it is served
	calls []string
}

func (a *goAgent) called(call string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, call)
}

// since returns the calls since it was last called.
func (a *goAgent) since() (calls []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	calls, a.calls = a.calls, nil
	return calls
}

func cookies(value string) []*sessionctlv1.Header {
	return []*sessionctlv1.Header{{Name: "Cookie", Value: []byte(value), Secret: true}}
}

func (a *goAgent) fail(code api.Code) error {
	s, err := status.New(codes.Code(code.GRPC()), "seen").WithDetails(&errdetails.ErrorInfo{Reason: code.Reason(), Domain: api.ErrorDomain})
	if err != nil {
		return err
	}
	return s.Err()
}

func (a *goAgent) find(name, address string) (goSite, error) {
	s, ok := a.sites[name]
	switch u, err := url.Parse(address); {
	case !ok:
		return s, a.fail(api.UnknownSite)
	case err != nil || address != "" && !strings.EqualFold(u.Scheme+"://"+strings.TrimSuffix(u.Host, ":443"), originIn(s.url)):
		return s, a.fail(api.InvalidRequest)
	}
	return s, nil
}

// originIn is what an origin of a URL begins with.
func originIn(address string) string {
	scheme, rest, _ := strings.Cut(address, "://")
	return scheme + "://" + hostOf(rest)
}

func (s goSite) made(generation string) *sessionctlv1.Session {
	return &sessionctlv1.Session{Url: s.url, Generation: generation, Headers: s.headers}
}

func (a *goAgent) serve(t *testing.T) {
	t.Helper()
	socket := socketPath(t)
	serve(t, listen(t, socket), &agent{
		get: func(_ context.Context, r *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
			call := "get " + r.Site
			if r.CachedOnly {
				call = "cached " + r.Site
			}
			a.called(call)
			s, err := a.find(r.Site, r.Url)
			switch {
			case err != nil:
				return nil, err
			case s.cached != nil:
				return &sessionctlv1.GetSessionResponse{Session: s.cached}, nil
			case r.CachedOnly:
				return nil, a.fail(api.NotCached)
			case s.code != "":
				return nil, a.fail(s.code)
			}
			return &sessionctlv1.GetSessionResponse{Session: s.made("new")}, nil
		},
		refresh: func(_ context.Context, r *sessionctlv1.RefreshSessionRequest) (*sessionctlv1.RefreshSessionResponse, error) {
			if r.Force {
				t.Errorf("an order: %v", r)
			}
			a.called("refresh " + r.Site + " " + r.Generation + " " + r.Url)
			s, err := a.find(r.Site, r.Url)
			if err == nil && s.code != "" {
				err = a.fail(s.code)
			}
			if err != nil {
				return nil, err
			}
			return &sessionctlv1.RefreshSessionResponse{Session: s.made("new")}, nil
		},
	})
	t.Setenv(api.SocketVariable, socket)
}

// goSites is where the tests ask.
func goSites() *goAgent {
	live := func(url, cookie string, more ...*sessionctlv1.Header) goSite {
		s := goSite{url: url, headers: cookies("s=CANARY-new")}
		s.cached = &sessionctlv1.Session{Site: "", Url: url, Generation: "g1", Headers: append(cookies(cookie), more...)}
		return s
	}
	refused := live("https://refused.example/", "s=CANARY-refused")
	refused.code = api.BadCredentials
	down := live("https://down.example/", "s=CANARY-down")
	down.code = api.NetworkError
	return &goAgent{sites: map[string]goSite{
		"mods":    live("https://mods.example:8443/git/", `a="CANARY-1 2"; b=3`, &sessionctlv1.Header{Name: "X-Atlassian-Token", Value: []byte("no-check")}),
		"twin":    live("https://mods.example:8443/wiki/", "a=CANARY-twin"),
		"other":   live("https://other.example/", "s=CANARY-other"),
		"cold":    {url: "https://cold.example/", headers: cookies("s=CANARY-cold")},
		"latched": {url: "https://latched.example/", code: api.Latched},
		"plain":   live("http://plain.example/", "s=CANARY-plain"),
		"jazz":    live("https://jazz.example/", "s=CANARY-jazz", &sessionctlv1.Header{Name: "X-Jazz-CSRF-Prevent", Value: []byte("CANARY-jazz"), Secret: true}),
		"split":   live("https://split.example/", "s=CANARY-1\nhttps://evil.example"),
		"refused": refused,
		"down":    down,
	}}
}

const (
	modsSet  = "https://mods.example:8443\n\nCookie: a=\"CANARY-1 2\"; b=3\nX-Atlassian-Token: no-check\n\n"
	otherSet = "https://other.example\n\nCookie: s=CANARY-other\n\n"
)

// TestGoauthBegins: the first call prints what is at hand, and logs nobody in.
func TestGoauthBegins(t *testing.T) {
	a := goSites()
	a.serve(t)
	for _, c := range []struct {
		sites, stdout, stderr string
		exit                  int
	}{
		{"mods", modsSet, "", 0},
		{"mods other", modsSet + otherSet, "", 0},
		{"mods twin", modsSet, "", 0}, // the first of an origin
		{"cold", "", "", 0},
		{"latched cold other", otherSet, "", 0},
		{"nosuch", "", "sessionctl: nosuch: seen (unknown_site)\n", api.ExitUnknown},
		{"cold nosuch", "", "sessionctl: nosuch: seen (unknown_site)\n", api.ExitUnknown},
		{"nosuch split other", otherSet, "sessionctl: nosuch: seen (unknown_site)\n", 0},
		{"plain", "", "sessionctl: plain: go takes credentials for https only (invalid_request)\n  next: name a site whose url begins with https\n", api.ExitUsage},
		{"jazz", "", "sessionctl: jazz: go would send the session's X-Jazz-CSRF-Prevent header to every host that it is led to (per_request_only)\n  next: fetch what it needs with another program: sessionctl header jazz\n", api.ExitPerson},
		{"split", "", "sessionctl: split: the Cookie header has a byte that cannot be printed safely (unprintable)\n  next: " + strings.ReplaceAll(anotherForm, "SITE", "split") + "\n", api.ExitOther},
	} {
		out, errs, exit := patiently(t, append([]string{"goauth"}, strings.Fields(c.sites)...)...)
		if out != c.stdout || errs != c.stderr || exit != c.exit {
			t.Errorf("%s: %q, %q, %d", c.sites, out, errs, exit)
		}
		for _, call := range a.since() {
			if !strings.HasPrefix(call, "cached ") {
				t.Errorf("%s: %s", c.sites, call)
			}
		}
	}
}

// patiently calls until the answer is not that the little time was over, which it
// may be on a busy machine.
func patiently(t *testing.T, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	for t.Context().Err() == nil {
		stdout, stderr, exit = run("", args...)
		if !strings.Contains(stderr, "(deadline)") && !strings.Contains(stderr, "(no_agent)") {
			break
		}
	}
	return stdout, stderr, exit
}

// TestGoauthRefused: what follows an answer that go was refused with.
func TestGoauthRefused(t *testing.T) {
	a := goSites()
	a.serve(t)
	const (
		refused  = "HTTP/2.0 401 Unauthorized\nWww-Authenticate: Negotiate, Basic realm=\"x, y\"\nSet-Cookie: a=CANARY-set\n\n"
		notFound = "HTTP/2.0 404 Not Found\nContent-Type: text/plain\n\n"
	)
	for _, c := range []struct {
		args, stdin, stdout, stderr string
		exit                        int
		calls                       string
	}{
		{"mods https://mods.example:8443/git/m/@v/list?go-get=1", refused, "https://mods.example:8443\n\nCookie: s=CANARY-new\n\n", "", 0,
			"cached mods, refresh mods g1 https://mods.example:8443/git/m/@v/list?go-get=1"},
		{"mods https://mods.example:8443/elsewhere", notFound, modsSet, "", 0, "get mods"},
		{"mods https://MODS.example:8443/", notFound, strings.Replace(modsSet, "mods", "MODS", 1), "", 0, "get mods"}, // go looks up what it has asked for
		{"cold https://cold.example:443/", refused, "https://cold.example:443\n\nCookie: s=CANARY-cold\n\n", "", 0, "cached cold, refresh cold  https://cold.example:443/"},
		{"cold https://cold.example/x", notFound, "https://cold.example\n\nCookie: s=CANARY-cold\n\n", "", 0, "get cold"},
		{"mods other https://other.example/", notFound, otherSet, "", 0, "get mods, get other"},
		{"mods other https://elsewhere.example/", refused, "", "", 0, "cached mods, cached other"},
		{"mods https://mods.example/", refused, "", "", 0, "cached mods"},                   // another port
		{"mods https://mods.example:8443.evil.example/", refused, "", "", 0, "cached mods"}, // another host
		// Dead, and there is no other: it is taken back.
		{"refused https://refused.example/x", refused, "https://refused.example\n\n\n", "sessionctl: refused: seen (bad_credentials)\n", 0, "cached refused, refresh refused g1 https://refused.example/x"},
		// Nothing was there to be taken back.
		{"latched https://latched.example/", refused, "", "sessionctl: latched: seen (latched)\n", api.ExitPerson, "cached latched, refresh latched  https://latched.example/"},
		{"latched https://latched.example/", notFound, "", "sessionctl: latched: seen (latched)\n", api.ExitPerson, "get latched"},
		// An outage takes nothing back.
		{"down https://down.example/", refused, "", "sessionctl: down: seen (network_error)\n", api.ExitLater, "cached down, refresh down g1 https://down.example/"},
		{"nosuch other https://other.example/", notFound, otherSet, "", 0, "get nosuch, get other"},
		{"nosuch https://other.example/", notFound, "", "sessionctl: nosuch: seen (unknown_site)\n", api.ExitUnknown, "get nosuch"},
		{"plain http://plain.example/", refused, "", "sessionctl: plain: go takes credentials for https only (invalid_request)\n  next: name a site whose url begins with https\n", api.ExitUsage, ""},
		{"split https://split.example/", notFound, "", "sessionctl: split: the Cookie header has a byte that cannot be printed safely (unprintable)\n  next: " + strings.ReplaceAll(anotherForm, "SITE", "split") + "\n", api.ExitOther, "get split"},
	} {
		out, errs, exit := run(c.stdin, append([]string{"goauth"}, strings.Fields(c.args)...)...)
		if calls := strings.Join(a.since(), ", "); out != c.stdout || errs != c.stderr || exit != c.exit || calls != c.calls {
			t.Errorf("%s: %q, %q, %d after %s", c.args, out, errs, exit, calls)
		}
		if strings.Contains(errs, "CANARY-") {
			t.Errorf("%s: a secret in %q", c.args, errs)
		}
	}
}

func TestGoauthUsage(t *testing.T) {
	for _, args := range []string{"", "https://mods.example/", "mods https://a.example/ https://b.example/", "https://a.example/ mods", "mods https://u:CANARY-p@a.example/", "a=CANARY-1"} {
		out, errs, exit := run("", append([]string{"goauth"}, strings.Fields(args)...)...)
		if out != "" || exit != api.ExitUsage || !strings.Contains(errs, "sessionctl goauth --help") && !strings.Contains(errs, namesAndVerbs) || strings.Contains(errs, "CANARY-") {
			t.Errorf("%q: %q, %q, %d", args, out, errs, exit)
		}
	}
}

// TestGoauthWithoutAgent: go waits for the first call only briefly.
func TestGoauthWithoutAgent(t *testing.T) {
	begin := time.Now()
	out, errs, exit := run("", "goauth", "mods", "other", "--socket", socketPath(t))
	if out != "" || !strings.Contains(errs, "(no_agent)") || exit != api.ExitNoAgent {
		t.Errorf("%q, %q, %d", out, errs, exit)
	}
	if d := time.Since(begin); d > retryFor/2 { // without the limit, it waits for a restart
		t.Errorf("it took %v", d)
	}
}

// TestGoauthHangs: neither an agent nor a go command that says nothing holds it up.
func TestGoauthHangs(t *testing.T) {
	socket := socketPath(t)
	l := listen(t, socket) // never accepted
	defer l.Close()
	start := time.Now()
	out, errs, exit := run("", "goauth", "mods", "more", "again", "--socket", socket)
	if out != "" || !strings.Contains(errs, "(deadline)") || exit != api.ExitLater {
		t.Errorf("%q, %q, %d", out, errs, exit)
	}
	// 50 ms for all, and what a busy machine takes.
	if took := time.Since(start); took < goFirst || took > 3*time.Second || goFirst != 50*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var stdout, stderr bytes.Buffer
	exit = Run([]string{"sessionctl", "goauth", "mods", "https://mods.example/", "--timeout", "20ms"}, r, &stdout, &stderr)
	if exit != api.ExitLater || stdout.String() != "" || !strings.Contains(stderr.String(), "standard input did not end in the time allowed (deadline)") {
		t.Errorf("%q, %q, %d", stdout.String(), stderr.String(), exit)
	}
}

// TestSpeaksAgainst: what an answer says about the session of its request.
func TestSpeaksAgainst(t *testing.T) {
	long := strings.Repeat("x", 3*maxResponseLine)
	for response, want := range map[string]bool{
		"HTTP/2.0 401 Unauthorized\n\n": true,
		"HTTP/1.1 401\n":                true,
		"HTTP/1.1 401":                  true,
		"HTTP/1.1 403 Forbidden\nWww-Authenticate: Negotiate\n\n":                    true,
		"HTTP/1.1 403 Forbidden\r\nWww-Authenticate: Negotiate\r\n\r\n":              true,
		"HTTP/1.1 404 Not Found\nX-Ausername: anonymous\n\n":                         true,
		"HTTP/1.1 403 Forbidden\nX-Seraph-Loginreason: OK, authenticated_failed\n\n": true,
		"HTTP/1.1 403 x\nA: " + long + "\nX-Ausername: anonymous\n\n":                true,

		"":                           false,
		"HTTP/1.1 403 Forbidden\n\n": false,
		"HTTP/1.1 404 Not Found\nWww-Authenticate: Basic\n\n":                                false,
		"HTTP/1.1 404 401\n\n":                                                               false,
		"HTTP/1.1 404 Not Found\nX-Ausername: build\n\n":                                     false,
		"HTTP/1.1 403 Forbidden\nX-Seraph-Loginreason: OK\n\n":                               false,
		"HTTP/1.1 429 Too Many Requests\nX-Ausername: anonymous\n\n":                         false,
		"HTTP/1.1 404 Not Found\n\nX-Ausername: anonymous\n":                                 false, // a body
		"HTTP/1.1 403 x\nA: " + long + "Www-Authenticate: Basic\n\n":                         false, // one line
		"HTTP/1.1 403 x\nA: " + long + "\n\nWww-Authenticate: Basic\n\n":                     false,
		"HTTP/1.1 403 x\n" + strings.Repeat("x", maxResponseLine) + "\nWww-Authenticate\n\n": false,
	} {
		if got, err := speaksAgainst(strings.NewReader(response)); got != want || err != nil {
			t.Errorf("%.100q: %v, %v", response, got, err)
		}
	}
	if _, err := speaksAgainst(io.MultiReader(strings.NewReader("HTTP/1.1 404 x\n"), brokenReader{})); err == nil {
		t.Error("an input that breaks off is taken for whole")
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// FuzzGoResponse: a 401 is one, and nothing else is without a header that says so.
func FuzzGoResponse(f *testing.F) {
	f.Add("HTTP/2.0 401 Unauthorized\nWww-Authenticate: Negotiate, Basic realm=\"x, y\"\n\n")
	f.Add("HTTP/1.1 403 Forbidden\r\nX-Seraph-LoginReason: OUT\r\nX-AUSERNAME: anonymous\r\n\r\n")
	f.Add("HTTP/1.1 404 Not Found\nA: b")
	f.Fuzz(func(t *testing.T, response string) {
		got, err := speaksAgainst(strings.NewReader(response))
		if err != nil {
			t.Fatal(err)
		}
		if named := strings.Contains(strings.ToLower(response), "www-authenticate") || strings.Contains(strings.ToLower(response), "x-"); got && !named && !strings.Contains(response, " 401") {
			t.Errorf("%q speaks against nobody", response)
		}
		if strings.HasPrefix(response, "HTTP/1.1 401 Unauthorized\n") && !got {
			t.Errorf("%q", response)
		}
	})
}
