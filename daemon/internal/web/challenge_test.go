package web

import (
	"reflect"
	"strings"
	"testing"
)

// TestParseChallenges names the forms that servers and proxies use (RFC 9110,
// sections 11.2 to 11.7), and those that they should not.
func TestParseChallenges(t *testing.T) {
	type P = map[string]string
	negotiate := Challenge{Scheme: "negotiate"}
	for name, c := range map[string]struct {
		in   []string
		want []Challenge
	}{
		// The forms of measured servers.
		"plain":                 {[]string{"Negotiate"}, []Challenge{negotiate}},
		"Basic then Negotiate":  {[]string{`Basic realm="x"`, "Negotiate"}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}, negotiate}},
		"Negotiate then Basic":  {[]string{"Negotiate", `Basic realm="x"`}, []Challenge{negotiate, {Scheme: "basic", Params: P{"realm": "x"}}}},
		"one list":              {[]string{`Negotiate, Basic realm="x"`}, []Challenge{negotiate, {Scheme: "basic", Params: P{"realm": "x"}}}},
		"comma in quotes":       {[]string{`Basic realm="a, b", Negotiate`}, []Challenge{{Scheme: "basic", Params: P{"realm": "a, b"}}, negotiate}},
		"scheme in quotes":      {[]string{`Basic realm="a, Negotiate b", Negotiate`}, []Challenge{{Scheme: "basic", Params: P{"realm": "a, Negotiate b"}}, negotiate}},
		"lower case":            {[]string{"negotiate"}, []Challenge{negotiate}},
		"any case":              {[]string{"nEGOTIATE"}, []Challenge{negotiate}},
		"with a realm":          {[]string{`Negotiate realm="x"`}, []Challenge{{Scheme: "negotiate", Params: P{"realm": "x"}}}},
		"Jazz":                  {[]string{`Basic realm="JSA"`, `Bearer realm="JSA", error="invalid"`, "Negotiate"}, []Challenge{{Scheme: "basic", Params: P{"realm": "JSA"}}, {Scheme: "bearer", Params: P{"realm": "JSA", "error": "invalid"}}, negotiate}},
		"OAuth of Jira":         {[]string{`OAuth realm="https%3A%2F%2Fjira", Negotiate`}, []Challenge{{Scheme: "oauth", Params: P{"realm": "https%3A%2F%2Fjira"}}, negotiate}},
		"NTLM only":             {[]string{"NTLM"}, []Challenge{{Scheme: "ntlm"}}},
		"NTLM, Negotiate":       {[]string{"NTLM", "Negotiate"}, []Challenge{{Scheme: "ntlm"}, negotiate}},
		"reject token":          {[]string{"Negotiate oQcwBaADCgEC"}, []Challenge{{Scheme: "negotiate", Token: "oQcwBaADCgEC"}}},
		"token of every letter": {[]string{"Negotiate aZ09-._~+/=="}, []Challenge{{Scheme: "negotiate", Token: "aZ09-._~+/=="}}},
		// What else the grammar allows.
		"token, then a list":      {[]string{"Negotiate YWI=, Basic realm=x"}, []Challenge{{Scheme: "negotiate", Token: "YWI="}, {Scheme: "basic", Params: P{"realm": "x"}}}},
		"token, then a scheme":    {[]string{"Negotiate YQ== , NTLM"}, []Challenge{{Scheme: "negotiate", Token: "YQ=="}, {Scheme: "ntlm"}}},
		"token without padding":   {[]string{"Negotiate YWJj,Basic realm=x"}, []Challenge{{Scheme: "negotiate", Token: "YWJj"}, {Scheme: "basic", Params: P{"realm": "x"}}}},
		"two of a scheme":         {[]string{"Negotiate, Negotiate YWJj"}, []Challenge{negotiate, {Scheme: "negotiate", Token: "YWJj"}}},
		"two of a scheme, fields": {[]string{"Negotiate YWJj", "Negotiate"}, []Challenge{{Scheme: "negotiate", Token: "YWJj"}, negotiate}},
		"several parameters":      {[]string{`Negotiate realm="x", charset=UTF-8, Basic realm="y"`}, []Challenge{{Scheme: "negotiate", Params: P{"realm": "x", "charset": "UTF-8"}}, {Scheme: "basic", Params: P{"realm": "y"}}}},
		"parameters in a list":    {[]string{`Digest realm="r", nonce=abc , qop="auth,auth-int", NTLM`}, []Challenge{{Scheme: "digest", Params: P{"realm": "r", "nonce": "abc", "qop": "auth,auth-int"}}, {Scheme: "ntlm"}}},
		"RFC 9110, 11.6.1":        {[]string{`Basic realm="simple", Newauth realm="apps", type=1, title="Login to \"apps\""`}, []Challenge{{Scheme: "basic", Params: P{"realm": "simple"}}, {Scheme: "newauth", Params: P{"realm": "apps", "type": "1", "title": `Login to "apps"`}}}},
		"escaped quote":           {[]string{`Basic realm="a\"b, c", Negotiate`}, []Challenge{{Scheme: "basic", Params: P{"realm": `a"b, c`}}, negotiate}},
		"escaped backslash":       {[]string{`Basic realm="a\\", Negotiate`}, []Challenge{{Scheme: "basic", Params: P{"realm": `a\`}}, negotiate}},
		"empty string":            {[]string{`Basic realm="", Negotiate`}, []Challenge{{Scheme: "basic", Params: P{"realm": ""}}, negotiate}},
		"space around equals":     {[]string{"Basic realm \t= \t\"x\" , Negotiate"}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}, negotiate}},
		"extended parameter":      {[]string{`Basic realm*=UTF-8''x, Negotiate`}, []Challenge{{Scheme: "basic", Params: P{"realm*": "UTF-8''x"}}, negotiate}},
		"first of two values":     {[]string{`Basic realm="x", realm="y"`}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}}},
		"empty elements":          {[]string{" ,\t, Negotiate ,,\t,NTLM, "}, []Challenge{negotiate, {Scheme: "ntlm"}}},
		"tabs":                    {[]string{"\tNegotiate\tYWJj\t,\tNTLM\t"}, []Challenge{{Scheme: "negotiate", Token: "YWJj"}, {Scheme: "ntlm"}}},
		"no space after commas":   {[]string{`Basic realm="x",Negotiate,NTLM`}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}, negotiate, {Scheme: "ntlm"}}},
		"scheme of odd letters":   {[]string{"x!#$%&'*+-.^_`|~1 a=b, Negotiate"}, []Challenge{{Scheme: "x!#$%&'*+-.^_`|~1", Params: P{"a": "b"}}, negotiate}},
		"bytes above ASCII":       {[]string{"Basic realm=\"B\u00fccher, \xff\", Negotiate"}, []Challenge{{Scheme: "basic", Params: P{"realm": "B\u00fccher, \xff"}}, negotiate}},
		// What it does not: no mistake hides Negotiate.
		"junk first":                {[]string{`"what", Negotiate`}, []Challenge{negotiate}},
		"quoted junk with a comma":  {[]string{`"what, Basic x", Negotiate`}, []Challenge{negotiate}},
		"not a scheme":              {[]string{"X:y/z, Negotiate"}, []Challenge{negotiate}},
		"words":                     {[]string{"Odd one two three, Negotiate"}, []Challenge{{Scheme: "odd"}, negotiate}},
		"words and equals":          {[]string{"Odd one two=three four, Negotiate"}, []Challenge{{Scheme: "odd"}, negotiate}},
		"two tokens":                {[]string{"Odd YQ== YQ==, Negotiate"}, []Challenge{{Scheme: "odd", Params: P{"yq": ""}}, negotiate}},
		"parameter of nothing":      {[]string{`realm="x", Negotiate`}, []Challenge{negotiate}},
		"parameter without value":   {[]string{`Digest realm="x", nonce=, Negotiate`}, []Challenge{{Scheme: "digest", Params: P{"realm": "x"}}, negotiate}},
		"parameter without name":    {[]string{`Digest ="x", Negotiate`}, []Challenge{{Scheme: "digest"}, negotiate}},
		"value and more":            {[]string{`Digest realm=x y z, Negotiate`}, []Challenge{{Scheme: "digest", Params: P{"realm": "x"}}, negotiate}},
		"string and more":           {[]string{`Digest realm="x"y"z, w", Negotiate`}, []Challenge{{Scheme: "digest", Params: P{"realm": "x"}}, negotiate}},
		"equals alone":              {[]string{"=, ==, =x, Negotiate"}, []Challenge{negotiate}},
		"only padding":              {[]string{"Negotiate ==="}, []Challenge{negotiate}},
		"scheme with equals":        {[]string{"Negotiate=, NTLM"}, []Challenge{{Scheme: "ntlm"}}},
		"above ASCII in a scheme":   {[]string{"N\u00e9gotiate, Negotiate"}, []Challenge{negotiate}},
		"above ASCII, no quotes":    {[]string{"Basic realm=B\u00fccher, Negotiate"}, []Challenge{{Scheme: "basic", Params: P{"realm": "B"}}, negotiate}},
		"unclosed in its field":     {[]string{`Basic realm="x`, "Negotiate"}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}, negotiate}},
		"unclosed before Negotiate": {[]string{`Basic realm="x, Negotiate`}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}, negotiate}},
		"unclosed junk":             {[]string{`"x, Negotiate`}, []Challenge{negotiate}},
		"escape at the end":         {[]string{`Basic realm="x\`, "Negotiate"}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}, negotiate}},
		"a semicolon for a comma":   {[]string{`Basic realm="x"; Negotiate`, "Negotiate"}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}, negotiate}},
		"empty":                     {[]string{"", " \t,"}, nil},
		"no field":                  {nil, nil},
	} {
		if got := ParseChallenges(c.in); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q\n got  %+v\n want %+v", name, c.in, got, c.want)
		}
	}
}

// TestManyChallenges: what a hostile server fills a head with is read in one
// go, and a message that lists it stays readable.
func TestManyChallenges(t *testing.T) {
	for what, s := range map[string]string{
		"schemes": "a,", "parameters": "a=b,", "strings": `a="",`, "unclosed": `\",`, "padding": "a==,", "unknown": strings.Repeat("x", 100) + " y,",
	} {
		cs := ParseChallenges([]string{strings.Repeat(s, maxHeaderBytes/len(s)), "Negotiate"})
		if FindChallenge(cs, "negotiate") == nil {
			t.Errorf("%s hide Negotiate", what)
		}
		if got := schemes(cs); len(got) > 500 {
			t.Errorf("%s: a list of %d bytes", what, len(got))
		}
	}
	if got := schemes(ParseChallenges([]string{"a,b,a,C,d,e,f,g,h,i,Negotiate"})); got != "a, b, c, d, e, f, g, h and others" {
		t.Errorf("%q", got)
	}
}

func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{"Negotiate", `Basic realm="a, b", Negotiate YQ==`, `Digest a=b, c="d\"`, ",,=,=", `Basic realm="x, Negotiate`, "Odd YQ== YQ==, \xff", "\tA\t=\tb,"} {
		f.Add(s, "Negotiate")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		both := ParseChallenges([]string{a, b})
		alone := ParseChallenges([]string{b})
		// What one field holds must not change what the next one says.
		if len(both) < len(alone) || !reflect.DeepEqual(both[len(both)-len(alone):], alone) && len(alone) > 0 {
			t.Errorf("%q hides %q: %+v", a, b, both)
		}
		for _, c := range both {
			if c.Scheme == "" || strings.Trim(c.Scheme, "!#$%&'*+-.^_`|~abcdefghijklmnopqrstuvwxyz0123456789") != "" {
				t.Errorf("a challenge of scheme %q in %q, %q", c.Scheme, a, b)
			}
		}
		schemes(both)
	})
}
