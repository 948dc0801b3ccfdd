package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// recorder is an agent that answers with one session and remembers what it was
// asked.
type recorder struct {
	agent
	session *pb.Session
	get     *pb.GetSessionRequest
	refresh *pb.RefreshSessionRequest
	watch   *pb.WatchSessionRequest
}

func (r *recorder) GetSession(ctx context.Context, m *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	r.get = m
	if r.fail != nil {
		return nil, r.fail(ctx)
	}
	return &pb.GetSessionResponse{Session: r.session}, nil
}

func (r *recorder) RefreshSession(_ context.Context, m *pb.RefreshSessionRequest) (*pb.RefreshSessionResponse, error) {
	r.refresh = m
	return &pb.RefreshSessionResponse{Session: r.session}, nil
}

func (r *recorder) WatchSession(m *pb.WatchSessionRequest, stream pb.SessionService_WatchSessionServer) error {
	r.watch = m
	if err := stream.Send(&pb.WatchSessionResponse{Session: r.session}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

const cookie = `JSESSIONID=CANARY-"0|%3A=="; crowd.token_key=CANARY-1`

func record(t *testing.T) (*recorder, *Client) {
	t.Helper()
	moment := func(n int64) *timestamppb.Timestamp { return timestamppb.New(time.Unix(n, 0)) }
	r := &recorder{session: &pb.Session{
		Site: "jira", User: "build", Generation: "g1", Url: "https://jira.example/jira/rest",
		Headers: []*pb.Header{
			{Name: "cookie", Value: []byte(cookie), Secret: true},
			{Name: "User-Agent", Value: []byte("sessionctl/1")},
			{Name: "x-atlassian-token", Value: []byte("no-check")},
		},
		LoginTime: moment(1), ProveTime: moment(2), ExpireTime: moment(3),
		Stale: true, NotDurable: true, IdentityUnproven: true,
	}}
	path := socketPath(t)
	serveOn(t, path, r)
	c := &Client{Socket: path}
	t.Cleanup(func() { c.Close() })
	return r, c
}

func TestSession(t *testing.T) {
	r, c := record(t)
	s, err := c.Session(t.Context(), Query{Site: "jira", URL: "https://jira.example/jira/rest", Method: "POST", MinValidity: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if r.get.GetSite() != "jira" || r.get.GetUrl() != "https://jira.example/jira/rest" || r.get.GetMethod() != "POST" || r.get.GetMinValidity().AsDuration() != time.Minute {
		t.Errorf("asked for %v", r.get)
	}
	if s.Site != "jira" || s.User != "build" || s.Generation != "g1" || s.URL != "https://jira.example/jira/rest" || s.Method != "POST" ||
		s.LoginTime.Unix() != 1 || s.ProveTime.Unix() != 2 || s.ExpireTime.Unix() != 3 || !s.Stale || !s.NotDurable || !s.IdentityUnproven {
		t.Errorf("%+v", *s)
	}
	h := s.Header()
	if len(h) != 3 || h.Get("Cookie") != cookie || h.Get("User-Agent") != "sessionctl/1" || h.Get("X-Atlassian-Token") != "no-check" {
		t.Errorf("%d headers, or not those of the agent", len(h))
	}
	h.Set("Cookie", "x")
	if s.Header().Get("Cookie") != cookie {
		t.Error("a session that can be changed")
	}

	r.session.Generation = "g2"
	fresh, err := c.Refresh(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if fresh.Generation != "g2" || fresh.Method != "POST" {
		t.Errorf("%+v", *fresh)
	}
	if m := r.refresh; m.GetSite() != "jira" || m.GetUrl() != s.URL || m.GetGeneration() != "g1" || m.GetMethod() != "POST" || m.GetForce() {
		t.Errorf("reported %v", m)
	}

	// Times that are not known, and no secret at all.
	r.session.ExpireTime, r.session.Headers = nil, r.session.Headers[:1]
	if s, err = c.Session(t.Context(), Query{URL: "https://jira.example/"}); err != nil || !s.ExpireTime.IsZero() || r.get.GetSite() != "" || r.get.MinValidity != nil {
		t.Errorf("%v, %v", s, err)
	}
	r.session.Headers = []*pb.Header{{Name: "User-Agent", Value: []byte("x")}}
	if _, err := c.Session(t.Context(), Query{Site: "jira"}); api.CodeOf(err) != api.NoSessionCookie {
		t.Errorf("no cookie: %v", err)
	}
	if _, err := c.Refresh(t.Context(), s); api.CodeOf(err) != api.NoSessionCookie {
		t.Errorf("no cookie after a refresh: %v", err)
	}
}

func TestWatch(t *testing.T) {
	r, c := record(t)
	s, err := c.Watch(t.Context(), Query{Site: "jira", URL: "https://jira.example/jira/rest", Method: "PUT"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if m := r.watch; m.GetSite() != "jira" || m.GetUrl() != "https://jira.example/jira/rest" || m.GetMethod() != "PUT" {
		t.Errorf("watched %v", m)
	}
	if got, err := s.Session(); err != nil || got.Method != "PUT" || got.Header().Get("Cookie") != cookie {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := c.Watch(t.Context(), Query{Site: "jira", MinValidity: 1}); api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("min validity: %v", err)
	}
}

func (r *recorder) ListSessions(context.Context, *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	return &pb.ListSessionsResponse{Sessions: []*pb.SessionSummary{{Site: "other", Url: "https://other.example"}, {Site: "jira", Url: "https://jira.example/jira"}}}, nil
}

// TestTransportAsks: what the agent learns of a request.
func TestTransportAsks(t *testing.T) {
	r, c := record(t)
	var sent int
	tr := &Transport{Site: "jira", Client: c, Base: roundTripper(func(*http.Request) (*http.Response, error) {
		sent++
		return answer(http.StatusOK, http.Header{}, ""), nil
	})}
	for _, method := range []string{"POST", ""} {
		request, err := http.NewRequestWithContext(t.Context(), method, "https://me:CANARY-1@jira.example/jira/a%2Fb?token=CANARY-2#CANARY-3", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Method = method
		resp, err := tr.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if r.get.GetSite() != "jira" || r.get.GetUrl() != "https://jira.example/jira/a%2Fb" || r.get.GetMethod() != cmp.Or(method, "GET") {
			t.Errorf("asked for %v", r.get)
		}
	}
	// The agent wants none of it, although it is the site's origin.
	r.fail = func(context.Context) error { return coded(api.InvalidRequest, "do this") }
	request, err := http.NewRequestWithContext(t.Context(), "POST", "https://jira.example/jira", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := tr.RoundTrip(request); resp != nil || api.CodeOf(err) != api.InvalidRequest || api.AsError(err).Remedy != "do this" || sent != 2 {
		t.Errorf("%v, %v; %d sent", resp, err, sent)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestNoSession: without an agent, and when the caller leaves.
func TestNoSession(t *testing.T) {
	c := &Client{Socket: socketPath(t)}
	defer c.Close()
	if s, err := c.Session(t.Context(), Query{Site: "jira"}); s != nil || api.CodeOf(err) != api.NoAgent {
		t.Errorf("%v, %v", s, err)
	}
	if s, err := c.Refresh(t.Context(), nil); s != nil || api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("%v %v", s, err)
	}
	if s, err := c.Refresh(t.Context(), &Session{}); s != nil || api.CodeOf(err) != api.NoAgent {
		t.Errorf("%v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a := &agent{fail: func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}}
	a.serve(t, c.Socket)
	if _, err := c.Session(ctx, Query{Site: "jira"}); api.CodeOf(err) != api.Deadline || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestSessionHidesSecrets: in whatever way a session is shown.
func TestSessionHidesSecrets(t *testing.T) {
	_, c := record(t)
	s, err := c.Session(t.Context(), Query{Site: "jira"})
	if err != nil {
		t.Fatal(err)
	}
	src, err := c.Watch(t.Context(), Query{Site: "jira"})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	type holder struct {
		Public  *Session
		private Session
		pointer *Session
		source  *Source
	}
	var shown bytes.Buffer
	for _, v := range []any{s, *s, holder{s, *s, s, src}, &holder{s, *s, s, src}, []Session{*s}, map[string]*Session{"x": s}, src, *src.state.Load()} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&shown, verb+"\n", v)
		}
		j, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		shown.Write(j)
		for _, h := range []slog.Handler{slog.NewTextHandler(&shown, nil), slog.NewJSONHandler(&shown, nil)} {
			slog.New(h).Info("x", "session", v)
		}
	}
	out := shown.String()
	for _, form := range []string{"CANARY", "canary", fmt.Sprintf("%x", "CANARY"), fmt.Sprintf("%d", []byte("CANARY"))} {
		if strings.Contains(out, strings.Trim(form, "[]")) {
			t.Errorf("shown as %s", form)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, s); got != "session g1 of build at jira" {
			t.Errorf("%s: %s", verb, got)
		}
	}
	if !strings.Contains(out, `"session":{"site":"jira","user":"build","generation":"g1","stale":true}`) {
		t.Errorf("no group in the log: %s", out)
	}
}

func TestApply(t *testing.T) {
	_, c := record(t)
	s, err := c.Session(t.Context(), Query{Site: "jira"})
	if err != nil {
		t.Fatal(err)
	}
	request := func(u string) *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Cookie", "JSESSIONID=old")
		r.Header.Add("Cookie", "other=old")
		r.Header.Set("Authorization", "Bearer old")
		r.Header.Set("User-Agent", "mine")
		r.Header.Set("Accept", "application/json")
		return r
	}
	for _, u := range []string{"https://jira.example/", "https://JIRA.example.:443/x?y", "HTTPS://user@jira.example/jira"} {
		r := request(u)
		if err := s.Apply(r); err != nil {
			t.Errorf("%s: %v", u, err)
			continue
		}
		if got := r.Header.Values("Cookie"); len(got) != 1 || got[0] != cookie || r.Header.Get("Authorization") != "" ||
			r.Header.Get("User-Agent") != "sessionctl/1" || r.Header.Get("X-Atlassian-Token") != "no-check" || r.Header.Get("Accept") != "application/json" {
			t.Errorf("%s: not the session's headers in place of the old ones", u)
		}
	}
	for _, u := range []string{"http://jira.example/", "https://jira.example:8443/", "https://evil.example/", "https://jira.example.evil/", "https://sub.jira.example/", "http://jira.example:443/", "https:opaque", "/relative"} {
		r := request(u)
		err := s.Apply(r)
		if api.CodeOf(err) != api.InvalidRequest {
			t.Errorf("%s: %v", u, err)
		}
		if r.Header.Get("Cookie") != "JSESSIONID=old" || r.Header.Get("Authorization") != "Bearer old" || r.Header.Get("X-Atlassian-Token") != "" || r.Header.Get("User-Agent") != "mine" {
			t.Errorf("%s: changed", u)
		}
	}
	// A proxy would take it for another site's.
	for _, opaque := range []string{"//evil.example/steal", "//jira.example/jira"} {
		r := request("https://jira.example/")
		r.URL.Opaque = opaque
		if err := s.Apply(r); api.CodeOf(err) != api.InvalidRequest || r.Header.Get("Cookie") != "JSESSIONID=old" || r.Header.Get("User-Agent") != "mine" {
			t.Errorf("opaque %s: %v", opaque, err)
		}
	}
	// The server there would take it for another site's.
	r := request("https://jira.example/")
	r.Host = "evil.example"
	if err := s.Apply(r); api.CodeOf(err) != api.InvalidRequest || r.Header.Get("Cookie") != "JSESSIONID=old" {
		t.Errorf("another Host: %v", err)
	}
	r = request("https://jira.example/")
	r.Host, r.Header = "jira.example:443", nil
	if err := s.Apply(r); err != nil || r.Header.Get("Cookie") != cookie {
		t.Errorf("the same Host: %v", err)
	}
	// A session without cookies goes without the request's own, too.
	rec, c := record(t)
	rec.session.Headers = []*pb.Header{{Name: "Authorization", Value: []byte("Bearer CANARY-2"), Secret: true}}
	token, err := c.Session(t.Context(), Query{Site: "jira"})
	if err != nil {
		t.Fatal(err)
	}
	r = request("https://jira.example/")
	if err := token.Apply(r); err != nil || r.Header.Get("Authorization") != "Bearer CANARY-2" || r.Header.Get("Cookie") != "" {
		t.Errorf("a token: %v", err)
	}
	if err := new(Session).Apply(request("https://jira.example/")); api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("no session: %v", err)
	}
	if h := new(Session).Header(); h == nil || len(h) != 0 {
		t.Errorf("no session: %v", h)
	}
}
