package web

import (
	"net/url"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// Adopt returns a jar with the cookies of a Cookie header, as a browser shows
// it: "name=value; name=value", with or without "Cookie:" in front. Where they
// came from nobody can tell, so they go to base's host alone, at and below its
// path. Errors are *api.Error of code api.InvalidRequest.
func Adopt(base *url.URL, header []byte, now time.Time) (*Jar, error) {
	wrong := func(what string) (*Jar, error) {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "the cookie " + what,
			Remedy: "give the value of a Cookie header, as in: NAME=VALUE; NAME=VALUE"}
	}
	s := strings.Trim(string(header), " \t\r\n") // other white space is part of a value
	if name, rest, ok := strings.Cut(s, ":"); ok && lower(name) == "cookie" {
		s = rest
	}
	// A cookie without a Path is for the directory it came from (RFC 6265bis,
	// section 5.1.4). As an attribute the path could bring others: it may hold ";".
	from, err := Resolve(base, ".")
	if err != nil {
		panic(err) // "." is a reference
	}
	attributes := "; HttpOnly"
	if base.Scheme == secureScheme {
		attributes += "; Secure"
	}
	j := new(Jar)
	for pair := range strings.SplitSeq(s, ";") {
		pair = trimWSP(pair)
		if name, _, ok := strings.Cut(pair, "="); !ok || name == "" {
			return wrong("is not a list of NAME=VALUE")
		}
		if strings.ContainsFunc(pair, isControl) {
			return wrong("holds a control character")
		}
		line := pair + attributes
		if strings.HasPrefix(lower(pair), hostPrefix) {
			line += "; Path=/" // as the prefix promises
		}
		before := j.Len()
		j.Set(from, []string{line}, now)
		if j.Len() != before+1 {
			return wrong("has a name twice, one that no server could have set here, or too many cookies")
		}
	}
	return j, nil
}
