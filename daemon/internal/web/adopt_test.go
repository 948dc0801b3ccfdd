package web

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
)

// TestAdopt: what becomes of the Cookie header of a browser, and where it goes.
func TestAdopt(t *testing.T) {
	const site = "https://app.corp.example/jira"
	for name, c := range map[string]struct {
		base, header string
		want         string // the header at base
	}{
		"one":                   {site, "s=CANARY-1", "s=CANARY-1"},
		"several, in order":     {site, "s=CANARY-1; t=2;u=3", "s=CANARY-1; t=2; u=3"},
		"Cookie:":               {site, "Cookie: s=CANARY-1; t=2", "s=CANARY-1; t=2"},
		"cookie: in any case":   {site, "cOOKIE:s=CANARY-1", "s=CANARY-1"},
		"Cookie: on a line":     {site, " \tCookie:\t s=CANARY-1 \r\n", "s=CANARY-1"},
		"a cookie named cookie": {site, "cookie=a:b; t=2", "cookie=a:b; t=2"},
		"a colon":               {site, "s=a:b; cookie:x=1", "s=a:b; cookie:x=1"},
		"Cookie: once":          {site, "Cookie: Cookie: s=1", "Cookie: s=1"},
		"spaces":                {site, "  s = CANARY 1 ;\tt=2\t", "s=CANARY 1; t=2"},
		"no value":              {site, "s=; t=2", "s=; t=2"},
		"equals":                {site, "s=a=b==", "s=a=b=="},
		"quotes":                {site, `s="CANARY,\1"`, `s="CANARY,\1"`},
		"not UTF-8":             {site, "s=\xff\xa0\x85", "s=\xff\xa0\x85"},
		"other spaces stay":     {site, "s=\u00a0CANARY\u2003\u0085", "s=\u00a0CANARY\u2003\u0085"},
		"tab inside":            {site, "s=CANARY\tx", "s=CANARY\tx"},
		"every prefix":          {site, "__Host-Http-a=1; __Http-b=2; __hTTP-c=3; __host-hTTP-d=4; __Secure-e=5", "__Http-b=2; __hTTP-c=3; __Secure-e=5; __Host-Http-a=1; __host-hTTP-d=4"},
		"as large as can be":    {site, large(50), large(50)},
		"percent":               {site, "s=%0d%0a%3B", "s=%0d%0a%3B"},
		"same in another case":  {site, "s=1; S=2", "s=1; S=2"},
		"names of attributes":   {site, "s=1; Path=/other; Domain=corp.example; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; SameSite=None", "s=1; Path=/other; Domain=corp.example; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; SameSite=None"},
		"only an attribute":     {site, "Domain=.example", "Domain=.example"},
		"as long as it can be":  {site, "s=" + strings.Repeat("v", maxCookieSize-1), "s=" + strings.Repeat("v", maxCookieSize-1)},
		"__Host- and __Secure-": {site, "__Host-s=1; __hOST-u=4; __SECURE-t=2; s=3", "__SECURE-t=2; s=3; __Host-s=1; __hOST-u=4"},
		"in clear":              {"http://app.corp.example/jira", "s=1", "s=1"},
		"root":                  {"https://app.corp.example", "s=1", "s=1"},
		"root with a slash":     {"https://app.corp.example/", "s=1", "s=1"},
		"path with a slash":     {"https://app.corp.example/jira/", "s=1", "s=1"},
		"deep path":             {"https://app.corp.example/a/b%20c%3Bd", "s=1", "s=1"},
		"path of two slashes":   {"https://app.corp.example//jira/", "s=1", "s=1"},
		"path with a semicolon": {"https://app.corp.example/a;Domain=corp.example;Path=/b", "s=1", "s=1"},
		"long path":             {"https://app.corp.example/" + strings.Repeat("a", 2*maxAttributeSize), "s=1", "s=1"},
		"path with dots":        {"https://app.corp.example/a/../jira", "s=1", "s=1"},
		"port":                  {"https://app.corp.example:8443/jira", "s=1", "s=1"},
		"address":               {"https://[::1]:8443/jira", "s=1", "s=1"},
		"one label":             {"https://jira/jira", "s=1", "s=1"},
		"as many as can be":     {site, many(maxOfDomain), many(maxOfDomain)},
	} {
		base := at(t, c.base)
		j, err := Adopt(base, []byte(c.header), noon)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		below, err := Resolve(base, "rest/me")
		if err != nil {
			t.Fatal(err)
		}
		if got := j.Header(below, noon.Add(maxCookieLife)); got != c.want {
			t.Errorf("%s: %q below %s, want %q", name, got, base, c.want)
		}
		if got := NewJar(j.Lines()).Header(below, noon); got != c.want {
			t.Errorf("%s, restored: %q, want %q", name, got, c.want)
		}
	}
}

// many is a header of n cookies.
func many(n int) string {
	pairs := make([]string, n)
	for i := range pairs {
		pairs[i] = fmt.Sprintf("s%d=CANARY-%d", i, i)
	}
	return strings.Join(pairs, "; ")
}

// large is a header of n cookies, each as large as it may be.
func large(n int) string {
	return strings.ReplaceAll(many(n), "CANARY-", strings.Repeat("v", maxCookieSize-len("s99=99")))
}

// TestAdoptStays: to the site alone.
func TestAdoptStays(t *testing.T) {
	for _, c := range []struct {
		base string
		to   map[string]string
	}{
		{"https://app.corp.example/jira", map[string]string{
			"https://app.corp.example/jira": "s=1; __Host-h=2", "https://APP.corp.example.:443/jira/x": "s=1; __Host-h=2",
			"https://app.corp.example/": "__Host-h=2", "https://app.corp.example/jira2": "__Host-h=2", "https://app.corp.example/JIRA": "__Host-h=2",
			"http://app.corp.example/jira": "", "http://app.corp.example:443/jira": "", "https://app.corp.example:8443/jira": "",
			"https://sub.app.corp.example/jira": "", "https://corp.example/jira": "", "https://wiki.corp.example/jira": "",
		}},
		{"https://app.corp.example:8443", map[string]string{
			"https://app.corp.example:8443/": "s=1; __Host-h=2", "https://app.corp.example:8443/x": "s=1; __Host-h=2", "https://app.corp.example/": "",
		}},
	} {
		j, err := Adopt(at(t, c.base), []byte("s=1; __Host-h=2"), noon)
		if err != nil {
			t.Fatal(err)
		}
		for to, want := range c.to {
			if got := j.Header(at(t, to), noon); got != want {
				t.Errorf("of %s at %s: %q, want %q", c.base, to, got, want)
			}
		}
		for _, cookie := range j.Cookies(at(t, c.base), noon) {
			if !cookie.Secure || !cookie.HostOnly || !cookie.Expires.IsZero() {
				t.Errorf("%+v", cookie)
			}
		}
	}
	j, err := Adopt(at(t, "http://app.corp.example/jira"), []byte("s=1"), noon)
	if err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{"http://app.corp.example/jira/x": "s=1", "http://app.corp.example/": "", "https://app.corp.example/jira": "", "http://sub.app.corp.example/jira": ""} {
		if got := j.Header(at(t, to), noon); got != want {
			t.Errorf("at %s: %q, want %q", to, got, want)
		}
	}
	if c := j.Cookies(at(t, "http://app.corp.example/jira"), noon)[0]; c.Secure || !c.HostOnly {
		t.Errorf("%+v", c)
	}
}

// TestAdoptRefuses: nothing of a header that is not one.
func TestAdoptRefuses(t *testing.T) {
	const site, clear = "https://app.corp.example/jira", "http://app.corp.example/jira"
	const list, control, twice = "NAME=VALUE", "control character", "twice"
	for name, c := range map[string]struct{ base, header, says string }{
		"nothing":              {site, "", list},
		"blank":                {site, " \r\n\t", list},
		"Cookie: alone":        {site, "Cookie: ", list},
		"no name":              {site, "CANARY-value", list},
		"empty name":           {site, "=CANARY-value", list},
		"blank name":           {site, " \t=CANARY-value", list},
		"one without a name":   {site, "s=1; CANARY", list},
		"semicolon at the end": {site, "s=CANARY;", list},
		"semicolon in front":   {site, "; s=CANARY", list},
		"two semicolons":       {site, "s=CANARY;; t=1", list},
		"flags":                {site, "s=CANARY; Secure; HttpOnly", list},
		"Set-Cookie:":          {site, "Set-Cookie: s=CANARY; Path=/; Secure", list},
		"two lines":            {site, "s=CANARY\r\nt=1", control},
		"two headers":          {site, "Cookie: s=CANARY\nCookie: t=1", control},
		"newline":              {site, "s=CANARY\n; t=1", control},
		"return":               {site, "s=CANARY\r; t=1", control},
		"NUL":                  {site, "s=CANARY\x00", control},
		"escape in the name":   {site, "s\x1b[2J=CANARY", control},
		"DEL":                  {site, "s=CANARY\x7f", control},
		"vertical tab":         {site, "s=CANARY\v", control},
		"twice":                {site, "s=CANARY; t=1; s=CANARY", twice},
		"__Host- twice":        {site, "__Host-s=CANARY; __Host-s=2", twice},
		"too long":             {site, "s=" + strings.Repeat("v", maxCookieSize), twice},
		"too many":             {site, many(maxOfDomain + 1), "too many"},
		"too large":            {site, large(100), "too many"},
		"one too large":        {site, "a=1; b=2; c=3; " + large(64), "too many"},
		"__Http- in clear":     {clear, "__Http-s=CANARY", twice},
		"__Host- in clear":     {clear, "__Host-s=CANARY", twice},
		"__Secure- in clear":   {clear, "s=1; __Secure-s=CANARY", twice},
	} {
		j, err := Adopt(at(t, c.base), []byte(c.header), noon)
		if want(t, err, api.InvalidRequest); err == nil || j != nil {
			t.Errorf("%s: %v, %v", name, j, err)
			continue
		}
		if text := fmt.Sprintf("%+v %s", err, api.AsError(err).Remedy); strings.Contains(text, "CANARY") || !strings.Contains(text, c.says) {
			t.Errorf("%s: %s, want %q", name, text, c.says)
		}
	}
}

// FuzzAdopt: what is adopted goes out as it came, to base's host alone, at and
// below its path.
func FuzzAdopt(f *testing.F) {
	for _, s := range []string{"s=1", "Cookie: s=1; t=2", "__Host-s=1; __Secure-t=2", "s=1; Path=/; Domain=corp.example", "s=a\r\nt=b", "=;=", "s=\"a=b\"", "s=\u00a0", "cookie : a=b"} {
		f.Add([]byte(s), "https://app.corp.example/jira")
		f.Add([]byte(s), "http://app.corp.example:8080")
	}
	f.Add([]byte("s=1"), "https://app.corp.example/a;Path=/;Domain=corp.example")
	f.Add([]byte("s=1"), "https://app.corp.example//a%2fb/?x#y")
	f.Add([]byte("s=1"), "https://[::1]/a")
	f.Fuzz(func(t *testing.T, header []byte, site string) {
		base, err := url.Parse(site)
		if err != nil || (Options{Base: base, InsecureHTTP: true}).Permit(base) != nil {
			return
		}
		j, err := Adopt(base, header, noon)
		if err != nil {
			if api.CodeOf(err) != api.InvalidRequest {
				t.Errorf("%q: %v", header, err)
			}
			return
		}
		// What came: the pairs, without what may stand around them.
		text := strings.Trim(string(header), " \t\r\n")
		if name, rest, ok := strings.Cut(text, ":"); ok && strings.EqualFold(name, "cookie") {
			text = rest
		}
		came := make(map[string]string)
		for pair := range strings.SplitSeq(text, ";") {
			name, value, _ := strings.Cut(pair, "=")
			came[strings.Trim(name, " \t")] = strings.Trim(value, " \t")
		}
		got := make(map[string]string)
		below, err := Resolve(base, "x")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range j.Cookies(below, noon) {
			got[c.Name] = c.Value.Reveal()
			if strings.ContainsAny(c.Name+c.Value.Reveal(), "\r\n\x00;") {
				t.Errorf("%q gives %q", header, c.Name+"="+c.Value.Reveal())
			}
		}
		if !maps.Equal(got, came) {
			t.Errorf("%q gives %q, want %q", header, got, came)
		}
		if !NewJar(j.Lines()).Equal(j) {
			t.Errorf("%q does not survive storing", header)
		}
		host := OriginOf(base)
		other := func(change func(*url.URL)) *url.URL {
			to := *below
			change(&to)
			return &to
		}
		for _, to := range []*url.URL{
			other(func(u *url.URL) { u.Host = "sub." + u.Host }),
			other(func(u *url.URL) { u.Host = "corp.example" }),
			other(func(u *url.URL) { u.Host = net.JoinHostPort(host.Host, "1") }),
			other(func(u *url.URL) { u.Scheme = "http" }),
		} {
			if OriginOf(to) != host && j.Header(to, noon) != "" {
				t.Errorf("%q of %s goes to %s", header, site, to)
			}
		}
		dir := defaultPath(below)
		if strings.HasSuffix(dir, "/") {
			return // nothing is above the root
		}
		for _, to := range []*url.URL{
			other(func(u *url.URL) { u.Path, u.RawPath = "/", "" }),
			other(func(u *url.URL) { u.Path, u.RawPath = dir+"x", "" }),
		} {
			for _, c := range j.Cookies(to, noon) {
				if !strings.HasPrefix(strings.ToLower(c.Name), hostPrefix) {
					t.Errorf("%q of %s goes to %s", header, site, to)
				}
			}
		}
	})
}
