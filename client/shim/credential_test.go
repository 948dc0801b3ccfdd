package shim

import (
	"context"
	"encoding/base64"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	sessionctlv1 "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

func TestCredentialURL(t *testing.T) {
	const bad = "bad"
	for in, want := range map[string]string{
		"protocol=https\nhost=git.corp.example\n":                                                                     "https://git.corp.example/",
		"protocol=https\nhost=git.corp.example:7990\npath=scm/a b%.git\n\nhost=other\n":                               "https://git.corp.example:7990/scm/a%20b%25.git",
		"protocol=https\nhost=git.corp.example\npath=/é?#":                                                            "https://git.corp.example/%C3%A9%3F%23",
		"url=HTTPS://u:CANARY-p@git.corp.example/scm/x%20y?q=1":                                                       "https://git.corp.example/scm/x%20y?q=1",
		"url=https://git.corp.example":                                                                                "https://git.corp.example/",
		"url=https://a.example/x\nhost=b.example":                                                                     "https://b.example/x",
		"protocol=https\nhost=[::1]:8443":                                                                             "https://[::1]:8443/",
		"capability[]=authtype\nprotocol=http\nhost=a\nusername=u\npassword=CANARY-pw\nwwwauth[]=Basic realm=\"x\"\n": "http://a/",
		"protocol=https\nhost=\n":                                                                                     "",
		"protocol=ssh\nhost=a\n":                                                                                      "",
		"protocol=cert\nhost=\npath=k.pem\n":                                                                          "",
		"":                                                                                                            bad,
		"protocol=https\n":                                                                                            bad,
		"host=a\n":                                                                                                    bad,
		"url=nothing":                                                                                                 bad,
		"protocol=https\nhost=a/b\n":                                                                                  bad,
		"protocol=https\nhost=a@b\n":                                                                                  bad,
		"protocol=https\nhost=a?b\n":                                                                                  bad,
		"protocol=https\nhost=a#b\n":                                                                                  bad,
		"protocol=https\nhost=a b\n":                                                                                  bad,
		"url=https://evil.example\\@a.example/":                                                                       bad,
		"url=https://u@evil.example@a.example/":                                                                       bad,
		"protocol=https\nhost=a\\b\n":                                                                                 bad,
		"protocol=https\nhost=:\n":                                                                                    bad,
		"protocol=https\r\nhost=a\n":                                                                                  bad,
		"protocol=https\nhost=a\x00\n":                                                                                bad,
		"protocol=https\nhost=a\tb\n":                                                                                 bad,
		"protocol=https\nhost=a\x7f\n":                                                                                bad,
		"k\x01=v\nprotocol=https\nhost=a\n":                                                                           bad,
		"protocol=https\nhost=a\nno equals\n":                                                                         bad,
		"protocol=https\nhost=a\n=v\n":                                                                                bad,
		strings.Repeat("a=b\n", maxAttributes):                                                                        bad,
		"protocol=https\nhost=a\nk=" + strings.Repeat("v", maxAttribute-2) + "\n":                                     "https://a/",
		"protocol=https\nhost=a\nk=" + strings.Repeat("v", maxAttribute-2):                                            "https://a/",
		"protocol=https\nhost=a\nk=" + strings.Repeat("v", maxAttribute-1) + "\n":                                     bad,
		"protocol=https\nhost=a\nk=" + strings.Repeat("v", maxAttribute-1):                                            bad,
		"protocol=https\nhost=a\nk=" + strings.Repeat("v", 3*maxAttribute):                                            bad,
		"protocol=https\nhost=a\npath=" + strings.Repeat("v", maxURL) + "\n":                                          bad,
	} {
		a, err := readAttributes(strings.NewReader(in))
		got := ""
		if err == nil {
			got, err = a.url()
		}
		if err != nil {
			if got = bad; api.CodeOf(err) != api.InvalidRequest || strings.Contains(err.Error(), "CANARY-") {
				t.Errorf("%.80q: %v", in, err)
			}
		}
		if got != want {
			t.Errorf("%.80q: %q, want %q", in, got, want)
		}
	}
}

func TestCredential(t *testing.T) {
	socket := socketPath(t)
	var refreshed *sessionctlv1.RefreshSessionRequest
	fail := func(code api.Code) error {
		s, err := status.New(codes.Code(code.GRPC()), "seen").WithDetails(&errdetails.ErrorInfo{Reason: code.Reason(), Domain: api.ErrorDomain})
		if err != nil {
			t.Fatal(err)
		}
		return s.Err()
	}
	serve(t, listen(t, socket), &agent{
		get: func(_ context.Context, r *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
			switch r.Url {
			case "https://git.corp.example/scm/x":
				return aSession(), nil
			case "https://latched.corp.example/":
				return nil, fail(api.Latched)
			case "https://injected.corp.example/":
				return sessionOf("x", "a=CANARY-\nhost=evil.example"), nil
			}
			return nil, fail(api.UnknownSite)
		},
		refresh: func(_ context.Context, r *sessionctlv1.RefreshSessionRequest) (*sessionctlv1.RefreshSessionResponse, error) {
			refreshed = r
			switch r.Url {
			case "https://git.corp.example/scm/x":
				return &sessionctlv1.RefreshSessionResponse{Session: aSession().Session}, nil
			case "https://latched.corp.example/":
				return nil, fail(api.Latched)
			}
			return nil, fail(api.UnknownSite)
		},
	})
	t.Setenv(api.SocketVariable, socket)
	const ours, latched, foreign = "protocol=https\nhost=git.corp.example\npath=scm/x\ngeneration=g6\npassword=CANARY-pw\n\n",
		"url=https://latched.corp.example/\n", "url=https://elsewhere.example/\n"
	const warnings = "sessionctl: jira: served stale: the site gave no fresh proof; see sessionctl list\nsessionctl: jira: not durable: the session could not be stored and ends with the agent\n"
	for _, c := range []struct {
		operation, stdin, stdout, stderr string
		exit                             int
	}{
		{"get", ours, "header[]=Cookie: a=CANARY-1\nheader[]=X-Atlassian-Token: no-check\ngeneration=g7\n", warnings, 0},
		{"get", foreign, "", "", 0},
		{"get", latched, "quit=1\n", "sessionctl: credential: seen (latched)\n", api.ExitPerson},
		{"get", "url=https://injected.corp.example/", "", "sessionctl: credential: the Cookie header has a byte that cannot be printed safely (unprintable)\n  next: " + anotherForm + "\n", api.ExitOther},
		{"get", "host=\x1b\n", "", "sessionctl: credential: a credential attribute has a control character (invalid_request)\n  next: " + askHelper + "\n", api.ExitUsage},
		{"store", ours, "", "", 0},
		{"store", "\x00\x01", "", "", 0},
		{"erase", ours, "", "", 0},
		{"erase", foreign, "", "", 0},
		{"erase", latched, "", "sessionctl: credential: seen (latched)\n", api.ExitPerson},
		{"capability", "", "version 0\ncapability authtype\ncapability state\n", "", 0},
		{"an-operation-of-tomorrow", ours, "", "", 0},
	} {
		refreshed = nil
		out, errs, exit := run(c.stdin, "credential", c.operation)
		if out != c.stdout || errs != c.stderr || exit != c.exit {
			t.Errorf("%s %q: %q, %q, %d", c.operation, c.stdin, out, errs, exit)
		}
		if (refreshed != nil) != (c.operation == "erase") {
			t.Errorf("%s reported %v", c.operation, refreshed)
		}
		if c.operation == "erase" && c.stdin == ours && (refreshed.Generation != "g6" || refreshed.Force || refreshed.Site != "") {
			t.Errorf("erase reported %v", refreshed)
		}
	}
	// As git calls it.
	var out, errs strings.Builder
	if exit := Run([]string{"/usr/lib/git-credential-sessionctl", "get"}, strings.NewReader(ours), &out, &errs); exit != 0 || !strings.HasPrefix(out.String(), "header[]=Cookie: a=CANARY-1\n") {
		t.Errorf("%q, %q, %d", out.String(), errs.String(), exit)
	}
}

// TestCredentialAuthorization: sites that take a password or token with each request,
// for a git that can use that in any form, and for one before 2.46.
func TestCredentialAuthorization(t *testing.T) {
	socket := socketPath(t)
	var reported []string
	answer := func(user, name, value string) (*sessionctlv1.GetSessionResponse, error) {
		return &sessionctlv1.GetSessionResponse{Session: &sessionctlv1.Session{Site: "it", User: user, Generation: "g7",
			Headers: []*sessionctlv1.Header{{Name: name, Value: []byte(value), Secret: true}}}}, nil
	}
	basic := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
	serve(t, listen(t, socket), &agent{
		get: func(_ context.Context, r *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
			switch r.Url {
			case "https://basic.example/":
				return answer("Alice A.", "Authorization", basic("alice:CANARY-:pw"))
			case "https://ends.example/":
				s, err := answer("alice", "authorization", basic("alice:CANARY-pw"))
				s.Session.ExpireTime = timestamppb.New(time.Unix(4102444800, 5))
				return s, err
			case "https://token.example/":
				return answer("alice", "Authorization", "Bearer CANARY-token")
			case "https://nobody.example/":
				return answer("", "Authorization", "Bearer CANARY-token")
			case "https://cookie.example/":
				return answer("alice", "Cookie", "a=CANARY-1")
			case "https://line.example/":
				return answer("alice", "Authorization", basic("alice:CANARY-\nhost=evil.example"))
			case "https://user.example/":
				return answer("alice", "Authorization", basic("al\rice:CANARY-"))
			case "https://odd.example/":
				return answer("alice", "Authorization", "CANARY-without-scheme")
			}
			return answer("alice", "Authorization", "Basic CANARY-not-base64")
		},
		refresh: func(_ context.Context, r *sessionctlv1.RefreshSessionRequest) (*sessionctlv1.RefreshSessionResponse, error) {
			reported = append(reported, r.Url+" "+r.Generation)
			return &sessionctlv1.RefreshSessionResponse{Session: aSession().Session}, nil
		},
	})
	t.Setenv(api.SocketVariable, socket)
	const (
		authtype = "capability[]=authtype\n"
		state    = "capability[]=state\n"
		stated   = "state[]=sessionctl:generation=g7\n"
		basicOld = "username=alice\npassword=CANARY-:pw\n"
		token    = "authtype=Bearer\ncredential=CANARY-token\nephemeral=1\n"
		unfit    = "sessionctl: credential: the Authorization header has a byte that cannot be printed safely (unprintable)\n  next: " + anotherForm + "\n"
		early    = "sessionctl: it: git takes no token of the scheme Bearer from a helper before its version 2.46\n"
		jar      = "sessionctl: it: git takes cookies from a file alone, see sessionctl git-setup; if it has one, the session in there is looked at now: try again\n"
	)
	basicNew := "authtype=Basic\ncredential=" + strings.TrimPrefix(basic("alice:CANARY-:pw"), "Basic ") + "\nephemeral=1\n"
	for _, c := range []struct {
		host, more     string // of the request
		stdout, stderr string // as far as git understands it
		reports        bool
	}{
		{"basic", "", basicOld, "", false},
		{"basic", "username=alice\n", basicOld, "", false},
		{"basic", "username=alice a.\n", basicOld, "", false}, // as the site calls him
		{"basic", "username=Alice\n", "", "", false},
		{"basic", "username=bob\n", "", "", false},
		{"basic", state, basicOld, "", false},
		{"basic", authtype, authtype + basicNew, "", false},
		{"basic", authtype + state, authtype + state + basicNew + stated, "", false},
		{"basic", "wwwauth[]=Basic realm=x\n" + state + authtype, authtype + state + basicNew + stated, "", false},
		{"basic", "capability[]=authtypes\ncapability=authtype\n", basicOld, "", false},
		{"ends", "", "username=alice\npassword=CANARY-pw\npassword_expiry_utc=4102444800\n", "", false},
		{"token", authtype + state, authtype + state + token + stated, "", false},
		{"token", authtype + "username=ALICE\n", authtype + token, "", false},
		{"token", authtype + "username=bob\n", "", "", false},
		{"token", "", "", early, true},
		{"nobody", authtype, authtype + token, "", false},
		{"nobody", authtype + "username=alice\n", "", "", false},
		{"cookie", authtype, "", jar, true},
		{"cookie", authtype + "username=bob\n", "", "", false},
		{"line", "", "", unfit, false},
		{"user", "", "", unfit, false},
		{"odd", authtype, "", jar, true},
		{"other", "", "", "sessionctl: it: git takes no token of the scheme Basic from a helper before its version 2.46\n", true},
	} {
		stdin := c.more + "protocol=https\nhost=" + c.host + ".example\n\n"
		reported = nil
		var out, errs strings.Builder
		Run([]string{"git-credential-sessionctl", "get"}, strings.NewReader(stdin), &out, &errs)
		var got strings.Builder
		for line := range strings.Lines(out.String()) {
			if !strings.HasPrefix(line, "header[]=") && line != "generation=g7\n" {
				got.WriteString(line)
			}
		}
		if got.String() != c.stdout || errs.String() != c.stderr || c.reports != (len(reported) == 1 && reported[0] == "https://"+c.host+".example/ g7") {
			t.Errorf("%q: %q, %q, reported %q", stdin, out.String(), errs.String(), reported)
		}
		if other := strings.Contains(stdin, "=bob"); other && out.Len() > 0 {
			t.Errorf("%q is answered with another user's: %q", stdin, out.String())
		}
		if c.reports {
			// Whoever calls it by another name knows header[].
			reported = nil
			if out, errs, exit := run(stdin, "credential", "get"); !strings.HasPrefix(out, "header[]=") || errs != "" || exit != 0 || reported != nil {
				t.Errorf("%q: %q, %q, %d, reported %q", stdin, out, errs, exit, reported)
			}
		}
	}
	// What git 2.46 says at an erase.
	reported = nil
	erase := authtype + state + "authtype=Bearer\ncredential=CANARY-token\nephemeral=1\nprotocol=https\nhost=token.example\nstate[]=other:generation=g1\n" + stated + "\n"
	if out, errs, exit := run(erase, "credential", "erase"); out != "" || errs != "" || exit != 0 || len(reported) != 1 || reported[0] != "https://token.example/ g7" {
		t.Errorf("%q, %q, %d, reported %q", out, errs, exit, reported)
	}
}

// Whoever should write the request never does.
func TestSilentInput(t *testing.T) {
	for _, operation := range []string{"get", "erase", "store"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		if _, err := w.WriteString("protocol=https\nho"); err != nil {
			t.Fatal(err)
		}
		var out, errs strings.Builder
		exit := Run([]string{"sessionctl", "credential", operation, "--timeout", "20ms"}, r, &out, &errs)
		if exit != api.ExitLater || out.String() != "" || !strings.Contains(errs.String(), "standard input did not end in the time allowed (deadline)") {
			t.Errorf("%s: %q, %q, %d", operation, out.String(), errs.String(), exit)
		}
	}
}

// Standard input that is a file descriptor is read to its end.
func TestInput(t *testing.T) {
	text := strings.Repeat("x", 1<<17)
	for name, open := range map[string]func() *os.File{
		"pipe": func() *os.File {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer w.Close()
				io.WriteString(w, text)
			}()
			return r
		},
		"file": func() *os.File {
			name := filepath.Join(t.TempDir(), "in")
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			return f
		},
	} {
		f := open()
		defer f.Close()
		p := &process{stdin: f}
		b, err := io.ReadAll(p.input(&options{deadline: time.Now().Add(time.Minute)}, askHelper))
		if string(b) != text || err != nil {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

func FuzzAttributes(f *testing.F) {
	f.Add("protocol=https\nhost=git.corp.example:7990\npath=scm/a b.git\n\n")
	f.Add("capability[]=authtype\nurl=https://u:p@git.corp.example/x?y#z\n")
	f.Add("protocol=http\nhost=[::1]\npath=%zz")
	f.Add("a=b\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		a, err := readAttributes(strings.NewReader(in))
		if err != nil {
			return
		}
		s, err := a.url()
		if err != nil || s == "" {
			return
		}
		if !validURL(s) {
			t.Fatalf("%q", s)
		}
		// Another reader of the URL sees the same host, if it sees one at all.
		if u, err := url.Parse(s); err == nil && (u.Host != a.host || u.User != nil || u.Scheme != a.protocol) {
			t.Errorf("%q has host %q, not %q", s, u.Host, a.host)
		}
	})
}
