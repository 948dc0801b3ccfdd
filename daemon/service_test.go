package daemon

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/keeper"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
)

func TestFind(t *testing.T) {
	config := &Config{}
	for name, raw := range map[string]string{
		"root": "https://app.corp.example", "jira": "https://app.corp.example/jira", "deep": "https://app.corp.example/jira/deep/",
		"port": "https://app.corp.example:8443/", "one": "https://twin.corp.example/x", "two": "https://twin.corp.example/x/", "secret": "https://secret.corp.example/",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		config.Sites = append(config.Sites, &Site{Name: name, URL: u})
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
		{"", "https://app.corp.example/jira/../x", "root", ""},
		{"", "https://app.corp.example/jira/%2E%2e/x", "root", ""},
		{"", "https://app.corp.example/x/../../jira/.", "jira", ""},
		{"", "https://app.corp.example/jira/deep/../deeper", "jira", ""},
		{"", "https://twin.corp.example/x/..", "", api.UnknownSite},
		{"", "https://app.corp.example/jira/..%2fx", "jira", ""},
		{"", "", "", api.InvalidRequest},
		{"", "app.corp.example", "", api.InvalidRequest},
		{"", "ftp://app.corp.example/", "", api.InvalidRequest},
		{"", "://", "", api.InvalidRequest},
	} {
		site, u, err := config.find(c.name, c.url, may)
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
	config := &Config{Sites: []*Site{{Name: "jira", URL: base}}}
	f.Add("https://app.corp.example/jira/x")
	f.Add("https://app.corp.example/jira%2f..")
	f.Add("https://app.corp.example/jira/%2e./x")
	f.Fuzz(func(t *testing.T, raw string) {
		site, u, err := config.find("", raw, func(*Site) bool { return true })
		if (site == nil) != (err != nil) {
			t.Errorf("%v %v", site, err)
		}
		if site != nil && strings.Contains(u.EscapedPath()+"/", "/../") {
			t.Errorf("%q is for %s", raw, u)
		}
		if site != nil && (u.Scheme != "https" || u.Port() != "" && u.Port() != "443") {
			t.Errorf("%q found a site at another origin", raw)
		}
	})
}

// TestFound: a URL comes back as it is asked for: without dot segments, and with a
// host that every HTTP library takes for the same.
func TestFound(t *testing.T) {
	for base, urls := range map[string]map[string]string{
		"https://app.corp.example/app": {
			"https://app.corp.example/app/x/../y?a=/../b":   "https://app.corp.example/app/y?a=/../b",
			"https://app.corp.example/app/%2e/a%2fb/%2e%2E": "https://app.corp.example/app/",
			"https://app.corp.example/app/a%2Fb//c%20d/.":   "https://app.corp.example/app/a%2Fb//c%20d/",
			"https://app.corp.example/../app/..x/...":       "https://app.corp.example/app/..x/...",
			"https://APP.Corp.example.:443/app":             "https://app.corp.example/app",
			"https://\uff41\uff50\uff50.corp.example/app/x": "https://app.corp.example/app/x",
			"": "https://app.corp.example/app",
		},
		"http://B\u00fccher.example.:8080": {
			"":                                  "http://xn--bcher-kva.example:8080",
			"http://xn--bcher-kva.example:8080": "http://xn--bcher-kva.example:8080",
		},
		"http://[::1]:8080/": {"": "http://[::1]:8080/", "http://[::1]:8080/./x": "http://[::1]:8080/x"},
		"https://[::1]/":     {"": "https://[::1]/"},
	} {
		u, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		config := &Config{Sites: []*Site{{Name: "app", URL: u}}}
		for asked, want := range urls {
			_, to, err := config.find("app", asked, func(*Site) bool { return true })
			if err != nil {
				t.Errorf("%s: %v", asked, err)
			} else if got := canonical(to); got != want {
				t.Errorf("%q at %s: %s, want %s", asked, base, got, want)
			}
		}
	}
}

// TestUnknownSite: what may be missing is a reload.
func TestUnknownSite(t *testing.T) {
	if e := api.AsError(unknownSite("app")); e.Code != api.UnknownSite || !strings.HasSuffix(e.Remedy, "; a new site counts after: sessionctl reload") {
		t.Errorf("next: %s", e.Remedy)
	}
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

// TestBounded: whatever an error says, clients can read the answer.
func TestBounded(t *testing.T) {
	site, err := url.Parse("https://app.corp.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{"x", "é", "€", "\U0001f511", "x\xff"} {
		for _, pad := range []string{"", "1", "12", "123"} {
			long := pad + strings.Repeat(unit, 4<<20/len(unit))
			e := &api.Error{Code: api.CCacheUnusable, Detail: long, Remedy: long}
			st, _ := status.FromError(toStatus(e))
			remedy := st.Details()[0].(*errdetails.ErrorInfo).GetMetadata()["remedy"]
			sum := (&Site{Name: "app", URL: site, users: []*user{{}}}).summary(keeper.Summary{Failure: e})
			for _, c := range []struct {
				text  string
				limit int
			}{{st.Message(), 2 << 10}, {remedy, 1 << 10}, {sum.GetDetail(), 2 << 10}, {sum.GetRemedy(), 1 << 10}} {
				head, cut := strings.CutSuffix(c.text, "…")
				if n := len(c.text); !cut || n > c.limit || n <= c.limit-utf8.UTFMax || !utf8.ValidString(c.text) || !strings.HasPrefix(strings.ReplaceAll(long, "\xff", "?"), head) {
					t.Errorf("%q: %d bytes: %.20q", pad+unit, n, c.text)
				}
			}
		}
	}
	if got := bounded(strings.Repeat("x", maxDetail), maxDetail); len(got) != maxDetail || strings.Contains(got, "…") {
		t.Errorf("what is as long as may be is cut: %d bytes", len(got))
	}
}

// TestExported: a principal is found in any spelling, if that can mean but one that
// the caller may have.
func TestExported(t *testing.T) {
	config := &Config{}
	add := func(name, principal string, export ...string) {
		t.Helper()
		c := &Credential{Name: name}
		var err error
		if c.export, err = parseRules(export); err != nil {
			t.Fatal(err)
		}
		if c.Principal, err = krb.ParsePrincipal(principal, ""); err != nil {
			t.Fatal(err)
		}
		config.credentials = append(config.credentials, c)
	}
	add("big", "svc-BIG@ad.example", "uid:1")
	add("big2", "svc-BIG@ad.example", "uid:1")
	add("host", "HTTP/a@R", "uid:1")
	add("lower", "two@R", "uid:1", "uid:2")
	add("mine", "Mine@R", "uid:2")
	add("theirs", "mine@R", "uid:3")
	add("upper", "TWO@R", "uid:1")
	config.credentials = append(config.credentials, &Credential{Name: "user", Username: "two@R"})
	for _, c := range []struct {
		principal string
		uid       uint32
		want      string
	}{
		{"svc-BIG@ad.example", 1, "big"}, {"Svc-Big@AD.EXAMPLE", 1, "big"}, {"svc-big@ad.example", 1, "big"},
		{"Svc-Big@AD.EXAMPLE", 2, ""}, {"Svc-Big@AD.EXAMPLE", 1000, ""}, {"svc-big@other.example", 1, ""}, {"svc-bigg@ad.example", 1, ""},
		{"http/A@r", 1, "host"}, {"HTTP/a/b@R", 1, ""}, {`HTTP\/a@R`, 1, ""},
		{"two@R", 1, "lower"}, {"TWO@R", 1, "upper"}, {"Two@R", 1, ""}, {"two@r", 1, ""}, {"TWO@R", 2, "lower"},
		{"mine@R", 2, "mine"}, {"Mine@R", 3, "theirs"}, {"mine@R", 1, ""}, // as if the other one were not there
	} {
		p, err := krb.ParsePrincipal(c.principal, "")
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if cred := config.exported(p, peer.Caller{UID: c.uid}); cred != nil {
			got = cred.Name
		}
		if got != c.want {
			t.Errorf("%s for %d: %q, want %q", c.principal, c.uid, got, c.want)
		}
	}
}

// TestBringBy: a login that brings the password, wherever the credential is used.
func TestBringBy(t *testing.T) {
	afar := &Credential{Name: "afar"}
	direct, behind, alone, one, two := &Credential{Name: "direct"}, &Credential{Name: "behind"}, &Credential{Name: "alone"}, &Credential{Name: "one"}, &Credential{Name: "two"}
	users := func(credentials ...*Credential) (all []*user) {
		for _, c := range credentials {
			all = append(all, &user{credential: c})
		}
		return all
	}
	config := &Config{Sites: []*Site{
		{Name: "other", users: users(new(Credential))}, {Name: "gated", users: users(new(Credential)), proxy: &proxy{credential: behind}}, {Name: "app", users: users(direct)},
		{Name: "alm", users: users(one, two)},
		{Name: "wiki", users: users(new(Credential)), idp: &Site{Name: "sso", proxy: &proxy{credential: afar}}},
	}}
	for cred, want := range map[*Credential]string{
		direct: "sessionctl login app --password-stdin", behind: "sessionctl login gated --proxy --password-stdin",
		afar:  "sessionctl login wiki --proxy --password-stdin",
		two:   "sessionctl login alm --credential two --password-stdin",
		alone: `it comes by a login, so set up a site with credential = "alone", then: sessionctl login SITE --password-stdin`,
	} {
		if got := config.bringBy(cred); got != want {
			t.Errorf("%s: %s", cred.Name, got)
		}
	}
}

// TestServe: what the keeper has said of another configuration than the one by
// which the caller was allowed is not handed out, be it a session or an error.
func TestServe(t *testing.T) {
	for _, first := range []error{nil, &api.Error{Code: api.UnknownSite}} {
		s := &service{config: &Config{Sites: []*Site{{Name: "app", users: []*user{{id: "old"}}}}}}
		asked := []string{}
		q, served, err := s.serve(func() (question, error) {
			c := s.current()
			return question{config: c, site: c.Sites[0], user: c.Sites[0].users[0]}, nil
		}, func(id string) (keeper.Served, error) {
			asked = append(asked, id)
			if len(asked) > 1 {
				return keeper.Served{Stale: true}, nil
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.config = &Config{Sites: []*Site{{Name: "app", users: []*user{{id: "new"}}}}}
			return keeper.Served{}, first
		})
		if err != nil || !served.Stale || q.user.id != "new" || strings.Join(asked, " ") != "old new" {
			t.Errorf("asked for %q: %+v %+v %v", asked, q.user, served, err)
		}
		denied := errors.New("denied")
		if _, _, err := s.serve(func() (question, error) { return question{}, denied }, nil); !errors.Is(err, denied) {
			t.Errorf("%v", err)
		}
	}
}
