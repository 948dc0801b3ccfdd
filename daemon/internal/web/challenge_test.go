package web

import (
	"reflect"
	"testing"
)

func TestParseChallenges(t *testing.T) {
	type P = map[string]string
	for name, c := range map[string]struct {
		in   []string
		want []Challenge
	}{
		"plain":           {[]string{"Negotiate"}, []Challenge{{Scheme: "negotiate"}}},
		"any case":        {[]string{"nEGOTIATE"}, []Challenge{{Scheme: "negotiate"}}},
		"two fields":      {[]string{`Basic realm="x"`, "Negotiate"}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}, {Scheme: "negotiate"}}},
		"one list":        {[]string{`Negotiate, Basic realm="x"`}, []Challenge{{Scheme: "negotiate"}, {Scheme: "basic", Params: P{"realm": "x"}}}},
		"comma in quotes": {[]string{`Basic realm="a, Negotiate b", Negotiate`}, []Challenge{{Scheme: "basic", Params: P{"realm": "a, Negotiate b"}}, {Scheme: "negotiate"}}},
		"with realm":      {[]string{`Negotiate realm="x"`}, []Challenge{{Scheme: "negotiate", Params: P{"realm": "x"}}}},
		"token":           {[]string{"Negotiate oQcwBaADCgEC"}, []Challenge{{Scheme: "negotiate", Token: "oQcwBaADCgEC"}}},
		"padded token":    {[]string{"Negotiate YWI=, Basic realm=x"}, []Challenge{{Scheme: "negotiate", Token: "YWI="}, {Scheme: "basic", Params: P{"realm": "x"}}}},
		"twice padded":    {[]string{"Negotiate YQ=="}, []Challenge{{Scheme: "negotiate", Token: "YQ=="}}},
		"params in list":  {[]string{`Digest realm="r", nonce=abc , qop="auth,auth-int", NTLM`}, []Challenge{{Scheme: "digest", Params: P{"realm": "r", "nonce": "abc", "qop": "auth,auth-int"}}, {Scheme: "ntlm"}}},
		"escaped quote":   {[]string{`Basic realm="a\"b, c", Negotiate`}, []Challenge{{Scheme: "basic", Params: P{"realm": `a"b, c`}}, {Scheme: "negotiate"}}},
		"blanks":          {[]string{` , Negotiate ,, `}, []Challenge{{Scheme: "negotiate"}}},
		"equals spaced":   {[]string{`Basic realm = "x" , Negotiate`}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}, {Scheme: "negotiate"}}},
		"junk first":      {[]string{`"what", Negotiate`}, []Challenge{{Scheme: "negotiate"}}},
		"unclosed":        {[]string{`Basic realm="x`, "Negotiate"}, []Challenge{{Scheme: "basic", Params: P{"realm": "x"}}, {Scheme: "negotiate"}}},
		"empty":           {[]string{""}, nil},
	} {
		if got := ParseChallenges(c.in); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q\n got  %+v\n want %+v", name, c.in, got, c.want)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{"Negotiate", `Basic realm="a, b", Negotiate YQ==`, `Digest a=b, c="d\"`, ",,=,="} {
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
			if c.Scheme == "" {
				t.Errorf("a challenge without scheme in %q, %q", a, b)
			}
		}
	})
}
