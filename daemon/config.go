package daemon

import (
	"cmp"
	"context"
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
	// Notes are what stands in none of the files: the proxies that the environment
	// has added. The agent's is not that of a shell.
	Notes []string

	credentials []*Credential // in the order of their names
	kerberos    *krb.Config   // nil without principals
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
	spn          string
	noPAC        bool
	mutual       web.MutualPolicy
	bindings     web.BindingPolicy
	proxy        *proxy      // nil: none
	fallback     *Credential // nil: none
}

// Credential is one [credential.NAME] of the configuration: a principal with its
// keytab, ticket cache or password, or a username with a password. Passwords come
// in by login or from systemd.
type Credential struct {
	Name string
	krb.Credential
	Username string // "" with a principal

	export []peer.Rule // who may have the principal's TGT
}

// byPassword reports whether the credential has a password.
func (c *Credential) byPassword() bool { return c.Keytab == "" && c.Cache == "" }

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
// principals, the krb5.conf files named, else those that $KRB5_CONFIG lists, else
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
	for _, name := range slices.Sorted(maps.Keys(d.credentials)) {
		cred := &Credential{Name: name, Username: d.credentials[name].Username}
		if cred.Username == "" {
			if c.kerberos == nil {
				if c.kerberos, err = krb.LoadConfig(krb5...); err != nil {
					return nil, err
				}
			}
			if err := c.principal(cred, d.credentials[name]); err != nil {
				return nil, configError(d.where["credential."+name], "credential."+name+": "+api.AsError(err).Detail)
			}
		}
		credentials[name] = cred
		c.credentials = append(c.credentials, cred)
	}
	proxies, environment := map[string]*proxy{}, map[string]*proxy{}
	for _, name := range slices.Sorted(maps.Keys(d.proxies)) {
		p, err := newProxy(name, d.proxies[name], credentials)
		if err != nil {
			return nil, configError(d.where["proxy."+name], "proxy."+name+": "+api.AsError(err).Detail)
		}
		proxies[name] = p
		if p.insecureBasic && web.InClear(p.url) {
			c.Warnings = append(c.Warnings, fmt.Sprintf("proxy %s: insecure_basic lets its password go over the network in clear", name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.sites)) {
		s, t := d.sites[name], d.tables[name]
		wrong := func(format string, args ...any) error {
			return configError(d.where["site."+name], "site."+name+": "+fmt.Sprintf(format, args...))
		}
		if s.Credential = credentials[t.Credential]; s.Credential == nil {
			return nil, wrong("there is no [credential.%s]", t.Credential)
		}
		takes := s.driver.Takes()
		if !slices.Contains(takes, s.Credential.means()) {
			return nil, wrong("the kind %s does not log in with %s, as credential.%s has it; it wants %s",
				s.Kind, s.Credential.means(), s.Credential.Name, joinMeans(takes))
		}
		if option := t.forTickets(); option != "" && s.Credential.means() == login.Secret {
			return nil, wrong("%s is for tickets, and credential.%s is %s", option, s.Credential.Name, login.Secret)
		}
		if t.NoPAC && s.Credential.Cache != "" {
			return nil, wrong(noPACOfCache)
		}
		if t.Fallback != "" {
			s.fallback = credentials[t.Fallback]
			switch {
			case s.fallback == nil:
				return nil, wrong("fallback: there is no [credential.%s]", t.Fallback)
			case s.Credential.Username != "" || s.fallback.Username == "":
				return nil, wrong("fallback is a username with a password, for a site whose credential is a principal")
			case s.Credential.byPassword():
				return nil, wrong("fallback: credential.%s has a password already, its principal having neither keytab nor ccache", s.Credential.Name)
			case !login.FallsBack(s.driver):
				return nil, wrong("the kind %s does not log in with %s, so there is nothing to fall back to", s.Kind, login.Secret)
			}
		}
		if s.fallback != nil && s.URL.Scheme == "http" {
			c.Warnings = append(c.Warnings, fmt.Sprintf("site %s: its fallback sends a password over the network in clear", name))
		}
		if s.proxy, err = siteProxy(s.URL, t.Proxy, proxies, environment); err != nil {
			e := configError(d.where["site."+name], "site."+name+": "+api.AsError(err).Detail)
			e.Remedy = cmp.Or(api.AsError(err).Remedy, e.Remedy) // the environment is not mended in the file
			return nil, e
		}
		if s.proxy != nil && t.Proxy == "" {
			c.Notes = append(c.Notes, fmt.Sprintf("site %s: proxy %s from the environment", name, web.OriginOf(s.proxy.url)))
		}
		if s.proxy != nil && s.proxy.inURL != nil && web.InClear(s.proxy.url) {
			c.Warnings = append(c.Warnings, fmt.Sprintf("site %s: the environment's proxy URL holds a password, which goes over the network in clear", name))
		}
		s.fingerprint += "/" + s.Credential.account()
		if s.fallback != nil {
			s.fingerprint += "/" + s.fallback.account()
		}
		if s.expect.Names == nil && !s.expect.Unproven {
			s.expect.Names = s.Credential.names()
			if s.fallback != nil {
				s.expect.Names = append(s.expect.Names, s.fallback.Username)
			}
		}
		c.Sites = append(c.Sites, s)
		if s.insecureHTTP {
			c.Warnings = append(c.Warnings, fmt.Sprintf("site %s: insecure_http lets its session go over the network in clear", s.Name))
		}
	}
	if c.kerberos != nil {
		c.Warnings = append(c.Warnings, c.kerberos.Warnings()...)
	}
	return c, nil
}

// principal fills a credential that has a principal.
func (c *Config) principal(cred *Credential, t credentialTable) error {
	p, err := c.kerberos.Principal(t.Principal)
	if err != nil {
		return err
	}
	if cred.export, err = parseRules(t.Export); err != nil {
		return &api.Error{Code: api.ConfigInvalid, Detail: "export: " + err.Error()}
	}
	cred.Credential = krb.Credential{Principal: p, Cache: t.CCache, NoPAC: t.NoPAC, RC4: t.RC4}
	if t.Keytab != "" {
		cred.Keytab = filepath.Clean(t.Keytab)
	}
	if t.RC4 {
		c.Warnings = append(c.Warnings, fmt.Sprintf("credential %s: rc4 lets an encryption type be used that is broken", cred.Name))
	}
	return nil
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
// realm, a keytab or a ticket cache that is missing, unreadable or without what
// its principal needs. Whether a password is at hand only the agent knows.
func (c *Config) Problems(ctx context.Context) []error {
	var all []error
	for _, cred := range c.credentials {
		if cred.Username != "" {
			continue
		}
		if err := krb.Check(ctx, c.kerberos, cred.Credential); err != nil {
			all = append(all, err)
		}
	}
	return all
}
