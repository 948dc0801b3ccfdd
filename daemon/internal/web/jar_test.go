package web

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// flood is n lines of cookies with a prefix and a common rest.
func flood(prefix string, n int, rest string) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprintf("%s%d=1%s", prefix, i, rest)
	}
	return lines
}

// namesAt returns the names of the cookies of a jar for a URL.
func namesAt(j *Jar, u *url.URL, now time.Time) []string {
	var names []string
	for _, c := range j.Cookies(u, now) {
		names = append(names, c.Name)
	}
	return names
}

// TestJarHasALimit: of the cookies of one host the oldest make room.
func TestJarHasALimit(t *testing.T) {
	u := at(t, rfcSite)
	var j Jar
	j.Set(u, flood("n", 50_000, ""), noon)
	j.Set(u, []string{"session=2"}, noon)
	got := namesAt(&j, u, noon)
	if len(got) != maxOfDomain || got[0] != fmt.Sprintf("n%d", 50_000-maxOfDomain+1) || got[len(got)-1] != "session" {
		t.Errorf("kept: %d, %s to %s", len(got), got[0], got[len(got)-1])
	}
	holds(t, &j)
}

// TestJarHoldsWhatTheRFCAsksFor: 50 cookies in a domain, each of 4096 bytes.
func TestJarHoldsWhatTheRFCAsksFor(t *testing.T) {
	u := at(t, rfcSite)
	var lines []string
	for i := range 50 {
		lines = append(lines, fmt.Sprintf("n%02d=%s; Path=/; Secure; HttpOnly", i, strings.Repeat("x", maxCookieSize-3)))
	}
	var j Jar
	j.Set(u, lines, noon)
	if got := namesAt(&j, u, noon); len(got) != 50 {
		t.Errorf("%d cookies", len(got))
	}
	holds(t, &j)
}

// TestWhoMakesRoom has the order of section 5.7: expired ones, then those that are
// too many in their domain, those without Secure before others, then the rest; the
// longest unset first. The newest stays, whatever it is.
func TestWhoMakesRoom(t *testing.T) {
	app, port := at(t, rfcSite), at(t, "https://app.corp.example:8443/a/b")
	wiki := at(t, "https://wiki.corp.example/a/b")
	full := func() *Jar {
		var j Jar
		j.Set(app, []string{"session=1; Secure"}, noon)
		j.Set(app, []string{"plain=1"}, noon.Add(time.Second))
		j.Set(app, flood("n", maxOfDomain-2, "; Secure"), noon.Add(2*time.Second))
		return &j
	}
	later := noon.Add(time.Minute)

	j := full()
	if j.Len() != maxOfDomain {
		t.Fatalf("%d cookies", j.Len())
	}
	j.Set(app, []string{"new=1"}, later)
	got := namesAt(j, app, later)
	if slices.Contains(got, "plain") || !slices.Contains(got, "session") || !slices.Contains(got, "new") || len(got) != maxOfDomain {
		t.Errorf("not Secure before Secure: %q", got)
	}
	j.Set(app, []string{"newer=1; Secure"}, later)
	if got := namesAt(j, app, later); slices.Contains(got, "new") || !slices.Contains(got, "session") || !slices.Contains(got, "newer") {
		t.Errorf("not Secure before Secure, however new: %q", got)
	}
	j.Set(app, []string{"newest=1"}, later)
	if got := namesAt(j, app, later); !slices.Contains(got, "newest") || slices.Contains(got, "session") {
		t.Errorf("never the newest: %q", got)
	}

	j = full()
	j.Set(app, []string{"session=2; Secure"}, later) // is set anew: not the one longest unset
	j.Set(app, []string{"plain=; Max-Age=0", "a=1; Secure", "b=1; Secure"}, later)
	if got := namesAt(j, app, later); slices.Contains(got, "n0") || !slices.Contains(got, "n1") || got[0] != "session" {
		t.Errorf("longest unset first: %q", got)
	}

	j = full()
	j.Set(app, []string{"n5=1; Secure; Max-Age=60"}, noon)
	j.Set(app, []string{"new=1; Secure"}, noon.Add(2*time.Minute))
	if got := namesAt(j, app, later); !slices.Contains(got, "plain") || slices.Contains(got, "n5") || len(got) != maxOfDomain {
		t.Errorf("expired first: %q", got)
	}

	// Another port, another host and another domain cost the session nothing.
	var k Jar
	k.Set(app, []string{"session=1"}, noon)
	k.Set(port, flood("p", 500, ""), noon)
	k.Set(wiki, flood("w", 500, ""), noon)
	k.Set(wiki, flood("d", 500, "; Domain=corp.example; Secure"), noon)
	k.Set(at(t, "https://x.app.corp.example/"), flood("x", 500, "; Domain=app.corp.example"), noon)
	k.Set(app, []string{"other=1"}, noon)
	if got := namesAt(&k, app, noon); !slices.Contains(got, "session") || !slices.Contains(got, "other") {
		t.Errorf("a flood elsewhere: %q", got)
	}
	if k.Len() != maxCookies {
		t.Errorf("%d cookies", k.Len())
	}
	holds(t, &k)

	// Nor do many bytes, though they come in fewer cookies.
	var b Jar
	b.Set(app, append([]string{"session=1"}, flood("small", 60, "")...), noon)
	b.Set(wiki, flood("w", 100, "; x="+strings.Repeat("x", maxEntrySize/2)), noon)
	b.Set(app, []string{"other=1"}, noon)
	if got := namesAt(&b, app, noon); len(got) != 62 || got[0] != "session" || got[61] != "other" {
		t.Errorf("a flood of bytes elsewhere: %q", got)
	}
	if got := namesAt(&b, wiki, noon); got[len(got)-1] != "w99" || len(got) < maxJarSize/maxEntrySize {
		t.Errorf("a flood of bytes: %q", got)
	}
	holds(t, &b)
}

func TestCloneIsApart(t *testing.T) {
	u := at(t, "https://app.corp.example/")
	var j Jar
	j.Set(u, []string{"s=1", "x=; Max-Age=0", "y=1; Max-Age=5"}, noon)
	k := j.Clone()
	k.Set(u, []string{"s=2", "t=3"}, noon)
	l := j.Clone()
	l.Set(u, []string{"u=4", "s=; Max-Age=0"}, noon.Add(time.Minute))
	if j.Header(u, noon) != "s=1; y=1" || k.Header(u, noon) != "s=2; y=1; t=3" || l.Header(u, noon) != "u=4" {
		t.Errorf("%q %q %q", j.Header(u, noon), k.Header(u, noon), l.Header(u, noon))
	}
	if j.Equal(k) || !j.Equal(j.Clone()) {
		t.Error("Equal is wrong")
	}
	if v := strings.Join(k.Values(), " "); v != "2 1 3" || k.Len() != 3 {
		t.Errorf("%d values: %s", k.Len(), v)
	}
}

// TestLinesHoldNoQuery: nor a user or fragment: only what has a part in the scope.
func TestLinesHoldNoQuery(t *testing.T) {
	var j Jar
	j.Set(at(t, "https://user:CANARY-1@App.corp.example:8443/a%2Fb/c;v=1?code=CANARY-2#CANARY-3"), []string{"s=1"}, noon)
	if got := j.Lines()[0]; got.URL != "https://App.corp.example:8443/a%2Fb/c;v=1" || string(got.Line) != "s=1" || !got.Time.Equal(noon) {
		t.Errorf("%+v", got)
	}
}

// TestNewJarTakesNothingTwice: stored lines are foreign bytes, too.
func TestNewJarTakesNothingTwice(t *testing.T) {
	var lines []SetCookie
	for i := range 2 * maxCookies {
		for _, host := range []string{"a", "b", "c", "a"} {
			lines = append(lines, SetCookie{URL: "https://" + host + ".corp.example/", Line: fmt.Appendf(nil, "s%d=1", i), Time: noon})
		}
	}
	lines = append(lines, SetCookie{URL: "::", Line: []byte("s=1")}, SetCookie{URL: "https://a.corp.example/", Line: []byte("s=\x00")})
	j := NewJar(lines)
	if j.Len() != maxCookies {
		t.Errorf("%d cookies", j.Len())
	}
	holds(t, j)
}

// FuzzJar: whatever servers send one after the other, each cookie goes only where
// its line lets it go and as it came, the jar keeps its limits, and it survives
// storing. A step is a line of input: a digit names the URL, the rest is the field.
func FuzzJar(f *testing.F) {
	f.Add("0s=1; Domain=corp.example\n2s=2; Domain=corp.example; Max-Age=0\n1t=\xff\n3__Host-s=1; Secure; Path=/", 0)
	f.Add("0"+strings.Join(lineSeeds, "\n1"), 3)
	f.Add("0s=1; Max-Age=1\n0s=1; Max-Age=99\n6v\n4s=1; Domain=127.0.0.1\n", 100)
	f.Fuzz(func(t *testing.T, script string, seconds int) {
		var urls []*url.URL
		for _, s := range urlSeeds {
			urls = append(urls, at(t, s))
		}
		var j Jar
		now := noon
		for step := range strings.Lines(script) {
			step = strings.TrimSuffix(step, "\n")
			if step == "" || step[0] < '0' || int(step[0]-'0') >= len(urls) {
				continue
			}
			now = now.Add(time.Duration(seconds%1000) * time.Second)
			u, before := urls[step[0]-'0'], j.Clone()
			kept := j.Header(u, now)
			k := j.Clone()
			k.Set(u, []string{step[1:]}, now)
			if j.Header(u, now) != kept || !j.Equal(before) {
				t.Fatalf("%q changes a jar of which it got a clone", step)
			}
			j = *k
			if c := ParseCookie(step[1:], u, now); c == nil && j.Header(u, now) != kept {
				t.Errorf("%q is refused, and changes what is sent: %q, %q", step, kept, j.Header(u, now))
			}
		}
		holds(t, &j)
		restored := NewJar(j.Lines())
		for _, v := range urls {
			cs := j.Cookies(v, now)
			header := CookieHeader(cs)
			if strings.ContainsFunc(header, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) || restored.Header(v, now) != header {
				t.Errorf("%s gets %q, restored %q", v, header, restored.Header(v, now))
			}
			for _, c := range cs {
				i := slices.IndexFunc(j.entries, func(e jarEntry) bool { return e.cookie == c })
				lands(t, c, string(j.entries[i].from.Line), at(t, j.entries[i].from.URL), v)
			}
		}
	})
}
