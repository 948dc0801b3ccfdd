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

// Credential is one [credential.NAME] of the configuration.
type Credential struct {
	Name string
	krb.Credential
}

// krb5Conf is where MIT's library looks for its configuration.
const krb5Conf = "/etc/krb5.conf"

// LoadConfig reads the configuration at path and, in the order of their names,
// the files conf.d/*.toml beside it, but for hidden ones, and, if there are
// credentials, the krb5.conf files that $KRB5_CONFIG lists, else /etc/krb5.conf.
// Errors are *api.Error of code api.ConfigInvalid or api.Krb5ConfInvalid that
// name file and, where there is one, line.
func LoadConfig(path string) (*Config, error) {
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
	if len(d.credentials) > 0 {
		if c.kerberos, err = krb.LoadConfig(filepath.SplitList(cmp.Or(os.Getenv("KRB5_CONFIG"), krb5Conf))...); err != nil {
			return nil, err
		}
	}
	credentials := map[string]*Credential{}
	for name, t := range d.credentials {
		p, err := krb.ParsePrincipal(t.Principal, c.kerberos.DefaultRealm())
		if err != nil {
			return nil, configError(d.where["credential."+name], "credential."+name+": "+api.AsError(err).Detail)
		}
		credentials[name] = &Credential{name, krb.Credential{Principal: p, Keytab: filepath.Clean(t.Keytab)}}
	}
	for _, name := range slices.Sorted(maps.Keys(d.sites)) {
		s := d.sites[name]
		if s.Credential = credentials[d.credentialOf[name]]; s.Credential == nil {
			return nil, configError(d.where["site."+name], fmt.Sprintf("site.%s: there is no [credential.%s]", name, d.credentialOf[name]))
		}
		p := s.Credential.Principal
		s.fingerprint += "/" + p.String()
		if s.expect.Names == nil && !s.expect.Unproven {
			// As sites name a principal: by its first component, or in full.
			s.expect.Names = []string{p.Components[0], p.String()}
		}
		c.Sites = append(c.Sites, s)
		if s.insecureHTTP {
			c.Warnings = append(c.Warnings, fmt.Sprintf("site %s: insecure_http lets its session go over the network in clear", s.Name))
		}
	}
	return c, nil
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
// principal.
func (c *Config) Problems() []error {
	var all []error
	seen := map[string]bool{}
	for _, s := range c.Sites {
		if cred := s.Credential; !seen[cred.Name] {
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
