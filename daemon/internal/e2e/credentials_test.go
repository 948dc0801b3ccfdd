package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const systemdPage = "docs/systemd.md"

// systemAgent are the units of an agent of the system, with the unit of the socket
// that is tried beside it.
var systemAgent = map[string]string{
	"sessiond.socket": `[Socket]
ListenStream=/run/sessionctl/agent.sock
SocketUser=sessionctl
SocketGroup=sessionctl-clients
SocketMode=0660
DirectoryMode=0755
FileDescriptorName=agent
`,
	"sessiond.service": `[Unit]
Requires=sessiond.socket
After=sessiond.socket
[Service]
Type=notify
User=sessionctl
StateDirectory=sessionctl
# the directory is root's, so that clients trust the socket
ExecStartPre=+/usr/bin/install -m 0600 -o sessionctl /dev/null /run/sessionctl/agent.sock.lock
ExecStart=/usr/bin/sessiond --config /etc/sessionctl/sessiond.toml --store /var/lib/sessionctl/store.db
Restart=on-failure
RestartPreventExitStatus=5
`,
}

const agentUser = 4141

// systemService is a machine with an agent of the system, whose socket for credentials is not
// there yet, and users sessionctl and ci.
type systemService struct {
	*machine
	*world
}

func newSystemService(t *testing.T, sites ...string) *systemService {
	t.Helper()
	rig.Require(t, "curl")
	s := &systemService{machine: newMachine(t), world: inProcess(t)}
	must(t, s.AddUser("sessionctl", agentUser))
	must(t, s.AddUser("ci", agentUser+1))
	must(t, s.AddUser("sessionctl-clients", agentUser+2)) // its group
	for name, text := range systemAgent {
		must(t, s.WriteFile("etc/systemd/system/"+name, []byte(text), 0o644, 0))
	}
	s.install(t, "systemd/sessiond-credentials.socket", "../../../systemd/sessiond-credentials.socket", 0o644, 0) // as in a source tree that is /
	s.install(t, "etc/sessionctl/build.keytab", s.keytab, 0o600, agentUser)
	s.install(t, "etc/krb5.conf", s.krb5Conf, 0o644, 0)
	s.configure(t, sites...)
	s.root(t, "systemctl daemon-reload")
	s.root(t, "systemctl start sessiond.socket")
	return s
}

func (s *systemService) configure(t *testing.T, sites ...string) {
	t.Helper()
	text := "[credential.build]\nprincipal = \"build@" + realm + "\"\nkeytab = \"/etc/sessionctl/build.keytab\"\n" + strings.Join(sites, "")
	must(t, s.WriteFile("etc/sessionctl/sessiond.toml", []byte(text), 0o644, 0))
}

// site is a site that is at the world's, or at another URL.
func (s *systemService) site(name, url, allow string) string {
	return fmt.Sprintf("[site.%s]\nurl = %q\nkind = \"spnego\"\ncredential = \"build\"\ninsecure_http = true\nlogin_url = \"/spnego/\"\nprobe_url = \"/spnego/whoami\"\nidentity_json = \"user\"\nallow = [%s]\n", name, url+"/spnego/", allow)
}

// openCredentials makes the socket for credentials as the page does.
func (s *systemService) openCredentials(t *testing.T) {
	t.Helper()
	for _, step := range shownIn(t, systemdPage, startTitle) {
		s.root(t, step.command)
	}
}

// root runs a command line as root, which must not fail.
func (s *systemService) root(t *testing.T, line string) string {
	t.Helper()
	args := strings.Fields(line)
	r := s.as(t, 0, args[0], args[1:]...)
	if r.status != 0 {
		t.Fatalf("%s: %v", line, r)
	}
	return r.stdout + r.stderr
}

// starts starts a unit and says whether that went well.
func (s *systemService) starts(t *testing.T, unit string) bool {
	t.Helper()
	s.as(t, 0, "systemctl", "reset-failed", unit)
	return s.as(t, 0, "systemctl", "start", unit).status == 0
}

// since returns what has been logged for a unit since the last time.
func (s *systemService) since(t *testing.T, unit string) string {
	t.Helper()
	s.root(t, "journalctl --sync")
	r := s.as(t, 0, "journalctl", "--no-pager", "--output=cat", "--unit="+unit, "--cursor-file=/run/"+unit)
	if r.status != 0 && r.stdout+r.stderr != "" { // 1: nothing yet
		t.Fatal(r)
	}
	text := r.stdout
	if strings.Contains(text, "CANARY") {
		t.Errorf("the journal of %s holds a secret", unit)
	}
	return text
}

// page returns a block of the page as it is meant here: the page's Jira is the world's
// site.
func (s *systemService) page(t *testing.T, title, language string, n int) string {
	t.Helper()
	found := sectionBlocks(t, systemdPage, title, language)
	if len(found) <= n {
		t.Fatalf("%s: %d blocks in %s", title, len(found), language)
	}
	return strings.NewReplacer(keytabFile, "/etc/sessionctl/build.keytab", "svc-build@", "build@", "uid:990", fmt.Sprintf("uid:%d", agentUser+1), siteURL+"/rest/api/2/myself", s.url+"/spnego/whoami", siteURL, s.url+"/spnego/", `kind       = "jira"`,
		"kind = \"spnego\"\ninsecure_http = true\nlogin_url = \"/spnego/\"\nprobe_url = \"/spnego/whoami\"\nidentity_json = \"user\"").Replace(found[n])
}

const (
	startTitle    = "A service that takes its session at the start"
	noneTitle     = "What happens when there is no session"
	endTitle      = "When the session ends"
	longTitle     = "A service that runs longer than a session lives"
	unitName      = "report.service"
	noCredentials = "status=243/CREDENTIALS"
	guard         = "ExecStartPre=/usr/bin/grep -qaxE '[^[:cntrl:]]+' %d/jira\n"
)

// TestLoadCredential: a service of the system has its session from systemd, as
// docs/systemd.md says, and never an empty one.
func TestLoadCredential(t *testing.T) {
	s := newSystemService(t)
	must(t, s.WriteFile("etc/systemd/system/report.service", []byte(s.page(t, startTitle, "systemd", 0)), 0o644, 0))
	must(t, s.WriteFile("usr/local/bin/report.sh", []byte(s.page(t, startTitle, "sh", 0)), 0o755, 0))
	allowed := s.page(t, startTitle, "toml", 0)
	refused := strings.Replace(allowed, "unit:report.service", "unit:other.service\", \"user:root", 1)
	config := func(text string) { must(t, s.WriteFile("etc/sessionctl/sessiond.toml", []byte(text), 0o644, 0)) }
	config(refused)
	logins := func(when string, want int) {
		t.Helper()
		if n := s.hits(t, "/").Negotiate; n != want {
			t.Errorf("%s: %d logins, want %d", when, n, want)
		}
	}
	fails := func(when string, said ...string) {
		t.Helper()
		if s.starts(t, unitName) {
			t.Errorf("%s: it starts", when)
		}
		log := s.since(t, "sessiond.service") + s.since(t, unitName)
		for _, text := range said {
			if !strings.Contains(log, text) {
				t.Errorf("%s: the journal lacks %q:\n%s", when, text, log)
			}
		}
	}
	works := func(when string) {
		t.Helper()
		started := s.starts(t, unitName)
		if log := s.since(t, unitName); !started || !strings.Contains(log, me) {
			t.Errorf("%s: %v: %s", when, started, log)
		}
	}
	s.root(t, "systemctl daemon-reload")

	fails("no socket", noCredentials)
	logins("no socket", 0)
	s.openCredentials(t)
	if fi, err := s.Files.Lstat("run/sessionctl/credentials.sock"); err != nil || fi.Mode().Perm() != 0o600 || fi.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the socket: %v %v", fi, err)
	}

	both := strings.Split(strings.TrimSpace(s.page(t, noneTitle, "text", 0)), "\n")
	fails("refused: not allowed", append(both, noCredentials, `unit=report.service site=jira code=unknown_site`, `add \"unit:report.service\" to the site's allow, then: sessionctl reload`)...)
	logins("refused: not allowed", 0)

	// The longest names that the page allows: they arrive whole.
	long := strings.Repeat("x", 83-len(unitName))
	unit := s.page(t, startTitle, "systemd", 0)
	must(t, s.WriteFile("etc/systemd/system/"+unitName, []byte(strings.Replace(unit, "=jira:", "="+long+":", 1)), 0o644, 0))
	s.root(t, "systemctl daemon-reload")
	fails("long names", "unit=report.service site="+long+" code=unknown_site")
	must(t, s.WriteFile("etc/systemd/system/"+unitName, []byte(unit), 0o644, 0))
	s.root(t, "systemctl daemon-reload")

	s.stopKDC(t)
	config(allowed)
	for _, step := range shownIn(t, systemdPage, noneTitle) {
		s.root(t, step.command)
	}
	fails("no KDC", noCredentials, `unit=report.service site=jira code=kdc_unreachable`)
	s.startKDC(t)

	s.root(t, "sessionctl refresh jira") // at once, whatever the back-off
	works("cold")
	logins("cold", 1)
	works("warm")
	s.root(t, "systemctl stop sessiond.service")
	works("after a stop of the agent")
	logins("warm", 1)
	if log := s.since(t, "sessiond.service"); !strings.Contains(log, `a session is handed over to a unit" unit=report.service site=jira user=build@`+realm) {
		t.Errorf("the journal does not say who got it: %s", log)
	}
	// The cookie is for the unit alone.
	if r := s.as(t, 0, "sessionctl", "raw", "jira"); r.status != 4 || r.stdout != "" {
		t.Errorf("root asks for itself: %v", r)
	}

	s.forget(t)
	fails("expired", "error: 401")
	for _, step := range shownIn(t, systemdPage, endTitle) {
		s.root(t, step.command)
	}
	works("refreshed")
	logins("refreshed", 2)

	t.Run("long", func(t *testing.T) {
		config(s.page(t, longTitle, "toml", 0))
		s.root(t, "sessionctl reload")
		must(t, s.WriteFile("etc/systemd/system/watch.service", []byte(s.page(t, longTitle, "systemd", 0)), 0o644, 0))
		// It looks again when it is told to, and ends.
		script := strings.NewReplacer("sleep 600", "read -r _ </run/again$round", "while :; do", "for round in 1 2; do").Replace(s.page(t, longTitle, "sh", 0))
		must(t, s.WriteFile("usr/local/bin/watch.sh", []byte(script), 0o755, 0))
		s.root(t, "mkfifo -m 0666 /run/again1 /run/again2")
		s.root(t, "systemctl daemon-reload")
		s.root(t, "systemctl start watch.service")
		for round := range 2 {
			// This waits until it waits.
			again, err := s.Files.OpenFile(fmt.Sprintf("run/again%d", round+1), os.O_WRONLY, 0)
			must(t, err)
			s.forget(t)
			s.root(t, "sessionctl refresh jira")
			_, err = again.WriteString("\n")
			must(t, errors.Join(err, again.Close()))
		}
		s.root(t, "systemctl stop watch.service")
		if log := s.since(t, "watch.service"); strings.Count(log, me) != 2 {
			t.Errorf("%s", log)
		}
		works("beside the other")
	})

	config("[site.jira\n")
	s.root(t, "systemctl stop sessiond.service")
	fails("no agent: it does not start", noCredentials, "/etc/sessionctl/sessiond.toml:1: ")
	if log, err := s.Journal(s.ctx); err != nil || strings.Contains(log, "CANARY") || strings.Contains(log, "sessiond-credentials.socket:") && strings.Contains(log, "Unknown key") {
		t.Errorf("the journal holds a secret, or has something against the units: %v\n%s", err, log)
	}
}

// TestLoadCredentialKilled: the end of an agent in the middle of an answer is no
// refusal, which is why the page has a line for it.
func TestLoadCredentialKilled(t *testing.T) {
	asked := make(chan struct{}, 100)
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer slow.Close()
	s := newSystemService(t)
	s.configure(t, s.site("jira", slow.URL, `"unit:report.service", "unit:bare.service"`))
	s.openCredentials(t)
	unit := strings.Replace(s.page(t, startTitle, "systemd", 0), "/usr/local/bin/report.sh", "/bin/ls -s %d", 1)
	must(t, s.WriteFile("etc/systemd/system/report.service", []byte(unit), 0o644, 0))
	bare := strings.Replace(unit, guard, "", 1)
	if bare == unit {
		t.Fatal("the page does not guard against it")
	}
	must(t, s.WriteFile("etc/systemd/system/bare.service", []byte(bare), 0o644, 0))
	s.root(t, "systemctl daemon-reload")
	for unit, want := range map[string]bool{unitName: false, "bare.service": true} {
		started := make(chan bool)
		go func() { started <- s.starts(t, unit) }()
		<-asked
		s.root(t, "systemctl kill --signal=SIGKILL sessiond.service")
		got := <-started
		log := s.since(t, unit)
		if got != want || strings.Contains(log, noCredentials) || strings.Contains(log, "Control process exited, code=exited, status=1/FAILURE") == want {
			t.Errorf("%s: started %v: %s", unit, got, log)
		}
	}
}

// TestSystemdNumbers: what the page says of times is so.
func TestSystemdNumbers(t *testing.T) {
	page := readPage(t, systemdPage)
	for phrase, source := range map[string][2]string{
		"not there after 30 seconds":                  {"daemon/credentials.go", "credentialTime = 30 * time.Second"},
		"unless the session comes within 10 seconds":  {"daemon/run.go", "drainTime = 10 * time.Second"},
		"answers with more than systemd takes, 1 MiB": {"daemon/credentials.go", "1 MiB"},
		"asks for 256 credentials at a time":          {"daemon/credentials.go", "maxCredentials = 256"},
	} {
		if !strings.Contains(page, phrase) || !strings.Contains(readPage(t, source[0]), source[1]) {
			t.Errorf("%q is not on the page, or %s has no %q any more", phrase, source[0], source[1])
		}
	}
}
