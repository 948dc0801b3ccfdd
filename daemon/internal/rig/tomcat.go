package rig

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// tomcatHome is where Debian keeps Tomcat, and tomcatJar the program in it.
const (
	tomcatHome = "/usr/share/tomcat10"
	tomcatJar  = tomcatHome + "/bin/bootstrap.jar"
)

// TomcatNeeds names for Require what StartTomcat needs.
func TomcatNeeds() []string { return []string{"java", tomcatJar} }

// Tomcat is Apache Tomcat 10 with its authenticators for SPNEGO, FORM and BASIC, on a
// free port of 127.0.0.1, under the name localhost and any other. It needs what
// TomcatNeeds names, but not root.
//
// Its pages, of which each protected application has a whoami that answers
// {"user":"svc@REALM"}, or {"user":"anna"} to whoever has a password:
//
//	/open/        open, never a challenge
//	/spn/         with a keytab: Negotiate, for whoever has a ticket
//	/form/        200 with a form for whoever has not logged in. It is good for
//	              j_security_check after the page has been asked for: 303 to that page
//	              (302 by HTTP/1.0) and another JSESSIONID, or 200 with an error page
//	              that has no form. To what comes without such a session it answers
//	              408, and 400 if it is no POST.
//	/form/away    for users: 302 to http://127.0.0.1, another host name
//	/form/broken  for users: 500
//	/basic/       Basic
//
// All applications set the session cookie JSESSIONID of their own path, good for half
// an hour of rest: /spn and /basic at the login, /form for everybody.
//
// A ticket that it cannot decrypt gets the challenge of the beginning, without any
// token, as often as it comes. To a request whose header has 8 KiB it answers 400
// (maxHttpRequestHeaderSize). Start and Stop must not be called at the same time.
type Tomcat struct {
	dir     string
	options TomcatOptions
	port    int
	owner   *syscall.Credential // who runs it, if not the test's own user
	process *process            // nil while stopped
}

// TomcatOptions says how Tomcat is to run.
type TomcatOptions struct {
	// Krb5ConfFile and KeytabFile are paths. Every service in the keytab is good,
	// such as HTTP/localhost, whatever its realm. Both are read at every start.
	// Without them there are no pages that ask for Negotiate.
	Krb5ConfFile, KeytabFile string
	// Users are the names and passwords of those who may log in with a password.
	Users map[string]string
	// KeepSessions has the sessions survive Stop, as those of Tomcat's standard
	// Manager do, and with persistAuthentication also whose they are.
	KeepSessions bool
}

// StartTomcat starts Tomcat with all its files below dir, and returns when it
// answers requests, after about two seconds. Started by root, Tomcat runs as nobody,
// with dir as StartApache has it.
func StartTomcat(ctx context.Context, dir string, options TomcatOptions) (*Tomcat, error) {
	dir, owner, err := ownDir(dir)
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	t := &Tomcat{dir: dir, options: options, port: port, owner: owner}
	if err := t.writeFiles(); err != nil {
		return nil, err
	}
	if err := t.Start(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// URL returns http://localhost:port, without a slash at its end.
func (t *Tomcat) URL() string { return "http://localhost:" + strconv.Itoa(t.port) }

// Dir returns the directory of the configuration, the pages and the log.
func (t *Tomcat) Dir() string { return t.dir }

// Start starts Tomcat after Stop, on the same port.
func (t *Tomcat) Start(ctx context.Context) error {
	if t.process != nil {
		return errors.New("tomcat runs already")
	}
	java, err := find("java")
	if err != nil {
		return err
	}
	krb5Conf := filepath.Join(t.dir, "krb5.conf")
	if t.kerberos() {
		if err := copyFile(krb5Conf, t.options.Krb5ConfFile); err != nil {
			return err
		}
		if err := copyFile(filepath.Join(t.dir, "http.keytab"), t.options.KeytabFile); err != nil {
			return err
		}
	}
	instance := rand.Text()
	if err := os.WriteFile(filepath.Join(t.dir, "apps", "open", "instance"), []byte(instance), 0o600); err != nil {
		return err
	}
	if err := giveAway(t.dir, t.owner); err != nil {
		return err
	}
	cmd := exec.Command(java,
		// What makes a small server of a few minutes start soon.
		"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xmx128m",
		"-Djava.io.tmpdir="+filepath.Join(t.dir, "temp"),
		"-Djava.security.krb5.conf="+krb5Conf,
		"-Djava.security.auth.login.config="+filepath.Join(t.dir, "jaas.conf"),
		// The keys are in the keytab, not in the thread's subject.
		"-Djavax.security.auth.useSubjectCredsOnly=false",
		"-Dorg.apache.catalina.startup.EXIT_ON_INIT_FAILURE=true",
		"-Dcatalina.home="+tomcatHome, "-Dcatalina.base="+t.dir,
		"-classpath", tomcatJar+":"+tomcatHome+"/bin/tomcat-juli.jar",
		"org.apache.catalina.startup.Bootstrap", "start")
	cmd.Env = environment()
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: t.owner}
	p, err := startProcess("tomcat", cmd, filepath.Join(t.dir, "tomcat.out"))
	if err != nil {
		return err
	}
	// Tomcat takes connections long before it answers them.
	answers := func(ctx context.Context) bool {
		body, err := t.get(ctx, "instance")
		return err == nil && string(body) == instance
	}
	if err := p.await(ctx, answers, loopback(t.port)); err != nil {
		return err
	}
	t.process = p
	return nil
}

// Stop ends Tomcat, and without KeepSessions all its sessions: connections are
// refused until Start. Without a running Tomcat it does nothing.
func (t *Tomcat) Stop() {
	if t.process != nil {
		t.process.stop()
		t.process = nil
	}
}

// ForgetSessions ends all sessions: their cookies are those of nobody.
func (t *Tomcat) ForgetSessions(ctx context.Context) error {
	for _, app := range t.apps() {
		body, err := t.get(ctx, "expire?path=/"+app+"&idle=0")
		if err != nil {
			return err
		}
		// The manager answers its mistakes with the status 200.
		if !bytes.HasPrefix(body, []byte("OK ")) {
			return fmt.Errorf("tomcat's manager: %s", bytes.TrimSpace(body))
		}
	}
	return nil
}

// apps returns the applications that have sessions.
func (t *Tomcat) apps() []string {
	if t.kerberos() {
		return append([]string{"spn"}, passwordApps...)
	}
	return passwordApps
}

// passwordApps are the applications for whoever is in users.xml.
var passwordApps = []string{"form", "basic"}

// Hits returns how many requests have arrived since Tomcat was made whose path
// begins with prefix. Whatever a client has had an answer for is counted.
func (t *Tomcat) Hits(ctx context.Context, prefix string) (Hits, error) {
	log, err := t.log(ctx)
	if err != nil {
		return Hits{}, err
	}
	return countHits(log, prefix), nil
}

// Posts returns how many requests by POST have arrived since Tomcat was made whose
// path begins with prefix: forms, each with a password. Like Hits.
func (t *Tomcat) Posts(ctx context.Context, prefix string) (int, error) {
	log, err := t.log(ctx)
	if err != nil {
		return 0, err
	}
	return countPosts(log, prefix), nil
}

// log returns the access log, with all requests that have been answered.
//
// Tomcat writes to it when it has sent the answer. But it has only one thread, which
// has done that for all requests answered before it answers this one.
func (t *Tomcat) log(ctx context.Context) ([]byte, error) {
	if t.process != nil {
		if _, err := t.get(ctx, "instance"); err != nil {
			return nil, err
		}
	}
	return os.ReadFile(filepath.Join(t.dir, "access.log"))
}

// kerberos reports whether there are keys to take tickets with.
func (t *Tomcat) kerberos() bool { return t.options.KeytabFile != "" }

// get asks for one of the pages of /open/ that Hits does not count.
func (t *Tomcat) get(ctx context.Context, page string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+loopback(t.port)+"/open/"+page, nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("tomcat: /open/%s: %s", page, res.Status)
	}
	return io.ReadAll(io.LimitReader(res.Body, 1<<20))
}

// whoami must not ask for a session: the authenticator has made it.
const whoamiJSP = `<%@page contentType="application/json" session="false"%>{"user":"<%=request.getRemoteUser()%>"}` + "\n"

// writeFiles writes everything but what Start writes.
func (t *Tomcat) writeFiles() error {
	for _, dir := range []string{"conf/Catalina/localhost", "temp", "apps/spn/WEB-INF", "apps/form/WEB-INF", "apps/basic/WEB-INF", "apps/open/WEB-INF"} {
		if err := os.MkdirAll(filepath.Join(t.dir, dir), 0o700); err != nil {
			return err
		}
	}
	for _, f := range []struct{ name, content string }{
		{"apps/spn/index.html", "<p>spn</p>\n"},
		{"apps/spn/WEB-INF/whoami.jsp", whoamiJSP},
		{"apps/form/index.html", "<p>form</p>\n"},
		{"apps/form/login.html", `<!DOCTYPE html>
<title>Log in</title>
<form method="post" action="j_security_check">
<input name="j_username">
<input type="password" name="j_password">
<input type="submit" value="Log in">
</form>
`},
		{"apps/form/error.html", "<!DOCTYPE html>\n<p>Wrong user name or password. <a href=\".\">Once more</a></p>\n"},
		{"apps/form/WEB-INF/whoami.jsp", whoamiJSP},
		{"apps/form/WEB-INF/away.jsp", `<%@page session="false"%><% response.sendRedirect("http://127.0.0.1:" + request.getServerPort() + "/open/"); %>` + "\n"},
		{"apps/form/WEB-INF/broken.jsp", `<%@page session="false"%><% request.getRequestDispatcher(null).forward(request, response); %>` + "\n"},
		{"apps/basic/index.html", "<p>basic</p>\n"},
		{"apps/basic/WEB-INF/whoami.jsp", whoamiJSP},
		{"apps/open/index.html", "<p>open</p>\n"},
		{"access.log", ""},
	} {
		if err := os.WriteFile(filepath.Join(t.dir, f.name), []byte(f.content), 0o600); err != nil {
			return err
		}
	}
	data := struct {
		Dir                    string
		Port                   int
		Kerberos, KeepSessions bool
		PasswordApps           []string
		Users                  map[string]string
	}{t.dir, t.port, t.kerberos(), t.options.KeepSessions, passwordApps, t.options.Users}
	for _, f := range []struct{ name, template string }{
		{"conf/server.xml", "tomcat-server.xml"},
		{"conf/web.xml", "tomcat-web.xml"},
		{"conf/Catalina/localhost/rewrite.config", "tomcat-rewrite.config"},
		{"apps/spn/WEB-INF/web.xml", "tomcat-spn.xml"},
		{"apps/form/WEB-INF/web.xml", "tomcat-form.xml"},
		{"apps/basic/WEB-INF/web.xml", "tomcat-basic.xml"},
		{"apps/open/WEB-INF/web.xml", "tomcat-open.xml"},
		{"users.xml", "tomcat-users.xml"},
		{"jaas.conf", "tomcat-jaas.conf"},
	} {
		if err := writeTemplate(filepath.Join(t.dir, f.name), f.template, data); err != nil {
			return err
		}
	}
	return nil
}
