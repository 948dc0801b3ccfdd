package rig

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
)

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(template.ParseFS(templateFiles, "templates/*"))

// MITKDC is MIT's krb5kdc for one realm, on TCP on a free port of 127.0.0.1. It
// needs krb5kdc, kdb5_util and kadmin.local, but not root. Start and Stop must not
// be called at the same time.
type MITKDC struct {
	realm, addr, dir string
	process          *process // nil while stopped
}

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
	SHA2Only        Attribute = "-e aes256-cts-hmac-sha384-192:normal"
	AES256Only      Attribute = "-e aes256-cts-hmac-sha1-96:normal"
)

// StartMIT makes a realm without principals below dir, which must not hold one
// yet, and starts its KDC. It returns when the KDC accepts connections.
func StartMIT(ctx context.Context, dir, realm string) (*MITKDC, error) {
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
	k := &MITKDC{realm: realm, addr: loopback(port), dir: dir}
	for _, name := range []string{"krb5.conf", "kdc.conf"} {
		if err := writeTemplate(filepath.Join(dir, name), name, map[string]string{"Realm": realm, "Addr": k.addr, "Dir": dir}); err != nil {
			return nil, err
		}
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

// Realm returns the realm's name. Host localhost belongs to it.
func (k *MITKDC) Realm() string { return k.realm }

// Addr returns the KDC's host:port.
func (k *MITKDC) Addr() string { return k.addr }

// Dir returns the directory of the database, the configuration and the log.
func (k *MITKDC) Dir() string { return k.dir }

// Krb5ConfFile returns the path of a krb5.conf for clients of the realm.
func (k *MITKDC) Krb5ConfFile() string { return filepath.Join(k.dir, "krb5.conf") }

// Env returns the variables that let kinit, curl and other users of libkrb5 find
// the realm, and
// a ticket cache in Dir.
func (k *MITKDC) Env() []string {
	return []string{
		"KRB5_CONFIG=" + k.Krb5ConfFile(),
		"KRB5CCNAME=FILE:" + filepath.Join(k.dir, "krb5cc"),
	}
}

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
	return environment("KRB5_CONFIG="+k.Krb5ConfFile(), "KRB5_KDC_PROFILE="+filepath.Join(k.dir, "kdc.conf"))
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
