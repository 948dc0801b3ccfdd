package main

import (
	"context"
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// users is the SessionService of an agent with sites of several users and an
// identity provider.
type users struct {
	pb.UnimplementedSessionServiceServer
	list    *pb.ListSessionsResponse
	deleted *pb.DeleteSessionResponse
	session *pb.Session // what logins give; nil: alice's
	got     chan proto.Message
}

func (s *users) made(site string) *pb.Session {
	if s.session != nil {
		return s.session
	}
	return &pb.Session{Site: site, User: "alice"}
}

func (s *users) ListSessions(context.Context, *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	return s.list, nil
}

func (s *users) Login(_ context.Context, r *pb.LoginRequest) (*pb.LoginResponse, error) {
	s.got <- r
	return &pb.LoginResponse{Session: s.made(r.GetSite())}, nil
}

func (s *users) RefreshSession(_ context.Context, r *pb.RefreshSessionRequest) (*pb.RefreshSessionResponse, error) {
	s.got <- r
	return &pb.RefreshSessionResponse{Session: s.made(r.GetSite())}, nil
}

func (s *users) DeleteSession(_ context.Context, r *pb.DeleteSessionRequest) (*pb.DeleteSessionResponse, error) {
	s.got <- r
	return s.deleted, nil
}

// withUsers serves such an agent. The agent's own state is st, nil: it has no
// AgentService.
func withUsers(t *testing.T, st *pb.GetStatusResponse) *users {
	t.Helper()
	l, socket := listen(t)
	s := &users{list: several(), got: make(chan proto.Message, 1)}
	serveOn(t, l, func(g *grpc.Server) {
		pb.RegisterSessionServiceServer(g, s)
		if st != nil {
			pb.RegisterAgentServiceServer(g, agentState{status: st})
		}
	})
	t.Setenv(api.SocketVariable, socket)
	return s
}

// several is a site with two users, one behind an identity provider, and that.
func several() *pb.ListSessionsResponse {
	in := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(d)) }
	return &pb.ListSessionsResponse{
		Sessions: []*pb.SessionSummary{
			{Site: "alm", Kind: "jira", User: "alice", State: pb.SessionState_SESSION_STATE_LIVE, Credential: "one", Life: durationpb.New(8 * time.Hour), LifeLearned: true,
				Idle: durationpb.New(5 * time.Hour), CheckTime: in(time.Hour + time.Second/2)},
			{Site: "alm", Kind: "jira", User: "bob", State: pb.SessionState_SESSION_STATE_NONE, Credential: "two", Code: "server_5xx", Detail: "status 500", Remedy: "wait",
				RetryTime: in(2*time.Hour + time.Second/2)},
			{Site: "app", Kind: "spnego", User: "build", State: pb.SessionState_SESSION_STATE_LATCHED, Credential: "build", Idp: "sso", Idle: durationpb.New(90 * time.Second), IdleLearned: true,
				Code: "latched", Detail: "refused", RetryTime: in(-time.Hour)},
		},
		Idps: []*pb.SessionSummary{{Site: "sso", Kind: "form", User: "build", State: pb.SessionState_SESSION_STATE_STALE, Credential: "build", Code: "timeout", Detail: "no answer"}},
	}
}

// TestListUsers: each user of a site has its line, and each failure says whose
// it is and when there may be another attempt.
func TestListUsers(t *testing.T) {
	withUsers(t, nil)
	out, errs, exit := call("list")
	want := `SITE  KIND    USER   STATE    PROVED  CHECK      EXPIRES  NOTE
alm   jira    alice  live     -       in 1h0m0s  -        credential one, lives ~8h (learned), idle limit 5h
alm   jira    bob    none     -       -          -        credential two, server_5xx
app   spnego  build  latched  -       -          -        idp sso, latched, idle limit ~1m30s (learned)
alm, credential two: status 500 (server_5xx); next attempt in 2h0m0s at the earliest
  next: wait
app: refused (latched)
`
	// The times may have gone by a second.
	if got := strings.NewReplacer("59m59s ", "1h0m0s ", "1h59m59s", "2h0m0s").Replace(out); exit != 0 || errs != "" || got != want {
		t.Errorf("%d %q\n%s\nwant:\n%s", exit, errs, out, want)
	}
	out, _, _ = call("list", "-o", "json")
	var got []jsonSummary
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) != 3 {
		t.Fatalf("%v\n%s", err, out)
	}
	a, b, c := got[0], got[1], got[2]
	if a.Credential != "one" || a.LifeSeconds != 28800 || !a.LifeLearned || a.IdleSeconds != 18000 || a.IdleLearned || a.CheckTime == "" || a.IdP != "" || a.RetryTime != "" ||
		b.Credential != "two" || b.RetryTime == "" || b.CheckTime != "" || b.LifeSeconds != 0 || c.IdP != "sso" || c.LifeLearned || !c.IdleLearned || c.IdleSeconds != 90 {
		t.Errorf("%s", out)
	}
}

// TestKnown: limits are short to read.
func TestKnown(t *testing.T) {
	for d, want := range map[time.Duration]string{
		8 * time.Hour: "8h", 5*time.Hour + 30*time.Minute: "5h30m", time.Hour + 29*time.Second: "1h", 30 * time.Minute: "30m", 90 * time.Second: "1m30s",
		10 * time.Second: "10s", 100 * time.Millisecond: "0s", 10 * time.Hour: "10h", 20 * time.Minute: "20m", 24 * time.Hour * 14: "336h",
	} {
		if got := known(durationpb.New(d), false); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// TestWhose: the verbs of the agent's own user say whose session they mean.
func TestWhose(t *testing.T) {
	s := withUsers(t, nil)
	s.deleted = &pb.DeleteSessionResponse{HadSession: true}
	for args, want := range map[string]proto.Message{
		"login alm --credential two":            &pb.LoginRequest{Site: "alm", Credential: "two"},
		"login --retry alm":                     &pb.LoginRequest{Site: "alm", Retry: true},
		"refresh alm --credential=one":          &pb.RefreshSessionRequest{Site: "alm", Force: true, Credential: "one"},
		"reject alm":                            &pb.RefreshSessionRequest{Site: "alm"},
		"logout alm --credential one":           &pb.DeleteSessionRequest{Site: "alm", Credential: "one"},
		"logout app":                            &pb.DeleteSessionRequest{Site: "app"},
		"logout --idp app":                      &pb.DeleteSessionRequest{Site: "app", Idp: true},
		"logout app --idp=false --credential x": &pb.DeleteSessionRequest{Site: "app", Credential: "x"},
	} {
		_, errs, exit := call(strings.Fields(args)...)
		if exit != 0 {
			t.Errorf("%s: %d %q", args, exit, errs)
			continue
		}
		if got := <-s.got; !proto.Equal(got, want) {
			t.Errorf("%s: the agent got %v, want %v", args, got, want)
		}
	}
}

// TestUnprovenUser: where the site does not say whose session it is, the account is
// named that has logged in, and that nobody has proven it.
func TestUnprovenUser(t *testing.T) {
	s := withUsers(t, nil)
	s.list.Sessions[0].Generation, s.list.Sessions[1].Generation = "CANARY-1", "CANARY-2"
	for generation, whose := range map[string]string{"CANARY-1": "alice", "CANARY-2": "bob", "gone": "somebody"} {
		s.session = &pb.Session{Site: "alm", Generation: generation, IdentityUnproven: true, LoginTime: timestamppb.New(time.Now().Add(-time.Hour))}
		whose += " (identity unproven)"
		for verb, want := range map[string]string{
			"login": "logged in as " + whose + "\n", "refresh": "the session of " + whose + " was made 1h0m0s ago\n", "reject": "the session of " + whose + " lives; it was made 1h0m0s ago\n",
		} {
			_, errs, exit := call(verb, "alm")
			<-s.got
			if errs = strings.Replace(errs, "1h0m1s", "1h0m0s", 1); exit != 0 || errs != "sessionctl: alm: "+want {
				t.Errorf("%s: %d %q, want %q", verb, exit, errs, want)
			}
		}
	}
}

// TestCredentialCompletion: those of the site, once each.
func TestCredentialCompletion(t *testing.T) {
	s := withUsers(t, nil)
	s.list.Sessions = append(s.list.Sessions, &pb.SessionSummary{Site: "other", User: "alice", Credential: "one"}, &pb.SessionSummary{Site: "none"})
	for args, want := range map[string]string{
		"login alm --credential": "one\talice\ntwo\tbob\n:4\n", "refresh app --credential": "build\tbuild\n:4\n", "logout --credential": "one\talice\ntwo\tbob\nbuild\tbuild\n:4\n",
		"logout none --credential": ":4\n", "logout": "alm\napp\nother\nnone\n:4\n",
	} {
		if out, _, exit := call(append([]string{"__complete"}, append(strings.Fields(args), "")...)...); exit != 0 || out != want {
			t.Errorf("%s: %d %q, want %q", args, exit, out, want)
		}
	}
}

// TestLoggedOut: it is said what has ended and what goes on.
func TestLoggedOut(t *testing.T) {
	const (
		all  = "; the sessions of all its sites are forgotten"
		sso  = "; the session at the identity provider sso goes on, and would log in here again: sessionctl logout app --idp ends it"
		gone = "the agent has forgotten the session"
	)
	s := withUsers(t, nil)
	for _, c := range []struct {
		args    string
		deleted *pb.DeleteSessionResponse
		want    string
	}{
		{"", &pb.DeleteSessionResponse{}, "there was no session at the site"},
		{"", &pb.DeleteSessionResponse{Idp: "sso"}, "there was no session at the site" + sso},
		{"", &pb.DeleteSessionResponse{HadSession: true, Ended: true}, "logged out: the site has ended the session"},
		{"", &pb.DeleteSessionResponse{HadSession: true, Ended: true, Idp: "sso"}, "logged out: the site has ended the session" + sso},
		{"", &pb.DeleteSessionResponse{HadSession: true, Code: "timeout", Detail: "no answer"}, gone + ", but the site has not ended it: no answer (timeout)"},
		{"", &pb.DeleteSessionResponse{HadSession: true, Idp: "sso"}, gone + "; the site itself may honour it until it expires there" + sso},
		{"--idp", &pb.DeleteSessionResponse{}, "there was no session at the identity provider" + all},
		{"--idp", &pb.DeleteSessionResponse{HadSession: true, Ended: true}, "logged out: the identity provider has ended the session" + all},
		{"--idp", &pb.DeleteSessionResponse{HadSession: true, Code: "timeout", Detail: "no answer"}, gone + ", but the identity provider has not ended it: no answer (timeout)" + all},
		{"--idp", &pb.DeleteSessionResponse{HadSession: true}, gone + "; the identity provider itself may honour it until it expires there" + all},
	} {
		s.deleted = c.deleted
		out, errs, exit := call(append([]string{"logout", "app"}, strings.Fields(c.args)...)...)
		if <-s.got; out != "" || exit != 0 || errs != "sessionctl: app: "+c.want+"\n" {
			t.Errorf("%s %v: %d %q %q, want %q", c.args, c.deleted, exit, out, errs, c.want)
		}
	}
}

// TestFieldsAreDocumented: the help says what is in the JSON, and no more.
func TestFieldsAreDocumented(t *testing.T) {
	named := func(types ...reflect.Type) map[string]bool {
		all := map[string]bool{}
		for _, v := range types {
			for _, f := range reflect.VisibleFields(v) {
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				all[name] = true
			}
		}
		return all
	}
	entry := regexp.MustCompile(`(?m)^  ([a-z_]+(?:, [a-z_]+)*)(?:$|  )`)
	for verb, want := range map[string]map[string]bool{
		"list": named(reflect.TypeFor[jsonSummary]()), "status": named(reflect.TypeFor[jsonStatus]()), "tickets": named(reflect.TypeFor[jsonTicket]()),
	} {
		out, _, _ := call("help", verb)
		_, out, _ = strings.Cut(out, "-o json prints")
		out, _, _ = strings.Cut(out, "\nUsage:")
		for _, m := range entry.FindAllStringSubmatch(out, -1) {
			for _, name := range strings.Split(m[1], ", ") {
				if !want[name] {
					t.Errorf("%s: there is no %s", verb, name)
				}
				delete(want, name)
			}
		}
		for name := range want {
			t.Errorf("%s: nothing is said of %s", verb, name)
		}
	}
	for name := range named(reflect.TypeFor[jsonStore]()) {
		if !strings.Contains(statusFields, name) {
			t.Errorf("nothing is said of the store's %s", name)
		}
	}
}
