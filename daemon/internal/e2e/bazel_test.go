package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const bazelPage = "docs/bazel.md"

// bazelHelper is the page's helper, at a name that PATH finds.
func (h *home) bazelHelper(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bazel-sessionctl")
	must(t, os.WriteFile(path, []byte(sectionBlock(t, bazelPage, "Three lines", "sh")), 0o700))
	return path
}

// TestBazelHelper: the helper as Bazel calls it, with its one argument and a request
// on standard input: cold, warm, expired, refused, for another host, without an agent.
func TestBazelHelper(t *testing.T) {
	m := newModules(t)
	helper := m.bazelHelper(t)
	get := func(uri string) result {
		t.Helper()
		b, err := json.Marshal(map[string]any{"uri": uri, "more": true})
		must(t, err)
		return m.run(t, string(b), helper, "get")
	}
	// headers are those of an answer that is all that the specification allows.
	headers := func(state string, r result) http.Header {
		t.Helper()
		var answer struct {
			Headers http.Header `json:"headers"`
			Expires time.Time   `json:"expires"`
		}
		d := json.NewDecoder(strings.NewReader(r.stdout))
		d.DisallowUnknownFields()
		if err := d.Decode(&answer); err != nil || r.status != 0 || r.stderr != "" {
			t.Fatalf("%s: %v: %v", state, err, r)
		}
		if left := time.Until(answer.Expires); left <= 0 || left > 5*time.Minute {
			t.Errorf("it counts for %v", left)
		}
		return answer.Headers
	}
	app := m.url + "/app/"
	wantFailure(t, get(app), 3, "no_agent")
	m.start(t)
	cold := headers("cold", get(app))
	if warm := headers("warm", get(strings.Replace(app, "https", "grpcs", 1)+"Service/Method")); warm.Get("Cookie") != cold.Get("Cookie") || m.Counts().Logins != 1 {
		t.Errorf("%v, then %v, %+v", cold, warm, m.Counts())
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.Form.URL()+"/app/whoami", nil)
	must(t, err)
	req.Header = cold
	if !m.knows(req) {
		t.Error("the site does not know the session")
	}
	for uri, code := range map[string]string{"https://elsewhere.example/": "unknown_site", strings.Replace(app, "https", "http", 1): "unknown_site", m.url + ".evil.example/app/": "invalid_request"} {
		if r := get(uri); r.status == 0 || r.stdout != "" || !strings.Contains(r.stderr, "("+code+")") && !strings.Contains(r.stderr, "(unknown_site)") {
			t.Errorf("%s: %v", uri, r)
		}
	}
	// Expired: whoever asks after the time in the answer gets another.
	m.DropSessions()
	m.ok(t, "reject", "mods")
	if anew := headers("expired", get(app)); anew.Get("Cookie") == cold.Get("Cookie") || m.Counts().Logins != 2 {
		t.Errorf("%v, %+v", anew, m.Counts())
	}
	// The password is refused from now on: one attempt.
	m.DropSessions()
	m.AddUser("anna", "CANARY-another")
	m.sessionctl(t, "reject", "mods")
	wantFailure(t, get(app), 5, "latched")
	if m.Counts().Failures != 1 {
		t.Errorf("refused: %+v", m.Counts())
	}
}

// TestBazelPage: what the page shows by hand.
func TestBazelPage(t *testing.T) {
	m := newModules(t)
	m.start(t)
	helper := m.bazelHelper(t)
	shown := append(shownIn(t, bazelPage, "Three lines"), shownIn(t, bazelPage, "Expiry and refusal")...)
	if len(shown) != 2 {
		t.Fatalf("%d commands", len(shown))
	}
	for _, s := range shown {
		command := strings.NewReplacer("https://cache.corp.example", m.url, "bazel-sessionctl", helper).Replace(s.command)
		r := m.run(t, "", "sh", "-c", command)
		got := regexp.MustCompile(`CANARY-\w+`).ReplaceAllString(r.stderr+r.stdout, "…")
		got = regexp.MustCompile(`"expires":"[^"]+"`).ReplaceAllString(got, `"expires":"2026-11-22T20:05:00Z"`)
		if got != strings.TrimLeft(s.output, "\n") {
			t.Errorf("%s says:\n%s\nthe page has:\n%s", s.command, got, s.output)
		}
	}
}
