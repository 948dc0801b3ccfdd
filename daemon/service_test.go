package daemon

import (
	"context"
	"net/url"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
)

func TestFind(t *testing.T) {
	s := &service{config: &Config{}}
	for name, raw := range map[string]string{
		"root": "https://app.corp.example", "jira": "https://app.corp.example/jira", "deep": "https://app.corp.example/jira/deep/",
		"port": "https://app.corp.example:8443/", "one": "https://twin.corp.example/x", "two": "https://twin.corp.example/x/", "secret": "https://secret.corp.example/",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		s.config.Sites = append(s.config.Sites, &Site{Name: name, URL: u})
	}
	may := func(site *Site) bool { return site.Name != "secret" }
	for _, c := range []struct {
		name, url, want string
		code            api.Code
	}{
		{"", "https://app.corp.example/", "root", ""},
		{"", "https://app.corp.example", "root", ""},
		{"", "https://APP.corp.example:443/jira", "jira", ""},
		{"", "https://app.corp.example/jira/", "jira", ""},
		{"", "https://app.corp.example/jira/x?y#z", "jira", ""},
		{"", "https://app.corp.example/jirax", "root", ""},
		{"", "https://app.corp.example/jira/deep/er", "deep", ""},
		{"", "https://app.corp.example/jira/deeper", "jira", ""},
		{"", "https://app.corp.example:8443/jira", "port", ""},
		{"", "http://app.corp.example/jira", "", api.UnknownSite},
		{"", "https://app.corp.example.evil.example/", "", api.UnknownSite},
		{"", "https://twin.corp.example/x/1", "", api.AmbiguousSite},
		{"", "https://secret.corp.example/", "", api.UnknownSite},
		{"secret", "", "", api.UnknownSite},
		{"nothing", "", "", api.UnknownSite},
		{"jira", "", "jira", ""},
		{"jira", "https://app.corp.example/jira/x", "jira", ""},
		{"jira", "https://other.example/", "", api.InvalidRequest},
		{"", "", "", api.InvalidRequest},
		{"", "app.corp.example", "", api.InvalidRequest},
		{"", "ftp://app.corp.example/", "", api.InvalidRequest},
		{"", "://", "", api.InvalidRequest},
	} {
		site, u, err := s.find(c.name, c.url, may)
		got := ""
		if site != nil {
			got = site.Name
		}
		if got != c.want || api.CodeOf(err) != c.code {
			t.Errorf("find(%q, %q) = %q, %v; want %q, %q", c.name, c.url, got, err, c.want, c.code)
		}
		if site != nil && (u == nil || c.url != "" && u.String() == "") {
			t.Errorf("find(%q, %q): URL %v", c.name, c.url, u)
		}
	}
}

func FuzzFind(f *testing.F) {
	base, err := url.Parse("https://app.corp.example/jira")
	if err != nil {
		f.Fatal(err)
	}
	s := &service{config: &Config{Sites: []*Site{{Name: "jira", URL: base}}}}
	f.Add("https://app.corp.example/jira/x")
	f.Add("https://app.corp.example/jira%2f..")
	f.Fuzz(func(t *testing.T, raw string) {
		site, u, err := s.find("", raw, func(*Site) bool { return true })
		if (site == nil) != (err != nil) {
			t.Errorf("%v %v", site, err)
		}
		if site != nil && (u.Scheme != "https" || u.Port() != "" && u.Port() != "443") {
			t.Errorf("%q found a site at another origin", raw)
		}
	})
}

// TestToStatus: the mapping holds code and remedy, and cannot be broken by
// what servers send.
func TestToStatus(t *testing.T) {
	st, ok := status.FromError(toStatus(&api.Error{Code: api.KDCUnreachable, Detail: "no KDC\xff", Remedy: "look\xff"}))
	if !ok || st.Code() != codes.Unavailable || st.Message() != "no KDC?" {
		t.Errorf("%v", st)
	}
	info := st.Details()[0].(*errdetails.ErrorInfo)
	if info.GetReason() != "KDC_UNREACHABLE" || info.GetDomain() != api.ErrorDomain || info.GetMetadata()["remedy"] != "look?" {
		t.Errorf("%v", info)
	}
	if st, _ := status.FromError(toStatus(context.DeadlineExceeded)); st.Code() != codes.Unavailable {
		t.Errorf("%v", st)
	}
	if err := status.Error(codes.Internal, "x"); toStatus(err) != err {
		t.Error("a status is changed")
	}
}
