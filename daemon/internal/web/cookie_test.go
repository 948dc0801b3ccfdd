package web

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func at(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestCookieServed sets lines at one URL and looks at what another one gets.
// Sections are of RFC 6265bis.
func TestCookieServed(t *testing.T) {
	const site = "https://app.corp.example/a/b"
	for name, c := range map[string]struct {
		from, to string
		lines    []string
		want     string
	}{
		"as sent":                  {site, site, []string{`s=CANARY-a b,"c\d"`}, `s=CANARY-a b,"c\d"`},
		"not UTF-8":                {site, site, []string{"s=CANARY-\xff"}, "s=CANARY-\xff"},
		"quotes stay":              {site, site, []string{`s="CANARY"`}, `s="CANARY"`},
		"equals in value":          {site, site, []string{`s=a=b==`}, `s=a=b==`},
		"trimmed":                  {site, site, []string{"  s \t=\t v ; secure "}, "s=v"},
		"no name (5.6)":            {site, site, []string{"v"}, "v"},
		"nothing at all":           {site, site, []string{"=", ";x"}, ""},
		"control byte":             {site, site, []string{"s=a\x01b", "t=a\x7fb"}, ""},
		"too large":                {site, site, []string{"s=" + strings.Repeat("v", 4096)}, ""},
		"just fits":                {site, site, []string{"s=" + strings.Repeat("v", 4095)}, "s=" + strings.Repeat("v", 4095)},
		"replaced":                 {site, site, []string{"s=1", "t=2", "s=3"}, "s=3; t=2"},
		"other path is another":    {site, "https://app.corp.example/a/b/c", []string{"s=1; path=/a", "s=2; path=/a/b"}, "s=2; s=1"},
		"deleted by max-age":       {site, site, []string{"s=1", "s=; Max-Age=0"}, ""},
		"deleted by expires":       {site, site, []string{"s=1", "s=; Expires=Thu, 01 Jan 1970 00:00:00 GMT"}, ""},
		"max-age wins":             {site, site, []string{"s=1; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT"}, "s=1"},
		"bad max-age is passed":    {site, site, []string{"s=1; Max-Age=x1"}, "s=1"},
		"default path (5.1.4)":     {site, "https://app.corp.example/a/z", []string{"s=1"}, "s=1"},
		"default path elsewhere":   {site, "https://app.corp.example/b", []string{"s=1"}, ""},
		"path at a segment":        {site, "https://app.corp.example/ab", []string{"s=1; path=/a"}, ""},
		"path with slash":          {site, "https://app.corp.example/a/x", []string{"s=1; path=/a/"}, "s=1"},
		"host-only (5.7)":          {site, "https://sub.app.corp.example/a/b", []string{"s=1"}, ""},
		"domain":                   {site, "https://wiki.corp.example/a/b", []string{"s=1; domain=corp.example"}, "s=1"},
		"leading dot":              {site, "https://wiki.corp.example/a/b", []string{"s=1; domain=.Corp.Example"}, "s=1"},
		"domain at a label":        {site, "https://evilcorp.example/a/b", []string{"s=1; domain=corp.example"}, ""},
		"foreign domain":           {site, "https://other.example/a/b", []string{"s=1; domain=other.example"}, ""},
		"public suffix":            {"https://app.co.uk/", "https://app.co.uk/", []string{"s=1; domain=co.uk"}, ""},
		"public suffix itself":     {"https://localhost/", "https://localhost/", []string{"s=1; domain=localhost"}, "s=1"},
		"IP has no domain":         {"https://10.0.0.1/", "https://10.0.0.1/", []string{"s=1; domain=0.0.1"}, ""},
		"secure from http":         {"http://app.corp.example/", "http://app.corp.example/", []string{"s=1; secure"}, ""},
		"https stays https":        {site, "http://app.corp.example:443/a/b", []string{"s=1"}, ""},
		"other port":               {site, "https://app.corp.example:8443/a/b", []string{"s=1"}, ""},
		"http only for http":       {"http://app.corp.example/", "http://app.corp.example/", []string{"s=1; HttpOnly; SameSite=Strict"}, "s=1"},
		"__Secure- without secure": {site, site, []string{"__Secure-s=1"}, ""},
		"__Secure-":                {site, site, []string{"__Secure-s=1; secure"}, "__Secure-s=1"},
		"__Host-":                  {site, site, []string{"__Host-s=1; secure; path=/"}, "__Host-s=1"},
		"__host- with domain":      {site, site, []string{"__host-s=1; secure; path=/; domain=app.corp.example"}, ""},
		"__Host- without path":     {site, site, []string{"__Host-s=1; secure"}, ""},
		"nameless prefix":          {site, site, []string{"=__Host-s=1; secure; path=/"}, ""},
		"long attribute":           {site, site, []string{"s=1; path=/" + strings.Repeat("x", 1024)}, "s=1"},
		"host in any case":         {"https://APP.corp.example./a/b", site, []string{"s=1"}, "s=1"},
	} {
		var j Jar
		j.Set(at(t, c.from), c.lines, noon)
		if got := j.Header(at(t, c.to), noon.Add(time.Second)); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		// What is stored gives the same jar.
		if got := NewJar(j.Lines()).Header(at(t, c.to), noon.Add(time.Second)); got != c.want {
			t.Errorf("%s, restored: got %q, want %q", name, got, c.want)
		}
	}
}

func TestCookieFromHTTPCannotOverlaySecure(t *testing.T) {
	var j Jar
	j.Set(at(t, "https://app.corp.example/"), []string{"s=safe; secure; domain=corp.example"}, noon)
	j.Set(at(t, "http://app.corp.example/"), []string{"s=evil; domain=corp.example"}, noon)
	if got := j.Header(at(t, "https://app.corp.example/"), noon); got != "s=safe" {
		t.Errorf("got %q", got)
	}
}

func TestCookieExpiry(t *testing.T) {
	u := at(t, "https://app.corp.example/")
	var j Jar
	j.Set(u, []string{"a=1; Max-Age=60", "b=2; Max-Age=999999999999999999999", "c=3"}, noon)
	if got := j.Header(u, noon.Add(59*time.Second)); got != "a=1; b=2; c=3" {
		t.Errorf("before: %q", got)
	}
	if got := j.Header(u, noon.Add(60*time.Second)); got != "b=2; c=3" {
		t.Errorf("after a minute: %q", got)
	}
	if got := j.Header(u, noon.Add(401*24*time.Hour)); got != "c=3" {
		t.Errorf("after 401 days (section 5.5: at most 400): %q", got)
	}
}

func TestJarHasALimit(t *testing.T) {
	u := at(t, "https://app.corp.example/")
	var j Jar
	for i := range 50_000 {
		j.Set(u, []string{"n" + strings.Repeat("x", i%500) + string(rune('a'+i%26)) + "=1"}, noon)
	}
	j.Set(u, []string{"session=2"}, noon)
	if j.Len() != maxCookies {
		t.Errorf("%d cookies", j.Len())
	}
	// The oldest made room.
	if h := j.Header(u, noon); !strings.HasSuffix(h, "; session=2") || strings.HasPrefix(h, "na=1") {
		t.Errorf("kept: %q", h)
	}
}

func TestCloneIsApart(t *testing.T) {
	u := at(t, "https://app.corp.example/")
	var j Jar
	j.Set(u, []string{"s=1"}, noon)
	k := j.Clone()
	k.Set(u, []string{"s=2", "t=3"}, noon)
	l := j.Clone()
	l.Set(u, []string{"u=4"}, noon)
	if j.Header(u, noon) != "s=1" || k.Header(u, noon) != "s=2; t=3" || l.Header(u, noon) != "s=1; u=4" {
		t.Errorf("%q %q %q", j.Header(u, noon), k.Header(u, noon), l.Header(u, noon))
	}
	if j.Equal(k) || !j.Equal(j.Clone()) {
		t.Error("Equal is wrong")
	}
}

// TestCookieDate has a case for each step of section 5.1.1.
func TestCookieDate(t *testing.T) {
	want := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, s := range []string{
		"Sat, 02 Jan 2027 03:04:05 GMT", "Saturday, 02-Jan-27 03:04:05 GMT", "Sat Jan  2 03:04:05 2027",
		"2 jAnuary 2027 3:4:5", "03:04:05 2027 Jan 2", "Jan/2/2027;03:04:05.123", "02 Jan 2027 03:04:05 +0900",
	} {
		if got, ok := parseCookieDate(s); !ok || !got.Equal(want) {
			t.Errorf("%q: %v %v", s, got, ok)
		}
	}
	for _, s := range []string{
		"", "Sat, 02 Jan 2027", "02 Jan 03:04:05", "2027 03:04:05 Jan", "32 Jan 2027 03:04:05", "31 Jun 2027 03:04:05",
		"02 Jan 2027 24:04:05", "02 Jan 2027 03:60:05", "02 Jan 2027 03:04:60", "02 Jan 1600 03:04:05", "02 Xxx 2027 03:04:05",
	} {
		if got, ok := parseCookieDate(s); ok {
			t.Errorf("%q is no date, but gave %v", s, got)
		}
	}
	for s, year := range map[string]int{"2 Jan 69 1:2:3": 2069, "2 Jan 70 1:2:3": 1970, "2 Jan 99 1:2:3": 1999} {
		if got, ok := parseCookieDate(s); !ok || got.Year() != year {
			t.Errorf("%q: %v %v, want %d", s, got, ok, year)
		}
	}
}

func FuzzCookie(f *testing.F) {
	for _, s := range []string{"s=1", "s=1; Domain=corp.example; Path=/a; Secure; HttpOnly", "=x", "s=1; expires=Sat, 02 Jan 2027 03:04:05 GMT", "__Host-a=b; path=/; secure", ";;;=;"} {
		f.Add(s, "https://app.corp.example/a/b", "https://wiki.corp.example/a")
	}
	f.Fuzz(func(t *testing.T, line, from, to string) {
		u, err := url.Parse(from)
		v, err2 := url.Parse(to)
		if err != nil || err2 != nil || u.Host == "" || v.Host == "" {
			return
		}
		var j Jar
		j.Set(u, []string{line}, noon)
		cs := j.Cookies(v, noon)
		header := CookieHeader(cs)
		if strings.ContainsFunc(header, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }) {
			t.Errorf("%q leads to the header %q", line, header)
		}
		if len(cs) > 0 && OriginOf(u).Scheme == "https" && OriginOf(v).Scheme != "https" {
			t.Errorf("%q from %s goes to %s", line, from, to)
		}
		if len(cs) > 0 && OriginOf(u).Host != OriginOf(v).Host && !slices.ContainsFunc(cs, func(c *Cookie) bool {
			return !c.HostOnly && domainMatch(OriginOf(u).Host, c.Domain)
		}) {
			t.Errorf("%q from %s goes to %s", line, from, to)
		}
		if !NewJar(j.Lines()).Equal(&j) {
			t.Errorf("%q does not survive storing", line)
		}
	})
}
