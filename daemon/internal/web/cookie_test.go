package web

import (
	"net/url"
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

// lands looks whether a cookie that a line from u made may go to v, by other means
// than the code's.
func lands(t *testing.T, c *Cookie, line string, u, v *url.URL) {
	t.Helper()
	from, to := OriginOf(u), OriginOf(v)
	if from.Scheme == "https" && to.Scheme != "https" || c.Secure && to.Scheme != "https" {
		t.Errorf("%q from %s goes to %s: scheme", line, u, v)
	}
	if from.Host != to.Host && !(strings.Contains(lower(line), "domain") && strings.HasSuffix("."+from.Host, "."+c.Domain) && strings.HasSuffix("."+to.Host, "."+c.Domain) && strings.Contains(c.Domain, ".")) {
		t.Errorf("%q from %s goes to %s: host", line, u, v)
	}
	if from.Port != to.Port && !strings.Contains(lower(line), "domain") {
		t.Errorf("%q from %s goes to %s: port", line, u, v)
	}
	if !strings.HasPrefix(requestPath(v)+"/", strings.TrimSuffix(c.Path, "/")+"/") {
		t.Errorf("%q from %s goes to %s: path", line, u, v)
	}
	// Byte for byte: name and value stand in the line, as much as white space leaves of it.
	pair, _, _ := strings.Cut(line, ";")
	name, value, ok := strings.Cut(pair, "=")
	if !ok {
		name, value = "", pair
	}
	if c.Name != strings.Trim(name, " \t") || c.Value.Reveal() != strings.Trim(value, " \t") {
		t.Errorf("%q is kept as %q and %q", line, c.Name, c.Value.Reveal())
	}
}

var urlSeeds = []string{rfcSite, "https://wiki.corp.example/a", "http://app.corp.example/", "https://app.corp.example:8443/a/b/c", "https://127.0.0.1/", "https://[::1]/a%2Fb/", "https://jira/"}

var lineSeeds = []string{
	"s=1", "s=1; Domain=corp.example; Path=/a; Secure; HttpOnly", "=x", "s=1; expires=Sat, 02 Jan 2027 03:04:05 GMT", "__Host-a=b; path=/; secure",
	"__host-http-a=\xff; path=/; secure; httponly", ";;;=;", "s=; max-age=-0", "s=1; domain=127.0.0.1", "s=1; domain=jira; samesite=none",
}

// FuzzCookie: a cookie goes nowhere it must not go, and as it came.
func FuzzCookie(f *testing.F) {
	for i, line := range lineSeeds {
		f.Add(line, urlSeeds[i%len(urlSeeds)], urlSeeds[(i+1)%len(urlSeeds)])
		f.Add(line, rfcSite, rfcSite)
	}
	f.Fuzz(func(t *testing.T, line, from, to string) {
		u, err := url.Parse(from)
		v, err2 := url.Parse(to)
		if err != nil || err2 != nil || u.Hostname() == "" || v.Hostname() == "" {
			return
		}
		var j Jar
		j.Set(u, []string{line}, noon)
		cs := j.Cookies(v, noon)
		for _, c := range cs {
			lands(t, c, line, u, v)
		}
		if header := CookieHeader(cs); strings.ContainsFunc(header, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			t.Errorf("%q leads to the header %q", line, header)
		}
		holds(t, &j)
		if got := CookieHeader(NewJar(j.Lines()).Cookies(v, noon)); got != CookieHeader(cs) {
			t.Errorf("%q gives %q, restored %q", line, CookieHeader(cs), got)
		}
	})
}

// FuzzCookieDate: a date is one that a calendar has, and says again what it said.
func FuzzCookieDate(f *testing.F) {
	for _, s := range []string{"Sat, 02 Jan 2027 03:04:05 GMT", "2-feb-69 1:2:3x", "31 Jun 2027 03:04:05", "jan1:1:1 1 1601", "", "\xff02 \u00a0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, ok := parseCookieDate(s)
		if !ok {
			return
		}
		if d.Year() < 1601 || d.Year() > 9999 || d.Location() != time.UTC || d.Nanosecond() != 0 {
			t.Errorf("%q is %s", s, d)
		}
		for _, layout := range []string{time.RFC1123, time.ANSIC, "02-Jan-2006 15:04:05 MST"} {
			if again, ok := parseCookieDate(d.Format(layout)); !ok || !again.Equal(d) {
				t.Errorf("%q is %s, and that is %s", s, d, again)
			}
		}
	})
}
