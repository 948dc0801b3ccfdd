package krb

import (
	"reflect"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
)

func TestParsePrincipal(t *testing.T) {
	for in, want := range map[string]Principal{
		"svc":                  {[]string{"svc"}, "DEF"},
		"svc@R":                {[]string{"svc"}, "R"},
		"HTTP/host.example@R":  {[]string{"HTTP", "host.example"}, "R"},
		"a/b/c":                {[]string{"a", "b", "c"}, "DEF"},
		`a\/b\@c@R\@S`:         {[]string{"a/b@c"}, "R@S"},
		`a\\b\n\t\b\0\x`:       {[]string{"a\\b\n\t\b\x00x"}, "DEF"},
		"Jürgen@CORP.EXAMPLE":  {[]string{"Jürgen"}, "CORP.EXAMPLE"},
		"host/a b@WITH SPACES": {[]string{"host", "a b"}, "WITH SPACES"},
	} {
		got, err := ParsePrincipal(in, "DEF")
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "@R", "svc@", "a//b", "/a", "a/", `a\`, "a@b@c", "a@b/c"} {
		if got, err := ParsePrincipal(in, "DEF"); api.CodeOf(err) != api.ConfigInvalid {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	if _, err := ParsePrincipal("svc@", "DEF"); err == nil || !strings.Contains(err.Error(), "no realm after its @") {
		t.Errorf("an empty realm: %v", err)
	}
	if got, err := ParsePrincipal("svc", ""); api.CodeOf(err) != api.ConfigInvalid {
		t.Errorf("no realm: %q, %v", got, err)
	}
}

func FuzzParsePrincipal(f *testing.F) {
	for _, s := range []string{"svc@R", `a\/b\@c\\@R`, "a\n\t\b\x00/b@R", `\0\n@\t`, "@", "\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePrincipal(s, "DEF")
		if err != nil {
			return
		}
		again, err := ParsePrincipal(p.String(), "")
		if err != nil || !p.equal(again) {
			t.Errorf("%q: %q reads back as %q, %v", s, p, again, err)
		}
	})
}
