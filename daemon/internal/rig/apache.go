package rig

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// apacheModules is where Debian keeps Apache's modules.
const apacheModules = "/usr/lib/apache2/modules"

// Apache is Apache with mod_auth_gssapi, mod_auth_form and mod_auth_basic, on free
// ports of 127.0.0.1, under the name localhost and any other. It needs apache2,
// mod_ssl and, with a keytab, mod_auth_gssapi, but not root. To a header field of
// 8 KiB it answers 400 (LimitRequestFieldSize).
//
// Its pages, under http and https, each with index.html and whoami, which
// answers {"user":"svc@REALM"}, or {"user":"anna"} to whoever has a password:
//
//	/plain/          open, never a challenge
//
// With a keytab:
//
//	/spnego/         Negotiate; then the session cookie gssapi_session
//	/nosess/         Negotiate, with a token for each request
//	/basic/          Negotiate and Basic
//	/both/           Negotiate and Basic; then the session cookie both_session
//	/deny/           valid tickets are good for nobody: always 401
//
// For the users of ApacheOptions:
//
//	/form/           302 to /login/form.html, whose form is sent to /form/login;
//	                 302 from there to /form/ and the session cookie form_session,
//	                 or 302 to the form again
//	/inline/         401 with a form that is sent to the page itself; then the page
//	                 and the session cookie inline_session, or 401 with the form
//	/clear/          the same, but clear_session is not encrypted: it is the name and
//	                 the password
//	/away/           as /form/, but the login ends at http://127.0.0.1, another host
//	/abroad/         as /form/, but the form is at http://127.0.0.1
//	/password/       Basic
//	/tracked/        Basic; then the cookie route, which is no session
//
// mod_auth_form's cookies hold the password, encrypted, and each request has it looked
// up again. Those of /form/ and /inline/ change with every answer, and /form/ gives one
// to whoever asks. And redirects:
//
//	/redir/1         302 to /spnego/
//	/redir/foreign   302 to /spnego/ of http://127.0.0.1, another host name
//	/redir/tls       302 to /spnego/ by https, of the same host name
//	/tohttp          302 to /spnego/ by http, of the same host name
//
// Who is authenticated is in the header X-Remote-User of the answer. Start, Stop
// and Restart must not be called at the same time.
type Apache struct {
	dir           string
	options       ApacheOptions
	port, tlsPort int
	sessionKey    string
	owner         *syscall.Credential // who runs it, if not the test's own user
	process       *process            // nil while stopped
}

// ApacheOptions says how Apache is to run.
type ApacheOptions struct {
	// Krb5ConfFile and KeytabFile are paths. Every service in the keytab is good,
	// such as HTTP/localhost, whatever its realm. Both are read at every start.
	// Without them there are no pages that ask for Negotiate.
	Krb5ConfFile, KeytabFile string
	// Users are the names and passwords of those who may log in with a password.
	Users map[string]string
	// Hosts are names that the certificate is good for beside localhost.
	Hosts []string
	// SessionMaxAge is how long the cookies of /spnego/, /form/ and /inline/ are good
	// for; 0 is ten minutes. It counts in seconds.
	SessionMaxAge time.Duration
}

// StartApache starts Apache with all its files below dir, and returns when it
// accepts connections. Started by root, Apache runs as nobody, and the
// directories above dir, which must be below the temporary directory, are made
// passable (o+x) for it.
func StartApache(ctx context.Context, dir string, options ApacheOptions) (*Apache, error) {
	dir, owner, err := ownDir(dir)
	if err != nil {
		return nil, err
	}
	if options.SessionMaxAge == 0 {
		options.SessionMaxAge = 10 * time.Minute
	}
	a := &Apache{dir: dir, options: options, owner: owner}
	for _, port := range []*int{&a.port, &a.tlsPort} {
		if *port, err = freePort(); err != nil {
			return nil, err
		}
	}
	a.newSessionKey()
	if err := writeLocalhostCertificate(a.CAFile(), filepath.Join(a.dir, "tls.pem"), x509.ECDSAWithSHA256, a.options.Hosts...); err != nil {
		return nil, err
	}
	if err := a.writePages(); err != nil {
		return nil, err
	}
	if err := a.Start(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// URL returns http://localhost:port, without a slash at its end.
func (a *Apache) URL() string { return "http://localhost:" + strconv.Itoa(a.port) }

// TLSURL returns https://localhost:port, without a slash at its end.
func (a *Apache) TLSURL() string { return "https://localhost:" + strconv.Itoa(a.tlsPort) }

// CAFile returns the path of the certificate (PEM) that vouches for TLSURL.
func (a *Apache) CAFile() string { return filepath.Join(a.dir, "ca.pem") }

// Dir returns the directory of the configuration, the pages and the log.
func (a *Apache) Dir() string { return a.dir }

// Start starts Apache after Stop, on the same ports and with the same session
// key, so that cookies of before stay good.
func (a *Apache) Start(ctx context.Context) error {
	if a.process != nil {
		return errors.New("apache runs already")
	}
	program, err := find("apache2")
	if err != nil {
		return err
	}
	if a.kerberos() {
		for _, f := range []struct{ from, to string }{
			{a.options.Krb5ConfFile, "krb5.conf"},
			{a.options.KeytabFile, "http.keytab"},
		} {
			if err := copyFile(filepath.Join(a.dir, f.to), f.from); err != nil {
				return err
			}
		}
	}
	conf := filepath.Join(a.dir, "httpd.conf")
	if err := writeTemplate(conf, "httpd.conf", a.conf()); err != nil {
		return err
	}
	if err := giveAway(a.dir, a.owner); err != nil {
		return err
	}
	// -X is one process with threads and without privileges of its own: it dies
	// as a whole, and nothing of it outlives the test.
	cmd := exec.Command(program, "-X", "-f", conf)
	cmd.Env = environment(
		"KRB5_CONFIG="+filepath.Join(a.dir, "krb5.conf"),
		"KRB5RCACHEDIR="+a.dir,
		"KRB5CCNAME=MEMORY:",
		"TMPDIR="+a.dir,
	)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: a.owner}
	p, err := startProcess("apache2", cmd, filepath.Join(a.dir, "apache2.out"))
	if err != nil {
		return err
	}
	if err := p.ready(ctx, filepath.Join(a.dir, "httpd.pid"), loopback(a.port), loopback(a.tlsPort)); err != nil {
		return err
	}
	a.process = p
	return nil
}

// Stop ends Apache: connections are refused until Start. Without a running
// Apache it does nothing.
func (a *Apache) Stop() {
	if a.process != nil {
		a.process.stop()
		a.process = nil
	}
}

// Restart stops and starts Apache. With newSessionKey, every session cookie that
// it gave out before is refused afterwards.
func (a *Apache) Restart(ctx context.Context, newSessionKey bool) error {
	a.Stop()
	if newSessionKey {
		a.newSessionKey()
	}
	return a.Start(ctx)
}

// Posts returns how many requests by POST have arrived since Apache was made whose
// path begins with prefix: forms, each with a password.
func (a *Apache) Posts(prefix string) (int, error) {
	log, err := os.ReadFile(filepath.Join(a.dir, "error.log"))
	if err != nil {
		return 0, err
	}
	return countPosts(log, prefix), nil
}

// Hits are numbers of requests. One request may be counted in several fields.
type Hits struct {
	Total     int
	Negotiate int // with Authorization: Negotiate
	Basic     int // with Authorization: Basic
	Cookie    int // with any cookie
}

// Hits returns how many requests have arrived since Apache was made, by http and
// https, whose path begins with prefix. Requests are counted before they are
// answered: whatever a client has had an answer for is counted.
func (a *Apache) Hits(prefix string) (Hits, error) {
	log, err := os.ReadFile(filepath.Join(a.dir, "error.log"))
	if err != nil {
		return Hits{}, err
	}
	return countHits(log, prefix), nil
}

// countHits counts the requests that are in a log.
func countHits(log []byte, prefix string) Hits {
	var h Hits
	for hit := range loggedHits(log, prefix) {
		h.Total++
		switch hit[hitAuth] {
		case "Negotiate":
			h.Negotiate++
		case "Basic":
			h.Basic++
		}
		if hit[hitCookie] == "cookie" {
			h.Cookie++
		}
	}
	return h
}

// countPosts counts the requests by POST that are in a log.
func countPosts(log []byte, prefix string) (n int) {
	for hit := range loggedHits(log, prefix) {
		if hit[hitMethod] == http.MethodPost {
			n++
		}
	}
	return n
}

// The fields of a line about a request.
const (
	hitAuth = iota
	hitCookie
	hitMethod
	hitPath
	hitFields
)

// loggedHits reads the lines that the LogMessage of templates/httpd.conf and the
// AccessLogValve of templates/tomcat-server.xml make:
//
//	2026-01-02 03:04:05.678901 log_debug:info hit Negotiate,cookie,GET,/spnego/
//	hit -,-,POST,/form/j_security_check
//
// It returns the fields of those about paths that begin with prefix.
func loggedHits(log []byte, prefix string) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range bytes.Lines(log) {
			hit, ok := bytes.CutPrefix(line, []byte("hit "))
			if !ok {
				_, hit, ok = bytes.Cut(line, []byte(" log_debug:info hit "))
			}
			if !ok {
				continue
			}
			fields := strings.SplitN(strings.TrimSuffix(string(hit), "\n"), ",", hitFields)
			if len(fields) == hitFields && strings.HasPrefix(fields[hitPath], prefix) && !yield(fields) {
				return
			}
		}
	}
}

// conf is what templates/httpd.conf is filled with.
func (a *Apache) conf() any {
	modules := []string{
		"mpm_event", "authn_core", "authz_core", "authz_user", "ssl",
		"session", "session_cookie", "request", "dir", "alias", "headers", "include",
		"setenvif", "log_debug",
		"authn_file", "auth_basic", "auth_form", "session_crypto",
	}
	if a.kerberos() {
		modules = append(modules, "auth_gssapi")
	}
	return struct {
		Dir, ModuleDir, SessionKey    string
		Port, TLSPort, SessionSeconds int
		Kerberos                      bool
		Modules                       []string
	}{
		Dir: a.dir, ModuleDir: apacheModules, SessionKey: a.sessionKey,
		Port: a.port, TLSPort: a.tlsPort, SessionSeconds: int(a.options.SessionMaxAge / time.Second),
		Kerberos: a.kerberos(), Modules: modules,
	}
}

// kerberos reports whether there are keys to take tickets with.
func (a *Apache) kerberos() bool { return a.options.KeytabFile != "" }

func (a *Apache) newSessionKey() {
	key := make([]byte, 32)
	rand.Read(key) // never fails
	a.sessionKey = base64.StdEncoding.EncodeToString(key)
}

func (a *Apache) writePages() error {
	pages := append([]string{"plain"}, passwordPages...)
	if a.kerberos() {
		pages = append(pages, "spnego", "nosess", "basic", "both", "deny")
	}
	for _, page := range pages {
		dir := filepath.Join(a.dir, "htdocs", page)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "index.html"), []byte("<p>"+page+"</p>\n"), 0o600); err != nil {
			return err
		}
		const whoami = `{"user":"<!--#echo encoding="none" var="REMOTE_USER" -->"}` + "\n"
		if err := os.WriteFile(filepath.Join(dir, "whoami"), []byte(whoami), 0o600); err != nil {
			return err
		}
	}
	return a.writeForms()
}

// nobody returns the user that servers run as when root starts them: Apache refuses
// to serve as root.
func nobody() (*syscall.Credential, error) {
	u, err := user.Lookup("nobody")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// passable lets every user pass through the directories between the temporary
// directory and dir, without letting them list what is there. os.MkdirTemp makes
// them for their owner alone.
func passable(dir string) error {
	temp := filepath.Clean(os.TempDir())
	for d := filepath.Dir(dir); d != temp; d = filepath.Dir(d) {
		if d == filepath.Dir(d) {
			return fmt.Errorf("the server runs as nobody and cannot reach %s: use a directory below %s", dir, temp)
		}
		info, err := os.Stat(d)
		if err != nil {
			return err
		}
		if err := os.Chmod(d, info.Mode().Perm()|0o001); err != nil {
			return err
		}
	}
	return nil
}
