package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/krb/ccache"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// codesWorld is everything that can go wrong, and one agent that meets it. Each
// scenario has a site by the name of its code, if it has any.
type codesWorld struct {
	*jiraWorld
	*agent
	conn        *grpc.ClientConn
	url         string // of ServeHTTP
	good, stale *rig.Acceptor
	second      *rig.Atlassian // that wants a second factor

	silent atomic.Bool   // the pages of /slow/ do not answer
	hangUp chan struct{} // ends that
	mu     sync.Mutex
	used   map[string]bool // the cookies of /once/ that were shown
}

// ServeHTTP is a site whose pages are each wrong in one way, by the first element of
// their path.
func (w *codesWorld) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	page := strings.Split(r.URL.Path, "/")[1]
	acceptor := w.good
	switch page {
	case "429", "500", "503":
		status, err := strconv.Atoi(page)
		if err != nil {
			panic(err)
		}
		rw.WriteHeader(status)
		return
	case "tls":
		http.Redirect(rw, r, "https://"+r.Host+r.URL.Path, http.StatusFound)
		return
	case "loop":
		http.Redirect(rw, r, r.URL.Path, http.StatusFound)
		return
	case "bearer", "ntlm":
		rw.Header().Set("WWW-Authenticate", page)
		rw.WriteHeader(http.StatusUnauthorized)
		return
	case "slow":
		if w.silent.Load() {
			select {
			case <-w.hangUp:
			case <-r.Context().Done():
			}
			return
		}
	case "stale":
		acceptor = w.stale
	}
	if c, err := r.Cookie(page); err == nil {
		w.mu.Lock()
		dead := page == "once" && w.used[c.Value]
		w.used[c.Value] = true
		w.mu.Unlock()
		if !dead {
			fmt.Fprint(rw, me)
			return
		}
	}
	_, token, _ := strings.Cut(r.Header.Get("Authorization"), "Negotiate ")
	if token == "" {
		rw.Header().Set("WWW-Authenticate", "Negotiate")
		rw.WriteHeader(http.StatusUnauthorized)
		return
	}
	b, err := base64.StdEncoding.DecodeString(token)
	if err != nil {
		panic(err)
	}
	_, reply, err := acceptor.Accept(b)
	if page == "replay" { // somebody was here before with the same one
		_, reply, err = acceptor.Accept(b)
	}
	if page != "mute" {
		rw.Header().Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(reply))
	}
	if err != nil {
		rw.WriteHeader(http.StatusUnauthorized)
		return
	}
	rw.Header().Set("Set-Cookie", page+"=CANARY-"+rand.Text()+"; Path=/"+page+"/")
	fmt.Fprint(rw, me)
}

// credentials is where systemd would hand over passwords.
func (w *codesWorld) credentials() string { return filepath.Join(w.dir, "credentials") }

// scenario is what makes the agent answer with a code.
type scenario struct {
	code api.Code
	site string                               // options of [site.CODE] but url and kind; "" for none
	at   func(*codesWorld) string             // its url and kind
	more func(*codesWorld, *testing.T) string // further tables
	ask  func(*codesWorld, *testing.T) error  // nil: for the site's session
}

// page is a site behind Negotiate at a page of ServeHTTP, behind of the world's site.
func page(path string) func(*codesWorld) string {
	return func(w *codesWorld) string { return negotiateSite(w.url + path) }
}

func behind(path string) func(*codesWorld) string {
	return func(w *codesWorld) string { return negotiateSite(w.world.url + path) }
}

func elsewhere(url string) func(*codesWorld) string {
	return func(*codesWorld) string { return negotiateSite(url) }
}

func negotiateSite(url string) string {
	return fmt.Sprintf("url = %q\nkind = \"spnego\"\nprobe_url = \"whoami\"\nidentity_json = \"user\"\n", url)
}

func atJira(w *codesWorld) string {
	return fmt.Sprintf("url = %q\nkind = \"jira\"\n", w.Atlassian.URL())
}

// get asks for the session of a scenario's site.
func (w *codesWorld) get(t *testing.T, code api.Code) error {
	_, err := getSession(t.Context(), w.conn, string(code))
	return err
}

// inMode asks Jira for a session while it is in a mode.
func inMode(code api.Code, modes rig.AtlassianModes) func(*codesWorld, *testing.T) error {
	return func(w *codesWorld, t *testing.T) error {
		w.SetModes(modes)
		defer w.SetModes(rig.AtlassianModes{})
		return w.get(t, code)
	}
}

// refusedBy is a credential by the name of a code, which the KDC refuses with an
// error of RFC 4120, 7.5.9.
func refusedBy(code api.Code, number int32) scenario {
	return scenario{code: code, at: behind("/spnego/"), site: fmt.Sprintf("credential = %q", code),
		more: func(w *codesWorld, t *testing.T) string {
			keytab := w.addKeytab(t, string(code), true)
			w.kdc.Refuse(string(code), number)
			return credential(string(code), string(code), keytab)
		}}
}

// byPassword is a username whose password systemd hands over, if it is not "".
func byPassword(user, password string) func(*codesWorld, *testing.T) string {
	return func(w *codesWorld, t *testing.T) string {
		if password != "" {
			write(t, filepath.Join(w.credentials(), "password."+user), password+"\n")
		}
		return fmt.Sprintf("[credential.%s]\nusername = %[1]q\n", user)
	}
}

// cache is a credential by the name of a code, of tickets that somebody else gets.
func cache(code api.Code, content func(*testing.T) []byte) scenario {
	return scenario{code: code, at: behind("/spnego/"), site: fmt.Sprintf("credential = %q", code),
		more: func(w *codesWorld, t *testing.T) string {
			file := write(t, filepath.Join(w.dir, string(code)), string(content(t)))
			return fmt.Sprintf("[credential.%s]\nprincipal = \"build@%s\"\nccache = \"FILE:%s\"\n", code, realm, file)
		}}
}

// inRealm is a credential by the name of a code, in a realm whose KDC is not there;
// its name alone may be.
func inRealm(code api.Code, known bool) scenario {
	name := strings.ToUpper(strings.ReplaceAll(string(code), "_", "")) + ".EXAMPLE"
	return scenario{code: code, at: behind("/spnego/"), site: fmt.Sprintf("credential = %q", code),
		more: func(w *codesWorld, t *testing.T) string {
			k, err := rig.NewKDC(name)
			must(t, err)
			k.AddPrincipal("build", password)
			k.Close()
			if known {
				write(t, w.agent.krb5Conf, w.kdc.Krb5Conf(k))
			}
			keytab := write(t, filepath.Join(w.dir, string(code)), string(k.Keytab("build")))
			return fmt.Sprintf("[credential.%s]\nprincipal = \"build@%s\"\nkeytab = %q\n", code, name, keytab)
		}}
}

// scenarios produce what keeper, web, login and krb can answer to a caller, and what
// the agent itself does.
var scenarios = []scenario{
	{code: api.DNSError, at: elsewhere("http://nowhere.invalid/")},
	{code: api.NetworkError, at: elsewhere("http://localhost:1/")},
	{code: api.Timeout, at: page("/slow/"), ask: func(w *codesWorld, t *testing.T) error {
		must(t, w.get(t, api.Timeout))
		w.silent.Store(true)
		_, err := pb.NewSessionServiceClient(w.conn).RefreshSession(t.Context(), &pb.RefreshSessionRequest{Site: string(api.Timeout)})
		return err
	}},
	{code: api.TLSError, at: func(w *codesWorld) string { return negotiateSite(strings.Replace(w.url, "http:", "https:", 1) + "/") }},
	{code: api.RateLimited, at: page("/429/")},
	{code: api.Maintenance, at: page("/503/")},
	{code: api.Server5xx, at: page("/500/")},
	{code: api.InsecureRedirect, at: page("/tls/")},

	{code: api.BadCredentials, at: behind("/spnego/"), site: `credential = "wrong"`, more: func(w *codesWorld, t *testing.T) string {
		return credential("wrong", "wrong", w.addKeytab(t, "wrong", false))
	}},
	refusedBy(api.PrincipalUnknown, 6),
	refusedBy(api.PrincipalDisabled, 18),
	refusedBy(api.PrincipalExpired, 1),
	refusedBy(api.PasswordExpired, 23),
	{code: api.Captcha, at: atJira, site: `credential = "carol"`, more: byPassword("carol", "CANARY-carol"), ask: func(w *codesWorld, t *testing.T) error {
		w.AddUser("carol", "CANARY-carol")
		w.bringCaptcha(t, "carol")
		return w.get(t, api.Captcha)
	}},
	{code: api.NoSecret, at: atJira, site: `credential = "nobody"`, more: byPassword("nobody", "")},
	{code: api.BasicDisabled, at: atJira, site: `credential = "alice"`, more: byPassword("alice", alicePassword), ask: inMode(api.BasicDisabled, rig.AtlassianModes{BasicDisabled: true})},
	{code: api.SecondFactor, at: func(w *codesWorld) string { return fmt.Sprintf("url = %q\nkind = \"confluence\"\n", w.second.URL()) }, site: `credential = "dora"`,
		more: func(w *codesWorld, t *testing.T) string {
			var err error
			w.second, err = rig.StartConfluence(rig.AtlassianOptions{TwoStep: true})
			must(t, err)
			t.Cleanup(w.second.Stop)
			w.second.AddUser("dora", "CANARY-dora")
			w.second.SetModes(rig.AtlassianModes{SecondFactor: true})
			return byPassword("dora", "CANARY-dora")(w, t)
		}},
	// Jira knows itself by another name, and takes the login for that of a foreign page.
	{code: api.CSRF403, at: func(w *codesWorld) string { return strings.Replace(atJira(w), "localhost", "127.0.0.1", 1) }, site: "credential = \"alice\"\nuser_agent = \"Mozilla/5.0 (Windows NT 10.0) Firefox/140.0\""},
	{code: api.Forbidden, at: atJira, ask: inMode(api.Forbidden, rig.AtlassianModes{NoPermission: true})},

	{code: api.NoChallenge, at: behind("/plain/")},
	{code: api.ChallengeUnsupported, at: page("/bearer/")},
	{code: api.NTLMOnly, at: page("/ntlm/")},
	{code: api.ProxyAuthRequired, at: behind("/spnego/"), site: `proxy = "open"`, more: func(_ *codesWorld, t *testing.T) string {
		p, err := rig.StartProxy(rig.ProxyOptions{Users: map[string]string{"anna": annaPassword}})
		must(t, err)
		t.Cleanup(p.Close)
		return fmt.Sprintf("[proxy.open]\nurl = %q\n[proxy.closed]\nurl = %[1]q\ncredential = \"gate\"\n", p.URL())
	}},
	{code: api.ProxyAuthFailed, at: behind("/spnego/"), site: `proxy = "closed"`, more: byPassword("gate", "CANARY-wrong")},
	{code: api.ProxyError, at: behind("/spnego/"), site: `proxy = "away"`, more: func(*codesWorld, *testing.T) string {
		return "[proxy.away]\nurl = \"http://localhost:1\"\n"
	}},
	cache(api.NoTicket, func(t *testing.T) []byte {
		b, err := (&ccache.Cache{Principal: ccache.Principal{NameType: 1, Realm: realm, Components: []string{"build"}}}).Encode()
		must(t, err)
		return b
	}),
	inRealm(api.KDCUnreachable, true),
	{code: api.SPNUnknown, at: behind("/spnego/"), site: `spn = "HTTP/unknown.corp.example"`},
	refusedBy(api.ClockSkew, 37),
	{code: api.ServiceKeyMismatch, at: page("/stale/"), site: `spn = "HTTP/stale.corp.example"`},
	{code: api.Replay, at: page("/replay/")},
	{code: api.MutualAuthFailed, at: page("/mute/"), site: `mutual_auth = "required"`},
	{code: api.BadChannelBinding, at: behind("/spnego/"), site: `channel_bindings = "required"`},
	{code: api.NegotiateRejected, at: behind("/deny/")},
	refusedBy(api.EtypeUnsupported, 14),
	refusedBy(api.KDCError, 60),
	{code: api.KeytabUnreadable, at: behind("/spnego/"), site: `credential = "gone"`, more: func(*codesWorld, *testing.T) string {
		return credential("gone", "gone", "/nonexistent/gone.keytab")
	}},
	cache(api.CCacheUnusable, func(*testing.T) []byte { return []byte("no ticket cache") }),
	inRealm(api.Krb5ConfInvalid, false),

	{code: api.SSORedirect, at: behind("/redir/foreign")},
	{code: api.RedirectLoop, at: page("/loop/")},
	{code: api.NoSessionCookie, at: behind("/nosess/")},
	{code: api.LoginOKButProbeFailed, at: atJira, ask: inMode(api.LoginOKButProbeFailed, rig.AtlassianModes{Anonymous: true})},
	{code: api.WrongIdentity, at: behind("/spnego/"), site: `identity = "somebody"`},
	{code: api.Expired, at: behind("/spnego/"), ask: func(w *codesWorld, t *testing.T) error {
		_, err := pb.NewSessionServiceClient(w.conn).Login(t.Context(), &pb.LoginRequest{Site: string(api.Expired), Cookie: []byte("gssapi_session=CANARY-dead")})
		return err
	}},
	{code: api.UnexpectedStatus, at: behind("/missing/")},

	{code: api.UnknownSite, ask: func(w *codesWorld, t *testing.T) error { return w.get(t, "elsewhere") }},
	{code: api.AmbiguousSite, more: func(w *codesWorld, _ *testing.T) string {
		return w.world.site("twin1", "/twin/") + w.world.site("twin2", "/twin/")
	}, ask: func(w *codesWorld, t *testing.T) error {
		_, err := pb.NewSessionServiceClient(w.conn).GetSession(t.Context(), &pb.GetSessionRequest{Url: w.world.url + "/twin/x"})
		return err
	}},
	{code: api.Denied, ask: func(w *codesWorld, t *testing.T) error {
		_, err := pb.NewTicketServiceClient(w.conn).ExportCache(t.Context(), &pb.ExportCacheRequest{Principal: "build@" + realm})
		return err
	}},
	{code: api.NotCached, at: behind("/spnego/"), ask: func(w *codesWorld, t *testing.T) error {
		_, err := pb.NewSessionServiceClient(w.conn).GetSession(t.Context(), &pb.GetSessionRequest{Site: string(api.NotCached), CachedOnly: true})
		return err
	}},
	{code: api.Latched, ask: func(w *codesWorld, t *testing.T) error {
		if w.get(t, api.BadCredentials) == nil {
			t.Error("the refused secret is taken")
		}
		return w.get(t, api.BadCredentials)
	}},
	{code: api.Quota, at: page("/once/"), site: `recheck = "0s"`, ask: func(w *codesWorld, t *testing.T) error {
		for range 20 {
			if err := w.get(t, api.Quota); err != nil {
				return err
			}
		}
		return nil
	}},
	{code: api.Deadline, at: page("/slow/"), ask: func(w *codesWorld, t *testing.T) error {
		w.silent.Store(true)
		// gRPC ends a call at its deadline on either side, so that it is mostly the
		// client who gives it its name.
		c := &client.Client{Socket: w.socket}
		defer c.Close()
		sessions, err := c.Sessions()
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err = sessions.GetSession(ctx, &pb.GetSessionRequest{Site: string(api.Deadline)})
		return err
	}},
	{code: api.InvalidRequest, at: behind("/spnego/"), ask: func(w *codesWorld, t *testing.T) error {
		_, err := pb.NewSessionServiceClient(w.conn).GetSession(t.Context(), &pb.GetSessionRequest{Site: string(api.InvalidRequest), MinValidity: durationpb.New(-time.Second)})
		return err
	}},
	{code: api.ConfigInvalid, ask: func(w *codesWorld, t *testing.T) error {
		b, err := os.ReadFile(w.config)
		must(t, err)
		write(t, w.config, "[site.app]\n")
		defer write(t, w.config, string(b))
		_, err = pb.NewAgentServiceClient(w.conn).Reload(t.Context(), &pb.ReloadRequest{})
		return err
	}},
	{code: api.StoreFailed, at: behind("/spnego/"), ask: func(w *codesWorld, t *testing.T) error {
		must(t, w.get(t, api.StoreFailed))
		// No file of the agent's may grow, nor be written anywhere: a full disk.
		var was unix.Rlimit
		must(t, unix.Prlimit(w.cmd.Process.Pid, unix.RLIMIT_FSIZE, nil, &was))
		must(t, unix.Prlimit(w.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Max: was.Max}, nil))
		defer func() { must(t, unix.Prlimit(w.cmd.Process.Pid, unix.RLIMIT_FSIZE, &was, nil)) }()
		_, err := pb.NewSessionServiceClient(w.conn).DeleteSession(t.Context(), &pb.DeleteSessionRequest{Site: string(api.StoreFailed)})
		return err
	}},
}

// producedOtherwise are the codes that no answer of the agent holds, or none that a
// server outside of it can bring about, each with the reason, and the test that
// produces it: its directory and name.
var producedOtherwise = map[api.Code]struct{ why, dir, test string }{
	api.AppPasswordRequired: {"of a Jazz server", "daemon/internal/e2e", "TestAppPasswordExample"},
	api.ConsentRequired:     {"of a Jazz server", "daemon/internal/e2e", "TestJazzTable"},
	api.Unknown:             {"a bug of ours", "daemon/internal/keeper", "TestPanic"},
	api.NoAgent:             {"of the client: nobody answers", "daemon/internal/e2e", "TestNoAgent"},
	api.UntrustedSocket:     {"of the client: nothing is sent", "client", "TestUntrusted"},
	api.VersionSkew:         {"of the client: programs of several versions", "cmd/sessionctl-admin", "TestVersionSkew"},
	api.PerRequestOnly:      {"of the client: a token is a header to the agent", "cmd/sessionctl-admin", "TestNoCookie"},
	api.Unprintable:         {"of the client: cookies are bytes to the agent", "cmd/sessionctl-admin", "TestNothingIsInjected"},
	api.StoreLocked:         {"at the start, before there is a socket", "daemon/internal/e2e", "TestSecondAgent"},
	api.SocketInUse:         {"at the start, before there is a socket", "daemon/internal/e2e", "TestSecondAgent"},
	api.SocketFailed:        {"at the start, before there is a socket", "daemon", "TestListenRefuses"},
	api.StoreKeyMissing:     {"at the start, before there is a socket", "daemon/internal/e2e", "TestMasterKeyFromSystemd"},
	api.StoreUnsafe:         {"at the start, before there is a socket", "store", "TestFileChecks"},
	api.AccountLocked:       {"of a program that logs in", "daemon/internal/e2e", "TestCommandCodes"},
	api.StoreFull:           {"needs ten thousand records", "store", "TestQuota"},
	api.StoreDamaged:        {"needs a file that was changed with the store's key", "daemon/internal/keeper", "TestDamagedPassword"},
}

// newCodes starts the world of all scenarios.
func newCodes(t *testing.T) *codesWorld {
	w := &codesWorld{jiraWorld: newJira(t), used: map[string]bool{}, hangUp: make(chan struct{})}
	const stale = "HTTP/stale.corp.example"
	w.kdc.AddService(stale)
	var err error
	w.good, err = rig.NewAcceptor(w.kdc.Keytab("HTTP/localhost"), "HTTP/localhost")
	must(t, err)
	w.stale, err = rig.NewAcceptor(w.kdc.Keytab(stale), stale)
	must(t, err)
	w.kdc.Rekey(stale, "CANARY-stale") // of which its keytab knows nothing
	s := serve(t, false, w)
	w.url = named(t, s.URL, "localhost")
	t.Cleanup(func() { close(w.hangUp) }) // the server waits for its answers

	h := newHome(t, w.world)
	w.agent = &agent{home: h}
	must(t, os.Mkdir(w.credentials(), 0o700))
	h.extraEnv = []string{"CREDENTIALS_DIRECTORY=" + w.credentials()}
	h.krb5Conf = write(t, filepath.Join(h.dir, "krb5.conf"), w.kdc.Krb5Conf())
	b, err := os.ReadFile(h.config)
	must(t, err)
	config := string(b)
	for _, s := range scenarios {
		if s.more != nil {
			config += s.more(w, t)
		}
		if s.at != nil {
			config += fmt.Sprintf("[site.%s]\ninsecure_http = true\n%s%s\n", s.code, s.at(w), s.site)
			if !strings.Contains(s.site, "credential =") {
				config += "credential = \"build\"\n"
			}
		}
	}
	write(t, h.config, config)
	w.agent = h.start(t)
	w.conn = h.dial(t)
	return w
}

// TestCodes: every code that there is arrives at a caller, as the reason of an
// ErrorInfo and with its own gRPC status; or there is a reason why it cannot, and
// another test that produces it.
func TestCodes(t *testing.T) {
	w := newCodes(t)
	scenarioOf := map[api.Code]bool{}
	for _, s := range scenarios {
		scenarioOf[s.code] = true
		t.Run(string(s.code), func(t *testing.T) {
			var err error
			if s.ask != nil {
				err = s.ask(w, t)
			} else {
				err = w.get(t, s.code)
			}
			e := failure(err)
			if e == nil || e.Code != s.code || status.Code(err) != grpccodes.Code(s.code.GRPC()) {
				t.Fatalf("%v", err)
			}
			if e.Detail == "" || e.Remedy == "" {
				t.Errorf("what was seen: %q; the next step: %q", e.Detail, e.Remedy)
			}
			if strings.Contains(e.Detail+e.Remedy, "CANARY") {
				t.Errorf("a secret is in a message: %s, %s", e.Detail, e.Remedy)
			}
		})
	}
	names := codeNames(t)
	for code, name := range names {
		other, reason := producedOtherwise[code]
		switch {
		case scenarioOf[code] == reason:
			t.Errorf("%s has a scenario: %v; a reason why it has none: %v", code, scenarioOf[code], reason)
		case reason && other.test == "":
			if files := naming(t, "api."+name); len(files) > 0 {
				t.Errorf("%s: %s; and yet it is in %s", code, other.why, files)
			}
		case reason && !produces(t, other.dir, other.test, string(code), "api."+name):
			t.Errorf("%s: %s has no test %s that speaks of it", code, other.dir, other.test)
		}
	}
	if len(scenarios)+len(producedOtherwise) != len(names) {
		t.Errorf("%d scenarios and %d reasons for %d codes", len(scenarios), len(producedOtherwise), len(names))
	}
	w.stop(t)
	must(t, os.RemoveAll(w.credentials())) // systemd's
	noSecrets(t, w.agent)
}

// root is the repository, as seen from here.
const root = "../../.."

// codeNames returns all codes of package api with its names of them.
func codeNames(t *testing.T) map[api.Code]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, "api", "code.go"), nil, 0)
	must(t, err)
	names := map[api.Code]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := v.Type.(*ast.Ident); ok && kind.Name == "Code" && len(v.Values) == 1 {
			text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			must(t, err)
			names[api.Code(text)] = v.Names[0].Name
		}
		return false
	})
	if len(names) < 60 {
		t.Fatalf("only %d codes were found", len(names))
	}
	return names
}

// naming returns the files of our programs that hold a name.
func naming(t *testing.T, name string) (files []string) {
	t.Helper()
	for _, dir := range []string{"client", "cmd", "daemon", "store"} {
		must(t, filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			if bytes.Contains(b, []byte(name)) {
				files = append(files, path)
			}
			return err
		}))
	}
	return files
}

// produces reports whether there is a test, and one of some words in it.
func produces(t *testing.T, dir, test string, words ...string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	must(t, err)
	for _, path := range files {
		set := token.NewFileSet()
		b, err := os.ReadFile(path)
		must(t, err)
		file, err := parser.ParseFile(set, path, b, 0)
		must(t, err)
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == test {
				text := string(b[set.Position(f.Pos()).Offset:set.Position(f.End()).Offset])
				return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
			}
		}
	}
	return false
}
