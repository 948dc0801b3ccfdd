package daemon

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
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

// credentialTable, proxyTable, entryTable and siteTable are the schema of the TOML
// tables. The table of a site or an identity provider also has the options of its
// kind.
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

// entryTable is the table of an identity provider, and what that of a site has in
// common with it.
type entryTable struct {
	URL          string   `toml:"url"`
	Kind         string   `toml:"kind"`
	Credential   string   `toml:"credential"`
	Identity     string   `toml:"identity"`
	LoginHosts   []string `toml:"login_hosts"`
	UserAgent    string   `toml:"user_agent"`
	ForwardedFor string   `toml:"forwarded_for"`
	InsecureHTTP bool     `toml:"insecure_http"`
	Recheck      string   `toml:"recheck"`
	KeepAlive    bool     `toml:"keep_alive"`

	SPN             string `toml:"spn"`
	NoPAC           bool   `toml:"no_pac"`
	MutualAuth      string `toml:"mutual_auth"`
	ChannelBindings string `toml:"channel_bindings"`
	Proxy           string `toml:"proxy"`
	Fallback        string `toml:"fallback"`
}

type siteTable struct {
	entryTable
	Allow []string   `toml:"allow"`
	IdP   string     `toml:"idp"`
	Use   []useTable `toml:"use"`
}

// useTable is one user of a site that has several.
type useTable struct {
	Allow      []string `toml:"allow"`
	Credential string   `toml:"credential"`
	Identity   string   `toml:"identity"`
	Fallback   string   `toml:"fallback"`
}

// forTickets returns the first option that counts for Kerberos alone, "" if none
// is set.
func (t entryTable) forTickets() string {
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
	sites       map[string]*entry
	idps        map[string]*entry
	where       map[string]string // table → file
	variables   map[string]string // environment variable → site
}

// entry is the table of a site or an identity provider, read.
type entry struct {
	*Site
	table    siteTable // an identity provider leaves fields of it empty
	driver   login.Driver
	options  map[string]any // of the driver
	ownRules []peer.Rule    // of the site's own allow
	useRules [][]peer.Rule  // of each use
	file     string
}

func newDecoder() *decoder {
	return &decoder{kind: login.New, credentials: map[string]credentialTable{}, proxies: map[string]proxyTable{}, sites: map[string]*entry{},
		idps: map[string]*entry{}, where: map[string]string{}, variables: map[string]string{}}
}

// pending is the table of a site or an identity provider on its way through the
// decoder.
type pending struct {
	name    string
	common  siteTable
	driver  login.Driver
	targets []reflect.Value
}

// group makes the type of all tables of one kind of heading, site or idp, and
// what their values are for.
func (d *decoder) group(file, heading string, kinds map[string]kindOf) (reflect.Type, []*pending, error) {
	var tables []*pending
	var fields []reflect.StructField
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		kind := kinds[name].Kind
		if !api.ValidSite(name) {
			what := "a site"
			if heading == "idp" {
				what = "an identity provider"
			}
			return nil, nil, configError(file, fmt.Sprintf("%q cannot name %s: letters, digits, dot, dash and underscore, at most %d", name, what, api.MaxSiteName))
		}
		t := &pending{name: name, driver: d.kind(kind)}
		switch {
		case kind == "":
			return nil, nil, configError(file, fmt.Sprintf("%s.%s: kind is missing; it is one of: %s", heading, name, strings.Join(login.Kinds(), ", ")))
		case t.driver == nil:
			return nil, nil, configError(file, fmt.Sprintf("%s.%s: kind %q is not one of: %s", heading, name, kind, strings.Join(login.Kinds(), ", ")))
		}
		var keys []reflect.StructField
		if heading == "idp" {
			keys, t.targets = options(&t.common.entryTable, t.driver)
		} else {
			keys, t.targets = options(&t.common, t.driver)
		}
		tables = append(tables, t)
		fields = append(fields, reflect.StructField{
			Name: fmt.Sprintf("Table%d", len(fields)),
			Type: reflect.StructOf(keys),
			Tag:  reflect.StructTag(fmt.Sprintf(`toml:%q`, name)),
		})
	}
	return reflect.StructOf(fields), tables, nil
}

// kindOf is what of a table has to be known before the rest can be read.
type kindOf struct {
	Kind string `toml:"kind"`
}

// file decodes one file. The kinds are read first, because each site's table
// has the options of its kind: the document's type is put together from them,
// and so the decoder itself finds, and quotes, whatever is not in it.
func (d *decoder) file(name string, doc []byte) error {
	var kinds struct {
		Site map[string]kindOf `toml:"site"`
		IdP  map[string]kindOf `toml:"idp"`
	}
	if err := toml.Unmarshal(doc, &kinds); err != nil {
		return tomlError(name, doc, err)
	}
	siteType, sites, err := d.group(name, "site", kinds.Site)
	if err != nil {
		return err
	}
	idpType, idps, err := d.group(name, "idp", kinds.IdP)
	if err != nil {
		return err
	}
	document := reflect.New(reflect.StructOf([]reflect.StructField{
		{Name: "Credential", Type: reflect.TypeFor[map[string]credentialTable](), Tag: `toml:"credential"`},
		{Name: "Proxy", Type: reflect.TypeFor[map[string]proxyTable](), Tag: `toml:"proxy"`},
		{Name: "Site", Type: siteType, Tag: `toml:"site"`},
		{Name: "IdP", Type: idpType, Tag: `toml:"idp"`},
	}))
	// each calls a function for every key of the tables of a field.
	each := func(field int, tables []*pending, do func(value, target reflect.Value)) {
		for i, t := range tables {
			for j, target := range t.targets {
				do(document.Elem().Field(field).Field(i).Field(j), target)
			}
		}
	}
	defaults := func(value, target reflect.Value) { value.Set(target) }
	each(2, sites, defaults)
	each(3, idps, defaults)
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
	fill := func(value, target reflect.Value) { target.Set(value) }
	each(2, sites, fill)
	each(3, idps, fill)
	for _, t := range idps {
		if err := d.idp(name, t); err != nil {
			return err
		}
	}
	for _, t := range sites {
		if err := d.site(name, t); err != nil {
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
			uses, _ := table["use"].([]any)
			for _, use := range uses {
				table, _ := use.(map[string]any)
				if err := check(kind+"."+name+".use.", table); err != nil {
					return err
				}
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

// idp reads an [idp.NAME].
func (d *decoder) idp(file string, t *pending) error {
	heading := "idp." + t.name
	if err := d.once(heading, file); err != nil {
		return err
	}
	if t.common.Credential == "" {
		return configError(file, heading+": credential is missing")
	}
	e, err := d.entry(file, heading, t)
	if err == nil {
		d.idps[t.name] = e
	}
	return err
}

// site reads a [site.NAME].
func (d *decoder) site(file string, t *pending) error {
	name, c := t.name, t.common
	heading := "site." + name
	if err := d.once(heading, file); err != nil {
		return err
	}
	wrong := func(format string, args ...any) error {
		return configError(file, heading+": "+fmt.Sprintf(format, args...))
	}
	if v := api.CookieVariable(name); v != "" {
		if other, ok := d.variables[v]; ok {
			return wrong("its variable would be $%s, as that of site.%s in %s: let the names differ in more than case and . _ -", v, other, d.where["site."+other])
		}
		d.variables[v] = name
	}
	e, err := d.entry(file, heading, t)
	if err != nil {
		return err
	}
	switch {
	case c.IdP != "" && len(c.Use) > 0:
		return wrong("it has use entries and an idp, which logs in with its one credential")
	case c.IdP != "":
	case c.Credential == "" && len(c.Use) == 0:
		return wrong("credential is missing: name one, or one in each of several [[site.%s.use]], or the idp that logs in here", name)
	case c.Credential == "":
		if option := c.forUser(); option != "" {
			return wrong("%s beside use entries is for a credential of the site's own, and there is none: set it in each use", option)
		}
	}
	if e.ownRules, err = allowRules(c.Allow); err != nil {
		return wrong("allow: %v", err)
	}
	for i, u := range c.Use {
		if u.Credential == "" {
			return wrong("use: entry %d has no credential", i+1)
		}
		rules, err := allowRules(u.Allow)
		if err != nil {
			return wrong("use: entry %d: allow: %v", i+1, err)
		}
		e.useRules = append(e.useRules, rules)
	}
	d.sites[name] = e
	return nil
}

// forLogin returns the first option that counts for a login of the site's own,
// "" if none is set.
func (t siteTable) forLogin() string {
	switch {
	case t.Credential != "":
		return "credential"
	case t.Fallback != "":
		return "fallback"
	}
	return t.forTickets()
}

// forLogin returns the first option of the entry's kind that counts for the login
// alone, "" if all of those are as they are by default.
func (d *decoder) forLogin(e *entry) string {
	keys, set := options(e.driver)
	_, defaults := options(d.kind(e.Kind))
	for i, k := range keys {
		if k.Tag.Get("for") == "login" && !reflect.DeepEqual(set[i].Interface(), defaults[i].Interface()) {
			return k.Tag.Get("toml")
		}
	}
	return ""
}

// has reports whether there is such an option of an identity provider, or of its kind.
func (e *entry) has(option string) bool {
	keys, _ := options(&e.table.entryTable, e.driver)
	return slices.ContainsFunc(keys, func(k reflect.StructField) bool { return k.Tag.Get("toml") == option })
}

// forUser returns the first option of the site's own user, "" if none is set.
func (t siteTable) forUser() string {
	switch {
	case t.Allow != nil:
		return "allow"
	case t.Identity != "":
		return "identity"
	case t.Fallback != "":
		return "fallback"
	}
	return ""
}

// entry reads what sites and identity providers have in common.
func (d *decoder) entry(file, heading string, p *pending) (*entry, error) {
	t := p.common
	wrong := func(format string, args ...any) (*entry, error) {
		return nil, configError(file, heading+": "+fmt.Sprintf(format, args...))
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
	case !web.MutualPolicy(t.MutualAuth).Valid():
		return wrong("mutual_auth is %q, not off, if-offered or required", t.MutualAuth)
	case !web.BindingPolicy(t.ChannelBindings).Valid():
		return wrong("channel_bindings is %q, not auto, off or required", t.ChannelBindings)
	case t.ForwardedFor != "" && !isAddress(t.ForwardedFor):
		return wrong("forwarded_for %q is not an IP address", t.ForwardedFor)
	case strings.ContainsFunc(t.UserAgent, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return wrong("user_agent holds a control character")
	}
	switch o, err := web.ParseOrigin(u.Scheme + "://" + u.Host); {
	case err != nil:
		return wrong("url does not name a host")
	case !validPort(o):
		return wrong("url %s", noSuchPort)
	}
	s := &Site{Name: p.name, Kind: t.Kind, URL: u, insecureHTTP: t.InsecureHTTP, userAgent: t.UserAgent, forwardedFor: t.ForwardedFor, keepAlive: t.KeepAlive,
		spn: t.SPN, noPAC: t.NoPAC, mutual: web.MutualPolicy(t.MutualAuth), bindings: web.BindingPolicy(t.ChannelBindings)}
	if t.SPN != "" {
		if err := krb.CheckSPN(t.SPN); err != nil {
			return wrong("spn: %s", api.AsError(err).Detail)
		}
	}
	if s.recheckSet = t.Recheck != ""; s.recheckSet {
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
	e := &entry{Site: s, table: t, driver: p.driver, options: map[string]any{}, file: file}
	keys, targets := options(p.driver)
	_, defaults := options(d.kind(t.Kind))
	for i, k := range keys {
		option := k.Tag.Get("toml")
		if k.Type.Kind() == reflect.String && targets[i].String() == "" && defaults[i].String() != "" {
			return wrong("%s is empty: leave it out, and it is %q", option, defaults[i])
		}
		e.options[option] = targets[i].Interface()
	}
	return e, nil
}

// newDriver returns a driver of the entry's kind with its options, for one user.
func (d *decoder) newDriver(e *entry) login.Driver {
	driver := d.kind(e.Kind)
	_, from := options(e.driver)
	_, to := options(driver)
	for i, target := range to {
		target.Set(from[i])
	}
	return driver
}

// allowRules reads an allow list; without one it is the agent's own user's.
func allowRules(texts []string) ([]peer.Rule, error) {
	if texts == nil {
		return []peer.Rule{peer.User(uint32(os.Geteuid()))}, nil
	}
	return parseRules(texts)
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

// fingerprint changes with whatever a stored session of a user depends on: url,
// kind, login_hosts, identity and the kind's options.
func (e *entry) fingerprint(identity string) string {
	all := []any{e.table.URL, e.table.Kind, e.table.LoginHosts, identity, e.table.InsecureHTTP, e.options}
	if address := e.table.ForwardedFor; address != "" { // Crowd may bind a session to it
		all = append(all, address)
	}
	return digest(all...)
}

// digest is a short hash of values that JSON can hold.
func digest(values ...any) string {
	b, err := json.Marshal(values)
	if err != nil {
		panic(err) // login.Driver says what options can be
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// isAddress reports whether s is an IP address, without a zone.
func isAddress(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == ""
}
