package shim

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

func verbNamed(name string) *verb {
	return &verbs[slices.IndexFunc(verbs, func(v verb) bool { return v.name == name })]
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args string
		want options
	}{
		{"raw jira", options{operand: "jira"}},
		{"raw -- jira", options{operand: "jira"}},
		{"raw --cached jira --min-validity 5", options{operand: "jira", cached: true, minValidity: 5 * time.Second}},
		{"raw https://jira.corp.example/x?y=(1) --timeout=500ms", options{operand: "https://jira.corp.example/x?y=(1)", timeout: 500 * time.Millisecond, common: []string{"--timeout", "500ms"}}},
		{"header HTTP://[::1]:8080 --socket s --socket=-x", options{operand: "HTTP://[::1]:8080", socket: "-x", common: []string{"--socket", "s", "--socket", "-x"}}},
		{"cookie jira-2 --var Cookie_1 --shell fish --inline", options{operand: "jira-2", variable: "Cookie_1", shell: "fish", inline: true}},
		{"cookie --shell --inline jira", options{operand: "jira", shell: "--inline"}},
		{"header jira --min-validity 1m", options{operand: "jira", minValidity: time.Minute}},
		{"credential get", options{operand: "get"}},
	} {
		words := strings.Fields(c.args)
		var o options
		if err := verbNamed(words[0]).parse(words[1:], &o); err != nil {
			t.Errorf("%s: %v", c.args, err)
		}
		if !reflect.DeepEqual(o, c.want) {
			t.Errorf("%s: %+v", c.args, o)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, args := range []string{
		"raw", "raw a b", "raw ../etc", "raw -- --cached", "raw jira --cached=yes", "raw jira --nope", "raw jira -x", "raw jira --socket",
		"raw jira --socket=", "raw jira --timeout 0", "raw jira --timeout -1s", "raw jira --timeout 25h", "raw jira --timeout 1e3", "raw jira --timeout=",
		"raw jira --inline", "raw ftp://a/", "raw https://", "raw https:///x", "raw https://:/", "raw https://u:CANARY-p@a/", "raw http://a/\x01", "raw http://a/é", "raw JSESSIONID=CANARY-x",
		"cookie https://a/", "cookie jira --var 1x", "cookie jira --var a-b", "cookie jira --var=", "cookie jira --var _",
		"cookie jira --var PATH", "cookie jira --var path", "cookie jira --var IFS", "cookie jira --var BASH_ENV", "cookie jira --var ENV", "cookie jira --var PS1",
		"cookie jira --var PROMPT_COMMAND", "cookie jira --var LD_PRELOAD",
		"header", "header jira --cached", "credential", "credential get x",
	} {
		words := strings.Fields(args)
		err := verbNamed(words[0]).parse(words[1:], new(options))
		if api.CodeOf(err) != api.InvalidRequest || api.AsError(err).Remedy == "" || strings.Contains(err.Error()+api.AsError(err).Remedy, "CANARY-") {
			t.Errorf("%q: %v", args, err)
		}
	}
	for args, want := range map[string]string{
		"raw":                       "exactly one SITE|URL is needed",
		"exec jira sh":              "-- and COMMAND… are missing",
		"exec jira --":              "COMMAND… is missing",
		"raw a b":                   "exactly one SITE|URL is needed",
		"raw CANARY=x":              "that is neither a site's name (letters, digits, . _ -, at most 63) nor an http(s) URL without a user",
		"cookie https://a/":         "that is not a site's name (letters, digits, . _ -, at most 63)",
		"raw a --cache":             "unknown flag --cache",
		"raw a --cookie=CANARY-1":   "unknown flag --cookie",
		"raw a --CANARY-1":          "unknown flag",
		"raw a -x":                  "unknown flag",
		"raw a --timeout CANARY-1":  "--timeout needs a duration like 500ms, 5s or 2m, of at most 24h",
		"raw a --cached=CANARY-yes": "--cached takes no value",
	} {
		words := strings.Fields(args)
		if err := api.AsError(verbNamed(words[0]).parse(words[1:], new(options))); err.Detail != want {
			t.Errorf("%q: %q, want %q", args, err.Detail, want)
		}
	}
	// Wherever a mistake leads to, all verbs are one step away.
	for _, v := range Verbs() {
		if !strings.Contains(Usage(v.Name), "sessionctl help\n") {
			t.Errorf("the help of %s does not name that of all verbs", v.Name)
		}
	}
	if err := verbNamed("raw").parse([]string{"a", "-h"}, new(options)); !errors.Is(err, errHelp) {
		t.Errorf("-h: %v", err)
	}
}

func FuzzGrammar(f *testing.F) {
	f.Add("raw\x00jira\x00--cached\x00--timeout=5s")
	f.Add("--socket\x00x\x00cookie\x00a\x00--var\x00X\x00--\x00b")
	f.Add("credential\x00get\x00--help")
	f.Fuzz(func(t *testing.T, line string) {
		var o options
		name, rest, err := leading(strings.Split(line, "\x00"), &o)
		i := slices.IndexFunc(verbs, func(v verb) bool { return v.name == name })
		if err != nil || i < 0 {
			return
		}
		if err := verbs[i].parse(rest, &o); err != nil {
			return
		}
		if verbs[i].check(o.operand) != nil || o.timeout < 0 || o.timeout > maxDuration || o.minValidity < 0 || len(o.common)%2 != 0 {
			t.Errorf("%q: %+v", line, o)
		}
	})
}
