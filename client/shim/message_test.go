package shim

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	sessionctlv1 "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

func TestEncode(t *testing.T) {
	for _, c := range []struct {
		own  []byte
		got  proto.Message
		want proto.Message
	}{
		{getSession{}.encode(), new(sessionctlv1.GetSessionRequest), &sessionctlv1.GetSessionRequest{}},
		{getSession{site: "jira", url: "https://x/" + strings.Repeat("é", 300), minValidity: 90*time.Second + 1, cachedOnly: true}.encode(), new(sessionctlv1.GetSessionRequest),
			&sessionctlv1.GetSessionRequest{Site: "jira", Url: "https://x/" + strings.Repeat("é", 300), MinValidity: durationpb.New(90*time.Second + 1), CachedOnly: true}},
		{refreshSession{url: "https://x/", generation: "g"}.encode(), new(sessionctlv1.RefreshSessionRequest),
			&sessionctlv1.RefreshSessionRequest{Url: "https://x/", Generation: "g"}},
	} {
		if err := proto.Unmarshal(c.own, c.got); err != nil || !proto.Equal(c.got, c.want) {
			t.Errorf("%v, %v, want %v", c.got, err, c.want)
		}
	}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func aSession() *sessionctlv1.GetSessionResponse {
	return &sessionctlv1.GetSessionResponse{Session: &sessionctlv1.Session{
		Site: "jira", User: "svc", Generation: "g7", Url: "https://jira.corp.example/",
		Headers:   []*sessionctlv1.Header{{Name: "Cookie", Value: []byte("a=CANARY-1"), Secret: true}, {Name: "X-Atlassian-Token", Value: []byte("no-check")}},
		Cookies:   []*sessionctlv1.Cookie{{Name: []byte("a"), Value: []byte("CANARY-1"), ExpireTime: timestamppb.New(time.Unix(1, 2))}},
		LoginTime: timestamppb.New(time.Unix(1<<40, 1)), Stale: true, NotDurable: true,
	}}
}

// sameSession reports whether s holds what the shim needs of want.
func sameSession(s *session, want *sessionctlv1.Session) bool {
	var headers []sessionHeader
	for _, h := range want.GetHeaders() {
		headers = append(headers, sessionHeader{header{h.GetName(), string(h.GetValue())}, h.GetSecret()})
	}
	return s.site == want.GetSite() && s.user == want.GetUser() && s.url == want.GetUrl() && s.generation == want.GetGeneration() && slices.Equal(s.headers, headers) &&
		s.stale == want.GetStale() && s.notDurable == want.GetNotDurable()
}

func FuzzSession(f *testing.F) {
	f.Add(marshal(f, aSession()))
	f.Add(marshal(f, &sessionctlv1.GetSessionResponse{}))
	f.Add([]byte("\x0a\x00\x0d1234\x09\x31\x32\x33\x34\x35\x36\x37\x38\x50\x01"))
	f.Add([]byte("\x0a\x04\x50\x80\x80\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSession(b)
		var want sessionctlv1.GetSessionResponse
		// The other way round it does not hold: groups, and UTF-8 that is none.
		wantErr := proto.Unmarshal(b, &want)
		if wantErr == nil && err == nil && !sameSession(s, want.GetSession()) {
			t.Errorf("%+v, want %v", s, &want)
		}
		if wantErr == nil && err != nil && !hasGroup(b) {
			t.Errorf("%v, want %v", err, &want)
		}
	})
}

// hasGroup reports whether a message, or what could be a message within it,
// has a group, which the shim refuses.
func hasGroup(b []byte) bool {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return false
		}
		if kind == protowire.StartGroupType {
			return true
		}
		if inner, n := protowire.ConsumeBytes(b); kind == protowire.BytesType && n >= 0 && hasGroup(inner) {
			return true
		}
		b = b[n:]
	}
	return false
}

func TestDecodeSession(t *testing.T) {
	want := aSession()
	if s, err := decodeSession(marshal(t, want)); err != nil || !sameSession(s, want.GetSession()) {
		t.Errorf("%+v, %v", s, err)
	}
}

func details(t testing.TB, infos ...proto.Message) []byte {
	t.Helper()
	s := &spb.Status{Code: 9, Message: "seen"}
	for _, i := range infos {
		a, err := anypb.New(i)
		if err != nil {
			t.Fatal(err)
		}
		s.Details = append(s.Details, a)
	}
	return marshal(t, s)
}

func TestErrorInfo(t *testing.T) {
	for _, remedy := range []string{"", "x", "xy", "sessionctl login jira --retry"} {
		raw := details(t, &errdetails.Help{}, &errdetails.ErrorInfo{Reason: "LATCHED", Domain: api.ErrorDomain,
			Metadata: map[string]string{"site": "jira", "remedy": remedy}})
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding} {
			info := decodeErrorInfo(e.EncodeToString(raw))
			if info == nil || *info != (errorInfo{"LATCHED", api.ErrorDomain, remedy}) {
				t.Errorf("%+v", info)
			}
		}
	}
	for _, none := range []string{"", "!", "AA", base64.StdEncoding.EncodeToString(details(t, &errdetails.ErrorInfo{Reason: "LATCHED", Domain: "other"}))} {
		if info := decodeErrorInfo(none); info != nil {
			t.Errorf("%q: %+v", none, info)
		}
	}
}

func FuzzErrorInfo(f *testing.F) {
	f.Add(details(f, &errdetails.ErrorInfo{Reason: "LATCHED", Domain: api.ErrorDomain, Metadata: map[string]string{"remedy": "r"}}))
	f.Add(details(f, &errdetails.Help{}, &errdetails.ErrorInfo{Domain: "x"}, &errdetails.ErrorInfo{Reason: "A", Domain: api.ErrorDomain}, &errdetails.ErrorInfo{Reason: "B", Domain: api.ErrorDomain}))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := decodeErrorInfo(base64.RawStdEncoding.EncodeToString(b))
		var s spb.Status
		if proto.Unmarshal(b, &s) != nil || hasGroup(b) {
			return
		}
		var want *errorInfo
		for _, a := range s.GetDetails() {
			var info errdetails.ErrorInfo
			if !strings.HasSuffix(a.GetTypeUrl(), "/google.rpc.ErrorInfo") {
				continue
			}
			if proto.Unmarshal(a.GetValue(), &info) != nil {
				return
			}
			if want == nil && info.GetDomain() == api.ErrorDomain {
				want = &errorInfo{info.GetReason(), info.GetDomain(), info.GetMetadata()["remedy"]}
			}
		}
		if (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}
