package e2e

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// git has a suite for helpers that it does not know, t0303-credential-external.sh. It
// "assumes that your helper is capable of both storing and retrieving credentials
// (some helpers may be read-only, and they will fail these tests)". Ours is of those:
// what a caller says is no session. So the suite is run as it is, and a table here says
// how each of its cases ends and why; those that only want what was stored to come
// back are run again with an agent that has been given just that by a login.

// helperSite is a site of the hosts that git's suites talk about, which a proxy leads
// to this machine.
type helperSite struct{ url, user, secret string }

// newHelperUser is somebody with those sites, each proven.
func newHelperUser(t *testing.T, kind string, sites ...helperSite) *gitUser {
	t.Helper()
	users := make(map[string]helperSite)
	var hosts []string
	for _, s := range sites {
		host, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(s.url, "https://"), "http://"), "/")
		users[host] = s
		hosts = append(hosts, host)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := users[r.Host]
		user, password, _ := r.BasicAuth()
		if s.user != user || s.secret != password {
			if kind == "basic" || r.Header.Get("Authorization") != "Bearer "+s.secret {
				w.Header().Set("WWW-Authenticate", `Basic realm="suite"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
		fmt.Fprintf(w, `{"user":%q}`, s.user)
	})
	config, caFile := certified(t, hosts...)
	secure, plain := httptest.NewUnstartedServer(handler), httptest.NewServer(handler)
	secure.TLS, secure.Config.ErrorLog = config, log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	t.Cleanup(plain.Close)
	proxy, err := rig.StartProxy(rig.ProxyOptions{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		to := plain.Listener
		if strings.HasSuffix(address, ":443") {
			to = secure.Listener
		}
		return new(net.Dialer).DialContext(ctx, network, to.Addr().String())
	}})
	must(t, err)
	t.Cleanup(proxy.Close)
	text := []string{fmt.Sprintf("[proxy.suite]\nurl = %q", proxy.URL())}
	for i, s := range sites {
		text = append(text, fmt.Sprintf("[credential.c%d]\nusername = %q\n[site.s%[1]d]\nurl = %[3]q\nkind = %[4]q\ncredential = \"c%[1]d\"\nproxy = \"suite\"\nprobe_url = \"me\"\nidentity_json = \"user\"\ninsecure_http = %[5]t",
			i, s.user, s.url, kind, strings.HasPrefix(s.url, "http://")))
	}
	u := newGitUser(t, newGit+"bin-wrappers/git", caFile, text...)
	u.start(t)
	for i, s := range sites {
		if r := u.bring(t, fmt.Sprintf("s%d", i), s.secret); r.status != 0 {
			t.Fatalf("%s: %v", s.url, r)
		}
	}
	return u
}

// gitCase is how a case of a suite of git's has ended.
type gitCase struct {
	name string
	ok   bool
	diff []string // the lines of output that are too many, or missing
}

// suite runs one of git's test scripts with our helper; only: the cases to run, all
// if it is empty.
func (u *gitUser) suite(t *testing.T, script, only string) []gitCase {
	t.Helper()
	dir := t.TempDir()
	args := []string{script, "--verbose", "--no-color", "--root=" + dir}
	if only != "" {
		args = append(args, "--run="+only)
	}
	cmd := exec.CommandContext(t.Context(), "sh", args...)
	cmd.Dir = newGit + "t"
	cmd.Env = append(slices.DeleteFunc(slices.Clone(u.env), func(v string) bool { return strings.HasPrefix(v, "GIT_TRACE=") }),
		"GIT_TEST_CREDENTIAL_HELPER=sessionctl", "GIT_TEST_CREDENTIAL_HELPER_TIMEOUT=sessionctl --timeout=1s", "TEST_OUTPUT_DIRECTORY="+dir)
	r := finish(t, cmd, "")
	head := regexp.MustCompile(`^(ok|not ok) \d+ - helper \([^)]*\) (.*?)( # skip .*)?$`)
	var found []gitCase
	var diff []string
	for line := range strings.Lines(r.stdout) {
		line = strings.TrimSuffix(line, "\n")
		switch m := head.FindStringSubmatch(line); {
		case m != nil && m[3] == "":
			found = append(found, gitCase{m[2], m[1] == "ok", diff})
			diff = nil
		case strings.HasPrefix(line, "expecting success of"), m != nil:
			diff = nil
		case len(line) > 1 && (line[0] == '+' || line[0] == '-') && !strings.HasPrefix(line, "+++ ") && !strings.HasPrefix(line, "--- "):
			diff = append(diff, line)
		}
	}
	if len(found) == 0 || !strings.Contains(r.stdout, "\n1..") {
		t.Fatalf("%s: %v", script, r)
	}
	return found
}

// Why a case of t0303 cannot pass with a helper that stores nothing. The first are
// passed as soon as the agent has by a login what the case has stored.
const (
	byLogin    = "wants back what it has stored"
	lastStored = "wants what was stored last, and that an erase is believed"
	twoUsers   = "wants two users' passwords, both stored: a caller of ours has one user at a site"
	nobody     = "wants an empty name and password back, which log in nowhere"
	expiry     = "wants back the end that it has stored; no end is known of a password"
	oauth      = "wants back a refresh token that it has stored; we have none"
)

// t0303 are the cases of the suite; "": it passes.
var t0303 = []struct{ name, why string }{
	{"has no existing data", ""},
	{"stores password", ""},
	{"can retrieve password", byLogin},
	{"requires matching protocol", ""},
	{"requires matching host", ""},
	{"requires matching username", ""},
	{"requires matching path", ""},
	{"overwrites on store", lastStored},
	{"can forget host", ""},
	{"can store multiple users", twoUsers},
	{"does not erase a password distinct from input", byLogin},
	{"can forget user", ""},
	{"remembers other user", byLogin},
	{"can store empty username", nobody},
	{"erases all matching credentials", ""},
	{"not confused by long header", ""},
	{"stores password_expiry_utc", ""},
	{"gets password_expiry_utc", expiry},
	{"overwrites when password_expiry_utc changes", expiry},
	{"stores oauth_refresh_token", ""},
	{"gets oauth_refresh_token", oauth},
	{"times out", ""},
}

func TestGitSuite(t *testing.T) {
	gits(t)
	passed := make(map[string]bool)
	t.Run("no such site", func(t *testing.T) {
		u := newHelperUser(t, "basic")
		got := u.suite(t, "./t0303-credential-external.sh", "")
		if len(got) != len(t0303) {
			t.Fatalf("%d cases: %v", len(got), got)
		}
		for i, c := range got {
			want := t0303[i]
			if c.name != want.name || c.ok != (want.why == "") {
				t.Errorf("case %d: %v %s, want %v %s: %s", i+1, c.ok, c.name, want.why == "", want.name, want.why)
			}
			passed[c.name] = c.ok
		}
	})
	// With what a login has given, and not a caller.
	for _, part := range []struct {
		cases string
		ok    []string
		sites []helperSite
	}{
		{"2-7,16", []string{"stores password", "can retrieve password", "requires matching protocol", "requires matching host", "requires matching username", "requires matching path", "not confused by long header"},
			[]helperSite{{"https://example.com/", "store-user", "store-pass"}, {"https://victim.example.com/", "user", "to-be-stolen"}, {"http://path.tld/foo.git", "user", "pass"}}},
		{"11", []string{"does not erase a password distinct from input"}, []helperSite{{"https://example.com/", "user-distinct-pass", "pass1"}}},
		{"13", []string{"remembers other user"}, []helperSite{{"https://example.com/", "user2", "pass2"}}},
	} {
		t.Run(part.cases, func(t *testing.T) {
			u := newHelperUser(t, "basic", part.sites...)
			got := u.suite(t, "./t0303-credential-external.sh", part.cases)
			if len(got) != len(part.ok) {
				t.Errorf("%d cases: %v", len(got), got)
			}
			for i, c := range got {
				if !c.ok || i >= len(part.ok) || c.name != part.ok[i] {
					t.Errorf("%v", c)
				}
				passed[c.name] = passed[c.name] || c.ok
			}
			// No case that ends well has removed anything.
			for i, s := range part.sites {
				if got := u.ok(t, "header", fmt.Sprintf("s%d", i)); !strings.HasPrefix(got, "Authorization: Basic ") {
					t.Errorf("%s: %q", s.url, got)
				}
			}
		})
	}
	n, all := 0, 0
	for _, c := range t0303 {
		if c.why == "" {
			n++
		}
		if passed[c.name] {
			all++
		}
		if (c.why == "" || c.why == byLogin) && !passed[c.name] {
			t.Errorf("%s has not passed", c.name)
		}
	}
	t.Logf("git's t0303: %d of %d cases pass with a helper that stores nothing, %d with what a login gives", n, len(t0303), all)
}

// authtypeScript runs the part of git's library that its t0303 leaves out.
const authtypeScript = `test_description='authtype'
. ./test-lib.sh
. "$TEST_DIRECTORY"/lib-credential.sh
helper_test_authtype "$GIT_TEST_CREDENTIAL_HELPER"
test_done
`

// TestGitSuiteAuthtype: of the cases of authtype, those that want a credential back
// get it, with a line more: other helpers are not to keep it.
func TestGitSuiteAuthtype(t *testing.T) {
	gits(t)
	script := filepath.Join(t.TempDir(), "t9999-authtype.sh")
	write(t, script, authtypeScript)
	const gets, getsAs = "gets authtype and credential", "gets authtype and credential with username"
	for _, part := range []struct {
		cases        string
		user, secret string
		but          string // the case with a line more
	}{
		{"1,2,5-7", "build", "random-token", gets},
		{"1,3-7", "foobar", "other-token", getsAs},
	} {
		u := newHelperUser(t, "token", helperSite{"https://git.example.com/", part.user, part.secret})
		got := u.suite(t, script, part.cases)
		if len(got) < 5 {
			t.Errorf("%v", got)
		}
		for _, c := range got {
			if c.ok == (c.name == part.but) || !c.ok && !slices.Equal(c.diff, []string{"+ephemeral=1"}) {
				t.Errorf("%s: %v, output %q", c.name, c.ok, c.diff)
			}
		}
	}
}

// The requests of TestGitInjection that have an answer.
const injectedHost = "example.com"

// TestGitInjection: requests made so that the helper takes another host for ours, or
// prints a line that it was told to, given to the program itself, and to git. No answer
// is ever for them.
func TestGitInjection(t *testing.T) {
	gits(t)
	const secret = "CANARY-injected"
	u := newHelperUser(t, "basic", helperSite{"https://" + injectedHost + "/", "alice", secret})
	helper := filepath.Join(u.dir, "bin", "git-credential-sessionctl")
	const answer = "username=alice\npassword=" + secret + "\n"
	if r := u.call(t, "protocol=https\nhost="+injectedHost+"\n\n", helper, "get"); !strings.HasPrefix(r.stdout, answer) || strings.Count(r.stdout, "\n") != 4 || r.status != 0 {
		t.Fatalf("it does not answer at all: %v", r)
	}
	long := strings.Repeat("a", 65535)
	for name, request := range map[string]string{
		"CR in the host":              "protocol=https\nhost=evil.example\r" + injectedHost,
		"CR after the host":           "protocol=https\nhost=" + injectedHost + "\r",
		"CR LF lines":                 "protocol=https\r\nhost=" + injectedHost + "\r\n",
		"CR in the protocol":          "protocol=https\r\nhost=" + injectedHost,
		"CR in the path":              "protocol=https\nhost=" + injectedHost + "\npath=x\rhost=evil.example",
		"LF: the later host counts":   "protocol=https\nhost=" + injectedHost + "\nhost=evil.example",
		"LF: a URL after the host":    "protocol=https\nhost=" + injectedHost + "\nurl=https://evil.example/",
		"LF by way of an empty line":  "protocol=https\n\nhost=" + injectedHost,
		"NUL in the host":             "protocol=https\nhost=" + injectedHost + "\x00.evil.example",
		"NUL before it":               "protocol=https\nhost=evil.example\x00" + injectedHost,
		"NUL elsewhere":               "protocol=https\nhost=" + injectedHost + "\nusername=a\x00lice",
		"escape sequence":             "protocol=https\nhost=" + injectedHost + "\nusername=\x1b[2J",
		"%0a in the host":             "protocol=https\nhost=evil.example%0ahost=" + injectedHost,
		"%0a after the host":          "protocol=https\nhost=" + injectedHost + "%0ahost=evil.example",
		"%00 after the host":          "protocol=https\nhost=" + injectedHost + "%00",
		"%2e in the host":             "protocol=https\nhost=example%2ecom",
		"empty host":                  "protocol=https\nhost=",
		"no host":                     "protocol=https\npath=" + injectedHost,
		"cert:":                       "url=cert:///" + injectedHost,
		"the host as a user":          "protocol=https\nhost=" + injectedHost + "@evil.example",
		"a user before the host":      "protocol=https\nhost=evil.example@" + injectedHost,
		"a user in the URL":           "url=https://" + injectedHost + "@evil.example/",
		"backslash":                   "url=https://evil.example\\@" + injectedHost + "/",
		"the host as a path":          "url=https://evil.example/https://" + injectedHost + "/",
		"a path in the host":          "protocol=https\nhost=" + injectedHost + "/x",
		"a query in the host":         "protocol=https\nhost=evil.example?" + injectedHost,
		"a fragment in the host":      "protocol=https\nhost=evil.example#" + injectedHost,
		"a space before the host":     "protocol=https\nhost= " + injectedHost,
		"a space in the key":          "protocol=https\nhost =" + injectedHost,
		"another port":                "protocol=https\nhost=" + injectedHost + ":8443",
		"another scheme":              "protocol=http\nhost=" + injectedHost,
		"a port that is none":         "protocol=https\nhost=" + injectedHost + ":443x",
		"a port too many":             "protocol=https\nhost=" + injectedHost + ":443:443",
		"a port beyond all":           "protocol=https\nhost=" + injectedHost + ":65979", // 443 in 16 bits
		"an upper-case cert:":         "protocol=CERT\nhost=" + injectedHost,
		"two trailing dots":           "protocol=https\nhost=" + injectedHost + "..",
		"a leading dot":               "protocol=https\nhost=." + injectedHost,
		"IPv6 with a name behind":     "protocol=https\nhost=[::1]" + injectedHost,
		"a name in IPv6":              "protocol=https\nhost=[" + injectedHost + "]",
		"a zone in IPv6":              "protocol=https\nhost=[fe80::1%25" + injectedHost + "]",
		"a later empty host":          "protocol=https\nhost=" + injectedHost + "\nhost=",
		"a later protocol":            "protocol=https\nhost=" + injectedHost + "\nprotocol=ssh",
		"a list of hosts":             "protocol=https\nhost[]=" + injectedHost,
		"wwwauth[] that names a host": "protocol=https\nhost=evil.example\nwwwauth[]=Basic realm=\"" + injectedHost + "\"\nwwwauth[]=host=" + injectedHost,
		"sub-domain":                  "protocol=https\nhost=x." + injectedHost,
		"longer name":                 "protocol=https\nhost=" + injectedHost + ".evil.example",
		"Cyrillic e":                  "protocol=https\nhost=\u0435xample.com",
		"ideographic full stop":       "protocol=https\nhost=example\u3002com",
		"full-width letters":          "protocol=https\nhost=\uff45xample.com",
		"soft hyphen":                 "protocol=https\nhost=exam\u00adple.com",
		"not UTF-8":                   "protocol=https\nhost=" + injectedHost + "\xff",
		"long header":                 "protocol=https\nhost=evil.example\nwwwauth[]=Basic realm=" + long + "host=" + injectedHost,
		"long header before the host": "wwwauth[]=" + long + "\nprotocol=https\nhost=" + injectedHost,
		"a header of 1,001 bytes":     "protocol=https\nhost=evil.example\nwwwauth[]=basic realm=" + long[:1001] + "host=" + injectedHost,
		"many headers":                strings.Repeat("wwwauth[]=Basic\n", 2000) + "protocol=https\nhost=" + injectedHost,
		"no equals sign":              "protocol=https\nhost\nhost=" + injectedHost,
		"two users in the URL":        "url=https://alice@evil.example@" + injectedHost + "/",
		"another user":                "protocol=https\nhost=" + injectedHost + "\nusername=bob",
		"a capability as the host":    "capability[]=authtype\nprotocol=https\ncapability[]=host=" + injectedHost,
	} {
		r := u.call(t, request+"\n\n", helper, "get")
		if r.stdout != "" || strings.Contains(r.stderr, "\x1b") || r.status != 0 && r.status != 2 {
			t.Errorf("%s: %v", name, r)
		}
	}
	// By way of git, which decodes the URL, and asks nobody else here.
	u.env = append(u.env, "GIT_ASKPASS=/bin/false")
	for name, git := range gits(t) {
		fill := func(request string) result {
			return u.call(t, request+"\n\n", git, "-c", "credential.helper=", "-c", "credential.helper=sessionctl", "credential", "fill")
		}
		if r := fill("url=https://" + injectedHost + "/x.git"); r.status != 0 || !strings.Contains(r.stdout, answer) {
			t.Fatalf("%s does not ask: %v", name, r)
		}
		for _, url := range []string{
			"https://evil.example%0ahost=" + injectedHost + "/", "https://evil.example%0d%0ahost=" + injectedHost + "/", "https://evil.example%0d" + injectedHost + "/",
			"https://evil.example/%0ahost=" + injectedHost, "https://" + injectedHost + "%0ahost=evil.example/", "https://" + injectedHost + "%0d/", "https://" + injectedHost + "%00.evil.example/",
			"https://%0ahost=" + injectedHost + "@evil.example/", "https://user%0ahost=" + injectedHost + ":x@evil.example/", "https:///x?https://" + injectedHost, "https://" + injectedHost + "@evil.example/",
			"https://evil.example%2f@" + injectedHost + "%2f/", "https://evil.example%40" + injectedHost + "/", "https://bob@" + injectedHost + "/", "http://" + injectedHost + "/", "https://" + injectedHost + ":444/", "cert:///" + injectedHost, injectedHost,
		} {
			if r := fill("url=" + url); r.status == 0 || strings.Contains(r.stdout, "CANARY") {
				t.Errorf("%s, %s: %v", name, url, r)
			}
		}
	}
	// What it refused has changed nothing.
	if _, err := os.Stat(filepath.Join(u.dir, ".git-credentials")); err == nil {
		t.Error("another helper has got something")
	}
	if r := u.call(t, "protocol=https\nhost="+injectedHost+"\n\n", helper, "get"); !strings.HasPrefix(r.stdout, answer) {
		t.Errorf("%v", r)
	}
}
