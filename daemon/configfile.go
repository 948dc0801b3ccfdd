package daemon

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/pelletier/go-toml/v2"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// credentialTable, proxyTable and siteTable are the schema of the TOML tables. A
// site's table also has the options of its kind.
type credentialTable struct {
	Principal string   `toml:"principal"`
	Keytab    string   `toml:"keytab"`
	CCache    string   `toml:"ccache"`
	Username  string   `toml:"username"`
	NoPAC     bool     `toml:"no_pac"`
	RC4       bool     `toml:"rc4"`
	Export    []string `toml:"export"`
}

type proxyTable struct {
	URL           string `toml:"url"`
	Credential    string `toml:"credential"`
	SPN           string `toml:"spn"`
	MutualAuth    string `toml:"mutual_auth"`
	InsecureBasic bool   `toml:"insecure_basic"`
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

	SPN             string `toml:"spn"`
	NoPAC           bool   `toml:"no_pac"`
	MutualAuth      string `toml:"mutual_auth"`
	ChannelBindings string `toml:"channel_bindings"`
	Proxy           string `toml:"proxy"`
	Fallback        string `toml:"fallback"`
}

// forTickets returns the first option that counts for Kerberos alone, "" if none
// is set.
func (t siteTable) forTickets() string {
	switch {
	case t.SPN != "":
		return "spn"
	case t.NoPAC:
		return "no_pac"
	case t.MutualAuth != "":
		return "mutual_auth"
	case t.ChannelBindings != "":
		return "channel_bindings"
	}
	return ""
}

type decoder struct {
	kind        func(string) login.Driver // login.New
	credentials map[string]credentialTable
	proxies     map[string]proxyTable
	sites       map[string]*Site
	tables      map[string]siteTable
	where       map[string]string // table → file
	variables   map[string]string // environment variable → site
}

func newDecoder() *decoder {
	return &decoder{kind: login.New, credentials: map[string]credentialTable{}, proxies: map[string]proxyTable{}, sites: map[string]*Site{},
		tables: map[string]siteTable{}, where: map[string]string{}, variables: map[string]string{}}
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
		return tomlError(name, doc, err)
	}
	type table struct {
		site    string
		common  siteTable
		driver  login.Driver
		targets []reflect.Value
	}
	var tables []*table
	var fields []reflect.StructField
	for _, site := range slices.Sorted(maps.Keys(kinds.Site)) {
		kind := kinds.Site[site].Kind
		if !api.ValidSite(site) {
			return configError(name, fmt.Sprintf("%q cannot name a site: letters, digits, dot, dash and underscore, at most %d", site, api.MaxSiteName))
		}
		t := &table{site: site, driver: d.kind(kind)}
		switch {
		case kind == "":
			return configError(name, fmt.Sprintf("site.%s: kind is missing; it is one of: %s", site, strings.Join(login.Kinds(), ", ")))
		case t.driver == nil:
			return configError(name, fmt.Sprintf("site.%s: kind %q is not one of: %s", site, kind, strings.Join(login.Kinds(), ", ")))
		}
		var keys []reflect.StructField
		keys, t.targets = options(&t.common, t.driver)
		tables = append(tables, t)
		fields = append(fields, reflect.StructField{
			Name: fmt.Sprintf("Site%d", len(fields)),
			Type: reflect.StructOf(keys),
			Tag:  reflect.StructTag(fmt.Sprintf(`toml:%q`, site)),
		})
	}
	document := reflect.New(reflect.StructOf([]reflect.StructField{
		{Name: "Credential", Type: reflect.TypeFor[map[string]credentialTable](), Tag: `toml:"credential"`},
		{Name: "Proxy", Type: reflect.TypeFor[map[string]proxyTable](), Tag: `toml:"proxy"`},
		{Name: "Site", Type: reflect.StructOf(fields), Tag: `toml:"site"`},
	}))
	sites := document.Elem().Field(2)
	for i, t := range tables {
		for j, target := range t.targets { // the kind's defaults
			sites.Field(i).Field(j).Set(target)
		}
	}
	if err := toml.NewDecoder(bytes.NewReader(doc)).DisallowUnknownFields().Decode(document.Interface()); err != nil {
		return tomlError(name, doc, err)
	}
	if err := lowerCase(name, doc); err != nil {
		return err
	}
	credentials := document.Elem().Field(0).Interface().(map[string]credentialTable)
	for _, cred := range slices.Sorted(maps.Keys(credentials)) {
		if err := d.credential(name, cred, credentials[cred]); err != nil {
			return err
		}
	}
	proxies := document.Elem().Field(1).Interface().(map[string]proxyTable)
	for _, proxy := range slices.Sorted(maps.Keys(proxies)) {
		if err := d.once("proxy."+proxy, name); err != nil {
			return err
		}
		d.proxies[proxy] = proxies[proxy]
	}
	for i, t := range tables {
		for j, target := range t.targets {
			target.Set(sites.Field(i).Field(j))
		}
		if err := d.site(name, t.site, t.common, t.driver); err != nil {
			return err
		}
	}
	return nil
}

// lowerCase refuses keys in another case, which the decoder would take for
// those it knows: a second one could undo the first.
func lowerCase(file string, doc []byte) error {
	var top map[string]any
	if err := toml.Unmarshal(doc, &top); err != nil {
		return tomlError(file, doc, err)
	}
	check := func(where string, table map[string]any) error {
		for _, key := range slices.Sorted(maps.Keys(table)) {
			if strings.ToLower(key) != key {
				return configError(file, printable("unknown key "+where+key+": keys are in lower case"))
			}
		}
		return nil
	}
	if err := check("", top); err != nil {
		return err
	}
	for _, kind := range slices.Sorted(maps.Keys(top)) {
		tables, _ := top[kind].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(tables)) {
			table, _ := tables[name].(map[string]any)
			if err := check(kind+"."+name+".", table); err != nil {
				return err
			}
		}
	}
	return nil
}

// options returns the keys of a site's table, made from the options of the
// structs that are pointed to (login.Driver says which fields are), and what
// each key fills.
func options(structs ...any) (keys []reflect.StructField, targets []reflect.Value) {
	for _, s := range structs {
		v := reflect.ValueOf(s).Elem()
		for _, f := range reflect.VisibleFields(v.Type()) {
			if f.IsExported() && !f.Anonymous && f.Tag.Get("toml") != "" {
				keys = append(keys, reflect.StructField{Name: fmt.Sprintf("Key%d", len(keys)), Type: f.Type, Tag: f.Tag})
				targets = append(targets, v.FieldByIndex(f.Index))
			}
		}
	}
	return keys, targets
}

func (d *decoder) once(table, file string) error {
	if first, ok := d.where[table]; ok {
		return configError(file, fmt.Sprintf("[%s] stands already in %s", table, first))
	}
	d.where[table] = file
	return nil
}

func (d *decoder) credential(file, name string, t credentialTable) error {
	if err := d.once("credential."+name, file); err != nil {
		return err
	}
	wrong := func(detail string) error { return configError(file, "credential."+name+": "+detail) }
	switch {
	case t.Username != "" && (t.Principal != "" || t.Keytab != "" || t.CCache != "" || t.NoPAC || t.RC4 || t.Export != nil):
		return wrong("it is either a principal, with its keytab, ccache or password, or a username with a password")
	case t.Username != "":
		if strings.ContainsFunc(t.Username, unicode.IsControl) || strings.TrimSpace(t.Username) != t.Username {
			return wrong("username holds a control character, or begins or ends with a space")
		}
	case t.Principal == "":
		return wrong("principal is missing; without Kerberos give a username, and its password by: sessionctl login SITE")
	case t.Keytab != "" && t.CCache != "":
		return wrong("it has both a keytab and a ccache")
	case t.Keytab != "" && !filepath.IsAbs(t.Keytab):
		return wrong("keytab must be an absolute path" + unexpanded(t.Keytab))
	case t.CCache != "" && t.NoPAC:
		return wrong(noPACOfCache)
	}
	if path, ok := cachePath(t.CCache); ok && !filepath.IsAbs(path) {
		return wrong("ccache must name an absolute path" + unexpanded(path))
	}
	d.credentials[name] = t
	return nil
}

// noPACOfCache is why a ticket cache and no_pac do not go together.
const noPACOfCache = "no_pac is for tickets that the agent asks for itself; those of a ccache are there already"

// cachePath returns the path in the name of a ticket cache, if it is of a type
// that has one (see package ccache). $KRB5CCNAME may have a relative one; the
// agent does not work where it was written.
func cachePath(name string) (path string, ok bool) {
	kind, rest, found := strings.Cut(name, ":")
	switch {
	case name == "":
		return "", false
	case !found:
		return name, true
	case kind == "DIR":
		return strings.TrimPrefix(rest, ":"), true
	}
	return rest, kind == "FILE"
}

// unexpanded is the end of a message on a path that is not absolute.
func unexpanded(path string) string {
	if strings.HasPrefix(path, "~") || strings.HasPrefix(path, "$") {
		return "; only a shell knows what ~ and $HOME are: write it in full"
	}
	return ""
}

// validPort reports whether an origin's port is one; for package url, and so for
// web, it is any number.
func validPort(o web.Origin) bool {
	n, err := strconv.ParseUint(o.Port, 10, 16)
	return err == nil && n > 0
}

const noSuchPort = "has a port that is not one of 1 to 65535"

func (d *decoder) site(file, name string, t siteTable, driver login.Driver) error {
	if err := d.once("site."+name, file); err != nil {
		return err
	}
	wrong := func(format string, args ...any) error {
		return configError(file, "site."+name+": "+fmt.Sprintf(format, args...))
	}
	if v := api.CookieVariable(name); v != "" {
		if other, ok := d.variables[v]; ok {
			return wrong("its variable would be $%s, as that of site.%s in %s: let the names differ in more than case and . _ -", v, other, d.where["site."+other])
		}
		d.variables[v] = name
	}
	u, err := url.Parse(t.URL)
	switch {
	case t.URL == "":
		return wrong("url is missing")
	case err != nil || u.Host == "" || u.Opaque != "":
		return wrong("url is not an absolute web address")
	case u.User != nil:
		return wrong("url must not hold a user name or password")
	case u.RawQuery != "" || u.Fragment != "":
		return wrong("url must not hold a query or fragment")
	case u.Scheme == "http" && !t.InsecureHTTP:
		return wrong("url is http: anybody on the way could take the session; if there is no https, set insecure_http = true")
	case u.Scheme != "http" && u.Scheme != "https":
		return wrong("url is neither https nor http, but %q", u.Scheme)
	case t.Credential == "":
		return wrong("credential is missing")
	case !web.MutualPolicy(t.MutualAuth).Valid():
		return wrong("mutual_auth is %q, not off, if-offered or required", t.MutualAuth)
	case !web.BindingPolicy(t.ChannelBindings).Valid():
		return wrong("channel_bindings is %q, not auto, off or required", t.ChannelBindings)
	case strings.ContainsFunc(t.UserAgent, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return wrong("user_agent holds a control character")
	}
	switch o, err := web.ParseOrigin(u.Scheme + "://" + u.Host); {
	case err != nil:
		return wrong("url does not name a host")
	case !validPort(o):
		return wrong("url %s", noSuchPort)
	}
	s := &Site{Name: name, Kind: t.Kind, URL: u, insecureHTTP: t.InsecureHTTP, userAgent: t.UserAgent, driver: driver, recheck: defaultRecheck,
		spn: t.SPN, noPAC: t.NoPAC, mutual: web.MutualPolicy(t.MutualAuth), bindings: web.BindingPolicy(t.ChannelBindings)}
	if t.SPN != "" {
		if err := krb.CheckSPN(t.SPN); err != nil {
			return wrong("spn: %s", api.AsError(err).Detail)
		}
	}
	if t.Recheck != "" {
		if s.recheck, err = time.ParseDuration(t.Recheck); err != nil || s.recheck < 0 {
			return wrong(`recheck %q is not a duration such as "90s" or "5m"`, t.Recheck)
		}
	}
	for i, h := range t.LoginHosts {
		o, err := web.ParseOrigin(h)
		switch {
		case err != nil:
			return wrong("login_hosts: entry %d is %v", i+1, err)
		case !validPort(o):
			return wrong("login_hosts: entry %d %s", i+1, noSuchPort)
		}
		s.loginHosts = append(s.loginHosts, o)
	}
	if s.allow = []peer.Rule{peer.User(uint32(os.Geteuid()))}; t.Allow != nil {
		s.allow = nil
	}
	rules, err := parseRules(t.Allow)
	if err != nil {
		return wrong("allow: %v", err)
	}
	s.allow = append(s.allow, rules...)
	if c, ok := driver.(login.Checker); ok {
		if err := c.Check(web.Options{Base: u, LoginHosts: s.loginHosts, InsecureHTTP: t.InsecureHTTP}, t.Identity); err != nil {
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
	d.sites[name], d.tables[name] = s, t
	return nil
}

func parseRules(texts []string) (rules []peer.Rule, err error) {
	for _, text := range texts {
		r, err := peer.ParseRule(text)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// fingerprint changes with whatever a stored session depends on: url, kind,
// login_hosts, identity and the kind's options.
func fingerprint(t siteTable, driver login.Driver) string {
	chosen := map[string]any{}
	keys, targets := options(driver)
	for i, k := range keys {
		chosen[k.Tag.Get("toml")] = targets[i].Interface()
	}
	b, err := json.Marshal([]any{t.URL, t.Kind, t.LoginHosts, t.Identity, t.InsecureHTTP, chosen})
	if err != nil {
		panic(err) // login.Driver says what options can be
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}
