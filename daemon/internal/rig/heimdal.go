package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Heimdal is Heimdal's KDC for one realm, on TCP and UDP on a free port of
// 127.0.0.1. It needs what HeimdalNeeds names, but not root. Start and Stop must
// not be called at the same time. Names and passwords are printable ASCII. What is
// Disabled is refused with KDC_ERR_POLICY, by the others with
// KDC_ERR_CLIENT_REVOKED (RFC 4120, 7.5.9).
type Heimdal struct {
	realm, addr, dir string
	process          *process // nil while stopped
}

// Heimdal's programs, whose Debian packages conflict with MIT's krb5-user.
const (
	heimdalKDC    = unpacked + "usr/lib/heimdal-servers/kdc"
	heimdalKstash = unpacked + "usr/sbin/kstash"
	heimdalKadmin = unpacked + "usr/bin/kadmin.heimdal"
)

// HeimdalNeeds names for Require what StartHeimdal needs.
func HeimdalNeeds() []string { return []string{heimdalKDC, heimdalKstash, heimdalKadmin} }

// StartHeimdal makes a realm without principals of ours below dir, which must not
// hold one yet, and starts its KDC. It returns when the KDC accepts connections.
func StartHeimdal(ctx context.Context, dir, realm string) (*Heimdal, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "heimdal.db")); err == nil {
		return nil, fmt.Errorf("a realm is in %s already", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	h := &Heimdal{realm: realm, addr: loopback(port), dir: dir}
	if err := writeTemplate(h.conf(), "heimdal.conf", map[string]string{
		"Realm": realm, "Addr": h.addr, "Dir": dir, "Enctypes": strings.Join(aesEnctypes, ":pw-salt ") + ":pw-salt",
	}); err != nil {
		return nil, err
	}
	if err := (Krb5Conf{Realms: []Realm{h}}).WriteFile(h.Krb5ConfFile()); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, heimdalKstash, "--random-key", "--key-file="+filepath.Join(dir, "m-key"))
	cmd.Env = h.adminEnv()
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("kstash: %w: %s", err, bytes.TrimSpace(out))
	}
	if err := h.admin(ctx, command("init", "--bare", "--realm-max-ticket-life=10h", "--realm-max-renewable-life=7d", heimdalQuote(realm))); err != nil {
		return nil, err
	}
	if err := h.Start(ctx); err != nil {
		return nil, err
	}
	return h, nil
}

// Realm returns the realm's name. Host localhost belongs to it.
func (h *Heimdal) Realm() string { return h.realm }

// Addr returns the KDC's host:port.
func (h *Heimdal) Addr() string { return h.addr }

// Dir returns the directory of the database, the configuration and the log.
func (h *Heimdal) Dir() string { return h.dir }

// Krb5ConfFile returns the path of a krb5.conf for clients of the realm.
func (h *Heimdal) Krb5ConfFile() string { return filepath.Join(h.dir, "krb5.conf") }

// Env returns the variables that let kinit, curl and other users of libkrb5 find
// the realm, and a ticket cache in Dir.
func (h *Heimdal) Env() []string { return clientEnv(h.dir) }

// Start starts the KDC after Stop, with the same database on the same port.
func (h *Heimdal) Start(ctx context.Context) error {
	if h.process != nil {
		return errors.New("kdc runs already")
	}
	_, port, err := net.SplitHostPort(h.addr)
	if err != nil {
		return err
	}
	// With --testing it serves in its first process instead of forking others.
	cmd := exec.Command(heimdalKDC, "--testing", "--config-file="+h.conf(), "--addresses=127.0.0.1", "--ports="+port)
	cmd.Env = h.adminEnv()
	p, err := startProcess("kdc", cmd, filepath.Join(h.dir, "kdc.out"))
	if err != nil {
		return err
	}
	if err := p.ready(ctx, filepath.Join(h.dir, "kdc.pid"), h.addr); err != nil {
		return err
	}
	h.process = p
	return nil
}

// Stop ends the KDC: connections are refused until Start. Without a running KDC
// it does nothing.
func (h *Heimdal) Stop() {
	if h.process != nil {
		h.process.stop()
		h.process = nil
	}
}

// AddPrincipal adds a principal whose keys are made from the password.
func (h *Heimdal) AddPrincipal(ctx context.Context, name, password string, attributes ...Attribute) error {
	return h.add(ctx, "--password="+heimdalQuote(password), name, attributes)
}

// AddService adds a principal with random keys, such as HTTP/localhost.
func (h *Heimdal) AddService(ctx context.Context, spn string, attributes ...Attribute) error {
	return h.add(ctx, "--random-key", spn, attributes)
}

func (h *Heimdal) add(ctx context.Context, key, name string, attributes []Attribute) error {
	changes, err := heimdalChanges(name, attributes)
	if err != nil {
		return err
	}
	add := command("add", "--use-defaults", "--attributes=requires-pre-auth", key, heimdalQuote(name))
	return h.admin(ctx, append([]string{add}, changes...)...)
}

// Modify changes a principal's attributes.
func (h *Heimdal) Modify(ctx context.Context, name string, attributes ...Attribute) error {
	changes, err := heimdalChanges(name, attributes)
	if err != nil {
		return err
	}
	return h.admin(ctx, changes...)
}

// The commands of Heimdal's kadmin that do to a principal what an Attribute says.
// HardwareAuth is missing, because Heimdal's KDC does not ask for it.
var heimdalCommands = map[Attribute]string{
	Disabled:        "modify --attributes=+disallow-all-tix %s",
	Enabled:         "modify --attributes=-disallow-all-tix %s",
	Expired:         "modify --expiration-time=2020-01-01 %s",
	NotExpired:      "modify --expiration-time=never %s",
	PasswordExpired: "modify --pw-expiration-time=2020-01-01 %s",
	PasswordValid:   "modify --pw-expiration-time=never %s",
	NoPreauth:       "modify --attributes=-requires-pre-auth %s",
	SHA2Only:        "del_enctype %s aes256-cts-hmac-sha1-96 aes128-cts-hmac-sha1-96 aes128-cts-hmac-sha256-128",
	AES256Only:      "del_enctype %s aes128-cts-hmac-sha1-96 aes256-cts-hmac-sha384-192 aes128-cts-hmac-sha256-128",
	AES128Only:      "del_enctype %s aes256-cts-hmac-sha1-96 aes256-cts-hmac-sha384-192 aes128-cts-hmac-sha256-128",
}

func heimdalChanges(name string, attributes []Attribute) ([]string, error) {
	var changes []string
	for _, attribute := range attributes {
		format, ok := heimdalCommands[attribute]
		if !ok {
			return nil, fmt.Errorf("no command of Heimdal's kadmin is known for attribute %q", attribute)
		}
		changes = append(changes, fmt.Sprintf(format, heimdalQuote(name)))
	}
	return changes, nil
}

// Rekey gives a principal new keys with the next key version, made from the
// password, or at random without one. Keytabs written before hold the old ones.
func (h *Heimdal) Rekey(ctx context.Context, name, password string) error {
	key := "--random-key"
	if password != "" {
		key = "--password=" + heimdalQuote(password)
	}
	return h.admin(ctx, command("passwd", key, heimdalQuote(name)))
}

// Delete removes a principal.
func (h *Heimdal) Delete(ctx context.Context, name string) error {
	return h.admin(ctx, command("delete", heimdalQuote(name)))
}

// Keytab adds the present keys of the named principals to the keytab file at
// path, which is made with mode 0600 if it is missing. The keys stay as they are.
func (h *Heimdal) Keytab(ctx context.Context, path string, names ...string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	words := []string{"ext_keytab", "--keytab=" + heimdalQuote(path)}
	for _, name := range names {
		words = append(words, heimdalQuote(name))
	}
	return h.admin(ctx, command(words...))
}

// What Heimdal's kdc of 7.8 and later writes to its log, before it answers, for
// each request, each failed pre-authentication and each ticket:
//
//	… AS-REQ svc@R from IPv4:127.0.0.1 for krbtgt/R@R
//	… Failed to decrypt PA-DATA -- svc@R (enctype …) error …
//	… AS-REQ authtime: 2026-11-22T04:14:54 starttime: unset …
//	… TGS-REQ authtime: 2026-11-22T04:14:54 starttime: …
var heimdalLogged = regexp.MustCompile(`(?m)^\S+ (AS-REQ|TGS-REQ|Failed to decrypt PA-DATA) (\S+)`)

// Counts returns what the KDC was asked since it was made. Whatever a client has
// had an answer for is counted. Renewed and Referrals are not: the log does not tell.
func (h *Heimdal) Counts() (Counts, error) {
	log, err := os.ReadFile(filepath.Join(h.dir, "kdc.log"))
	if err != nil {
		return Counts{}, err
	}
	var c Counts
	for _, m := range heimdalLogged.FindAllSubmatch(log, -1) {
		issued := string(m[2]) == "authtime:"
		switch what := string(m[1]); {
		case what == "AS-REQ" && issued:
			c.ASTGT++
		case what == "AS-REQ":
			c.AS++
		case what == "TGS-REQ" && issued:
			c.TGS++
		case what != "TGS-REQ":
			c.PreauthFailed++
		}
	}
	return c, nil
}

// admin gives commands to kadmin: through its standard input, because arguments of
// processes are public.
func (h *Heimdal) admin(ctx context.Context, commands ...string) error {
	for _, command := range commands {
		// Its line editor drops all others.
		if strings.ContainsFunc(command, func(r rune) bool { return r < ' ' || r > '~' }) {
			return errors.New("a name or password is not printable ASCII")
		}
	}
	cmd := exec.CommandContext(ctx, heimdalKadmin, "--local", "--config-file="+h.conf(), "--realm="+h.realm)
	cmd.Env = h.adminEnv()
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	complaint := strings.TrimSpace(stderr.String())
	// kadmin ends with status 0 after some failures.
	if err == nil && complaint != "" {
		err = errors.New("it complained")
	}
	if err != nil {
		return fmt.Errorf("kadmin.heimdal: %w: %s", err, complaint)
	}
	return nil
}

func (h *Heimdal) adminEnv() []string {
	return environment("KRB5_CONFIG="+h.conf(), "HEIM_PIDFILE_DIR="+h.dir+"/")
}

func (h *Heimdal) conf() string { return filepath.Join(h.dir, "heimdal.conf") }

// heimdalQuote makes one word for Heimdal's kadmin.
func heimdalQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
