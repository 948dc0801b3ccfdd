package daemon

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

const krb5ConfText = "[libdefaults]\n default_realm = CORP.EXAMPLE\n[realms]\n CORP.EXAMPLE = {\n  kdc = 127.0.0.1:1\n }\n"

// configure writes files into a directory and loads sessiond.toml.
func configure(t testing.TB, files map[string]string) (*Config, error) {
	dir := t.TempDir()
	files["krb5.conf"] = krb5ConfText
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KRB5_CONFIG", filepath.Join(dir, "krb5.conf"))
	return LoadConfig(filepath.Join(dir, "sessiond.toml"))
}

const credentialText = "[credential.build]\nprincipal = \"svc-build\"\nkeytab = \"/etc/build.keytab\"\n"

const siteText = `[site.app]
url = "https://app.corp.example/app"
kind = "spnego"
credential = "build"
identity_json = "user"
`

func TestConfig(t *testing.T) {
	_, err := configure(t, map[string]string{
		"sessiond.toml": credentialText + siteText + `allow = ["uid:1000", "group:root"]
login_hosts = ["login.corp.example"]
user_agent = "curl/8"
recheck = "90s"
`,
		"conf.d/20-b.toml": strings.ReplaceAll(siteText, "app", "beta") + "identity = \"Build Account\"\n",
		"conf.d/10-a.toml": strings.ReplaceAll(siteText, "identity_json = \"user\"", "identity = \"unproven\"\ninsecure_http = true"),
		"conf.d/not.conf":  "garbage",
	})
	if api.CodeOf(err) != api.ConfigInvalid || !strings.Contains(err.Error(), "10-a.toml") || !strings.Contains(err.Error(), "sessiond.toml") {
		t.Fatalf("the same site in two files: %v", err)
	}
	c, err := configure(t, map[string]string{
		"sessiond.toml": credentialText + siteText + `allow = ["uid:1000", "group:root"]
login_hosts = ["login.corp.example"]
user_agent = "curl/8"
recheck = "90s"
`,
		"conf.d/20-b.toml": strings.ReplaceAll(siteText, "app", "beta") + "identity = \"Build Account\"\n",
		"conf.d/10-a.toml": strings.ReplaceAll(strings.ReplaceAll(siteText, "app", "alpha"), "identity_json = \"user\"", "identity = \"unproven\"\ninsecure_http = true"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var names, files []string
	for _, s := range c.Sites {
		names = append(names, s.Name)
	}
	for _, f := range c.Files {
		files = append(files, filepath.Base(f))
	}
	if !slices.Equal(names, []string{"alpha", "app", "beta"}) || !slices.Equal(files, []string{"sessiond.toml", "10-a.toml", "20-b.toml"}) {
		t.Errorf("%v %v", names, files)
	}
	alpha, app, beta := c.Sites[0], c.Sites[1], c.Sites[2]
	if p := app.users[0].credential.Principal.String(); p != "svc-build@CORP.EXAMPLE" {
		t.Errorf("principal %s", p)
	}
	if !slices.Equal(app.users[0].expect.Names, []string{"svc-build", "svc-build@CORP.EXAMPLE"}) || !slices.Equal(beta.users[0].expect.Names, []string{"Build Account"}) ||
		!alpha.users[0].expect.Unproven || alpha.users[0].expect.Names != nil {
		t.Errorf("expectations %+v %+v %+v", app.users[0].expect, beta.users[0].expect, alpha.users[0].expect)
	}
	if app.recheck != 90*time.Second || !app.recheckSet || beta.recheck != 0 || beta.recheckSet || app.userAgent != "curl/8" || len(app.uses[0].allow) != 2 || len(beta.uses[0].allow) != 1 || len(app.loginHosts) != 1 {
		t.Errorf("%+v", app)
	}
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "alpha") {
		t.Errorf("warnings: %q", c.Warnings)
	}
	if problems := c.Problems(t.Context()); len(problems) != 1 || api.CodeOf(problems[0]) != api.KeytabUnreadable {
		t.Errorf("problems: %v", problems)
	}
	if app.users[0].fingerprint == beta.users[0].fingerprint {
		t.Error("two sites have one fingerprint")
	}
}

// TestFingerprint: a stored session outlives exactly the changes that leave it
// what it was.
func TestFingerprint(t *testing.T) {
	base := credentialText + siteText
	load := func(text string) *user {
		c, err := configure(t, map[string]string{"sessiond.toml": text})
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		return c.Sites[0].users[0]
	}
	was := load(base).fingerprint
	for _, add := range []string{"recheck = \"1m\"\n", "allow = [\"uid:5\"]\n", "user_agent = \"x\"\n", "# a comment\n"} {
		if load(base+add).fingerprint != was {
			t.Errorf("%q changes the fingerprint", add)
		}
	}
	for _, change := range [][2]string{
		{"corp.example/app", "corp.example/other"}, {"svc-build", "svc-other"}, {`"user"`, `"name"`},
		{`identity_json`, "login_hosts = [\"x.example\"]\nidentity_json"}, {`identity_json`, "identity = \"x\"\nidentity_json"}, {`identity_json`, "login_url = \"/x\"\nidentity_json"},
		{`identity_json`, "forwarded_for = \"192.0.2.7\"\nidentity_json"},
	} {
		if load(strings.Replace(base, change[0], change[1], 1)).fingerprint == was {
			t.Errorf("%q leaves the fingerprint", change)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	const (
		byPassword = "[credential.person]\nusername = \"person\"\n[site.app]\nurl = \"https://app.corp.example\"\nkind = \"jira\"\ncredential = \"person\"\n"
		proxyText  = "[proxy.corp]\nurl = \"http://proxy.corp.example:3128\"\n"
	)
	for name, c := range map[string]struct{ text, want string }{
		"user in url":                {strings.Replace(siteText, "https://", "https://u:CANARY-password@", 1), "user name"},
		"query in url":               {strings.Replace(siteText, "example/app", "example/app?x=1", 1), "query"},
		"ftp":                        {strings.Replace(siteText, "https", "ftp", 1), "neither"},
		"relative url":               {strings.Replace(siteText, "https://app.corp.example", "", 1), "absolute"},
		"recheck":                    {siteText + "recheck = \"often\"\n", "recheck"},
		"negative recheck":           {siteText + "recheck = \"-1s\"\n", "recheck"},
		"login host":                 {siteText + "login_hosts = [\"https://x/path\"]\n", "login_hosts"},
		"forwarded for a name":       {siteText + "forwarded_for = \"host.corp.example\"\n", "not an IP address"},
		"forwarded for a zone":       {siteText + "forwarded_for = \"fe80::1%eth0\"\n", "not an IP address"},
		"agent with newline":         {siteText + "user_agent = \"a\\nb\"\n", "user_agent"},
		"name of a site":             {strings.Replace(siteText, "site.app", `site."a b"`, 1), "a b"},
		"names alike":                {siteText + strings.Replace(siteText, "site.app", "site.APP", 1), "$APP_COOKIE"},
		"names that fold":            {strings.Replace(siteText, "site.app", "site.my-app", 1) + strings.Replace(siteText, "site.app", "site.MY_App", 1), "$MY_APP_COOKIE, as that of site."},
		"names with dots":            {strings.Replace(siteText, "site.app", `site."my.app"`, 1) + strings.Replace(siteText, "site.app", "site.my_app", 1), "$MY_APP_COOKIE"},
		"host with a star":           {strings.Replace(siteText, "app.corp", "*.corp", 1), "host"},
		"password, no URL":           {strings.Replace(siteText, "https://", "https://u:CANARY-pass word@", 1), "absolute"},
		"password, ftp":              {strings.Replace(siteText, "https://", "ftp:u:CANARY-password@", 1), "absolute"},
		"password, hosts":            {siteText + "login_hosts = [\"ok.example\", \"https://u:CANARY-password@x\"]\n", "entry 2"},
		"foreign probe_url":          {siteText + "probe_url = \"https://other.example/me\"\n", "probe_url leads to https://other.example, which is not one of the site's hosts; if that host belongs to the login, add \"https://other.example\" to the site's login_hosts"},
		"http probe_url":             {siteText + "probe_url = \"http://app.corp.example/me\"\n", "insecure_http"},
		"a table of its own":         {siteText + "[gateway.corp]\nurl = \"x\"\n", "gateway"},
		"no principal":               {siteText + "[credential.other]\nkeytab = \"/x\"\n", "principal is missing"},
		"two proofs":                 {siteText + "[credential.other]\nprincipal = \"x\"\nkeytab = \"/x\"\nccache = \"FILE:/y\"\n", "both a keytab and a ccache"},
		"PAC of a ccache":            {siteText + "[credential.other]\nprincipal = \"x\"\nccache = \"FILE:/y\"\nno_pac = true\n", "no_pac"},
		"export of a user":           {siteText + "[credential.other]\nusername = \"x\"\nexport = [\"uid:1\"]\n", "either"},
		"export to whom":             {siteText + "[credential.other]\nprincipal = \"x\"\nkeytab = \"/x\"\nexport = [\"everybody\"]\n", "credential.other: export: "},
		"mutual_auth":                {siteText + "mutual_auth = \"sometimes\"\n", "not off, if-offered or required"},
		"channel_bindings":           {siteText + "channel_bindings = \"on\"\n", "not auto, off or required"},
		"spn":                        {siteText + "spn = \"HTTP\"\n", "service/host"},
		"no such proxy":              {siteText + "proxy = \"corp\"\n", "there is no [proxy.corp]"},
		"proxy without url":          {siteText + "[proxy.corp]\n", "proxy.corp: url is missing"},
		"proxy with a path":          {siteText + "[proxy.corp]\nurl = \"http://proxy:3128/x\"\n", "proxy.corp: the proxy's url"},
		"proxy's password":           {siteText + "[proxy.corp]\nurl = \"http://u:CANARY-password@proxy:3128\"\n", "user name or password; name a credential"},
		"socks proxy":                {siteText + "[proxy.corp]\nurl = \"socks5://proxy:1080\"\n", "proxy.corp: the proxy's url"},
		"proxy's credential":         {siteText + "[proxy.corp]\nurl = \"http://proxy:3128\"\ncredential = \"x\"\n", "there is no [credential.x]"},
		"a proxy named none":         {siteText + "[proxy.none]\nurl = \"http://proxy:3128\"\n", "choose another name"},
		"relative keytab":            {siteText + "[credential.other]\nprincipal = \"x\"\nkeytab = \"~/x.keytab\"\n", "credential.other: keytab must be an absolute path; only a shell knows what ~ and $HOME are"},
		"relative ccache":            {siteText + "[credential.other]\nprincipal = \"x\"\nccache = \"krb5cc\"\n", "credential.other: ccache must name an absolute path"},
		"relative FILE":              {siteText + "[credential.other]\nprincipal = \"x\"\nccache = \"FILE:krb5cc\"\n", "credential.other: ccache must name an absolute path"},
		"empty FILE":                 {siteText + "[credential.other]\nprincipal = \"x\"\nccache = \"FILE:\"\n", "credential.other: ccache must name an absolute path"},
		"relative DIR":               {siteText + "[credential.other]\nprincipal = \"x\"\nccache = \"DIR:krb5cc\"\n", "credential.other: ccache must name an absolute path"},
		"relative DIR::":             {siteText + "[credential.other]\nprincipal = \"x\"\nccache = \"DIR::krb5cc/tkt\"\n", "credential.other: ccache must name an absolute path"},
		"ccache at home":             {siteText + "[credential.other]\nprincipal = \"x\"\nccache = \"FILE:~/krb5cc\"\n", "ccache must name an absolute path; only a shell knows what ~ and $HOME are"},
		"ccache of $HOME":            {siteText + "[credential.other]\nprincipal = \"x\"\nccache = \"DIR:$HOME/krb5cc\"\n", "ccache must name an absolute path; only a shell knows what ~ and $HOME are"},
		"no_pac at a ccache":         {strings.Replace(siteText, `"build"`, `"other"`, 1) + "no_pac = true\n[credential.other]\nprincipal = \"x\"\nccache = \"FILE:/y\"\n", "site.app: no_pac is for tickets that the agent asks for itself"},
		"spn, password":              {byPassword + "spn = \"HTTP/x\"\n", "site.app: spn is for tickets, and credential.person is a username and its password"},
		"no_pac, password":           {byPassword + "no_pac = true\n", "site.app: no_pac is for tickets, and credential.person is a username and its password"},
		"mutual_auth, password":      {byPassword + "mutual_auth = \"off\"\n", "site.app: mutual_auth is for tickets, and credential.person is a username and its password"},
		"channel_bindings, password": {byPassword + "channel_bindings = \"auto\"\n", "site.app: channel_bindings is for tickets, and credential.person is a username and its password"},
		"spn, no ticket":             {byPassword + proxyText + "credential = \"person\"\nspn = \"HTTP/x\"\ninsecure_basic = true\n", "proxy.corp: spn is for tickets: it wants a credential that is a principal"},
		"spn, nothing":               {siteText + proxyText + "spn = \"HTTP/x\"\n", "proxy.corp: spn is for tickets"},
		"mutual, no ticket":          {byPassword + proxyText + "credential = \"person\"\nmutual_auth = \"required\"\ninsecure_basic = true\n", "proxy.corp: mutual_auth is for tickets: it wants a credential that is a principal"},
		"mutual, nothing":            {siteText + proxyText + "mutual_auth = \"off\"\n", "proxy.corp: mutual_auth is for tickets"},
		"basic, no password":         {siteText + proxyText + "credential = \"build\"\ninsecure_basic = true\n", "proxy.corp: insecure_basic is for passwords: it wants a credential that is a username and its password"},
		"basic, nothing":             {siteText + proxyText + "insecure_basic = true\n", "proxy.corp: insecure_basic is for passwords"},
		"basic in clear":             {byPassword + proxyText + "credential = \"person\"\n", "proxy.corp: its password would go over the network in clear, and so never goes: use an https url, or allow it with insecure_basic = true"},
		"port":                       {strings.Replace(siteText, "corp.example/", "corp.example:65536/", 1), "url has a port that is not one of 1 to 65535"},
		"port 0":                     {strings.Replace(siteText, "corp.example/", "corp.example:0/", 1), "url has a port"},
		"port, hosts":                {siteText + "login_hosts = [\"ok.example\", \"x.example:70000\"]\n", "login_hosts: entry 2 has a port"},
		"port, proxy":                {siteText + "[proxy.corp]\nurl = \"http://proxy:99999\"\n", "proxy.corp: url has a port"},
		"url of a proxy":             {siteText + "proxy = \"http://u:CANARY-password@proxy:3128\"\n", "site.app: proxy is the NAME of a [proxy.NAME], which has the url, or \"none\""},
		"host of a proxy":            {siteText + "proxy = \"proxy:3128\"\n", "proxy is the NAME of a [proxy.NAME]"},
		"spn, empty realm":           {siteText + "spn = \"HTTP/x@\"\n", `"HTTP/x@" has no realm after its @`},
		"fallback to nothing":        {siteText + "fallback = \"other\"\n", "fallback: there is no [credential.other]"},
		"fallback beside a password": {strings.Replace(siteText, `credential = "build"`, `credential = "typed"`, 1) + "fallback = \"anna\"\n[credential.typed]\nprincipal = \"x\"\n[credential.anna]\nusername = \"anna\"\n", "has a password already"},
		"fallback to itself":         {siteText + "fallback = \"build\"\n", "a username with a password"},
		"principal":                  {siteText + "[credential.other]\nprincipal = \"a@b@c\"\nkeytab = \"/x\"\n", `credential.other: principal "a@b@c"`},
		"password":                   {siteText + "[credential.other]\nprincipal = \"a\"\nkeytab = \"/x\"\npassword = \"CANARY-password\"\n", "password"},
		"both":                       {siteText + "[credential.other]\nprincipal = \"a\"\nkeytab = \"/x\"\nusername = \"a\"\n", "either"},
		"control in username":        {siteText + "[credential.other]\nusername = \"a\\nb\"\n", "username holds a control"},
		"wrong means":                {strings.Replace(siteText, `credential = "build"`, `credential = "other"`, 1) + "[credential.other]\nusername = \"a\"\n", "the kind spnego does not log in with a username and its password, as credential.other has it; it wants a principal"},
		"unproven Jira":              {"[site.jira]\nurl = \"https://jira.corp.example\"\nkind = \"jira\"\ncredential = \"build\"\nidentity = \"unproven\"\n", "always names the user"},
		"foreign login_url":          {"[site.jira]\nurl = \"https://jira.corp.example\"\nkind = \"jira\"\ncredential = \"build\"\nlogin_url = \"https://other.example/\"\n", "login_url leads to"},
		"option of no kind":          {siteText + "no_such_option = 1\n", "no_such_option"},
		"site without table":         {"site = 5\n", "site"},
		"not UTF-8":                  {"[site.\xff]", ""},
		"another case":               {siteText + "Allow = [\"uid:5\"]\n", "site.app.Allow"},
		"another case above":         {siteText + "[Site.beta]\nkind = \"spnego\"\n", "Site"},
		"everything is empty":        {"[site.app]\n", "kind is missing"},
	} {
		_, err := configure(t, map[string]string{"sessiond.toml": credentialText + c.text})
		if api.CodeOf(err) != api.ConfigInvalid || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "sessiond.toml") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Count(err.Error(), "(config_invalid)") != 1 {
			t.Errorf("%s: the code once, please: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: the message shows a secret: %v", name, err)
		}
	}
	// An empty configuration is an agent without sites, and needs no Kerberos.
	t.Setenv("KRB5_CONFIG", "/nonexistent")
	path := filepath.Join(t.TempDir(), "sessiond.toml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := LoadConfig(path); err != nil || len(c.Sites) != 0 {
		t.Errorf("empty: %v", err)
	}
}

// TestConfigMistakesQuote: file, line and key, and never a value, of that line
// or of its neighbours.
func TestConfigMistakesQuote(t *testing.T) {
	const before, after = "[credential.a]\nprincipal = \"CANARY-before\"\n[site.app]\nkind = \"spnego\"\n", "\nuser_agent = \"CANARY-after\"\n"
	for text, want := range map[string]string{
		`identiy = "CANARY-value"`:                    "FILE:5: unknown key identiy",
		"identiy = \"CANARY\"\n\npasswd = \"CANARY\"": "FILE:5: unknown key identiy\nFILE:7: unknown key passwd",
		"x = { password = \"CANARY\" }":               "FILE:5: unknown key x",
		"[gateway.corp]\npassword = \"CANARY\"":       "FILE:5: unknown table [gateway.corp]",
		"[proxy.corp]\nurl = [\"CANARY\"]":            "FILE:6: proxy.corp.url: an array stands where a string is wanted",
		"\"a\u202eb\" = \"CANARY\"":                   "FILE:5: unknown key a?b",
		`insecure_http = "CANARY-value"`:              "FILE:5: site.app.insecure_http: a string stands where true or false is wanted",
		`url = ["CANARY-value"]`:                      "FILE:5: site.app.url: an array stands where a string is wanted",
		`url = { a = "CANARY-value" }`:                "FILE:5: site.app.url: an inline table stands where a string is wanted",
		"[site.app.url]\nx = \"CANARY-value\"":        "FILE:5: site.app.url: a table stands where a string is wanted",
		`allow = "CANARY-value"`:                      "FILE:5: site.app.allow: a string stands where a list is wanted",
		`allow = ["uid:1", 5]`:                        "FILE:5: site.app.allow: an integer stands where a string is wanted",
		"[site]\nother = \"CANARY\"":                  "FILE:6: site.other: a string stands where a table is wanted",
		"[credential]\nb = \"CANARY\"":                "FILE:6: credential.b: a string stands where a table is wanted",
		`url = "CANARY-value`:                         "FILE:5: url: basic strings cannot have new lines",
		`url = "CANARY-value" CANARY`:                 "FILE:5: url: expected newline but got U+0043 'C'",
		"CANARY-value":                                "FILE:5: expected '=' after key",
		"allow = [\n\"CANARY-1\"\n\"CANARY-2\"\n]":    "FILE:7: expected ',' or ']' after array value",
		"url = \"\"\"\nCANARYx=\\q\n\"\"\"":           "FILE:6: invalid escape character U+0071 'q'",
		"[site.b":                                     "FILE:5: [site.b: expected ']' to close table name",
		"recheck = 1e99999":                           "FILE:5: site.app.recheck: unable to parse float",
		"url = \"CANARY-1\"\nurl = \"CANARY-2\"":      "FILE:6: url: key url is already defined",
	} {
		const file = "/etc/sessiond.toml"
		err := newDecoder().file(file, []byte(before+text+after))
		if want := strings.ReplaceAll(want, "FILE", file) + " (config_invalid)"; err == nil || err.Error() != want {
			t.Errorf("%s\n gives %v\n want  %s", text, err, want)
		}
	}
	// Options of integers are for kinds to come.
	if got := reason("integer value 123456 cannot be stored in int8"); strings.Contains(got, "123456") {
		t.Error(got)
	}
}

// TestKerberosOptions: what the options of credentials, proxies and sites come to.
func TestKerberosOptions(t *testing.T) {
	c, err := configure(t, map[string]string{"sessiond.toml": `
[credential.cache]
principal = "svc"
ccache = "FILE:/run/user/1000/krb5cc"
export = ["uid:1000"]
[credential.typed]
principal = "svc@OTHER.EXAMPLE"
no_pac = true
rc4 = true
[credential.person]
username = "person"
[proxy.corp]
url = "http://proxy.corp.example:3128"
credential = "typed"
spn = "HTTP/squid.corp.example"
mutual_auth = "required"
[proxy.open]
url = "http://open.corp.example:3128"
credential = "person"
insecure_basic = true
[site.a]
kind = "spnego"
url = "https://a.example"
credential = "cache"
identity_json = "user"
spn = "HTTP/alias.example@CORP.EXAMPLE"
mutual_auth = "required"
channel_bindings = "off"
proxy = "corp"
fallback = "person"
[site.b]
kind = "spnego"
url = "https://b.example"
credential = "typed"
identity_json = "user"
no_pac = true
proxy = "none"
`})
	if err != nil {
		t.Fatal(err)
	}
	cred := map[string]*Credential{}
	for _, x := range c.credentials {
		cred[x.Name] = x
	}
	a, b := c.Sites[0], c.Sites[1]
	switch {
	case cred["cache"].Cache != "FILE:/run/user/1000/krb5cc" || len(cred["cache"].export) != 1 || cred["cache"].byPassword():
		t.Errorf("cache: %+v", cred["cache"])
	case !cred["typed"].byPassword() || !cred["typed"].NoPAC || !cred["typed"].RC4 || cred["typed"].Principal.Realm != "OTHER.EXAMPLE":
		t.Errorf("typed: %+v", cred["typed"])
	case a.spn != "HTTP/alias.example@CORP.EXAMPLE" || a.mutual != web.MutualRequired || a.bindings != web.BindingsOff || a.noPAC:
		t.Errorf("site a: %+v", a)
	case a.proxy == nil || a.proxy.credential != cred["typed"] || a.proxy.spn != "HTTP/squid.corp.example" || a.proxy.mutual != web.MutualRequired:
		t.Errorf("its proxy: %+v", a.proxy)
	case a.users[0].fallback != cred["person"] || !slices.Equal(a.users[0].expect.Names, []string{"svc", "svc@CORP.EXAMPLE", "person"}):
		t.Errorf("its fallback: %+v, %v", a.users[0].fallback, a.users[0].expect.Names)
	case b.proxy != nil || b.users[0].fallback != nil || !b.noPAC:
		t.Errorf("site b: %+v", b)
	}
	for _, what := range []string{"credential typed: rc4", "proxy open: insecure_basic"} {
		if !slices.ContainsFunc(c.Warnings, func(w string) bool { return strings.HasPrefix(w, what) }) {
			t.Errorf("no warning of %s in %q", what, c.Warnings)
		}
	}
}

// TestCacheNames: the names of ticket caches that have no path, or an absolute one.
func TestCacheNames(t *testing.T) {
	for _, name := range []string{"/tmp/krb5cc", "FILE:/tmp/krb5cc", "DIR:/tmp/krb5", "DIR::/tmp/krb5/tkt", "KCM:", "KCM:1000", "KEYRING:persistent:1000", "KEYRING:krb5cc"} {
		c, err := configure(t, map[string]string{"sessiond.toml": fmt.Sprintf("[credential.cache]\nprincipal = \"svc\"\nccache = %q\n", name)})
		if err != nil || c.credentials[0].Cache != name {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestProxyInClear: a warning where a password can be read on its way to a proxy,
// and only there.
func TestProxyInClear(t *testing.T) {
	for _, c := range []struct {
		url  string
		warn bool
	}{{"http://proxy.corp.example:3128", true}, {"http://192.0.2.1", true}, {"https://proxy.corp.example", false}, {"http://localhost:3128", false}, {"http://127.0.0.2:3128", false}, {"http://[::1]:3128", false}} {
		for _, option := range []string{"", "insecure_basic = true\n"} {
			if option == "" && c.warn {
				continue // TestConfigMistakes
			}
			cfg, err := configure(t, map[string]string{"sessiond.toml": fmt.Sprintf("[credential.person]\nusername = \"person\"\n[proxy.corp]\nurl = %q\ncredential = \"person\"\n%s", c.url, option)})
			if err != nil || len(cfg.Warnings) > 0 != c.warn {
				t.Errorf("%s %s: %+v %v", c.url, option, cfg, err)
			}
		}
		t.Setenv("https_proxy", strings.Replace(c.url, "//", "//user:CANARY-password@", 1))
		cfg, err := configure(t, map[string]string{"sessiond.toml": credentialText + siteText})
		if err != nil || len(cfg.Warnings) > 0 != c.warn {
			t.Errorf("%s in the environment: %+v %v", c.url, cfg, err)
		}
		t.Setenv("https_proxy", "")
	}
}

// TestEnvironmentProxy: the environment's proxy is used unless the site says
// otherwise, with the credentials of a [proxy.NAME] of that address.
func TestEnvironmentProxy(t *testing.T) {
	t.Setenv("https_proxy", "http://proxy.corp.example:3128")
	t.Setenv("no_proxy", "direct.corp.example")
	table := "[proxy.corp]\nurl = \"http://proxy.corp.example:3128/\"\ncredential = \"build\"\n"
	for name, c := range map[string]struct{ host, option, table, want, account string }{
		"environment":         {"app.corp.example", "", "", "http://proxy.corp.example:3128", ""},
		"its credentials":     {"app.corp.example", "", table, "http://proxy.corp.example:3128/", "svc-build@CORP.EXAMPLE"},
		"not for that host":   {"direct.corp.example", "", table, "", ""},
		"none, says the site": {"app.corp.example", "proxy = \"none\"\n", table, "", ""},
	} {
		cfg, err := configure(t, map[string]string{"sessiond.toml": credentialText + strings.Replace(siteText, "app.corp.example", c.host, 1) + c.option + c.table})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		p := cfg.Sites[0].proxy
		switch {
		case p == nil && c.want != "", p != nil && p.url.String() != c.want:
			t.Errorf("%s: proxy %+v, want %q", name, p, c.want)
		case p != nil && (p.credential == nil) != (c.account == ""), p != nil && p.credential != nil && p.credential.account() != c.account:
			t.Errorf("%s: credential %+v, want %q", name, p.credential, c.account)
		}
		if p == nil && cfg.Notes != nil || p != nil && !slices.Equal(cfg.Notes, []string{"site app: proxy http://proxy.corp.example:3128 from the environment"}) {
			t.Errorf("%s: notes %q", name, cfg.Notes)
		}
	}
	cfg, err := configure(t, map[string]string{"sessiond.toml": credentialText + siteText + "proxy = \"corp\"\n[proxy.corp]\nurl = \"http://proxy.corp.example:3128\"\n"})
	if err != nil || cfg.Notes != nil {
		t.Errorf("a proxy of the site's own: %v", err)
	}
	for name, value := range map[string]string{"SOCKS": "socks5://user:CANARY-password@proxy.corp.example:1080", "port": "http://user:CANARY-password@proxy.corp.example:99999"} {
		t.Setenv("https_proxy", value)
		_, err := configure(t, map[string]string{"sessiond.toml": credentialText + siteText})
		e := api.AsError(err)
		if api.CodeOf(err) != api.ConfigInvalid || strings.Contains(err.Error()+e.Remedy, "CANARY") {
			t.Errorf("%s: %v", name, err)
		} else if !strings.Contains(e.Remedy, "https_proxy") || !strings.HasSuffix(e.Remedy, `, or set proxy = "none" in the site`) {
			t.Errorf("%s: next: %s", name, e.Remedy)
		}
	}
	t.Setenv("https_proxy", "http://user:CANARY-password@proxy.corp.example:3128")
	cfg, err = configure(t, map[string]string{"sessiond.toml": credentialText + siteText})
	if err != nil || cfg.Sites[0].proxy.inURL == nil || len(cfg.Notes) != 1 || strings.Contains(cfg.Notes[0], "user") || len(cfg.Warnings) != 1 || !strings.Contains(cfg.Warnings[0], "in clear") || strings.Contains(cfg.Warnings[0], "CANARY") {
		t.Errorf("a password in the URL: %v", err)
	}
}

// TestConfD: which files beside the configuration count.
func TestConfD(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b]*?")
	path := filepath.Join(dir, "sessiond.toml")
	write := func(name, text string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(path, "")
	if c, err := LoadConfig(path); err != nil || len(c.Files) != 1 {
		t.Errorf("no conf.d: %+v %v", c, err)
	}
	for _, name := range []string{"2.toml", "10.toml", ".hidden.toml", "3.toml~", "4.conf", "toml"} {
		text := "garbage"
		if name == "2.toml" || name == "10.toml" {
			text = ""
		}
		write(filepath.Join(dir, "conf.d", name), text)
	}
	c, err := LoadConfig(path)
	if err != nil || !slices.Equal(c.Files, []string{path, filepath.Join(dir, "conf.d", "10.toml"), filepath.Join(dir, "conf.d", "2.toml")}) {
		t.Errorf("%+v %v", c, err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "conf.d")); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, "conf.d"), "no directory")
	if _, err := LoadConfig(path); api.CodeOf(err) != api.ConfigInvalid || !strings.Contains(err.Error(), filepath.Join(dir, "conf.d")+": not a directory") {
		t.Errorf("conf.d cannot be read: %v", err)
	}
}

// Shared is embedded in testDriver.
type Shared struct {
	Header string `toml:"header"`
}

type hidden struct {
	Path string `toml:"path"`
}

// testDriver has what a kind to come may have.
type testDriver struct {
	login.Driver // no option: no tag
	Shared
	hidden
	URL      string   `toml:"start_url"` // named as a field of siteTable
	Identity []string `toml:"identities"`
	Depth    int      `toml:"depth"`
	Scratch  func()
	private  map[string]string
}

// TestOptions: what of a driver is an option, and that defaults stay.
func TestOptions(t *testing.T) {
	load := func(text string) (*testDriver, string) {
		d := newDecoder()
		d.kind = func(string) login.Driver {
			return &testDriver{URL: "login", Identity: []string{"a", "b"}, Depth: 3, Scratch: func() {}, private: map[string]string{}}
		}
		if err := d.file("sessiond.toml", []byte(strings.Replace(siteText, "identity_json = \"user\"\n", text, 1))); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		if u := d.sites["app"].URL.String(); u != "https://app.corp.example/app" {
			t.Errorf("the site's url is %s", u)
		}
		return d.newDriver(d.sites["app"]).(*testDriver), d.sites["app"].fingerprint("")
	}
	got, was := load("")
	if got.URL != "login" || !slices.Equal(got.Identity, []string{"a", "b"}) || got.Depth != 3 || got.private == nil || got.Scratch == nil {
		t.Errorf("the defaults became %+v", got)
	}
	got, is := load("header = \"X\"\npath = \"/p\"\nstart_url = \"s\"\nidentities = [\"c\"]\ndepth = 4\nidentity = \"build\"\n")
	if got.Header != "X" || got.Path != "/p" || got.URL != "s" || !slices.Equal(got.Identity, []string{"c"}) || got.Depth != 4 {
		t.Errorf("the options became %+v", got)
	}
	if _, depth := load("depth = 4\n"); depth == was || is == was {
		t.Error("the options are not in the fingerprint")
	}
}

// TestKindsOptions: every kind's options fit into a site's table.
func TestKindsOptions(t *testing.T) {
	for _, kind := range login.Kinds() {
		driver := login.New(kind)
		var common siteTable
		keys, _ := options(&common, driver)
		reflect.StructOf(keys)
		seen := map[string]bool{}
		for _, k := range keys {
			name := strings.ToLower(k.Tag.Get("toml")) // go-toml matches without regard to case
			if seen[name] || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
				t.Errorf("kind %s: %q stands twice, or is no name", kind, name)
			}
			seen[name] = true
			if ok := slices.Contains([]reflect.Kind{reflect.String, reflect.Bool, reflect.Int}, k.Type.Kind()) || k.Type == reflect.TypeFor[[]string]() || k.Type == reflect.TypeFor[[]useTable](); !ok {
				t.Errorf("kind %s: option %s is a %s", kind, name, k.Type)
			}
		}
		if e := newDecoder(); e.newDriver(&entry{Site: &Site{Kind: kind}, driver: driver}) == nil {
			t.Errorf("kind %s cannot be made for several users", kind)
		}
	}
}

func FuzzLoadConfig(f *testing.F) {
	f.Add([]byte(credentialText + siteText))
	f.Add([]byte("[site.app]\nkind = \"spnego\"\nurl = [1]\n"))
	f.Add([]byte(almText + "credential = \"build\"\n[[site.alm.use]]\ncredential = \"anna\"\nallow = [\"uid:1\"]\n"))
	f.Add([]byte(idpText + memberText))
	f.Add([]byte("site.a.kind = \"spnego\"\n[credential]\n"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		d := newDecoder()
		err := d.file("sessiond.toml", doc)
		if err != nil && !strings.HasPrefix(err.Error(), "sessiond.toml:") {
			t.Errorf("no file: %v", err)
		}
		if err != nil && api.CodeOf(err) != api.ConfigInvalid {
			t.Errorf("%v", err)
		}
		entries := maps.Clone(d.sites)
		maps.Copy(entries, d.idps)
		for name, s := range entries {
			if !api.ValidSite(name) || s.URL.Host == "" || s.URL.Scheme == "http" && !s.insecureHTTP || login.New(s.Kind) == nil {
				t.Errorf("site %q passed: %+v", name, s)
			}
		}
	})
}

// TestMainFile: the next step names the file that can be checked, whichever is
// wrong.
func TestMainFile(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		at    string // the file that has the mistake
	}{
		"itself":      {map[string]string{"sessiond.toml": siteText}, "sessiond.toml"},
		"TOML":        {map[string]string{"sessiond.toml": credentialText, "conf.d/x.toml": "[site.app"}, "conf.d/x.toml"},
		"unknown key": {map[string]string{"sessiond.toml": credentialText, "conf.d/x.toml": siteText + "identiy = \"x\"\n"}, "conf.d/x.toml"},
		"a site":      {map[string]string{"sessiond.toml": credentialText, "conf.d/x.toml": siteText + "spn = \"HTTP\"\n"}, "conf.d/x.toml"},
		"resolved":    {map[string]string{"sessiond.toml": credentialText, "conf.d/x.toml": siteText + "fallback = \"nobody\"\n"}, "conf.d/x.toml"},
		"credential":  {map[string]string{"sessiond.toml": "", "conf.d/x.toml": "[credential.x]\nprincipal = \"x@\"\n"}, "conf.d/x.toml"},
		"proxy":       {map[string]string{"sessiond.toml": "", "conf.d/x.toml": "[proxy.x]\n"}, "conf.d/x.toml"},
		"no files":    {map[string]string{"sessiond.toml": "", "conf.d": ""}, "conf.d"},
	} {
		_, err := configure(t, c.files)
		dir := filepath.Dir(os.Getenv("KRB5_CONFIG"))
		if e := api.AsError(err); err == nil || e.Code != api.ConfigInvalid || !strings.HasPrefix(e.Detail, filepath.Join(dir, c.at)+":") || e.Remedy != "mend it, then: sessionctl check-config "+filepath.Join(dir, "sessiond.toml") {
			t.Errorf("%s: %v, next: %s", name, err, api.AsError(err).Remedy)
		}
	}
}

// TestConfigFiles: whatever lies there under the name of a configuration, it is
// not waited for.
func TestConfigFiles(t *testing.T) {
	large := strings.Repeat("#\n", maxConfigFile/2)
	for name, c := range map[string]struct {
		make func(path string) error
		want string // "": it is read
	}{
		"a pipe":      {func(path string) error { return syscall.Mkfifo(path, 0o600) }, "not a regular file"},
		"a device":    {func(path string) error { return os.Symlink("/dev/zero", path) }, "not a regular file"},
		"a terminal":  {func(path string) error { return os.Symlink("/dev/ptmx", path) }, "not a regular file"},
		"a directory": {func(path string) error { return os.Mkdir(path, 0o700) }, "not a regular file"},
		"a socket":    {func(path string) error { return syscall.Mknod(path, syscall.S_IFSOCK|0o600, 0) }, "no such device or address"},
		"a loop":      {func(path string) error { return os.Symlink(path, path) }, "too many levels"},
		"nothing":     {func(path string) error { return os.Symlink("/nonexistent", path) }, "no such file"},
		"too large":   {func(path string) error { return os.WriteFile(path, []byte(large+"#"), 0o600) }, "larger than 1024 KiB"},
		"large":       {func(path string) error { return os.WriteFile(path, []byte(large), 0o600) }, ""},
		"without end": {func(path string) error { return os.Symlink("/proc/self/mem", path) }, ": "},
		"a link to it": {func(path string) error {
			return errors.Join(os.WriteFile(path+".d", nil, 0o600), os.Symlink(path+".d", path))
		}, ""},
	} {
		for _, place := range []string{"sessiond.toml", "conf.d/x.toml"} {
			dir := t.TempDir()
			path := filepath.Join(dir, place)
			if err := errors.Join(os.Mkdir(filepath.Join(dir, "conf.d"), 0o700), os.WriteFile(filepath.Join(dir, "sessiond.toml"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			os.Remove(path)
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			_, err := LoadConfig(filepath.Join(dir, "sessiond.toml"))
			if e := api.AsError(err); (err == nil) != (c.want == "") || err != nil && (e.Code != api.ConfigInvalid || !strings.HasPrefix(e.Detail, path+": ") || !strings.Contains(e.Detail, c.want) || e.Remedy == "") {
				t.Errorf("%s as %s: %v", name, place, err)
			}
		}
	}
}
