package web

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

// TestAuthorization: a token takes the place of all cookies, those to come included,
// and goes to the site's own origin alone.
func TestAuthorization(t *testing.T) {
	var got []string
	note := func(w http.ResponseWriter, r *http.Request) {
		got = append(got, fmt.Sprintf("%s|%s", r.Header.Get("Authorization"), r.Header.Get("Cookie")))
		w.Header().Add("Set-Cookie", "s=CANARY-set; Path=/")
	}
	other := httptest.NewServer(http.HandlerFunc(note))
	defer other.Close()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		note(w, r)
		if r.URL.Path == "/leave" {
			http.Redirect(w, r, other.URL+"/", http.StatusFound)
		}
	}))
	defer site.Close()
	base := at(t, site.URL)
	j := new(Jar)
	j.Set(base, []string{"s=CANARY-cookie; Path=/"}, time.Now())
	j.Authorize(secret.New("Bearer CANARY-token"))
	x := NewExchange(Options{Base: base, InsecureHTTP: true, LoginHosts: []Origin{OriginOf(at(t, other.URL))}}, j)
	defer x.Close()
	for _, path := range []string{"/", "/leave"} {
		u, _ := x.URL(path)
		if _, err := x.Get(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	const token = "Bearer CANARY-token|"
	if want := []string{token, token, "|"}; !slices.Equal(got, want) {
		t.Errorf("sent %q, want %q", got, want)
	}
	if x.Jar().Len() != 0 || x.Jar().Living(time.Now()) != 1 || !slices.Equal(x.Jar().Values(), []string{"CANARY-token"}) {
		t.Errorf("%d cookies, %d living, %q", x.Jar().Len(), x.Jar().Living(time.Now()), x.Jar().Values())
	}
	if c := x.Jar().Clone(); !c.Equal(x.Jar()) || c.Equal(new(Jar)) {
		t.Error("a clone is another jar")
	}
	bare := x.Bare()
	defer bare.Close()
	if !bare.Jar().Authorization().Empty() {
		t.Error("a stranger has the token")
	}
}

// TestNamedAndAdd: what two sessions share.
func TestNamedAndAdd(t *testing.T) {
	now := time.Now()
	a, b := &url.URL{Scheme: "https", Host: "a.corp.example", Path: "/"}, &url.URL{Scheme: "https", Host: "b.corp.example", Path: "/"}
	j := new(Jar)
	j.Set(a, []string{"token=CANARY-1; Domain=corp.example", "own=CANARY-2"}, now)
	shared := j.Named("token")
	if shared.Header(b, now) != "token=CANARY-1" || j.Len() != 2 {
		t.Errorf("%q", shared.Header(b, now))
	}
	k := new(Jar)
	k.Set(b, []string{"own=CANARY-3", "token=CANARY-old; Domain=corp.example"}, now)
	before := k.Clone()
	k.Add(shared)
	if k.Header(b, now) != "own=CANARY-3; token=CANARY-1" || before.Header(b, now) != "own=CANARY-3; token=CANARY-old" {
		t.Errorf("%q, and before %q", k.Header(b, now), before.Header(b, now))
	}
}

// TestForwardedFor: each request has it, and only if it is set.
func TestForwardedFor(t *testing.T) {
	var got []string
	site := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Values("X-Forwarded-For")...)
	}))
	defer site.Close()
	for _, address := range []string{"192.0.2.7", ""} {
		x := NewExchange(Options{Base: at(t, site.URL), InsecureHTTP: true, ForwardedFor: address}, new(Jar))
		if _, err := x.Send(t.Context(), Request{URL: at(t, site.URL)}); err != nil {
			t.Fatal(err)
		}
		x.Close()
	}
	if !slices.Equal(got, []string{"192.0.2.7"}) {
		t.Errorf("%q", got)
	}
}

// TestBelow: references start at the product.
func TestBelow(t *testing.T) {
	for _, c := range [][4]string{
		{"https://app", "/jira", "rest/me", "https://app/jira/rest/me"}, {"https://app/", "/jira", "", "https://app/jira"},
		{"https://app/a", "/b", "rest/me", "https://app/a/b/rest/me"}, {"https://app/a", "", "rest/me", "https://app/a/rest/me"},
		{"https://app", "/jira", "/login", "https://app/login"},
	} {
		x := NewExchange(Options{Base: at(t, c[0])}, new(Jar))
		x.Below(c[1])
		if path := Below(at(t, c[0]), c[1]).Path; c[1] != "" && !strings.HasPrefix(path, "/") {
			t.Errorf("%s below %s: the path %q is relative", c[0], c[1], path)
		}
		if u, err := x.URL(c[2]); err != nil || u.String() != c[3] {
			t.Errorf("%s below %s + %s: %v %v, want %s", c[0], c[1], c[2], u, err, c[3])
		}
		x.Close()
	}
}
