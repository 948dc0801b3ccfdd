package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
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
	if p := app.Credential.Principal.String(); p != "svc-build@CORP.EXAMPLE" {
		t.Errorf("principal %s", p)
	}
	if !slices.Equal(app.expect.Names, []string{"svc-build", "svc-build@CORP.EXAMPLE"}) || !slices.Equal(beta.expect.Names, []string{"Build Account"}) ||
		!alpha.expect.Unproven || alpha.expect.Names != nil {
		t.Errorf("expectations %+v %+v %+v", app.expect, beta.expect, alpha.expect)
	}
	if app.recheck != 90*time.Second || beta.recheck != defaultRecheck || app.userAgent != "curl/8" || len(app.allow) != 2 || len(beta.allow) != 1 || len(app.loginHosts) != 1 {
		t.Errorf("%+v", app)
	}
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "alpha") {
		t.Errorf("warnings: %q", c.Warnings)
	}
	if problems := c.Problems(); len(problems) != 1 || api.CodeOf(problems[0]) != api.KeytabUnreadable {
		t.Errorf("problems: %v", problems)
	}
	if app.fingerprint == beta.fingerprint {
		t.Error("two sites have one fingerprint")
	}
}

// TestFingerprint: a stored session outlives exactly the changes that leave it
// what it was (section 6 of the design).
func TestFingerprint(t *testing.T) {
	base := credentialText + siteText
	load := func(text string) *Site {
		c, err := configure(t, map[string]string{"sessiond.toml": text})
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		return c.Sites[0]
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
	} {
		if load(strings.Replace(base, change[0], change[1], 1)).fingerprint == was {
			t.Errorf("%q leaves the fingerprint", change)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"user in url":         {strings.Replace(siteText, "https://", "https://u:CANARY-password@", 1), "user name"},
		"query in url":        {strings.Replace(siteText, "example/app", "example/app?x=1", 1), "query"},
		"ftp":                 {strings.Replace(siteText, "https", "ftp", 1), "neither"},
		"relative url":        {strings.Replace(siteText, "https://app.corp.example", "", 1), "absolute"},
		"recheck":             {siteText + "recheck = \"often\"\n", "recheck"},
		"negative recheck":    {siteText + "recheck = \"-1s\"\n", "recheck"},
		"login host":          {siteText + "login_hosts = [\"https://x/path\"]\n", "login_hosts"},
		"agent with newline":  {siteText + "user_agent = \"a\\nb\"\n", "user_agent"},
		"name of a site":      {strings.Replace(siteText, "site.app", `site."a b"`, 1), "a b"},
		"names alike":         {siteText + strings.Replace(siteText, "site.app", "site.APP", 1), "stands already"},
		"a table of its own":  {siteText + "[proxy.corp]\nurl = \"x\"\n", "proxy"},
		"no principal":        {siteText + "[credential.other]\nkeytab = \"/x\"\n", "principal is missing"},
		"no keytab":           {siteText + "[credential.other]\nprincipal = \"x\"\n", "keytab is missing"},
		"principal":           {siteText + "[credential.other]\nprincipal = \"a@b@c\"\nkeytab = \"/x\"\n", "principal"},
		"password":            {siteText + "[credential.other]\nprincipal = \"a\"\nkeytab = \"/x\"\npassword = \"CANARY-password\"\n", "password"},
		"option of no kind":   {siteText + "no_such_option = 1\n", "no_such_option"},
		"site without table":  {"site = 5\n", "site"},
		"not UTF-8":           {"[site.\xff]", ""},
		"everything is empty": {"[site.app]\n", "kind is missing"},
	} {
		_, err := configure(t, map[string]string{"sessiond.toml": credentialText + c.text})
		if api.CodeOf(err) != api.ConfigInvalid || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "sessiond.toml") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "CANARY") && name != "password" {
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

func FuzzLoadConfig(f *testing.F) {
	f.Add([]byte(credentialText + siteText))
	f.Add([]byte("[site.app]\nkind = \"spnego\"\nurl = [1]\n"))
	f.Add([]byte("site.a.kind = \"spnego\"\n[credential]\n"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		d := decoder{credentials: map[string]credentialTable{}, sites: map[string]*Site{}, credentialOf: map[string]string{}, where: map[string]string{}}
		err := d.file("sessiond.toml", doc)
		if err != nil && api.CodeOf(err) != api.ConfigInvalid {
			t.Errorf("%v", err)
		}
		for name, s := range d.sites {
			if !api.ValidSite(name) || s.URL.Host == "" || s.URL.Scheme == "http" && !s.insecureHTTP || login.New(s.Kind) == nil {
				t.Errorf("site %q passed: %+v", name, s)
			}
		}
	})
}
