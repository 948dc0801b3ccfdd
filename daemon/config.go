package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

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

	idps        []*Site       // in the order of their names
	credentials []*Credential // in the order of their names
	kerberos    *krb.Config   // nil without principals
	loaded      time.Time     // when it was read
}

// Site is one [site.NAME] of the configuration, or one [idp.NAME], whose session
// is never handed out.
type Site struct {
	Name string
	Kind string
	URL  *url.URL

	users        []*user // one session each
	uses         []use   // who is served which: the first that fits
	idp          *Site   // whose session logs in here; nil: none
	loginHosts   []web.Origin
	userAgent    string
	forwardedFor string // "": nobody is
	insecureHTTP bool
	recheck      time.Duration
	recheckSet   bool
	keepAlive    bool
	spn          string
	noPAC        bool
	mutual       web.MutualPolicy
	bindings     web.BindingPolicy
	proxy        *proxy // nil: none
	// setup changes with anything that the site was made from, who may use it
	// included. What its identity provider was made from counts as far as a session
	// ends with it.
	setup string
}

// user is one account at a site, with a session of its own.
type user struct {
	// id names the session in the keeper.
	id string
	// credential logs in: at a site with an identity provider, that one's.
	credential *Credential
	fallback   *Credential // nil: none
	expect     login.Expectation
	driver     login.Driver
	// fingerprint changes with whatever a stored session depends on, setup with
	// anything that the session is made from. Who may use it is in neither.
	fingerprint, setup string
}

// use is who may use a user's session.
type use struct {
	allow []peer.Rule
	user  *user
}

// serves returns the user whose session a caller gets: that of the first use
// that fits; nil if none does.
func (s *Site) serves(c peer.Caller) *user {
	for _, u := range s.uses {
		if peer.Allowed(u.allow, c) {
			return u.user
		}
	}
	return nil
}

// lets reports whether a caller may have a user's session by any use.
func (s *Site) lets(c peer.Caller, who *user) bool {
	return slices.ContainsFunc(s.uses, func(u use) bool { return u.user == who && peer.Allowed(u.allow, c) })
}

// Credential is one [credential.NAME] of the configuration: a principal with its
// keytab, ticket cache or password, or a username with a password. Passwords come
// in by login or from systemd.
type Credential struct {
	Name string
	krb.Credential
	Username string // "" with a principal

	export []peer.Rule // who may have the principal's TGT
	setup  string      // changes with anything that a login needs of it
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
	c, err := loadConfig(path, krb5)
	if err == nil {
		return c, nil
	}
	e := *api.AsError(err)
	// The files beside it mean nothing without it.
	e.Remedy = cmp.Or(e.Remedy, "mend it, then: sessionctl check-config "+path)
	return nil, &e
}

func loadConfig(path string, krb5 []string) (*Config, error) {
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
	c := &Config{loaded: time.Now()}
	d := newDecoder()
	for _, f := range files {
		b, err := readConfigFile(f)
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
		t := d.credentials[name]
		t.Export = nil
		cred.setup = digest(name, cred.account(), t)
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
	r := resolver{c, d, credentials, proxies, environment}
	idps := map[string]*Site{}
	for _, name := range slices.Sorted(maps.Keys(d.idps)) {
		if err := r.idp(d.idps[name]); err != nil {
			return nil, err
		}
		idps[name] = d.idps[name].Site
		c.idps = append(c.idps, idps[name])
	}
	for _, name := range slices.Sorted(maps.Keys(d.sites)) {
		if err := r.site(d.sites[name], idps); err != nil {
			return nil, err
		}
		c.Sites = append(c.Sites, d.sites[name].Site)
	}
	for _, p := range c.idps {
		if !slices.ContainsFunc(c.Sites, func(s *Site) bool { return s.idp == p }) {
			c.Warnings = append(c.Warnings, fmt.Sprintf("idp %s: no site has idp = %q, so it is never used", p.Name, p.Name))
		}
		r.allowed(p)
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
	if i := slices.IndexFunc(cred.export, peer.Rule.ForUnit); i >= 0 {
		return &api.Error{Code: api.ConfigInvalid, Detail: fmt.Sprintf("export: %q: what systemd loads for a unit is the session of a site: name it in the site's allow", cred.export[i])}
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

// maxConfigFile is the largest file of a configuration that is read, in bytes.
const maxConfigFile = 1 << 20

// readConfigFile reads a regular file. It follows links, and never waits for a pipe
// or a device.
func readConfigFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err == nil && len(b) > maxConfigFile {
		err = fmt.Errorf("larger than %d KiB", maxConfigFile>>10)
	}
	return b, err
}

// configError says what is wrong in a file. What to do about it LoadConfig knows.
func configError(file, detail string) *api.Error {
	return &api.Error{Code: api.ConfigInvalid, Detail: file + ": " + detail}
}

// unreadable is for a file or directory that cannot be read.
func unreadable(path string, err error) *api.Error {
	var cause *fs.PathError
	if errors.As(err, &cause) {
		err = cause.Err // without the path, which stands in front
	}
	return configError(path, err.Error())
}

// Problems says what cannot be used as things are: no KDC for the realm of a
// credential, a keytab or a ticket cache that is missing, unreadable or without what
// its principal needs, a program that a site logs in with. Whether a password is at
// hand only the agent knows.
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
	for _, s := range slices.Concat(c.idps, c.Sites) {
		for _, u := range s.users {
			if d, ok := u.driver.(login.Dependent); ok {
				if err := d.Missing(); err != nil {
					all = append(all, &api.Error{Code: api.ConfigInvalid, Detail: "site " + s.Name + ": " + err.Error(), Remedy: "mend that before the next login there"})
				}
			}
		}
	}
	return all
}
