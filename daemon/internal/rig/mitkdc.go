package rig

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
	"time"
)

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(template.ParseFS(templateFiles, "templates/*"))

// MITKDC is MIT's krb5kdc for one realm, on TCP and UDP on a free port of
// 127.0.0.1. It needs krb5kdc, kdb5_util and kadmin.local, but not root. Start and
// Stop must not be called at the same time.
type MITKDC struct {
	realm, addr, dir string
	options          mitOptions
	trusted          []Realm  // whose hosts the KDC refers clients to
	process          *process // nil while stopped
}

// mitOptions is what the options of StartMIT set.
type mitOptions struct {
	clock, skew time.Duration
	enctypes    []string
	udp         bool
}

// MITOption is how the realm that StartMIT makes differs from others.
type MITOption func(*mitOptions)

// WithClock moves the KDC's clock, ahead if the offset is positive. Full seconds
// count. It needs faketime.
func WithClock(offset time.Duration) MITOption {
	return func(o *mitOptions) { o.clock = offset }
}

// WithClockSkew sets how far a client's clock may be off, and with it for how long
// after its end the KDC still takes a ticket, instead of MIT's five minutes. Full
// seconds count.
func WithClockSkew(skew time.Duration) MITOption {
	return func(o *mitOptions) { o.skew = skew }
}

// WithEnctypes sets the enctypes of keys that no Attribute restricts, by MIT's
// names such as arcfour-hmac, instead of the four of AES.
func WithEnctypes(names ...string) MITOption {
	return func(o *mitOptions) { o.enctypes = names }
}

// WithUDP lets the clients that read Krb5ConfFile use UDP for small messages, which
// is MIT's default. Without it they use TCP only.
func WithUDP() MITOption { return func(o *mitOptions) { o.udp = true } }

// Attribute changes how the KDC treats a principal. It is an option of kadmin's
// add_principal and modify_principal, so that others than those named here work
// as well, such as Attribute("-maxlife 5minutes").
type Attribute string

// The attributes that make a KDC refuse, their opposites, and restrictions of
// the keys. The enctypes only count where keys are made.
const (
	Disabled        Attribute = "-allow_tix"
	Enabled         Attribute = "+allow_tix"
	Expired         Attribute = "-expire 2020-01-01"
	NotExpired      Attribute = "-expire never"
	PasswordExpired Attribute = "-pwexpire 2020-01-01"
	PasswordValid   Attribute = "-pwexpire never"
	NoPreauth       Attribute = "-requires_preauth"
	HardwareAuth    Attribute = "-requires_preauth +requires_hwauth"
	SHA2Only        Attribute = "-e aes256-cts-hmac-sha384-192:normal"
	AES256Only      Attribute = "-e aes256-cts-hmac-sha1-96:normal"
	AES128Only      Attribute = "-e aes128-cts-hmac-sha1-96:normal"
	RC4Only         Attribute = "-e arcfour-hmac:normal"
)

// aesEnctypes are the enctypes of keys: those of RFC 3962 and RFC 8009.
var aesEnctypes = []string{
	"aes256-cts-hmac-sha1-96", "aes128-cts-hmac-sha1-96",
	"aes256-cts-hmac-sha384-192", "aes128-cts-hmac-sha256-128",
}

// keySalts returns the enctypes as kdc.conf and kadmin want them.
func keySalts(enctypes []string) string { return strings.Join(enctypes, ":normal,") + ":normal" }

// StartMIT makes a realm without principals below dir, which must not hold one
// yet, and starts its KDC. It returns when the KDC accepts connections.
func StartMIT(ctx context.Context, dir, realm string, options ...MITOption) (*MITKDC, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "principal")); err == nil {
		return nil, fmt.Errorf("a realm is in %s already", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	k := &MITKDC{realm: realm, addr: loopback(port), dir: dir, options: mitOptions{enctypes: aesEnctypes}}
	for _, set := range options {
		set(&k.options)
	}
	if err := writeTemplate(filepath.Join(dir, "kdc.conf"), "kdc.conf", map[string]string{
		"Realm": realm, "Addr": k.addr, "Dir": dir, "KeySalts": keySalts(k.options.enctypes),
	}); err != nil {
		return nil, err
	}
	if err := (Krb5Conf{Realms: []Realm{k}, UDP: k.options.udp}).WriteFile(k.Krb5ConfFile()); err != nil {
		return nil, err
	}
	if err := k.writeOwnKrb5Conf(); err != nil {
		return nil, err
	}
	// The master key only protects the database in dir: it is thrown away.
	if _, err := k.run(ctx, "master\nmaster\n", "kdb5_util", "-r", realm, "create", "-s"); err != nil {
		return nil, err
	}
	if err := k.Start(ctx); err != nil {
		return nil, err
	}
	return k, nil
}

// Trust lets two realms trust each other: each KDC gives tickets for the services
// of the other realm to its own clients, and refers those to it who ask for one of
// its hosts (RFC 6806, 8). KDCs that run are started again for it.
func (k *MITKDC) Trust(ctx context.Context, other *MITKDC) error {
	for _, pair := range [][2]*MITKDC{{k, other}, {other, k}} {
		from, to := pair[0], pair[1]
		name := "krbtgt/" + to.realm + "@" + from.realm
		// Keys made from the same password for the same name are the same. NoPreauth:
		// what the home realm asks of its clients is enough.
		password := rand.Text()
		for _, kdc := range pair {
			if err := kdc.AddPrincipal(ctx, name, password, NoPreauth, Attribute("-e "+keySalts(aesEnctypes))); err != nil {
				return err
			}
		}
		from.trusted = append(from.trusted, to)
		if err := from.writeOwnKrb5Conf(); err != nil {
			return err
		}
		if from.process != nil {
			from.Stop()
			if err := from.Start(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// Realm returns the realm's name. The hosts of Krb5Conf belong to it, and localhost.
func (k *MITKDC) Realm() string { return k.realm }

// Addr returns the KDC's host:port.
func (k *MITKDC) Addr() string { return k.addr }

// Dir returns the directory of the database, the configuration and the log.
func (k *MITKDC) Dir() string { return k.dir }

// Krb5ConfFile returns the path of a krb5.conf for clients of the realm.
func (k *MITKDC) Krb5ConfFile() string { return filepath.Join(k.dir, "krb5.conf") }

// Env returns the variables that let kinit, curl and other users of libkrb5 find
// the realm, and a ticket cache in Dir.
func (k *MITKDC) Env() []string { return clientEnv(k.dir) }

// Start starts the KDC after Stop, with the same database on the same port.
func (k *MITKDC) Start(ctx context.Context) error {
	if k.process != nil {
		return errors.New("krb5kdc runs already")
	}
	program, err := find("krb5kdc")
	if err != nil {
		return err
	}
	pidFile := filepath.Join(k.dir, "krb5kdc.pid")
	cmd := exec.Command(program, "-n", "-P", pidFile, "-r", k.realm)
	cmd.Env = k.adminEnv()
	if k.options.clock != 0 {
		library, err := faketime()
		if err != nil {
			return err
		}
		// Not by the program of that name, which would be the process to stop.
		cmd.Env = append(cmd.Env, "LD_PRELOAD="+library, fmt.Sprintf("FAKETIME=%+d", int64(k.options.clock/time.Second)))
	}
	p, err := startProcess("krb5kdc", cmd, filepath.Join(k.dir, "krb5kdc.out"))
	if err != nil {
		return err
	}
	if err := p.ready(ctx, pidFile, k.addr); err != nil {
		return err
	}
	k.process = p
	return nil
}

// Stop ends the KDC: connections are refused until Start. Without a running KDC
// it does nothing.
func (k *MITKDC) Stop() {
	if k.process != nil {
		k.process.stop()
		k.process = nil
	}
}

// AddPrincipal adds a principal whose keys are made from the password.
func (k *MITKDC) AddPrincipal(ctx context.Context, name, password string, attributes ...Attribute) error {
	return k.admin(ctx, command("add_principal", "-clearpolicy", "-pw", quote(password), options(attributes), quote(name)))
}

// AddService adds a principal with random keys, such as HTTP/localhost.
func (k *MITKDC) AddService(ctx context.Context, spn string, attributes ...Attribute) error {
	return k.admin(ctx, command("add_principal", "-clearpolicy", "-randkey", options(attributes), quote(spn)))
}

// Modify changes a principal's attributes.
func (k *MITKDC) Modify(ctx context.Context, name string, attributes ...Attribute) error {
	return k.admin(ctx, command("modify_principal", options(attributes), quote(name)))
}

// Rekey gives a principal new keys with the next key version, made from the
// password, or at random without one. Keytabs written before hold the old ones.
func (k *MITKDC) Rekey(ctx context.Context, name, password string) error {
	if password == "" {
		return k.admin(ctx, command("change_password", "-randkey", quote(name)))
	}
	return k.admin(ctx, command("change_password", "-pw", quote(password), quote(name)))
}

// Delete removes a principal.
func (k *MITKDC) Delete(ctx context.Context, name string) error {
	return k.admin(ctx, command("delete_principal", "-force", quote(name)))
}

// Keytab adds the present keys of the named principals to the keytab file at
// path, which is made with mode 0600 if it is missing. The keys stay as they are.
func (k *MITKDC) Keytab(ctx context.Context, path string, names ...string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	words := []string{"ktadd", "-norandkey", "-k", quote(path)}
	for _, name := range names {
		words = append(words, quote(name))
	}
	return k.admin(ctx, command(words...))
}

// What krb5kdc 1.20 writes to its log for each request, before it answers:
//
//	… krb5kdc[1](info): AS_REQ (8 etypes {…}) 127.0.0.1: NEEDED_PREAUTH: svc@R for krbtgt/R@R, …
//	… krb5kdc[1](info): AS_REQ (8 etypes {…}) 127.0.0.1: ISSUE: authtime …, svc@R for krbtgt/R@R
//	… krb5kdc[1](info): TGS_REQ (8 etypes {…}) 127.0.0.1: ISSUE: authtime …, svc@R for HTTP/h@R
var logged = regexp.MustCompile(`(?m)\(info\): (AS|TGS)_REQ .*? [0-9.]+: ([A-Z_ ]+): `)

// Counts returns what the KDC was asked since it was made. Whatever a client has
// had an answer for is counted.
func (k *MITKDC) Counts() (Counts, error) {
	log, err := os.ReadFile(filepath.Join(k.dir, "kdc.log"))
	if err != nil {
		return Counts{}, err
	}
	var c Counts
	for _, m := range logged.FindAllSubmatch(log, -1) {
		exchange, result := string(m[1]), string(m[2])
		switch {
		case exchange == "AS":
			c.AS++
			switch result {
			case "ISSUE":
				c.ASTGT++
			case "PREAUTH_FAILED":
				c.PreauthFailed++
			}
		case result == "ISSUE":
			c.TGS++
		}
	}
	return c, nil
}

// admin gives one command to kadmin.local: through its standard input, because
// arguments of processes are public.
func (k *MITKDC) admin(ctx context.Context, command string) error {
	if strings.ContainsFunc(command, func(r rune) bool { return r < ' ' }) {
		return errors.New("control character in a name or password")
	}
	complaint, err := k.run(ctx, command+"\n", "kadmin.local", "-r", k.realm)
	// kadmin.local ends with status 0 even if a command failed.
	if err == nil && complaint != "" {
		err = fmt.Errorf("kadmin.local: %s", complaint)
	}
	return err
}

// run runs an administrator's tool and returns its standard error.
func (k *MITKDC) run(ctx context.Context, input, name string, args ...string) (string, error) {
	program, err := find(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = k.adminEnv()
	cmd.Stdin = strings.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stderr.String()), nil
}

func (k *MITKDC) adminEnv() []string {
	return environment("KRB5_CONFIG="+k.ownKrb5ConfFile(), "KRB5_KDC_PROFILE="+filepath.Join(k.dir, "kdc.conf"))
}

// ownKrb5ConfFile is the krb5.conf of the KDC itself. Clients have another one,
// because they need not know what it knows.
func (k *MITKDC) ownKrb5ConfFile() string { return filepath.Join(k.dir, "kdc-krb5.conf") }

func (k *MITKDC) writeOwnKrb5Conf() error {
	conf := Krb5Conf{Realms: append([]Realm{k}, k.trusted...), skew: k.options.skew}
	return conf.WriteFile(k.ownKrb5ConfFile())
}

// faketime returns the path of the library that the program faketime loads into
// others.
func faketime() (string, error) {
	libraries, err := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if err == nil && len(libraries) == 0 {
		err = errors.New("libfaketime.so.1 is missing")
	}
	if err != nil {
		return "", err
	}
	return libraries[0], nil
}

func command(words ...string) string { return strings.Join(words, " ") }

func options(attributes []Attribute) string {
	words := make([]string, len(attributes))
	for i, a := range attributes {
		words[i] = string(a)
	}
	return command(words...)
}

// quote makes one word for kadmin.local, whose only special character inside
// double quotes is the double quote, written twice.
func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func writeTemplate(path, name string, data any) error {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o600)
}
