package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// defaultRecheck is how long a proof of a session is good for.
const defaultRecheck = 5 * time.Minute

// Config is the configuration of an agent, checked: what it names exists in
// it, and every option is one that its kind knows.
type Config struct {
	// Files are the files that were read.
	Files []string
	// Sites in the order of their names.
	Sites []*Site
	// Warnings are for a person to look at.
	Warnings []string

	kerberos *krb.Config // nil without credentials
}

// Site is one [site.NAME] of the configuration.
type Site struct {
	Name       string
	Kind       string
	URL        *url.URL
	Credential *Credential

	allow        []peer.Rule
	expect       login.Expectation
	loginHosts   []web.Origin
	userAgent    string
	insecureHTTP bool
	recheck      time.Duration
	driver       login.Driver
	fingerprint  string
}

// Credential is one [credential.NAME] of the configuration: a principal with its
// keytab, or a username whose password comes in by login or from systemd.
type Credential struct {
	Name string
	krb.Credential
	Username string // "" with a principal
}

// means returns what the credential is to a login.
func (c *Credential) means() login.Means {
	if c.Username != "" {
		return login.Secret
	}
	return login.Ticket
}

// account returns who logs in: "build@CORP.EXAMPLE" or "build".
func (c *Credential) account() string {
	return cmp.Or(c.Username, c.Principal.String())
}

// names returns how sites may name the account: a principal by its first
// component, or in full.
func (c *Credential) names() []string {
	if c.Username != "" {
		return []string{c.Username}
	}
	return []string{c.Principal.Components[0], c.Principal.String()}
}

// krb5Conf is where MIT's library looks for its configuration.
const krb5Conf = "/etc/krb5.conf"

// LoadConfig reads the configuration at path and, in the order of their names,
// the files conf.d/*.toml beside it, but for hidden ones, and, if there are
// keytabs, the krb5.conf files named, else those that $KRB5_CONFIG lists, else
// /etc/krb5.conf.
// Errors are *api.Error of code api.ConfigInvalid or api.Krb5ConfInvalid that
// name file and, where there is one, line.
func LoadConfig(path string, krb5 ...string) (*Config, error) {
	if len(krb5) == 0 {
		krb5 = filepath.SplitList(cmp.Or(os.Getenv("KRB5_CONFIG"), krb5Conf))
	}
	files := []string{path}
	dir := filepath.Join(filepath.Dir(path), "conf.d")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, unreadable(dir, err)
	}
	for _, e := range entries { // in the order of their names
		if name := e.Name(); name[0] != '.' && filepath.Ext(name) == ".toml" {
			files = append(files, filepath.Join(dir, name))
		}
	}
	c := &Config{}
	d := newDecoder()
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			e := unreadable(f, err)
			if errors.Is(err, fs.ErrNotExist) {
				e.Remedy = "write it; sessiond --help shows an example"
			}
			return nil, e
		}
		if err := d.file(f, b); err != nil {
			return nil, err
		}
		c.Files = append(c.Files, f)
	}
	credentials := map[string]*Credential{}
	for name, t := range d.credentials {
		if t.Username != "" {
			credentials[name] = &Credential{Name: name, Username: t.Username}
			continue
		}
		if c.kerberos == nil {
			if c.kerberos, err = krb.LoadConfig(krb5...); err != nil {
				return nil, err
			}
		}
		p, err := krb.ParsePrincipal(t.Principal, c.kerberos.DefaultRealm())
		if err != nil {
			return nil, configError(d.where["credential."+name], "credential."+name+": "+api.AsError(err).Detail)
		}
		credentials[name] = &Credential{Name: name, Credential: krb.Credential{Principal: p, Keytab: filepath.Clean(t.Keytab)}}
	}
	for _, name := range slices.Sorted(maps.Keys(d.sites)) {
		s := d.sites[name]
		if s.Credential = credentials[d.credentialOf[name]]; s.Credential == nil {
			return nil, configError(d.where["site."+name], fmt.Sprintf("site.%s: there is no [credential.%s]", name, d.credentialOf[name]))
		}
		if takes := s.driver.Takes(); !slices.Contains(takes, s.Credential.means()) {
			return nil, configError(d.where["site."+name], fmt.Sprintf("site.%s: the kind %s does not log in with %s, as credential.%s has it; it wants %s",
				name, s.Kind, s.Credential.means(), s.Credential.Name, joinMeans(takes)))
		}
		s.fingerprint += "/" + s.Credential.account()
		if s.expect.Names == nil && !s.expect.Unproven {
			s.expect.Names = s.Credential.names()
		}
		c.Sites = append(c.Sites, s)
		if s.insecureHTTP {
			c.Warnings = append(c.Warnings, fmt.Sprintf("site %s: insecure_http lets its session go over the network in clear", s.Name))
		}
	}
	return c, nil
}

func joinMeans(means []login.Means) string {
	var all []string
	for _, m := range means {
		all = append(all, string(m))
	}
	return strings.Join(all, ", or ")
}

func configError(file, detail string) *api.Error {
	return &api.Error{Code: api.ConfigInvalid, Detail: file + ": " + detail, Remedy: "mend it, then: sessionctl check-config " + file}
}

// unreadable is for a file or directory that cannot be read.
func unreadable(path string, err error) *api.Error {
	var cause *fs.PathError
	if errors.As(err, &cause) {
		err = cause.Err // without the path, which stands in front
	}
	return configError(path, err.Error())
}

// Problems says which credentials cannot be used as things are: no KDC for the
// realm, or a keytab that is missing, unreadable or without a key for its
// principal. Whether a password is at hand only the agent knows.
func (c *Config) Problems() []error {
	var all []error
	seen := map[string]bool{}
	for _, s := range c.Sites {
		if cred := s.Credential; !seen[cred.Name] && cred.Username == "" {
			seen[cred.Name] = true
			for _, err := range []error{c.kerberos.CheckRealm(cred.Principal.Realm), krb.CheckKeytab(cred.Keytab, cred.Principal)} {
				if err != nil {
					all = append(all, err)
				}
			}
		}
	}
	return all
}
