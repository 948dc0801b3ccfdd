package daemontest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A program that uses sessions can be tested against all that it will meet: a
// realm, sites and an agent, in the test's own process.
func ExampleStartLab() {
	lab, err := daemontest.StartLab(daemontest.LabOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer lab.Close()

	transport := &client.Transport{Site: "jira", Client: &client.Client{Socket: lab.Socket}}
	defer transport.Client.Close()
	defer transport.CloseIdleConnections()
	jira := &http.Client{Transport: transport}
	ask := func() {
		resp, err := jira.Get(lab.Jira.URL() + "/rest/api/2/myself")
		if err != nil {
			fmt.Println(err)
			return
		}
		defer resp.Body.Close()
		var user struct{ Name string }
		err = json.NewDecoder(resp.Body).Decode(&user)
		fmt.Println(user.Name, err)
	}
	ask()
	lab.Jira.DropSessions() // as a restart of the server does
	ask()
	fmt.Println(lab.Jira.Counts().KerberosLogins, "logins")
	// Output:
	// svc-build <nil>
	// svc-build <nil>
	// 2 logins
}

func TestLab(t *testing.T) {
	dir := t.TempDir()
	if len(dir) > 80 {
		t.Fatalf("no socket fits below %s", dir)
	}
	lab, err := daemontest.StartLab(daemontest.LabOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{Socket: lab.Socket}
	defer c.Close()
	sessions, err := c.Sessions()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sessions.Login(t.Context(), &pb.LoginRequest{Site: "tracker", Password: []byte(daemontest.Password)}); err != nil {
		t.Error(err)
	}
	whose := map[string]string{
		"jira": daemontest.Account, "bamboo": daemontest.Account, "app": daemontest.Account + "@" + daemontest.Realm,
		"tracker": daemontest.User, "confluence": daemontest.User, "bitbucket": daemontest.User, "crucible": daemontest.User,
		"wiki": daemontest.User, "board": daemontest.User, "form": daemontest.User,
		"ccm": daemontest.User, "rm": daemontest.User,
	}
	ask := func() {
		t.Helper()
		for site, user := range whose {
			if s, err := c.Session(t.Context(), client.Query{Site: site}); err != nil || s.User != user {
				t.Errorf("%s: %v %v", site, s, err)
			}
		}
	}
	ask()
	// What the agent knows outlives it.
	if err := lab.StopAgent(); err != nil {
		t.Error(err)
	}
	if err := lab.StartAgent(); err != nil {
		t.Error(err)
	}
	ask()
	// One login each, and one for both that rely on Crowd, and for both of Jazz.
	for site, n := range map[string]int{
		"jira": lab.Jira.Counts().KerberosLogins, "bamboo": lab.Bamboo.Counts().KerberosLogins,
		"confluence": lab.Confluence.Counts().Forms, "bitbucket": lab.Bitbucket.Counts().TwoStepLogins, "crucible": lab.Crucible.Counts().Forms,
		"form": lab.Form.Counts().Logins, "crowd": lab.Crowd.Counts().Logins, "jazz": lab.Jazz.Counts().Logins,
	} {
		if n != 1 {
			t.Errorf("%d logins at %s", n, site)
		}
	}
	if n := lab.Board.Counts(); n.Logins+n.Forms != 0 || n.CrowdSessions != 1 || lab.Crowd.Tokens() != 1 {
		t.Errorf("board: %+v, %d tokens", n, lab.Crowd.Tokens())
	}
	if n := lab.Jazz.Counts(); n.Passwords != 1 || n.PasswordsInURL+n.Preemptive != 0 || n.Sessions["ccm"] != 1 || n.Sessions["rm"] != 1 {
		t.Errorf("jazz: %+v", n)
	}
	// When the token dies, both heal by one login.
	lab.Crowd.KillToken(daemontest.User)
	lab.Jazz.DropSessions()
	ask()
	if n := lab.Crowd.Counts(); n.Logins != 2 || lab.Crowd.Tokens() != 1 {
		t.Errorf("crowd: %+v, %d tokens", n, lab.Crowd.Tokens())
	}
	if n := lab.Jazz.Counts(); n.Logins != 2 || n.Passwords != 2 {
		t.Errorf("jazz: %+v", n)
	}
	if err := lab.Close(); err != nil {
		t.Error(err)
	}
	if err := lab.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "sessiond.toml")); err != nil {
		t.Errorf("a directory of the caller's was emptied: %v", err)
	}
	if _, err := daemontest.StartLab(daemontest.LabOptions{Dir: filepath.Join(dir, "missing")}); err == nil {
		t.Error("a lab in a directory that is not there")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Session(ctx, client.Query{Site: "jira"}); err == nil {
		t.Error("an agent is left")
	}
}
