package e2e

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	gojira "github.com/andygrunwald/go-jira"

	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// A Jira library that a program uses is left as it is: it gets the session from
// outside.

// ours returns go-jira on the agent's session.
func ours(t *testing.T, j *jiraWorld, h *home, site string) *gojira.Client {
	transport := &client.Transport{Site: site, Client: &client.Client{Socket: h.socket}}
	t.Cleanup(func() { transport.Client.Close(); transport.CloseIdleConnections() })
	c, err := gojira.NewClient(&http.Client{Transport: transport}, j.Atlassian.URL())
	must(t, err)
	return c
}

// its returns go-jira with its own login.
func its(t *testing.T, j *jiraWorld, password string) *gojira.Client {
	// With connections of its own, which end with it.
	transport := &gojira.CookieAuthTransport{Username: "alice", Password: password, AuthURL: j.Atlassian.URL() + "/rest/auth/1/session", Transport: &http.Transport{DisableKeepAlives: true}}
	c, err := gojira.NewClient(transport.Client(), j.Atlassian.URL())
	must(t, err)
	return c
}

func TestGoJira(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	h.rewrite(t, `recheck       = "0s"`, "") // so that it is the Transport that heals
	h.start(t)
	c := ours(t, j, h, "jira")
	if u, _, err := c.User.GetSelf(); err != nil || u.Name != "build" {
		t.Errorf("%v %v", u, err)
	}
	if i, _, err := c.Issue.Get("LAB-1", nil); err != nil || i.Key != "LAB-1" {
		t.Errorf("%v %v", i, err)
	}
	if found, _, err := c.Issue.Search("project = LAB", nil); err != nil || len(found) < 2 {
		t.Errorf("%d issues: %v", len(found), err)
	}
	// A POST, on a session that has died: made once.
	j.DropSessions()
	made, _, err := c.Issue.Create(&gojira.Issue{Fields: &gojira.IssueFields{
		Project: gojira.Project{Key: "LAB"}, Type: gojira.IssueType{Name: "Bug"}, Summary: "made once",
	}})
	if err != nil || made.Key == "" {
		t.Errorf("%v %v", made, err)
	}
	if n := j.Counts(); n.Created != 1 || n.KerberosLogins != 2 {
		t.Errorf("%+v", n)
	}
}

// python runs a program for Debian's python3-jira, in which HEADERS are those
// of the agent's session.
func (h *home) python(t *testing.T, program string, args ...string) result {
	t.Helper()
	return h.run(t, "", interpreter(t, "jirashell"), append([]string{"-c", `
import subprocess, sys, warnings
warnings.simplefilter("ignore")
import jira
def headers(site):
    lines = subprocess.run(["sessionctl", "header", site], check=True, capture_output=True, text=True).stdout
    return dict(line.split(": ", 1) for line in lines.splitlines())
` + program}, args...)...)
}

func TestPythonJira(t *testing.T) {
	rig.Require(t, "jirashell")
	j := newJira(t)
	h := j.home(t)
	h.start(t)
	r := h.python(t, `
c = jira.JIRA(server=sys.argv[1], options={"headers": headers("jira")})
print(c.myself()["name"], c.issue("LAB-1").key, len(c.search_issues("project = LAB")))
print(c.create_issue(project="LAB", summary="made once", issuetype={"name": "Bug"}).key)
`, j.Atlassian.URL())
	if !strings.HasPrefix(r.stdout, "build LAB-1 3\nLAB-") || r.status != 0 {
		t.Errorf("%v", r)
	}
	if n := j.Counts(); n.Created != 1 || n.KerberosLogins != 1 || n.Logins+n.Basic != 0 {
		t.Errorf("%+v", n)
	}
}

// TestBesideTheirOwnLogin: 8 clients at once with a password that is no longer
// right, by their own logins and by the agent.
func TestBesideTheirOwnLogin(t *testing.T) {
	outdated := func(t *testing.T, login func(j *jiraWorld) func()) rig.AtlassianCounts {
		j := newJira(t)
		client := login(j)
		before := j.Counts()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(client)
		}
		wg.Wait()
		c := j.Counts()
		c.Refused, c.Denied = c.Refused-before.Refused, c.Denied-before.Denied
		return c
	}
	go1 := outdated(t, func(j *jiraWorld) func() {
		return func() {
			if _, _, err := its(t, j, "CANARY-old").User.GetSelf(); err == nil {
				t.Error("the wrong password does not matter")
			}
		}
	})
	agents := outdated(t, func(j *jiraWorld) func() {
		h := j.home(t)
		h.start(t)
		if r := h.givePassword(t, alicePassword); r.status != 0 {
			t.Fatalf("%v", r)
		}
		j.SetPassword("alice", "CANARY-new")
		return func() {
			if _, _, err := ours(t, j, h, "tracker").User.GetSelf(); err == nil {
				t.Error("the wrong password does not matter")
			}
		}
	})
	t.Logf("8 clients, an outdated password: go-jira %d attempts, %d of them denied by CAPTCHA; by the agent %d and %d",
		go1.Refused+go1.Denied, go1.Denied, agents.Refused+agents.Denied, agents.Denied)
	if go1.Refused+go1.Denied != 8 || go1.Denied == 0 {
		t.Errorf("go-jira is better than we say: %+v", go1)
	}
	if agents.Refused != 1 || agents.Denied != 0 {
		t.Errorf("%+v", agents)
	}
	if len(rig.Missing("jirashell")) > 0 {
		return // TestPythonJira says so
	}
	python := outdated(t, func(j *jiraWorld) func() {
		h := j.home(t)
		return func() {
			if r := h.python(t, `jira.JIRA(server=sys.argv[1], auth=("alice", "CANARY-old"), max_retries=0)`, j.Atlassian.URL()); r.status == 0 {
				t.Error("the wrong password does not matter")
			}
		}
	})
	t.Logf("python-jira: %d attempts, %d of them denied by CAPTCHA", python.Refused+python.Denied, python.Denied)
	if python.Refused+python.Denied < 8 || python.Denied == 0 {
		t.Errorf("python-jira is better than we say: %+v", python)
	}
}

// TestLongJob: the server drops the session in the middle of a job.
func TestLongJob(t *testing.T) {
	const requests, drop = 20, 10
	job := func(j *jiraWorld, c *gojira.Client) (failed int) {
		for i := range requests {
			if i == drop {
				j.DropSessions()
			}
			if u, _, err := c.User.GetSelf(); err != nil || u.Name != "alice" {
				failed++
			}
		}
		return failed
	}
	j := newJira(t)
	theirs := job(j, its(t, j, alicePassword))
	theirLogins := j.Counts().Logins

	j = newJira(t)
	h := j.home(t)
	h.rewrite(t, `recheck       = "0s"`, "")
	h.start(t)
	if r := h.givePassword(t, alicePassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	failed := job(j, ours(t, j, h, "tracker"))
	logins := j.Counts().Logins
	t.Logf("%d requests, the session dropped after %d: go-jira fails %d of them with %d login; on the agent's session %d fail, with %d logins",
		requests, drop, theirs, theirLogins, failed, logins)
	if theirs != requests-drop || theirLogins != 1 {
		t.Errorf("go-jira is better than we say: %d failed, %d logins", theirs, theirLogins)
	}
	if failed != 0 || logins != 2 {
		t.Errorf("%d failed, %d logins", failed, logins)
	}
	// A shell script's loop.
	rig.Require(t, "curl")
	script := `
get() { sessionctl header tracker | curl -sSf -o /dev/null -H @- "$0/rest/api/2/myself"; }
i=0
while [ $i -lt 10 ]; do
  get || { sessionctl reject tracker && get; } || exit 1
  i=$((i+1)); echo $i
done`
	j.DropSessions()
	if r := h.run(t, "", "sh", "-c", script, j.Atlassian.URL()); r.status != 0 || !strings.HasSuffix(r.stdout, "\n10\n") {
		t.Errorf("%v", r)
	}
	if n := j.Counts().Logins; n != logins+1 {
		t.Errorf("%d logins for a script", n-logins)
	}
}
