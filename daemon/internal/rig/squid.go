package rig

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// squidHelpers is where Debian keeps the programs that check credentials for
// Squid.
const squidHelpers = "/usr/lib/squid"

// squidMark begins the URLs by which Hits finds out that Squid's log is complete.
const squidMark = "http://rig.invalid/mark/"

// Squid is the proxy of that name, on a free port of 127.0.0.1, under the name
// localhost. It needs squid, but not root.
//
// It lets everybody who has proved who he is go everywhere: http by absolute
// URLs, and CONNECT to every port. Its Negotiate answers no token, and counts for
// the rest of the connection: what follows on it, with or without credentials, is
// still that user's. Start, Stop and Hits must not be called at the same time.
type Squid struct {
	dir     string
	options SquidOptions
	port    int
	owner   *syscall.Credential // who runs it, if not the test's own user
	process *process            // nil while stopped
}

// SquidOptions says how Squid is to run. With NoNegotiate and without Users it
// wants no credentials.
type SquidOptions struct {
	// Krb5ConfFile and KeytabFile are paths, for Negotiate. Both are read at every
	// start.
	Krb5ConfFile, KeytabFile string
	// SPN is the service that tickets must be for, such as HTTP/localhost@REALM;
	// without one, every service in the keytab is good.
	SPN string
	// NoNegotiate takes Negotiate from what Squid offers.
	NoNegotiate bool
	// Users are the passwords of Basic, by name. Without them Squid does not
	// offer it.
	Users map[string]string
	// Hosts are lines of a hosts file, hosts(5): the names that Squid knows beside
	// localhost. It asks no DNS server.
	Hosts string
}

// StartSquid starts Squid with all its files below dir, and returns when it
// accepts connections. Started by root, Squid runs as nobody, with dir as
// StartApache has it.
func StartSquid(ctx context.Context, dir string, options SquidOptions) (*Squid, error) {
	if strings.ContainsFunc(options.SPN, func(r rune) bool { return r <= ' ' }) {
		return nil, fmt.Errorf("blank or control character in the SPN %q", options.SPN)
	}
	dir, owner, err := ownDir(dir)
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &Squid{dir: dir, options: options, port: port, owner: owner}
	if err := s.writePasswords(); err != nil {
		return nil, err
	}
	hosts := "127.0.0.1 localhost\n" + options.Hosts
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte(hosts), 0o600); err != nil {
		return nil, err
	}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// URL returns http://localhost:port, without a slash at its end.
func (s *Squid) URL() string { return "http://localhost:" + strconv.Itoa(s.port) }

// Dir returns the directory of the configuration and the logs.
func (s *Squid) Dir() string { return s.dir }

// Start starts Squid after Stop, on the same port.
func (s *Squid) Start(ctx context.Context) error {
	if s.process != nil {
		return errors.New("squid runs already")
	}
	program, err := find("squid")
	if err != nil {
		return err
	}
	env := environment("TMPDIR=" + s.dir)
	if !s.options.NoNegotiate {
		krb5Conf := filepath.Join(s.dir, "krb5.conf")
		if err := copyFile(krb5Conf, s.options.Krb5ConfFile); err != nil {
			return err
		}
		if err := copyFile(filepath.Join(s.dir, "proxy.keytab"), s.options.KeytabFile); err != nil {
			return err
		}
		env = append(env, "KRB5_CONFIG="+krb5Conf, "KRB5RCACHEDIR="+s.dir)
	}
	conf := filepath.Join(s.dir, "squid.conf")
	if err := writeTemplate(conf, "squid.conf", s.conf()); err != nil {
		return err
	}
	// Stop leaves the old one, and Squid does not start while another process has
	// its number.
	pidFile := filepath.Join(s.dir, "squid.pid")
	if err := os.Remove(pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := giveAway(s.dir, s.owner); err != nil {
		return err
	}
	// -N is one process. What helps it check credentials ends when it does, for
	// want of anybody who asks.
	cmd := exec.Command(program, "-N", "-f", conf)
	cmd.Env = env
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	p, err := startProcess("squid", cmd, filepath.Join(s.dir, "squid.out"))
	if err != nil {
		return err
	}
	if err := p.ready(ctx, pidFile, loopback(s.port)); err != nil {
		return err
	}
	s.process = p
	return nil
}

// Stop ends Squid and all tunnels through it, as a crash would: connections are
// refused until Start. Without a running Squid it does nothing.
func (s *Squid) Stop() {
	if s.process != nil {
		// An error means that it has ended already. Squid takes two seconds over an
		// orderly end, in which it saves nothing that matters here.
		_ = s.process.cmd.Process.Kill()
		s.process.stop()
		s.process = nil
	}
}

// SquidHit is a request that has reached Squid.
type SquidHit struct {
	Method string // such as GET or CONNECT
	URL    string // as sent: absolute, or host:port for CONNECT
	Scheme string // of Proxy-Authorization: Negotiate, Basic, or "" for none
	User   string // whom Squid took it for, or ""
	Status int    // of the answer
}

// Hits returns the requests that Squid has answered since it was made, in the
// order in which they ended. Whatever a client has had the whole answer for is
// there, and a tunnel when its client or its server has closed it; a tunnel that
// Stop cuts off never is.
func (s *Squid) Hits(ctx context.Context) ([]SquidHit, error) {
	if s.process != nil {
		if err := s.mark(ctx); err != nil {
			return nil, err
		}
	}
	log, err := os.ReadFile(filepath.Join(s.dir, "access.log"))
	if err != nil {
		return nil, err
	}
	return parseHits(log)
}

// mark asks Squid for something. Squid does one thing after the other, and writes
// to its log as soon as it has sent the end of an answer: when it has answered
// this request, the log is complete for all those before.
func (s *Squid) mark(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, squidMark, nil)
	if err != nil {
		return err
	}
	proxy := &url.URL{Scheme: "http", Host: loopback(s.port)}
	t := &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}
	res, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// parseHits reads the lines that the logformat of templates/squid.conf makes:
//
//	hit 200 Negotiate svc@RIG.TEST GET http://localhost:8080/
//	hit 407 - - CONNECT localhost:8443
//	hit 000 - - - error:transaction-end-before-headers
//
// The last is a connection without a request.
func parseHits(log []byte) ([]SquidHit, error) {
	var hits []SquidHit
	for line := range bytes.Lines(log) {
		fields := strings.Fields(string(line))
		if len(fields) != 6 || fields[0] != "hit" {
			return nil, fmt.Errorf("unknown line in squid's log: %q", line)
		}
		if fields[4] == "-" || strings.HasPrefix(fields[5], squidMark) {
			continue
		}
		status, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("unknown line in squid's log: %q", line)
		}
		none := func(s string) string {
			if s == "-" {
				return ""
			}
			return s
		}
		hits = append(hits, SquidHit{Status: status, Scheme: none(fields[2]), User: none(fields[3]), Method: fields[4], URL: fields[5]})
	}
	return hits, nil
}

// conf is what templates/squid.conf is filled with.
func (s *Squid) conf() any {
	spn := s.options.SPN
	if spn == "" {
		spn = "GSS_C_NO_NAME"
	}
	return struct {
		Dir, Helpers, SPN, MarkURL string
		Port                       int
		Negotiate, Basic           bool
	}{
		Dir: s.dir, Helpers: squidHelpers, SPN: spn, MarkURL: squidMark,
		Port: s.port, Negotiate: !s.options.NoNegotiate, Basic: s.options.Users != nil,
	}
}

// writePasswords makes the file that basic_ncsa_auth checks passwords with. Of
// the hashes that it knows, plain MD5 in hexadecimal is the one that Go has: good
// enough for a test's passwords in a file of mode 0600.
func (s *Squid) writePasswords() error {
	var b strings.Builder
	for _, user := range slices.Sorted(maps.Keys(s.options.Users)) {
		if strings.ContainsFunc(user, func(r rune) bool { return r <= ' ' || r == ':' }) {
			return fmt.Errorf("blank, colon or control character in the user name %q", user)
		}
		fmt.Fprintf(&b, "%s:%x\n", user, md5.Sum([]byte(s.options.Users[user])))
	}
	return os.WriteFile(filepath.Join(s.dir, "passwords"), []byte(b.String()), 0o600)
}
