package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client/shim"
)

// bazelAgent has a session for https://cache.corp.example, and shows what it was
// asked for.
type bazelAgent struct {
	pb.UnimplementedSessionServiceServer
	session *pb.Session
	asked   chan *pb.GetSessionRequest
}

func (a *bazelAgent) GetSession(_ context.Context, r *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	a.asked <- r
	if !strings.HasPrefix(r.GetUrl(), "https://cache.corp.example/") {
		st, err := status.New(codes.NotFound, "no site at that host").WithDetails(&errdetails.ErrorInfo{Domain: api.ErrorDomain, Reason: api.UnknownSite.Reason()})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
	return &pb.GetSessionResponse{Session: a.session}, nil
}

func withBazel(t *testing.T) *bazelAgent {
	t.Helper()
	l, socket := listen(t)
	a := &bazelAgent{session: hostile(), asked: make(chan *pb.GetSessionRequest, 1)}
	serveOn(t, l, func(g *grpc.Server) { pb.RegisterSessionServiceServer(g, a) })
	t.Setenv(api.SocketVariable, socket)
	return a
}

// credentials is what the specification's schema of a response allows: headers,
// arrays of strings by name, and a string. It allows additional properties, too,
// which there should not be.
type credentials struct {
	Headers map[string][]string `json:"headers"`
	Expires *string             `json:"expires"`
}

// bazelTime is what Bazel reads as a time (CredentialHelper's GetCredentialsResponse:
// yyyy-MM-dd'T'HH:mm:ssXXX).
var bazelTime = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)$`)

// conforms decodes a response as its schema and Bazel have it.
func conforms(t *testing.T, answer string) (c credentials, expires time.Time) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(answer))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil || d.More() {
		t.Fatalf("%v in %q", err, answer)
	}
	if c.Expires == nil || !bazelTime.MatchString(*c.Expires) {
		t.Fatalf("expires in %q", answer)
	}
	expires, err := time.Parse(time.RFC3339, *c.Expires)
	if err != nil {
		t.Fatal(err)
	}
	return c, expires
}

// TestBazel: the two examples of a request in the specification's words, and more.
func TestBazel(t *testing.T) {
	a := withBazel(t)
	for request, want := range map[string]string{
		`{"uri":"https://cache.corp.example/rest/endpoint"}`:                                       "https://cache.corp.example/rest/endpoint",
		`{"uri": "grpcs://cache.corp.example/com.example.Service/Method"}`:                         "https://cache.corp.example/com.example.Service/Method",
		`{"URI":"https://elsewhere.example/","uri":"https://cache.corp.example/x","Uri":3}`:        "https://cache.corp.example/x",
		" {\n\"more\": [1, {\"uri\": 2}], \"uri\": \"https:\\/\\/cache.corp.example/x?a=%2F\" }\n": "https://cache.corp.example/x?a=%2F",
	} {
		typed(t, request)
		before := time.Now().Truncate(time.Second)
		out, errs, exit := call("bazel", "get")
		if exit != 0 || errs != "" {
			t.Fatalf("%s: %d %q", request, exit, errs)
		}
		if r := <-a.asked; r.GetUrl() != want || r.GetSite() != "" || r.GetMinValidity().AsDuration() != bazelLife {
			t.Errorf("%s asks for %v", request, r)
		}
		c, expires := conforms(t, out)
		if len(c.Headers) != 2 || len(c.Headers["Cookie"]) != 1 || c.Headers["Cookie"][0] != `s=CANARY-it's "a\b" $(x); t=é*` || c.Headers["User-Agent"][0] != "curl/8" {
			t.Errorf("%q", out)
		}
		if expires.Before(before.Add(bazelLife)) || expires.After(time.Now().Add(bazelLife)) {
			t.Errorf("it counts until %v", expires)
		}
	}
}

// TestBazelExpiry: an answer does not outlast its session, nor the few minutes after
// which a tool has to come back.
func TestBazelExpiry(t *testing.T) {
	now := time.Date(2026, 11, 22, 20, 0, 0, 999_999_999, time.UTC)
	for end, want := range map[time.Duration]string{
		0:                             "2026-11-22T20:05:00Z", // the site does not say
		time.Hour:                     "2026-11-22T20:05:00Z",
		bazelLife - time.Second:       "2026-11-22T20:04:59Z",
		time.Minute + time.Nanosecond: "2026-11-22T20:01:01Z",
		time.Minute - time.Nanosecond: "2026-11-22T20:01:00Z",
		-time.Minute:                  "2026-11-22T19:59:00Z",
	} {
		s := hostile()
		if end != 0 {
			s.ExpireTime = timestamppb.New(now.Add(end))
		}
		b, err := bazelAnswer(s, now)
		if err != nil {
			t.Fatal(err)
		}
		if c, _ := conforms(t, string(b)); *c.Expires != want {
			t.Errorf("%v: %s, want %s", end, *c.Expires, want)
		}
	}
}

// TestBazelRefuses: no answer rather than half of one, and no secret in words.
func TestBazelRefuses(t *testing.T) {
	a := withBazel(t)
	const known = `{"uri":"https://cache.corp.example/x"}`
	header := func(name, value string) *pb.Session {
		return &pb.Session{Site: "cache", Headers: []*pb.Header{{Name: name, Value: []byte(value), Secret: true}}}
	}
	for _, c := range []struct {
		request string
		session *pb.Session
		exit    int
		code    string
	}{
		{`{"uri":"https://elsewhere.example/"}`, nil, api.ExitUnknown, "unknown_site"},
		{`{"uri":"http://cache.corp.example/"}`, nil, api.ExitUnknown, "unknown_site"},
		{`{"uri":"grpc://cache.corp.example/"}`, nil, api.ExitUsage, "invalid_request"},
		{`{"uri":"cache"}`, nil, api.ExitUsage, "invalid_request"}, // a site's name
		{`{"uri":"https://u:CANARY-p@cache.corp.example/"}`, nil, api.ExitUsage, "invalid_request"},
		{`{"uri":"https://cache.corp.example/\nHost: x"}`, nil, api.ExitUsage, "invalid_request"},
		{`{"uri":"https://cache.corp.example/\u0000"}`, nil, api.ExitUsage, "invalid_request"},
		{`{"uri":["https://cache.corp.example/CANARY-x"]}`, nil, api.ExitUsage, "invalid_request"},
		{`{}`, nil, api.ExitUsage, "invalid_request"},
		{``, nil, api.ExitUsage, "invalid_request"},
		{`[]`, nil, api.ExitUsage, "invalid_request"},
		{known + known, nil, api.ExitUsage, "invalid_request"},
		{known + "]", nil, api.ExitUsage, "invalid_request"},
		{`{"URI":"https://cache.corp.example/x"}`, nil, api.ExitUsage, "invalid_request"},
		{`{"uri":"https://elsewhere.example/","uri":"https://cache.corp.example/x"}`, nil, api.ExitUsage, "invalid_request"},
		{`{"uri":"https://cache.corp.example/x","\u0075ri":"https://cache.corp.example/x"}`, nil, api.ExitUsage, "invalid_request"},
		{`{"uri":null,"uri":"https://cache.corp.example/x"}`, nil, api.ExitUsage, "invalid_request"},
		{`{"uri":null}`, nil, api.ExitUsage, "invalid_request"},
		{`{"uri" "https://cache.corp.example/x"}`, nil, api.ExitUsage, "invalid_request"},
		{`"uri"`, nil, api.ExitUsage, "invalid_request"},
		{known[:len(known)-1], nil, api.ExitUsage, "invalid_request"},
		{known, header("Cookie", ""), api.ExitPerson, "no_session_cookie"},
		{known, header("Cookie", "a=CANARY-1\r\nb: 2"), api.ExitOther, "unprintable"},
		{known, header("Cookie", "a=CANARY-\t1"), api.ExitOther, "unprintable"},
		{known, header("Cookie", "a=CANARY-\xff"), api.ExitOther, "unprintable"},
		{known, header("Cookie", "a=CANARY-"+strings.Repeat("x", maxBazelAnswer)), api.ExitOther, "unprintable"},
	} {
		a.session = c.session
		typed(t, c.request)
		out, errs, exit := call("bazel", "get")
		if out != "" || exit != c.exit || !strings.Contains(errs, "("+c.code+")") || strings.Contains(errs, "CANARY-") {
			t.Errorf("%.80s %.80q: %d %q %q", c.request, c.session, exit, out, errs)
		}
		select {
		case <-a.asked:
		default:
		}
	}
	a.session = header("Authorization", "Bearer CANARY-token")
	typed(t, known)
	out, errs, exit := call("bazel", "get")
	if c, _ := conforms(t, out); exit != 0 || errs != "" || c.Headers["Authorization"][0] != "Bearer CANARY-token" {
		t.Errorf("%d %q %q", exit, out, errs)
	}
	for _, args := range []string{"bazel", "bazel store", "bazel get x", "bazel get --no-such"} {
		if out, errs, exit := call(strings.Fields(args)...); out != "" || exit != api.ExitUsage || !strings.Contains(errs, "(invalid_request)\n  next: ") {
			t.Errorf("%s: %d %q %q", args, exit, out, errs)
		}
	}
	if out, errs, exit := call("bazel", "get", "--socket", "/nonexistent/agent.sock"); out != "" || exit != api.ExitUsage { // nothing on standard input
		t.Errorf("%d %q %q", exit, out, errs)
	}
}

// TestBazelLongRequest: a request is read up to its limit, and not in part.
func TestBazelLongRequest(t *testing.T) {
	a := withBazel(t)
	const begin, end = `{"x":"`, `","uri":"https://cache.corp.example/x"}`
	for size, ok := range map[int]bool{maxBazelRequest: true, maxBazelRequest + 1: false, 1 << 20: false} {
		// Cut at the limit the long ones would be good, too.
		request := begin + strings.Repeat("x", min(size, maxBazelRequest)-len(begin)-len(end)) + end
		request += strings.Repeat("\n", size-len(request))
		file := filepath.Join(t.TempDir(), "request")
		if err := os.WriteFile(file, []byte(request), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		old := os.Stdin
		os.Stdin = f
		out, errs, exit := call("bazel", "get")
		os.Stdin = old
		if ok {
			if <-a.asked; out == "" || exit != 0 {
				t.Errorf("%d bytes: %d %q", size, exit, errs)
			}
		} else if out != "" || exit != api.ExitUsage || !strings.Contains(errs, "the request is too long (invalid_request)\n  next: ") {
			t.Errorf("%d bytes: %d %q %q", size, exit, out, errs)
		}
	}
}

// TestBazelWaits: for a tool that says nothing it does not wait longer than it may,
// and for nothing longer than Bazel does.
func TestBazelWaits(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	old := os.Stdin
	os.Stdin = r
	defer func() { os.Stdin = old }()
	if out, errs, exit := call("bazel", "get", "--timeout", "20ms"); out != "" || exit != api.ExitLater || !strings.Contains(errs, "standard input did not end in the time allowed (deadline)") {
		t.Errorf("%d %q %q", exit, out, errs)
	}
	// The agent's answer that never comes: the time that was given to the call.
	a := &app{stdin: r, stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, timeout: 30 * time.Second}
	c := a.bazel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.SetContext(ctx)
	if err := c.RunE(c, []string{"get"}); api.CodeOf(err) != api.Deadline || a.timeout != bazelTimeout || bazelTimeout >= 10*time.Second {
		t.Errorf("%v after %v", err, a.timeout)
	}
}

// FuzzBazelRequest: whatever is asked, what the agent is asked for is a URL that it
// takes, and no complaint repeats the request.
func FuzzBazelRequest(f *testing.F) {
	f.Add([]byte(`{"uri":"https://cache.corp.example/x"}`))
	f.Add([]byte(`{"uri":"grpcs://cache.corp.example:443/com.example.Service/Method","x":[]}`))
	f.Add([]byte(`{"uri":"https:\/\/u@h\u0000"}`))
	f.Fuzz(func(t *testing.T, request []byte) {
		url, err := bazelURL(request)
		if err != nil {
			if e := api.AsError(err); e.Code != api.InvalidRequest || len(request) > 60 && strings.Contains(e.Error(), string(request)) {
				t.Error(err)
			}
			return
		}
		if api.ValidSite(url) || shim.CheckTarget(url) != nil {
			t.Errorf("%q is asked for", url)
		}
	})
}
