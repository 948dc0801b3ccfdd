package web

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// lent is a dialogue with a site that has some cookies of its own, and others lent
// by sso.corp.example.
func lent(t *testing.T, site *url.URL, own, theirs []string) (x *Exchange, jar *Jar) {
	sso := &url.URL{Scheme: site.Scheme, Host: strings.Replace(site.Host, "app", "sso", 1), Path: "/"}
	x = exchange(t, site, nil, OriginOf(sso))
	x.Jar().Set(site, own, x.Now())
	jar = new(Jar)
	jar.Set(sso, theirs, x.Now())
	x.Lend(jar, []Origin{OriginOf(sso)})
	return x, jar
}

// TestLentCookies: which cookies go where, and in which order.
func TestLentCookies(t *testing.T) {
	const domain = "; Domain=corp.example"
	for name, c := range map[string]struct {
		own, lent []string
		to, want  string
	}{
		"to the lender only what it lent":          {[]string{"own=1" + domain, "session=evil; Path=/auth" + domain}, []string{"session=theirs"}, "http://sso.corp.example/auth", "session=theirs"},
		"to the lender nothing, if that is all":    {[]string{"own=1" + domain}, nil, "http://sso.corp.example/", ""},
		"to the site its own":                      {[]string{"own=1"}, []string{"session=theirs"}, "http://app.corp.example/", "own=1"},
		"to the site what is for the domain":       {nil, []string{"session=theirs", "sso=1" + domain}, "http://app.corp.example/", "sso=1"},
		"own first":                                {[]string{"own=1; Path=/"}, []string{"sso=1; Path=/" + domain}, "http://app.corp.example/a", "own=1; sso=1"},
		"longer paths first":                       {[]string{"own=1; Path=/"}, []string{"sso=1; Path=/a" + domain}, "http://app.corp.example/a", "sso=1; own=1"},
		"longer own paths first":                   {[]string{"root=1; Path=/", "own=1; Path=/a/b"}, []string{"sso=1; Path=/a" + domain}, "http://app.corp.example/a/b", "own=1; sso=1; root=1"},
		"one that the site set anew stands alone":  {[]string{"sso=mine; Path=/" + domain}, []string{"sso=theirs; Path=/" + domain}, "http://app.corp.example/", "sso=mine"},
		"of another path, it stands beside":        {[]string{"sso=mine; Path=/a" + domain}, []string{"sso=theirs; Path=/" + domain}, "http://app.corp.example/a", "sso=mine; sso=theirs"},
		"to the lender's other port only a host's": {[]string{"own=1" + domain}, []string{"session=theirs", "sso=1" + domain}, "http://sso.corp.example:8080/", "own=1; sso=1"},
	} {
		t.Run(name, func(t *testing.T) {
			x, _ := lent(t, at(t, "http://app.corp.example/"), c.own, c.lent)
			if got := x.cookies(at(t, c.to)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	x := exchange(t, at(t, "http://app.corp.example/"), nil)
	x.Jar().Set(at(t, "http://app.corp.example/"), []string{"own=1"}, x.Now())
	if got := x.cookies(at(t, "http://app.corp.example/")); got != "own=1" {
		t.Errorf("without any lent: %q", got)
	}
}

// TestLentJarIsTheLenders: in a dialogue through both, whoever sets what keeps it to
// himself.
func TestLentJarIsTheLenders(t *testing.T) {
	seen := map[string][]string{}
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := strings.Cut(r.Host, ":")
		seen[host] = append(seen[host], r.Header.Get("Cookie"))
		set := func(lines ...string) {
			for _, l := range lines {
				w.Header().Add("Set-Cookie", l)
			}
		}
		switch {
		case host == "app.corp.example" && r.URL.Path == "/":
			set("session=EVIL; Domain=corp.example; Path=/auth", "sso=; Domain=corp.example; Path=/; Max-Age=0",
				"sso=EVIL; Domain=corp.example; Path=/auth", "own=1; Path=/")
			http.Redirect(w, r, "http://"+strings.Replace(r.Host, "app", "sso", 1)+"/auth", http.StatusFound)
		case host == "sso.corp.example":
			set("session=theirs-2; Path=/", "new=theirs; Domain=corp.example; Path=/", "gone=; Path=/; Max-Age=0", "own=theirs; Domain=corp.example; Path=/")
			http.Redirect(w, r, "http://"+strings.Replace(r.Host, "sso", "app", 1)+"/back", http.StatusFound)
		default:
			set("session=mine; Path=/")
		}
	})
	x, jar := lent(t, u, nil, []string{"session=theirs; Path=/", "sso=1; Domain=corp.example; Path=/", "gone=1; Path=/"})
	if _, err := x.Get(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	if got := seen["sso.corp.example"]; !slices.Equal(got, []string{"session=theirs; sso=1; gone=1"}) {
		t.Errorf("the lender was shown %q", got)
	}
	if got, want := seen["app.corp.example"], []string{"sso=1", "own=1; sso=1; new=theirs; own=theirs"}; !slices.Equal(got, want) {
		t.Errorf("the site was shown %q, want %q", got, want)
	}
	lines := func(j *Jar) (all []string) {
		for _, l := range j.Lines() {
			all = append(all, OriginOf(at(t, l.URL)).Host+" "+string(l.Line))
		}
		return all
	}
	for _, l := range lines(jar) {
		if !strings.HasPrefix(l, "sso.corp.example ") || strings.Contains(l, "EVIL") || strings.Contains(l, "gone") {
			t.Errorf("the lender's jar has %q", l)
		}
	}
	if jar.Len() != 4 { // session, sso, new, own
		t.Errorf("the lender's jar has %q", lines(jar))
	}
	for _, l := range lines(x.Jar()) {
		if !strings.HasPrefix(l, "app.corp.example ") {
			t.Errorf("the site's jar has %q", l)
		}
	}
	if x.Jar().Len() != 4 { // session and sso for /auth, own, session
		t.Errorf("the site's jar has %q", lines(x.Jar()))
	}
}

// TestWithout: what is somebody else's, in whatever form, is not there.
func TestWithout(t *testing.T) {
	const domain = "; Domain=corp.example"
	app, sso := at(t, "https://app.corp.example/"), at(t, "https://sso.corp.example/")
	for name, c := range map[string]struct {
		line string
		kept bool
	}{
		"its own":                           {"session=CANARY-mine; Path=/", true},
		"the same name, of its host":        {"theirs=CANARY-mine", true},
		"the same value":                    {"copy=CANARY-theirs; Path=/x", false},
		"the same value for the domain":     {"copy=CANARY-theirs" + domain, false},
		"the name, for the domain":          {"shared=CANARY-other" + domain, false},
		"the name, for the domain, deeper":  {"shared=CANARY-other; Path=/deep" + domain, false},
		"the name, for its host":            {"shared=CANARY-other", true},
		"the name, for another domain":      {"shared=CANARY-other; Domain=app.corp.example", true},
		"a short value, as one of theirs":   {"seen=true", true},
		"an empty value, as one of theirs":  {"empty=", true},
		"a host's name of theirs, a domain": {"theirs=CANARY-mine" + domain, true},
	} {
		t.Run(name, func(t *testing.T) {
			theirs, own := new(Jar), new(Jar)
			theirs.Set(sso, []string{"theirs=CANARY-theirs", "shared=CANARY-shared" + domain, "none=", "lang=true"}, noon)
			own.Set(app, []string{c.line}, noon)
			before := own.Lines()
			if got := own.Without(theirs); got.Len() == 1 != c.kept {
				t.Errorf("%d cookies, want kept: %v", got.Len(), c.kept)
			}
			if len(own.Lines()) != len(before) || theirs.Len() != 4 {
				t.Error("one of both jars was changed")
			}
			if got := own.Without(new(Jar)); !got.Equal(own) {
				t.Error("without nothing, something is missing")
			}
		})
	}
}
