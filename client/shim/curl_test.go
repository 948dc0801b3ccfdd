package shim

import (
	"context"
	"strings"
	"testing"

	sessionctlv1 "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// curl keeps only Cookie and Authorization from the hosts that it is led to.
func TestCurlLocation(t *testing.T) {
	socket := socketPath(t)
	l := listen(t, socket)
	var asked []string
	serve(t, l, &agent{get: func(_ context.Context, r *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		asked = append(asked, r.GetUrl())
		s := sessionOf("jazz", "a=CANARY-1")
		s.Session.Url = "https://jazz.corp.example/ccm"
		s.Session.Headers = append(s.Session.Headers, &sessionctlv1.Header{Name: "X-Jazz-CSRF-Prevent", Value: []byte("CANARY-1"), Secret: true})
		return s, nil
	}})
	out, errs, status := run("", "curl", "--socket", socket, "jazz", "-sL", "x")
	if status != exitOwn || out != "" || !strings.Contains(errs, "X-Jazz-CSRF-Prevent header") || strings.Contains(errs, "CANARY") {
		t.Errorf("%d %q %q", status, out, errs)
	}
	if len(asked) != 2 || asked[0] != "" || asked[1] != "https://jazz.corp.example/ccm/x" {
		t.Errorf("asked for %q", asked)
	}
}

func TestBelow(t *testing.T) {
	const site = "https://Jira.corp.example:8443/jira"
	for target, want := range map[string]string{
		"":                site + "/",
		"/":               site + "/",
		"a/b?c=d#e":       site + "/a/b?c=d",
		"//evil/x":        site + "/evil/x",
		"?u=http://evil/": site + "/?u=http://evil/",
		"https://jira.CORP.example:8443/other?x#y": "https://Jira.corp.example:8443/other?x",
		"HTTPS://jira.corp.example:8443":           "https://Jira.corp.example:8443/",
		"https://jira.corp.example:8443@evil/":     "",
		"https://jira.corp.example:8443.evil/":     "",
		"https://jira.corp.example/":               "",
		"http://jira.corp.example:8443/":           "",
		"https://evil\\@jira.corp.example:8443/":   "",
		"file:///etc/passwd":                       "",
		"a b":                                      "",
		"a\r\nb":                                   "",
	} {
		got, err := below(site, target)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", target, got, err)
		}
	}
	if got, err := below("https://a/", "https://a:443/x"); got != "https://a/x" || err != nil {
		t.Errorf("the default port: %q %v", got, err)
	}
}

// Whatever is asked for, scheme, host and port are the site's.
func FuzzBelow(f *testing.F) {
	f.Add("a/b")
	f.Add("https://a.example/x")
	f.Add("//b/")
	f.Add("https://a.example:443@b/")
	f.Fuzz(func(t *testing.T, target string) {
		for _, site := range []string{"https://a.example", "https://a.example/p/"} {
			if got, err := below(site, target); err == nil && (!strings.HasPrefix(got, "https://a.example/") || strings.ContainsAny(got, " \r\n\x00\\")) {
				t.Errorf("%q: %q", target, got)
			}
		}
	})
}

// What is passed on is in the lists, or the value of what is.
func FuzzReadCurl(f *testing.F) {
	f.Add("-sS\x00-d\x00x\x00path")
	f.Add("-sSd@x\x00--\x00path")
	f.Add("--location-trusted\x00path")
	f.Fuzz(func(t *testing.T, text string) {
		line, err := readCurl(strings.Split(text, "\x00"))
		if err != nil {
			if strings.Contains(err.Error(), "=") {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		for i := 0; i < len(line.options); i++ {
			arg := line.options[i]
			wants := false
			switch {
			case strings.HasPrefix(arg, "--"):
				if wants = strings.Contains(curlValues, " "+arg+" "); !wants && !strings.Contains(curlSwitches, " "+arg+" ") {
					t.Fatalf("%q: %q", text, arg)
				}
			default:
				letters := strings.TrimPrefix(arg, "-")
				for j := range len(letters) {
					if strings.Contains(curlValues, " -"+letters[j:j+1]+" ") {
						wants = j == len(letters)-1
						break
					}
					if !strings.Contains(curlSwitches, " -"+letters[j:j+1]+" ") {
						t.Fatalf("%q: %q", text, arg)
					}
				}
			}
			if wants {
				i++
			}
		}
	})
}
