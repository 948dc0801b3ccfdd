package web

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// dialogue is a clause of RFC 6265bis (or "own", where the agent is stricter, or
// "layered": draft-ietf-httpbis-layered-cookies), and what is said: "> line" is a
// Set-Cookie field, "< header" the Cookie field that follows, both at rfcSite or at
// the URL in front; "+60s" lets time go by.
type dialogue []string

const rfcSite = "https://app.corp.example/a/b"

// play runs a dialogue on a jar, and looks after each answer whether the jar can be
// stored and stays within its limits.
func play(t *testing.T, d dialogue) {
	t.Helper()
	var j Jar
	now := noon
	for _, step := range d[1:] {
		if d, err := time.ParseDuration(step); err == nil {
			now = now.Add(d)
			continue
		}
		url, text := rfcSite, step
		if strings.HasPrefix(step, "http") {
			url, text, _ = strings.Cut(step, " ")
		}
		verb, text, _ := strings.Cut(text, " ")
		switch u := at(t, url); verb {
		case ">":
			j.Set(u, []string{text}, now)
		case "<":
			if got := j.Header(u, now); got != text {
				t.Errorf("%s, %.100q: %s gets %.100q, want %.100q", d[0], d[1:], url, got, text)
			}
			k := NewJar(j.Lines())
			if got := k.Header(u, now); got != text || !k.Equal(&j) {
				t.Errorf("%s, %.100q, restored: %s gets %.100q, want %.100q", d[0], d[1:], url, got, text)
			}
		default:
			t.Fatalf("%s: no step: %q", d[0], step)
		}
	}
	holds(t, &j)
}

// holds checks what is true of every jar.
func holds(t *testing.T, j *Jar) {
	t.Helper()
	number, size := map[reach]int{}, 0
	for i, e := range j.entries {
		number[e.cookie.reach()]++
		size += e.size()
		for _, o := range j.entries[:i] {
			if o.cookie.same(e.cookie) {
				t.Errorf("%q stands there twice", e.cookie.Name)
			}
		}
		if e.size() > maxEntrySize || number[e.cookie.reach()] > maxOfDomain {
			t.Errorf("%d bytes, %d of %s", e.size(), number[e.cookie.reach()], e.cookie.Domain)
		}
	}
	if j.Len() > maxCookies || size > maxJarSize {
		t.Errorf("%d cookies of %d bytes", j.Len(), size)
	}
	if !NewJar(j.Lines()).Equal(j) {
		t.Error("the jar does not survive storing")
	}
}

func TestRFC(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	const (
		root  = "https://app.corp.example/"
		wiki  = "https://wiki.corp.example/a/b"
		sub   = "https://x.app.corp.example/a/b"
		plain = "http://app.corp.example/a/b"
		gone  = "; Expires=Thu, 01 Jan 1970 00:00:00 GMT"
		later = "; Expires=Sat, 02 May 2026 12:00:00 GMT" // a day after noon
	)
	for _, d := range []dialogue{
		// Section 4.1, the profile of well-behaved servers.
		{"4.1.1 all of it", "> sid=31d4; Expires=Sat, 02 May 2026 12:00:00 GMT; Max-Age=60; Domain=corp.example; Path=/a; Secure; HttpOnly; SameSite=Lax", wiki + " < sid=31d4"},
		{"4.1.1 cookie-octets", "> s=!#$%&'()*+-./:<=>?@[]^_`{|}~09azAZ", "< s=!#$%&'()*+-./:<=>?@[]^_`{|}~09azAZ"},
		{"4.1.1 token", "> !#$%&'*+-.^_`|~09azAZ=v", "< !#$%&'*+-.^_`|~09azAZ=v"},
		{"4.1.1 DQUOTE is part of the value", `> s="a"`, `< s="a"`},
		{"4.1.1 extension-av", "> s=1; Partitioned; Priority=High; Foo=Bar", "< s=1"},
		{"4.1.2 no attributes: the session's", "> s=1", "+87600h", "< s=1"},
		{"4.1.2.1 Expires", "> s=1" + later, "+23h59m59s", "< s=1", "+1s", "< "},
		{"4.1.2.2 Max-Age before Expires", "> s=1; Max-Age=60" + later, "+60s", "< "},
		{"4.1.2.3 without Domain the origin alone", "> s=1", sub + " < ", "https://corp.example/a/b < ", wiki + " < "},
		{"4.1.2.4 Path holds what is below", "> s=1; Path=/a", "https://app.corp.example/a/b/c < s=1", root + " < "},
		{"4.1.2.5 Secure", "> s=1; Secure", "http://app.corp.example:443/a/b < ", "< s=1"},
		{"4.1.2.6 HttpOnly goes with requests", "> s=1; HttpOnly", "< s=1"},
		{"4.1.2.7 SameSite goes with requests", "> s=1; SameSite=Strict", "> t=2; SameSite=Lax", "< s=1; t=2"},
		{"4.1.3.1 __Secure-", "> __Secure-s=1; Secure", "< __Secure-s=1"},
		{"4.1.3.2 __Host-", "> __Host-s=1; Secure; Path=/", root + " < __Host-s=1"},
		{"4.2.1 one header, in order", "> a=1", "> b=2", "> c=3", "< a=1; b=2; c=3"},

		// 5.1.2 and 5.1.3: hosts.
		{"5.1.2 case of the request", "https://APP.Corp.Example/a/b > s=1", "< s=1"},
		{"5.1.2 case of the retrieval", "> s=1", "https://aPP.corp.example/a/b < s=1"},
		{"5.1.2 U-label", "https://b\u00fccher.example/ > s=1", "https://xn--bcher-kva.example/ < s=1"},
		{"5.1.2 A-label", "https://xn--bcher-kva.example/ > s=1", "https://B\u00dcCHER.example/ < s=1"},
		{"5.1.2 A-label in Domain", "https://www.b\u00fccher.example/ > s=1; Domain=XN--BCHER-KVA.example", "https://b\u00fccher.example/ < s=1"},
		{"5.1.2 underscore", "https://a_b.corp.example/ > s=1", "https://a_b.corp.example/ < s=1"},
		{"5.1.2 rooted name is the same (own)", "https://app.corp.example./a/b > s=1", "< s=1", "https://app.corp.example./a/b < s=1"},
		{"5.1.2 rooted Domain is another", "> s=1; Domain=corp.example.", "< "},
		{"5.1.3 identical", "> s=1; Domain=app.corp.example", "< s=1", sub + " < s=1"},
		{"5.1.3 suffix", "> s=1; Domain=corp.example", "< s=1", wiki + " < s=1", sub + " < s=1", "https://corp.example/a/b < s=1"},
		{"5.1.3 suffix without a dot", "> s=1; Domain=corp.example", "https://evilcorp.example/a/b < "},
		{"5.1.3 part of a label", "> s=1; Domain=orp.example", "< "},
		{"5.1.3 no suffix", "> s=1; Domain=app.corp", "< "},
		{"5.1.3 below the host", "> s=1; Domain=x.app.corp.example", "< ", sub + " < "},
		{"5.1.3 sibling", "> s=1; Domain=wiki.corp.example", wiki + " < "},
		{"5.1.3 address has no suffix", "https://10.0.0.1/ > s=1; Domain=0.0.1", "https://10.0.0.1/ < ", "https://9.0.0.1/ < "},
		{"5.1.3 name that ends in a number is an address", "https://a.0.1/ > s=1; Domain=0.1", "https://a.0.1/ < "},
		{"5.1.3 IPv6", "https://[2001:db8::1]/ > s=1", "https://[2001:db8::1]/ < s=1", "https://[2001:db8::2]/ < "},
		{"5.1.3 IPv6 with a zone has no suffix", "https://[fe80::1%25x.corp.example]/ > s=1; Domain=corp.example", "https://[fe80::1%25x.corp.example]/ < ", wiki + " < "},

		// 5.1.4: paths.
		{"5.1.4 default-path of a directory", "https://app.corp.example/a/b/ > s=1", "https://app.corp.example/a/b < s=1", "https://app.corp.example/a/b/c < s=1", "https://app.corp.example/a < "},
		{"5.1.4 default-path of a file", "> s=1", "https://app.corp.example/a < s=1", "https://app.corp.example/a/z < s=1", root + " < "},
		{"5.1.4 default-path of one segment", "https://app.corp.example/a > s=1", root + "z < s=1"},
		{"5.1.4 default-path of the root", root + " > s=1", root + "z/y < s=1"},
		{"5.1.4 default-path of no path", "https://app.corp.example > s=1", root + "z < s=1", "https://app.corp.example < s=1"},
		{"5.1.4 default-path without the query", "https://app.corp.example/a?x=/b/c > s=1", root + " < s=1"},
		{"5.1.4 default-path as sent", "https://app.corp.example/a%2Fb/c > s=1", "https://app.corp.example/a%2Fb/ < s=1", "https://app.corp.example/a/b/ < ", "https://app.corp.example/a%2fb/ < "},
		{"5.1.4 default-path of empty segments", "https://app.corp.example//a > s=1", "https://app.corp.example//z < s=1", "https://app.corp.example/z < s=1"},
		{"5.1.4 default-path with a semicolon", "https://app.corp.example/a;v=1/b > s=1", "https://app.corp.example/a;v=1/ < s=1", "https://app.corp.example/a/ < "},
		{"5.1.4 identical", "> s=1; Path=/a/b", "< s=1"},
		{"5.1.4 prefix that ends in a slash", "> s=1; Path=/a/", "< s=1", "https://app.corp.example/a < "},
		{"5.1.4 prefix before a slash", "> s=1; Path=/a", "< s=1"},
		{"5.1.4 prefix within a segment", "> s=1; Path=/a", "https://app.corp.example/ab < "},
		{"5.1.4 case", "> s=1; Path=/A", "< "},
		{"5.1.4 escapes are not undone", "> s=1; Path=/a%62", "https://app.corp.example/ab < ", "https://app.corp.example/a%62 < s=1"},
		{"5.1.4 dots are not undone", "> s=1; Path=/a/../c", "https://app.corp.example/c < "},
		{"5.1.4 query is no path", "> s=1; Path=/a?b", "https://app.corp.example/a?b < "},
		{"5.1.4 longer than the request", "> s=1; Path=/a/b/c", "< "},

		// 5.2, 5.3: the agent asks for itself, and ignores nothing on top.
		{"5.2 no client: same-site", "> s=1; SameSite=Strict", "< s=1", "> s=2; SameSite=strict", "< s=2"},

		// 5.4: names' prefixes; what becomes of them is in steps 20 to 22 of 5.7.
		{"5.4 a prefix ends in a dash", "> __Host=1", "> __Secure=2", "> __Http=3", "< __Host=1; __Secure=2; __Http=3"},
		{"5.4 a prefix stands in front", "> x__Host-=1", "> _Host-s=2", "< x__Host-=1; _Host-s=2"},

		// 5.5: 400 days.
		{"5.5 Max-Age", "> s=1; Max-Age=34560001", "+9599h59m59s", "< s=1", "+1s", "< "},
		{"5.5 Expires", "> s=1; Expires=Fri, 31 Dec 9999 23:59:59 GMT", "+9599h59m59s", "< s=1", "+1s", "< "},
		{"5.5 just the limit", "> s=1; Max-Age=34560000", "+9599h59m59s", "< s=1", "+1s", "< "},
		{"5.5 counts from the last Set-Cookie", "> s=1; Max-Age=99999999", "+9000h", "> s=1; Max-Age=99999999", "+9000h", "< s=1"},

		// 5.6: the field.
		{"5.6 step 1: NUL", "> s=a\x00b", "< "},
		{"5.6 step 1: 0x01", "> s=a\x01b", "< "},
		{"5.6 step 1: 0x08", "> s=a\x08b", "< "},
		{"5.6 step 1: LF", "> s=a\nb", "< "},
		{"5.6 step 1: CR", "> s=a\rb", "< "},
		{"5.6 step 1: CR LF and a header", "> s=a\r\nSet-Cookie: t=1", "< "},
		{"5.6 step 1: VT", "> s=a\vb", "< "},
		{"5.6 step 1: 0x1F", "> s=a\x1fb", "< "},
		{"5.6 step 1: DEL", "> s=a\x7fb", "< "},
		{"5.6 step 1: in the name", "> s\x02=a", "< "},
		{"5.6 step 1: in an attribute", "> s=a; Path=/\x02", "< "},
		{"5.6 step 1: in an unknown attribute", "> s=a; x=\x00", "< "},
		{"5.6 step 1: at the end", "> s=a\x00", "< "},
		{"5.6 step 1: TAB may stand in a value", "> s=a\tb", "< s=a\tb"},
		{"5.6 step 1: TAB may stand in a name", "> s\tt=a", "< s\tt=a"},
		{"5.6 step 1: 0x80 to 0xFF may", "> s\xff=\x80\xa0\xfe", "< s\xff=\x80\xa0\xfe"},
		{"5.6 step 1: UTF-8 may", "> \u00fc=\u00e9\U0001f36a\u0085\u2028", "< \u00fc=\u00e9\U0001f36a\u0085\u2028"},
		{"5.6 step 1: what another one held, stays", "> s=old", "> s=a\x00b", "< s=old"},
		{"5.6 step 2: first semicolon", "> s=a;b;c", "< s=a"},
		{"5.6 step 2: no semicolon", "> s=a b", "< s=a b"},
		{"5.6 step 2: semicolon in quotes", `> s="a;b"`, `< s="a`},
		{"5.6 step 2: semicolon at the end", "> s=a;", "< s=a"},
		{"5.6 step 2: semicolon in front", "> ; s=a", "< "},
		{"5.6 step 2: a comma joins nothing", "> s=a, t=b", "< s=a, t=b"},
		{"5.6 step 3: no equals sign: no name", "> v", "< v"},
		{"5.6 step 3: first equals sign", "> s=a=b==", "< s=a=b=="},
		{"5.6 step 3: equals sign in front", "> =v", "< v"},
		{"5.6 step 3: two in front", "> ==v", "< =v"},
		{"5.6 step 3: empty value", "> s=", "< s="},
		{"5.6 step 3: name with spaces", "> a b=c", "< a b=c"},
		{"5.6 step 3: JSON", `> s={"k":[1, "x\\"]}`, `< s={"k":[1, "x\\"]}`},
		{"5.6 step 3: quotes and backslash untouched", `> s=a"b\"c`, `< s=a"b\"c`},
		{"5.6 step 3: quotes with spaces untouched", `> s=" a "`, `< s=" a "`},
		{"5.6 step 3: percent untouched", "> s=a%0d%0a%3B%7C", "< s=a%0d%0a%3B%7C"},
		{"5.6 step 4: white space around", ">  \t s \t=\t  v \t ; Secure", "< s=v"},
		{"5.6 step 4: inside it stays", "> s=a  \t b", "< s=a  \t b"},
		{"5.6 step 4: other white space stays", "> s=\u00a0a\u3000", "< s=\u00a0a\u3000"},
		{"5.6 step 4: name of white space is none", "> \t =v", "< v"},
		{"5.6 step 5: 4096", "> s=" + x(4095), "< s=" + x(4095)},
		{"5.6 step 5: 4097", "> s=" + x(4096), "< "},
		{"5.6 step 5: name counts", "> " + x(4095) + "=v", "< " + x(4095) + "=v"},
		{"5.6 step 5: name alone", "> " + x(4097) + "=", "< "},
		{"5.6 step 5: without a name", "> " + x(4096), "< " + x(4096)},
		{"5.6 step 5: white space does not count", "> s=  " + x(4095) + "  ", "< s=" + x(4095)},
		{"5.6 step 5: octets count", "> s=" + strings.Repeat("\u00e9", 2048), "< "},
		{"5.6 step 5: what another one held, stays", "> s=old", "> s=" + x(4096), "< s=old"},
		{"5.6 attributes step 3: empty ones", "> s=1;;; ;Path=/a/b;;", "< s=1", root + " < "},
		{"5.6 attributes step 4: only an equals sign", "> s=1; =; =x; Path=/a/b", "https://app.corp.example/a/b < s=1"},
		{"5.6 attributes step 4: first equals sign", "> s=1; Path=/a=b", "https://app.corp.example/a=b < s=1"},
		{"5.6 attributes step 5: white space", "> s=1;\tPath\t = \t/a/b\t;", "< s=1", "https://app.corp.example/a < "},
		{"5.6 attributes step 5: no white space", "> s=1;path=/a/b;secure", "< s=1", "https://app.corp.example/a < "},
		{"5.6 attributes step 6: 1024", "> s=1; Path=/" + x(1023), "https://app.corp.example/" + x(1023) + " < s=1", "< "},
		{"5.6 attributes step 6: 1025", "> s=1; Path=/" + x(1024), "< s=1"},
		{"5.6 attributes step 6: the one before counts", "> s=1; Path=/c; Path=/" + x(1024), "https://app.corp.example/c < s=1"},
		{"5.6 attributes step 6: Domain", "> s=1; Domain=" + x(1025), "< s=1", wiki + " < "},
		{"5.6 attributes step 6: Secure with a value", "> s=1; Secure=" + x(1025), "> t=1; Secure=" + x(1024), "< s=1; t=1"},
		{"5.6 attributes step 7: unknown", "> s=1; Foo; Bar=1; Version=1; Comment=\"x\"", "< s=1"},
		{"5.6 attributes step 7: case", "> s=1; pAtH=/a/b; dOmAiN=corp.example; mAx-aGe=60; sEcUrE", wiki + " < s=1", "+60s", wiki + " < "},
		{"5.6 attributes step 7: case is of ASCII", "> s=1; Expİres=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age\u00a0=0", "< s=1"},
		{"5.6 attributes step 7: no quotes around values", `> s=1; Path="/c"`, "< s=1"},

		{"5.6.1 step 2: no date", "> s=1; Expires=tomorrow", "+87600h", "< s=1"},
		{"5.6.1 step 2: empty", "> s=1; Expires=", "+87600h", "< s=1"},
		{"5.6.1 step 2: the one before counts", "> s=1" + later + "; Expires=x", "+24h", "< "},
		{"5.6.1 step 5: long ago", "> s=1", "> s=; Expires=Mon, 01 Jan 1601 00:00:00 GMT", "< "},
		{"5.6.1 a comma is no end", "> s=1; Expires=Sat, 02-May-2026 12:00:00 GMT; Path=/a/b", "+24h", "< "},
		{"5.6.2 step 1: empty", "> s=1; Max-Age=", "+87600h", "< s=1"},
		{"5.6.2 step 1: without a value", "> s=1; Max-Age", "+87600h", "< s=1"},
		{"5.6.2 step 2: a plus sign", "> s=1; Max-Age=+60", "+87600h", "< s=1"},
		{"5.6.2 step 2: quotes", `> s=1; Max-Age="60"`, "+87600h", "< s=1"},
		{"5.6.2 step 3: not digits alone", "> s=1; Max-Age=60s", "> t=1; Max-Age=6.0", "> u=1; Max-Age=1e3", "+87600h", "< s=1; t=1; u=1"},
		{"5.6.2 step 3: two minus signs", "> s=1; Max-Age=--1", "< s=1"},
		{"5.6.2 step 3: minus alone (layered)", "> s=1; Max-Age=-", "< s=1"},
		{"5.6.2 step 3: minus inside", "> s=1; Max-Age=6-0", "< s=1"},
		{"5.6.2 step 3: the one before counts", "> s=1; Max-Age=60; Max-Age=x", "+60s", "< "},
		{"5.6.2 step 4: leading zeros", "> s=1; Max-Age=00060", "+59s", "< s=1", "+1s", "< "},
		{"5.6.2 step 6: more than any integer", "> s=1; Max-Age=99999999999999999999999999", "+9599h", "< s=1", "+1h", "< "},
		{"5.6.2 step 6: less than any integer", "> s=1", "> s=1; Max-Age=-99999999999999999999999999", "< "},
		{"5.6.2 step 7: one second", "> s=1; Max-Age=1", "< s=1", "+1s", "< "},
		{"5.6.2 step 7: zero", "> s=1", "> s=1; Max-Age=0", "< "},
		{"5.6.2 step 7: many zeros", "> s=1", "> s=1; Max-Age=000", "< "},
		{"5.6.2 step 7: minus one", "> s=1", "> s=1; Max-Age=-1", "< "},
		{"5.6.2 step 7: minus zero", "> s=1", "> s=1; Max-Age=-0", "< "},
		{"5.6.3 step 2: one leading dot", "> s=1; Domain=.corp.example", wiki + " < s=1"},
		{"5.6.3 step 2: two leading dots", "> s=1; Domain=..corp.example", "< "},
		{"5.6.3 step 2: a dot alone is empty", "> s=1; Domain=.", "< s=1", sub + " < "},
		{"5.6.3 step 3: case", "> s=1; Domain=CORP.Example", wiki + " < s=1"},
		{"5.6.3 empty", "> s=1; Domain=", "< s=1", sub + " < "},
		{"5.6.3 without a value", "> s=1; Domain", "< s=1", sub + " < "},
		{"5.6.3 a port is no domain", "> s=1; Domain=app.corp.example:443", "< "},
		{"5.6.3 a URL is no domain", "> s=1; Domain=https://app.corp.example", "< "},
		{"5.6.4 step 1: empty", "> s=1; Path=", "https://app.corp.example/a < s=1", root + " < "},
		{"5.6.4 step 1: not from the root", "> s=1; Path=c", "https://app.corp.example/a < s=1", "https://app.corp.example/c < "},
		{"5.6.4 step 1: last one empty", "> s=1; Path=/; Path=", root + " < ", "< s=1"},
		{"5.6.5 any value", "> s=1; Secure=no", "http://app.corp.example:443/a/b < ", "< s=1"},
		{"5.6.6 any value", "> __Http-s=1; Secure; HttpOnly=0", "< __Http-s=1"},
		{"5.6.7 unknown is default", "> s=1; SameSite=Whatever", "< s=1"},
		{"5.6.7 unknown after None is default", "> s=1; SameSite=None; SameSite=x", "< s=1"},

		// 5.7: the storage model.
		{"5.7 step 2: neither name nor value", "> =", "> ", "> ;", "> \t = \t; Secure", "< "},
		{"5.7 step 5: the newest value", "> s=1", "> s=2", "< s=2"},
		{"5.7 step 6: Max-Age beats a past Expires", "> s=1; Max-Age=60" + gone, "< s=1", "+60s", "< "},
		{"5.7 step 6: in either order", "> s=1" + gone + "; Max-Age=60", "< s=1"},
		{"5.7 step 6: Max-Age=0 beats a future Expires", "> s=1", "> s=1; Max-Age=0" + later, "< "},
		{"5.7 step 6: last Max-Age", "> s=1; Max-Age=0; Max-Age=60", "< s=1", "> s=1; Max-Age=60; Max-Age=0", "< "},
		{"5.7 step 6: last Expires", "> s=1" + gone + later, "< s=1", "> s=1" + later + gone, "< "},
		{"5.7 step 6: bad Max-Age leaves Expires", "> s=1; Max-Age=x" + later, "+24h", "< "},
		{"5.7 step 6: neither", "> s=1; Max-Age=60", "> s=2", "+87600h", "< s=2"},
		{"5.7 step 7: last Domain", "> s=1; Domain=other.example; Domain=corp.example", wiki + " < s=1"},
		{"5.7 step 7: last Domain empty", "> s=1; Domain=corp.example; Domain=", "< s=1", wiki + " < "},
		{"5.7 step 8: not ASCII", "https://www.b\u00fccher.example/ > s=1; Domain=b\u00fccher.example", "https://www.b\u00fccher.example/ < "},
		{"5.7 step 8: not ASCII, and the host's", "https://www.b\u00fc_cher.example/ > s=1; Domain=b\u00fc_cher.example", "https://www.b\u00fc_cher.example/ < "},
		{"5.7 step 8: what Unicode folds to ASCII", "https://wiki.kiki.example/ > s=1; Domain=\u212aiki.example", "https://wiki.kiki.example/ < "},
		{"5.7 step 8: not UTF-8", "> s=1; Domain=corp.example\xff", "< "},
		{"5.7 step 9: ICANN suffix", "https://app.co.uk/ > s=1; Domain=co.uk", "https://app.co.uk/ < ", "https://other.co.uk/ < "},
		{"5.7 step 9: top-level domain", "https://corp.com/ > s=1; Domain=com", "https://corp.com/ < "},
		{"5.7 step 9: in any case", "https://app.co.uk/ > s=1; Domain=.CO.UK", "https://app.co.uk/ < "},
		{"5.7 step 9: private suffix", "https://me.github.io/ > s=1; Domain=github.io", "https://me.github.io/ < ", "https://you.github.io/ < "},
		{"5.7 step 9: wildcard", "https://a.b.ck/ > s=1; Domain=b.ck", "https://a.b.ck/ < "},
		{"5.7 step 9: exception", "https://x.www.ck/ > s=1; Domain=www.ck", "https://www.ck/ < s=1"},
		{"5.7 step 9: A-label suffix", "https://a.xn--55qx5d.cn/ > s=1; Domain=xn--55qx5d.cn", "https://a.xn--55qx5d.cn/ < "},
		{"5.7 step 9: below a suffix", "https://a.app.co.uk/ > s=1; Domain=app.co.uk", "https://b.app.co.uk/ < s=1"},
		{"5.7 step 9: unlisted suffix", "https://jira.intranet/ > s=1; Domain=intranet", "https://jira.intranet/ < "},
		{"5.7 step 9: below an unlisted suffix", "https://jira.corp.intranet/ > s=1; Domain=corp.intranet", "https://wiki.corp.intranet/ < s=1"},
		{"5.7 step 9: the host is a suffix", "https://github.io/ > s=1; Domain=github.io", "https://github.io/ < s=1", "https://me.github.io/ < "},
		{"5.7 step 9: the host is one label", "https://jira/ > s=1; Domain=jira", "https://jira/ < s=1", "https://x.jira/ < "},
		{"5.7 step 9: one label, no Domain", "https://jira/ > s=1", "https://jira/ < s=1", "https://x.jira/ < "},
		{"5.7 step 9: below one label", "https://x.jira/ > s=1; Domain=jira", "https://x.jira/ < ", "https://jira/ < "},
		{"5.7 step 10: own address", "https://127.0.0.1/ > s=1; Domain=127.0.0.1", "https://127.0.0.1/ < s=1"},
		{"5.7 step 10: own address is host-only (layered)", "https://127.0.0.1/ > s=1; Domain=127.0.0.1", "https://127.0.0.1/ > s=2", "https://127.0.0.1/ < s=2", "https://127.0.0.1:8443/ < "},
		{"5.7 step 10: own IPv6", "https://[::1]/ > s=1; Domain=[::1]", "https://[::1]/ < s=1", "https://[::1]:8443/ < "},
		{"5.7 step 10: other address", "https://127.0.0.1/ > s=1; Domain=127.0.0.2", "https://127.0.0.1/ < ", "https://127.0.0.2/ < "},
		{"5.7 step 10: brackets are of addresses", "> s=1; Domain=[app.corp.example]", "< "},
		{"5.7 step 10: foreign domain", "> s=1; Domain=other.example", "< ", "https://other.example/a/b < "},
		{"5.7 step 10: a refused one changes nothing", "> s=1", "> s=2; Domain=other.example", "< s=1"},
		{"5.7 step 11: last Path", "> s=1; Path=/a; Path=/c", "< ", "https://app.corp.example/c < s=1"},
		{"5.7 step 13: Secure over http", plain + " > s=1; Secure; Domain=corp.example", plain + " < ", "< "},
		{"5.7 step 13: Secure over http at this machine", "http://localhost/ > s=1; Secure", "http://localhost/ < ", "http://127.0.0.1/ > s=1; Secure", "http://127.0.0.1/ < "},
		{"5.7 step 13: deletes nothing", "> s=1; Domain=corp.example", plain + " > s=; Secure; Domain=corp.example; Max-Age=0", "< s=1"},
		{"5.7 step 16: same domain", "> s=1; Secure; Domain=corp.example", plain + " > s=2; Domain=corp.example", "< s=1"},
		{"5.7 step 16: host-only beside it", "> s=1; Secure; Domain=corp.example", plain + " > s=2", "< s=1", plain + " < "},
		{"5.7 step 16: new one's domain is above", "> s=1; Secure", plain + " > s=2; Domain=corp.example", "< s=1", plain + " < "},
		{"5.7 step 16: new one's domain is below", "> s=1; Secure; Domain=corp.example", "http://x.app.corp.example/a/b > s=2", "http://x.app.corp.example/a/b < "},
		{"5.7 step 16: sibling", "> s=1; Secure", "http://wiki.corp.example/a/b > s=2", "http://wiki.corp.example/a/b < s=2"},
		{"5.7 step 16: new one's path below", "> s=1; Secure; Path=/a", "http://app.corp.example/a/b/c > s=2", "http://app.corp.example/a/b/c < "},
		{"5.7 step 16: new one's path above", "> s=1; Secure; Path=/a", plain + " > s=2; Path=/", plain + " < s=2"},
		{"5.7 step 16: path at a segment", "> s=1; Secure; Path=/a", plain + " > s=2; Path=/ab", "http://app.corp.example/ab < s=2"},
		{"5.7 step 16: other name", "> s=1; Secure", plain + " > S=2", plain + " < S=2"},
		{"5.7 step 16: cannot delete", "> s=1; Secure; Domain=corp.example", plain + " > s=; Domain=corp.example; Max-Age=0", "< s=1"},
		{"5.7 step 16: an expired one is no hindrance", "> s=1; Secure; Max-Age=60", "+60s", plain + " > s=2", plain + " < s=2"},
		{"5.7 step 16: nor what came over http", plain + " > s=1; Domain=corp.example", plain + " > s=2; Domain=corp.example", plain + " < s=2"},
		{"5.7 step 16: https may", "> s=1; Secure", "> s=2", "< s=2"},
		{"5.7 step 16, own: came over https", "> s=1; Domain=corp.example", plain + " > s=2; Domain=corp.example", plain + " > s=; Domain=corp.example; Max-Age=0", "< s=1", plain + " < "},
		{"5.7 step 19: None wants Secure", "> s=1; SameSite=None", "< "},
		{"5.7 step 19: None in any case", "> s=1; SameSite=nONE", "< "},
		{"5.7 step 19: None with Secure", "> s=1; SameSite=None; Secure", "< s=1"},
		{"5.7 step 19: last SameSite", "> s=1; SameSite=None; SameSite=Lax", "> t=1; SameSite=Lax; SameSite=None", "< s=1"},
		{"5.7 step 20: __Secure- without Secure", "> __Secure-s=1", "< "},
		{"5.7 step 20: in any case", "> __sECURE-s=1", "< ", "> __sECURE-s=1; Secure", "< __sECURE-s=1"},
		{"5.7 step 20: over http", plain + " > __Secure-s=1; Secure", plain + " > __Secure-s=1", plain + " < "},
		{"5.7 step 20: with Domain and Path", "> __Secure-s=1; Secure; Domain=corp.example; Path=/a", wiki + " < __Secure-s=1"},
		{"5.7 step 21.1: __Host- without Secure", "> __Host-s=1; Path=/", "< "},
		{"5.7 step 21.1: over http", plain + " > __Host-s=1; Path=/", plain + " < "},
		{"5.7 step 21.2: with Domain", "> __Host-s=1; Secure; Path=/; Domain=app.corp.example", "< "},
		{"5.7 step 21.2: with an empty Domain", "> __Host-s=1; Secure; Path=/; Domain=", "< __Host-s=1"},
		{"5.7 step 21.2: with a Domain that is a suffix", "https://jira/ > __Host-s=1; Secure; Path=/; Domain=jira", "https://jira/ < __Host-s=1"},
		{"5.7 step 21.2: with its own address", "https://127.0.0.1/ > __Host-s=1; Secure; Path=/; Domain=127.0.0.1", "https://127.0.0.1/ < __Host-s=1"},
		{"5.7 step 21.3: without Path", "> __Host-s=1; Secure", "< "},
		{"5.7 step 21.3: default-path is not enough (layered)", root + " > __Host-s=1; Secure", root + " > __Host-s=1; Secure; Path=", root + " < "},
		{"5.7 step 21.3: other Path", "> __Host-s=1; Secure; Path=/a", "> __Host-s=1; Secure; Path=//", "< "},
		{"5.7 step 21.3: last Path", "> __Host-s=1; Secure; Path=/a; Path=/", "< __Host-s=1", "> __Host-t=1; Secure; Path=/; Path=/a", "< __Host-s=1"},
		{"5.7 step 21: in any case", "> __HOST-s=1; Path=/", "> __host-s=1; Secure", "< ", "> __hOST-s=1; Secure; Path=/", "< __hOST-s=1"},
		{"5.7 step 21: the name may be the prefix", "> __Host-=1; Secure; Path=/", "< __Host-=1"},
		{"layered: __Http-", "> __Http-s=1; Secure; HttpOnly; Domain=corp.example; Path=/a", wiki + " < __Http-s=1"},
		{"layered: __Http- without HttpOnly", "> __Http-s=1; Secure", "> __hTTP-s=1; Secure", "< "},
		{"layered: __Http- without Secure", "> __Http-s=1; HttpOnly", plain + " > __Http-s=1; HttpOnly", plain + " < ", "< "},
		{"layered: __Host-Http-", "> __Host-Http-s=1; Secure; HttpOnly; Path=/", "< __Host-Http-s=1"},
		{"layered: __Host-Http- without HttpOnly", "> __Host-Http-s=1; Secure; Path=/", "> __host-hTTP-s=1; Secure; Path=/", "< "},
		{"layered: __Host-Http- without Path", "> __Host-Http-s=1; Secure; HttpOnly", "< "},
		{"layered: __Host-Http- with Domain", "> __Host-Http-s=1; Secure; HttpOnly; Path=/; Domain=app.corp.example", "< "},
		{"layered: __Host-Http- without Secure", "> __Host-Http-s=1; HttpOnly; Path=/", "< "},
		{"5.7 step 22: nameless __Secure-", "> =__Secure-s=1; Secure", "> __Secure-s; Secure", "> =__sECURE-; Secure", "< "},
		{"5.7 step 22: nameless __Host-", "> =__Host-s=1; Secure; Path=/", "> __Host-s; Secure; Path=/", "> = __host-; Secure; Path=/", "< "},
		{"layered: nameless __Http-", "> =__Http-s=1; Secure; HttpOnly", "> =__Host-Http-s=1; Secure; HttpOnly; Path=/", "< "},
		{"5.7 step 22: a value with a prefix", "> s=__Host-t=1", "< s=__Host-t=1"},
		{"5.7 step 23: same name, other path", "> s=1; Path=/a", "> s=2; Path=/", "< s=1; s=2"},
		{"5.7 step 23: same name, other domain", "> s=1; Domain=corp.example", "> s=2; Domain=app.corp.example", "< s=1; s=2"},
		{"5.7 step 23: host-only is another", "> s=1; Domain=app.corp.example", "> s=2", "< s=1; s=2", "> s=3; Domain=app.corp.example", "< s=3; s=2"},
		{"5.7 step 23: case of the name", "> s=1", "> S=2", "< s=1; S=2"},
		{"5.7 step 23: nameless ones replace each other", "> a", "> =b", "< b"},
		{"5.7 step 23: nameless is not empty value", "> s", "> s=", "< s; s="},
		{"5.7 step 23: set from another host", "> s=1; Domain=corp.example", wiki + " > s=2; Domain=corp.example", "< s=2"},
		{"5.7 step 23: set from another path", "> s=1; Path=/", root + " > s=2; Path=/", "< s=2"},
		{"5.7 step 23.3: creation-time stays", "> a=1", "> b=2", "+60s", "> a=3", "< a=3; b=2"},
		{"5.7 step 23.3: attributes do not", "> s=1; Max-Age=60", "> s=1; Max-Age=120", "+60s", "< s=1"},
		{"5.7 step 23.3: deleted and made again is new", "> a=1", "> b=2", "> a=; Max-Age=0", "> a=3", "< b=2; a=3"},
		{"5.7 step 23.3: expired and made again is new", "> a=1; Max-Age=60", "> b=2", "+60s", "> a=3", "< b=2; a=3"},
		{"5.7 expired: with the session only what has no end", "> a=1; Max-Age=60", "> b=2", "+60s", "< b=2"},
		{"5.7 deletion needs the path", "> s=1; Path=/", "> s=; Max-Age=0", "< s=1", "> s=; Path=/; Max-Age=0", "< "},
		{"5.7 deletion needs the domain", "> s=1; Domain=corp.example", "> s=; Max-Age=0; Path=/a", "< s=1", "> s=; Max-Age=0; Domain=corp.example", "< "},
		{"5.7 deletion by an Expires of now", "> s=1", "> s=; Expires=Fri, 01 May 2026 12:00:00 GMT", "< "},
		{"5.7 deletion as Tomcat writes it", "> x=1; Path=/", `> x=""; Expires=Thu, 01-Jan-1970 00:00:10 GMT; Path=/`, "< "},
		{"5.7 deletion of nothing", "> s=; Max-Age=0", "< ", "> s=1", "< s=1"},
		{"5.7 an empty value deletes nothing", "> s=1", "> s=", "< s="},

		// 5.8.3: retrieval.
		{"5.8.3 step 1: host-only", "https://corp.example/ > s=1", root + " < ", "https://corp.example/ < s=1"},
		{"5.8.3 step 1: Secure", "> s=1; Secure; Domain=corp.example", "http://wiki.corp.example/a/b < ", wiki + " < s=1"},
		{"5.8.3 step 1: HttpOnly", "> s=1; HttpOnly", "< s=1"},
		{"5.8.3 step 2: longer paths first", "> a=1; Path=/", "> b=2; Path=/a/b", "> c=3; Path=/a", "< b=2; c=3; a=1"},
		{"5.8.3 step 2: octets, not segments", "https://app.corp.example/aaaa/ > a=1; Path=/aaaa", "https://app.corp.example/aaaa/ > b=2; Path=/aaaa/", "https://app.corp.example/aaaa/ < b=2; a=1"},
		{"5.8.3 step 2: then creation-time", "> a=1", "+1s", "> c=3", "+1s", "> b=2", "< a=1; c=3; b=2"},
		{"5.8.3 step 2: not the domain's length", "> a=1; Domain=corp.example", "> b=2", "< a=1; b=2"},
		{"5.8.3 step 4: a nameless one", "> a=1", "> v", "> b=", "< a=1; v; b="},

		// Where the agent is stricter.
		{"own: https stays https", "> s=1", "http://app.corp.example/a/b < ", "http://app.corp.example:443/a/b < "},
		{"own: https stays https with Domain", "> s=1; Domain=corp.example", "http://wiki.corp.example/a/b < ", wiki + " < s=1"},
		{"own: http goes to no https of the host", plain + " > s=1", "< ", plain + " < s=1"},
		{"own: http goes to https with Domain", plain + " > s=1; Domain=corp.example", "< s=1"},
		{"own: over https it is safe from then on", plain + " > s=1; Domain=corp.example", "> s=2; Domain=corp.example", "< s=2", plain + " < "},
		{"own: two ports of a host", "https://app.corp.example:8443/ > s=1", root + " > s=2", "https://app.corp.example:8443/ < s=1", root + " < s=2", "https://app.corp.example:9443/ < "},
		{"own: the default port is one", "https://app.corp.example:443/ > s=1", root + " < s=1", "http://app.corp.example:80/ > t=1", "http://app.corp.example/ < t=1"},
		{"own: __Host- keeps to its port", "https://app.corp.example:8443/ > __Host-s=1; Secure; Path=/", root + " < "},
		{"own: Domain goes to every port", "https://app.corp.example:8443/ > s=1; Domain=corp.example; Path=/", root + " < s=1", "https://wiki.corp.example:9443/ < s=1"},
		{"own: Domain is one for all ports", "https://app.corp.example:8443/ > s=1; Domain=corp.example; Path=/", root + " > s=2; Domain=corp.example", "https://app.corp.example:8443/ < s=2"},
		{"own: one port deletes nothing of another", root + " > s=1", "https://app.corp.example:8443/ > s=; Max-Age=0", root + " < s=1"},
		{"own: lines have an end", "> s=1; x=" + x(maxEntrySize-60), "> t=1; x=" + x(maxEntrySize), "< s=1"},
	} {
		play(t, d)
	}
}

// TestRFCDates has cases for each step of section 5.1.1: what is a date ends the
// cookie at that very second, and what is none does not end it.
func TestRFCDates(t *testing.T) {
	const site = "https://app.corp.example/"
	day := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	on := func(y int, m time.Month, d, h, mi, s int) time.Time { return time.Date(y, m, d, h, mi, s, 0, time.UTC) }
	for text, end := range map[string]time.Time{
		// Step 1 and 2: tokens in any order.
		"Sat, 02 Jan 2027 03:04:05 GMT":            day,
		"Saturday, 02-Jan-27 03:04:05 GMT":         day,
		"Sat Jan  2 03:04:05 2027":                 day,
		"2 Jan 2027 3:4:5":                         day,
		"03:04:05 2 Jan 2027":                      day,
		"Jan 2 2027 03:04:05":                      day,
		"2027 Jan 02 03:04:05":                     day,
		"Jan 02 03:04:05 2027":                     day,
		"02/Jan/2027 03:04:05":                     day,
		"02\tJan!2027\"03:04:05":                   day,
		"#02$Jan%2027&03:04:05'":                   day,
		"(02)Jan*2027+03:04:05,":                   day,
		"-02.Jan<2027=03:04:05>":                   day,
		"?02@Jan[2027]03:04:05^":                   day,
		"_02`Jan{2027|03:04:05}~":                  day,
		"02\\Jan 2027 03:04:05":                    day,
		"02 Jan 2027 03:04:05 +0900":               day,
		"02 Jan 2027 03:04:05 PM":                  day,
		"02 Jan 2027 03:04:05 02 Feb 2028 1:1:1":   day, // the first of each
		"Sat, 02 Jan 2027 03:04:05 GMT, and so on": day,
		// Parts of tokens.
		"2nd January 2027 3:4:5":             day,
		"02th jAnUaRy 2027AD 03:04:05Z":      day,
		"02 Jan 2027 03:04:05.999":           day,
		"02 Jan 2027 03:04:05x":              day,
		"02 Jan 2027 03:04:05:06":            day,
		"02\x80 Jan\xff 2027\u00e9 03:04:05": day,
		"2a 02 Jan 2027 03:04:05":            on(2002, 1, 2, 3, 4, 5),
		"002 Jan 2027 03:04:05":              {},
		"02Jan 2027 03:04:05":                {}, // "02Jan" is a day, no month
		"02 Jan 02027 03:04:05":              {},
		"02 Jan 20270 03:04:05":              {},
		"02 Jan 7 03:04:05":                  {},
		"02 Ja 2027 03:04:05":                {},
		"02 Jän 2027 03:04:05":               {},
		"02 xJan 2027 03:04:05":              {},
		"02 anf 2027 03:04:05":               {}, // across two names
		"02 1 2027 03:04:05":                 {},
		"02:Jan:2027 03:04:05":               {}, // a colon is no delimiter
		"02 Jan 2027 003:04:05":              {},
		"02 Jan 2027 03:004:05":              {},
		"02 Jan 2027 03:04:005":              {},
		"02 Jan 2027 03:04":                  {},
		"02 Jan 2027 03::05":                 {},
		"02 Jan 2027 03:04:":                 {},
		"02 Jan 2027 :04:05":                 {},
		"02 Jan 2027 03a:04:05":              {},
		"02 Jan 2027 03:04a:05":              {},
		"02 Jan 2027 a03:04:05":              {},
		"02 Jan 2027 03.04.05":               {},
		"02\u00a0Jan 2027 03:04:05":          {}, // "02\u00a0Jan" is one token
		// Steps 3 and 4: years.
		"02 Jan 27 03:04:05":  day,
		"02 Jan 027 03:04:05": day,
		"02 Jan 69 03:04:05":  on(2069, 1, 2, 3, 4, 5),
		"02 Jan 00 03:04:05":  on(2000, 1, 2, 3, 4, 5),
		"02 Jan 70 03:04:05":  on(1970, 1, 2, 3, 4, 5),
		"02 Jan 99 03:04:05":  on(1999, 1, 2, 3, 4, 5),
		"02 Jan 100 03:04:05": {},
		// Step 5: limits.
		"":                         {},
		"GMT":                      {},
		"02 Jan 2027":              {},
		"02 Jan 03:04:05":          {},
		"02 2027 03:04:05":         {},
		"Jan 2027 03:04:05":        {},
		"00 Jan 2027 03:04:05":     {},
		"32 Jan 2027 03:04:05":     {},
		"02 Jan 1600 03:04:05":     {},
		"02 Jan 1601 03:04:05":     on(1601, 1, 2, 3, 4, 5),
		"02 Jan 2027 24:00:00":     {},
		"02 Jan 2027 23:59:59":     on(2027, 1, 2, 23, 59, 59),
		"02 Jan 2027 03:60:05":     {},
		"02 Jan 2027 03:04:60":     {},
		"31 Dec 9999 00:00:00":     on(9999, 12, 31, 0, 0, 0),
		"1 Jan 2027 0:0:0":         on(2027, 1, 1, 0, 0, 0),
		"01 32 Jan 2027 03:04:05":  on(2032, 1, 1, 3, 4, 5), // "32" is the year then
		"31 Jan 2027 99:00:00 1:1": {},
		// Step 6: such a day.
		"31 Jan 2027 03:04:05": on(2027, 1, 31, 3, 4, 5),
		"31 Jun 2027 03:04:05": {},
		"29 Feb 2027 03:04:05": {},
		"29 Feb 2028 03:04:05": on(2028, 2, 29, 3, 4, 5),
		"29 Feb 2100 03:04:05": {},
		"30 Feb 2028 03:04:05": {},
		"31 Sep 2027 03:04:05": {},
	} {
		u := at(t, site)
		for _, name := range []string{"Expires", "expires", "EXPIRES"} {
			var j Jar
			if end.IsZero() {
				if j.Set(u, []string{"s=1; " + name + "=" + text}, noon); j.Header(u, noon.Add(500*24*time.Hour)) != "s=1" {
					t.Errorf("%q is no date, but is taken for one", text)
				}
				continue
			}
			if j.Set(u, []string{"s=1; " + name + "=" + text}, end.Add(-time.Hour)); j.Header(u, end.Add(-time.Second)) != "s=1" || j.Header(u, end) != "" {
				t.Errorf("%q does not end the cookie at %s", text, end)
			}
		}
	}
	for i, month := range strings.Fields("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec") {
		d, ok := parseCookieDate(fmt.Sprintf("1 %s 2027 1:2:3", month))
		if !ok || d.Month() != time.Month(i+1) {
			t.Errorf("%s: %s", month, d)
		}
	}
}

// TestAttributesAreKept: what does not decide where a cookie goes is told.
func TestAttributesAreKept(t *testing.T) {
	var j Jar
	j.Set(at(t, rfcSite), []string{"s=1; HttpOnly; Secure; SameSite=Lax; Domain=corp.example; Max-Age=60", "t=2"}, noon)
	cs := j.Cookies(at(t, rfcSite), noon)
	if c := cs[0]; !c.HTTPOnly || !c.Secure || c.SameSite != "Lax" || c.Domain != "corp.example" || c.Path != "/a" || c.HostOnly || !c.Expires.Equal(noon.Add(time.Minute)) {
		t.Errorf("%+v", c)
	}
	if c := cs[1]; c.HTTPOnly || c.Secure || c.SameSite != "" || c.Domain != "app.corp.example" || c.Path != "/a" || !c.HostOnly || !c.Expires.IsZero() {
		t.Errorf("%+v", c)
	}
}
