package daemon

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

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

// credentialTable and siteTable are the schema of the TOML tables. A site's
// table also has the options of its kind.
type credentialTable struct {
	Principal string `toml:"principal"`
	Keytab    string `toml:"keytab"`
}

type siteTable struct {
	URL          string   `toml:"url"`
	Kind         string   `toml:"kind"`
	Credential   string   `toml:"credential"`
	Allow        []string `toml:"allow"`
	Identity     string   `toml:"identity"`
	LoginHosts   []string `toml:"login_hosts"`
	UserAgent    string   `toml:"user_agent"`
	InsecureHTTP bool     `toml:"insecure_http"`
	Recheck      string   `toml:"recheck"`
}

// LoadConfig reads the configuration at path and, in the order of their names,
// the files conf.d/*.toml beside it, and, if there are credentials, the
// krb5.conf files that $KRB5_CONFIG lists, else /etc/krb5.conf. Errors are
// *api.Error of code api.ConfigInvalid or api.Krb5ConfInvalid that name file
// and, where there is one, line.
func LoadConfig(path string) (*Config, error) {
	more, err := filepath.Glob(filepath.Join(filepath.Dir(path), "conf.d", "*.toml"))
	if err != nil {
		return nil, configError(path, err.Error())
	}
	slices.Sort(more)
	c := &Config{}
	d := decoder{credentials: map[string]credentialTable{}, sites: map[string]*Site{}, credentialOf: map[string]string{}, where: map[string]string{}}
	for _, f := range append([]string{path}, more...) {
		b, err := os.ReadFile(f)
		if err != nil {
			e := configError(f, strings.TrimPrefix(err.Error(), "open "+f+": "))
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
			return nil, configError(d.where["credential."+name], fmt.Sprintf("credential.%s: principal %q: %v", name, t.Principal, err))
		}
		credentials[name] = &Credential{name, krb.Credential{Principal: p, Keytab: filepath.Clean(t.Keytab)}}
	}
	for _, name := range slices.Sorted(maps.Keys(d.sites)) {
		s := d.sites[name]
		if s.Credential = credentials[d.credentialOf[name]]; s.Credential == nil {
			return nil, configError(d.where["site."+strings.ToLower(name)], fmt.Sprintf("site.%s: there is no [credential.%s]", name, d.credentialOf[name]))
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

type decoder struct {
	credentials  map[string]credentialTable
	sites        map[string]*Site
	credentialOf map[string]string // site → credential
	where        map[string]string // table, in lower case → file
}

// file decodes one file. The kinds are read first, because each site's table
// has the options of its kind: the document's type is put together from them,
// and so the decoder itself finds, and quotes, whatever is not in it.
func (d *decoder) file(name string, doc []byte) error {
	var kinds struct {
		Site map[string]struct {
			Kind string `toml:"kind"`
		} `toml:"site"`
	}
	if err := toml.Unmarshal(doc, &kinds); err != nil {
		return configError(name, tomlText(err))
	}
	var fields []reflect.StructField
	var names []string
	drivers := map[string]login.Driver{}
	for _, site := range slices.Sorted(maps.Keys(kinds.Site)) {
		t := kinds.Site[site]
		if !api.ValidSite(site) {
			return configError(name, fmt.Sprintf("%q cannot name a site: letters, digits, dot, dash and underscore, at most %d", site, api.MaxSiteName))
		}
		driver := login.New(t.Kind)
		switch {
		case t.Kind == "":
			return configError(name, fmt.Sprintf("site.%s: kind is missing; it is one of: %s", site, strings.Join(login.Kinds(), ", ")))
		case driver == nil:
			return configError(name, fmt.Sprintf("site.%s: kind %q is not one of: %s", site, t.Kind, strings.Join(login.Kinds(), ", ")))
		}
		drivers[site] = driver
		names = append(names, site)
		fields = append(fields, reflect.StructField{
			Name: fmt.Sprintf("Site%d", len(fields)),
			Type: siteType(driver),
			Tag:  reflect.StructTag(fmt.Sprintf(`toml:%q`, site)),
		})
	}
	document := reflect.New(reflect.StructOf([]reflect.StructField{
		{Name: "Credential", Type: reflect.TypeFor[map[string]credentialTable](), Tag: `toml:"credential"`},
		{Name: "Site", Type: reflect.StructOf(fields), Tag: `toml:"site"`},
	}))
	dec := toml.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	if err := dec.Decode(document.Interface()); err != nil {
		return configError(name, tomlText(err))
	}
	credentials := document.Elem().Field(0).Interface().(map[string]credentialTable)
	for _, cred := range slices.Sorted(maps.Keys(credentials)) {
		if err := d.credential(name, cred, credentials[cred]); err != nil {
			return err
		}
	}
	for i, site := range names {
		v := document.Elem().Field(1).Field(i)
		var t siteTable
		fill(reflect.ValueOf(&t).Elem(), v)
		fill(reflect.ValueOf(drivers[site]).Elem(), v)
		if err := d.site(name, site, t, drivers[site]); err != nil {
			return err
		}
	}
	return nil
}

// siteType is siteTable with the fields of the driver's options.
func siteType(driver login.Driver) reflect.Type {
	fields := reflect.VisibleFields(reflect.TypeFor[siteTable]())
	return reflect.StructOf(append(fields, reflect.VisibleFields(reflect.TypeOf(driver).Elem())...))
}

// fill copies the fields of one struct from those of the same name in another.
func fill(to, from reflect.Value) {
	for _, f := range reflect.VisibleFields(to.Type()) {
		to.FieldByIndex(f.Index).Set(from.FieldByName(f.Name))
	}
}

// tomlText is the decoder's error with the lines it is about.
func tomlText(err error) string {
	var strict *toml.StrictMissingError
	var decode *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		return "unknown key\n" + strict.String()
	case errors.As(err, &decode):
		return err.Error() + "\n" + decode.String()
	}
	return err.Error()
}

func (d *decoder) once(table, file string) error {
	key := strings.ToLower(table) // two names that differ in case share a variable
	if first, ok := d.where[key]; ok {
		return configError(file, fmt.Sprintf("[%s] stands already in %s", table, first))
	}
	d.where[key] = file
	return nil
}

func (d *decoder) credential(file, name string, t credentialTable) error {
	if err := d.once("credential."+name, file); err != nil {
		return err
	}
	wrong := func(detail string) error { return configError(file, "credential."+name+": "+detail) }
	switch {
	case t.Principal == "":
		return wrong("principal is missing")
	case t.Keytab == "":
		return wrong("keytab is missing")
	case !filepath.IsAbs(t.Keytab):
		return wrong("keytab must be an absolute path")
	}
	d.credentials[name] = t
	return nil
}

func (d *decoder) site(file, name string, t siteTable, driver login.Driver) error {
	if err := d.once("site."+name, file); err != nil {
		return err
	}
	wrong := func(format string, args ...any) error {
		return configError(file, "site."+name+": "+fmt.Sprintf(format, args...))
	}
	u, err := url.Parse(t.URL)
	switch {
	case t.URL == "":
		return wrong("url is missing")
	case err != nil || u.Host == "" || u.Opaque != "":
		return wrong("url %q is not an absolute web address", t.URL)
	case u.User != nil:
		return wrong("url must not hold a user name or password")
	case u.RawQuery != "" || u.Fragment != "":
		return wrong("url must not hold a query or fragment")
	case u.Scheme == "http" && !t.InsecureHTTP:
		return wrong("url is http: anybody on the way could take the session; if there is no https, set insecure_http = true")
	case u.Scheme != "http" && u.Scheme != "https":
		return wrong("url %q is neither https nor http", t.URL)
	case t.Credential == "":
		return wrong("credential is missing")
	case strings.ContainsFunc(t.UserAgent, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return wrong("user_agent holds a control character")
	}
	s := &Site{Name: name, Kind: t.Kind, URL: u, insecureHTTP: t.InsecureHTTP, userAgent: t.UserAgent, driver: driver, recheck: defaultRecheck}
	if t.Recheck != "" {
		if s.recheck, err = time.ParseDuration(t.Recheck); err != nil || s.recheck < 0 {
			return wrong(`recheck %q is not a duration such as "90s" or "5m"`, t.Recheck)
		}
	}
	for _, h := range t.LoginHosts {
		o, err := web.ParseOrigin(h)
		if err != nil {
			return wrong("login_hosts: %v", err)
		}
		s.loginHosts = append(s.loginHosts, o)
	}
	if s.allow = []peer.Rule{peer.User(uint32(os.Geteuid()))}; t.Allow != nil {
		s.allow = nil
	}
	for _, a := range t.Allow {
		r, err := peer.ParseRule(a)
		if err != nil {
			return wrong("allow: %v", err)
		}
		s.allow = append(s.allow, r)
	}
	if c, ok := driver.(login.Checker); ok {
		if err := c.Check(u, t.Identity); err != nil {
			return wrong("%v", err)
		}
	}
	switch t.Identity {
	case "":
	case login.Unproven:
		s.expect.Unproven = true
	default:
		s.expect.Names = []string{t.Identity}
	}
	s.fingerprint = fingerprint(t, driver)
	d.sites[name], d.credentialOf[name] = s, t.Credential
	return nil
}

// fingerprint changes with whatever a stored session depends on: url, kind,
// login_hosts, identity and the kind's options.
func fingerprint(t siteTable, driver login.Driver) string {
	b, err := json.Marshal([]any{t.URL, t.Kind, t.LoginHosts, t.Identity, t.InsecureHTTP, driver})
	if err != nil {
		panic(err) // strings and booleans only
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
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
