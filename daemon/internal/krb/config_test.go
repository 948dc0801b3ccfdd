package krb

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// write puts files into a directory; in their text, DIR stands for it.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What distributions install, and what people write: each with the answers
// that MIT's library gives.
func TestLoadConfig(t *testing.T) {
	type answers struct {
		realm    string
		kdcs     []string // of A.TEST
		host     string
		hostIn   string
		lifetime time.Duration
	}
	for name, c := range map[string]struct {
		files map[string]string
		list  []string
		want  answers
	}{
		"as Debian writes it": {
			files: map[string]string{"krb5.conf": `[libdefaults]
	default_realm = A.TEST

# of no concern here
	kdc_timesync = 1
	ccache_type = 4
	forwardable = true
        rdns = false

[realms]
	A.TEST = {
		kdc = kdc1.a.test
		kdc = kdc2.a.test:750
		admin_server = kdc1.a.test
		default_domain = a.test
	}
	B.TEST = {
		kdc = kdc.b.test
	}

[domain_realm]
	.a.test = A.TEST
	a.test = A.TEST
`},
			want: answers{realm: "A.TEST", kdcs: []string{"kdc1.a.test:88", "kdc2.a.test:750"}, host: "Web.A.test.", hostIn: "A.TEST"},
		},
		"as RHEL 9 writes it": {
			files: map[string]string{
				"krb5.conf": `# further files first
includedir DIR/conf.d/

[logging]
    default = FILE:/log/default

[libdefaults]
    ticket_lifetime = 24h
    renew_lifetime = 7d
    rdns = false
    dns_canonicalize_hostname = fallback
    qualify_shortname = ""
#    default_realm = COMMENT.TEST
    default_ccache_name = KEYRING:persistent:%{uid}

[realms]
# COMMENT.TEST = {
#     kdc = kdc.comment.test
# }
`,
				"conf.d/crypto-policies":  "[libdefaults]\npermitted_enctypes = aes256-cts-hmac-sha1-96 aes128-cts-hmac-sha1-96\n",
				"conf.d/site.conf":        "[libdefaults]\ndefault_realm = A.TEST\n[realms]\nA.TEST = {\n kdc = kdc.a.test\n}\n",
				"conf.d/.hidden.conf":     "[libdefaults]\ndefault_realm = HIDDEN.TEST\n",
				"conf.d/a.conf.rpmsave":   "nonsense",
				"conf.d/below/other.conf": "nonsense",
			},
			want: answers{realm: "A.TEST", kdcs: []string{"kdc.a.test:88"}, host: "web.a.test", lifetime: 24 * time.Hour},
		},
		"everything else": {
			files: map[string]string{
				"krb5.conf": "\ufeff; a comment\r\n[libdefaults]\r\n" +
					"  default_realm = \"A.TEST\"   \r\n  default_realm = LATER.TEST\r\n  ticket_lifetime = 1d 2h 30\r\n" +
					"  forwardable = on\r\n  proxiable = off\r\n  udp_preference_limit = 65535\r\n  kdc_timesync = -1\r\n" +
					"  A.TEST = {\r\n    x = y\r\n    deep = {\r\n      er = 1\r\n    }\r\n  }\r\n" +
					"[realms]\r\n  A.TEST =\r\n  # between\r\n  {\r\n    kdc = 192.0.2.1\r\n    auth_to_local_names = {\r\n      a = b\r\n    }\r\n    v4_realm = X\r\n  }\r\n" +
					"include DIR/more\r\n  B.TEST = {\r\n    kdc = b\r\n  }\r\n" +
					"[unknown section]*\r\n  tag* = value\r\n[domain_realm]\r\n  .deep.a.test = DEEP.TEST\r\n  a.test = A.TEST\r\n" +
					"[realms]\r\n  A.TEST = {\r\n    kdc = [2001:db8::1]:8888\r\n    kdc = 2001:db8::2\r\n    kdc = [2001:db8::3]\r\n    kdc = 192.0.2.1\r\n    kdc = https://proxy/KdcProxy\r\n  }\r\n",
				"more": "[realms]\n A.TEST = {\n  kdc = included # not host\n }\n",
			},
			want: answers{realm: "A.TEST", host: "x.y.deep.a.test", hostIn: "DEEP.TEST", lifetime: 26*time.Hour + 30*time.Second,
				kdcs: []string{"192.0.2.1:88", "included:88", "[2001:db8::1]:8888", "[2001:db8::2]:88", "[2001:db8::3]:88"}},
		},
		"a list of files": {
			files: map[string]string{
				"first":  "[libdefaults]\nticket_lifetime = 1:30\n[realms]\nA.TEST = {\nkdc = one\n}\n[domain_realm]*\n",
				"second": "[libdefaults]\ndefault_realm = A.TEST\nticket_lifetime = 5m\n[realms]\nA.TEST = {\nkdc = two\n}*\n[domain_realm]\na.test = NO.TEST\n",
				"third":  "[realms]\nA.TEST = {\nkdc = three\n}\n",
			},
			list: []string{"missing", "first", "second", "third"},
			want: answers{realm: "A.TEST", kdcs: []string{"one:88", "two:88"}, host: "a.test", lifetime: 90 * time.Minute},
		},
		"a final tag": {
			files: map[string]string{
				"first":  "[realms]\nA.TEST = {\nkdc* = one\n}\n",
				"second": "[libdefaults]\ndefault_realm = A.TEST\n[realms]\nA.TEST = {\nkdc = two\n}\n",
			},
			list: []string{"first", "second"},
			want: answers{realm: "A.TEST", kdcs: []string{"one:88"}},
		},
		"empty": {files: map[string]string{"krb5.conf": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, c.files)
			list := c.list
			if list == nil {
				list = []string{"krb5.conf"}
			}
			var paths []string
			for _, f := range list {
				paths = append(paths, filepath.Join(dir, f))
			}
			cfg, err := LoadConfig(paths...)
			if err != nil {
				t.Fatal(err)
			}
			if got := cfg.DefaultRealm(); got != c.want.realm {
				t.Errorf("default realm %q, want %q", got, c.want.realm)
			}
			if got := cfg.KDCs("A.TEST"); !slices.Equal(got, c.want.kdcs) {
				t.Errorf("KDCs %q, want %q", got, c.want.kdcs)
			}
			if got := cfg.RealmOf(c.want.host); got != c.want.hostIn {
				t.Errorf("realm of %s: %q, want %q", c.want.host, got, c.want.hostIn)
			}
			want := c.want.lifetime
			if want == 0 {
				want = defaultLifetime
			}
			if cfg.lifetime != want {
				t.Errorf("lifetime %s, want %s", cfg.lifetime, want)
			}
		})
	}
}

func TestConfigErrors(t *testing.T) {
	for text, want := range map[string]string{
		"[libdefaults]\nnonsense line\n": `krb5.conf:2: neither a section nor tag = value: "nonsense line"`,
		"\na = b\n":                      `krb5.conf:2: outside a section: "a = b"`,
		"[libdefaults\n":                 `krb5.conf:1: no section header: "[libdefaults"`,
		"[a] b\n":                        `krb5.conf:1: no section header: "[a] b"`,
		"[]\n":                           `krb5.conf:1: no section header: "[]"`,
		"[a]\n= b\n":                     `krb5.conf:2: no tag before the =: "= b"`,
		"[a]\nb c = d\n":                 `krb5.conf:2: no tag before the =: "b c = d"`,
		"[a]\n}\n":                       `krb5.conf:2: } without {: "}"`,
		"[a]\nb = {\n} c\n":              `krb5.conf:3: } without {: "} c"`,
		"[a]\nb = {\n[c]\n":              `krb5.conf:3: section inside the braces of "b": "[c]"`,
		"[a]\nb = {\n":                   `the file ends inside the braces of "b"`,
		"[a]\nb =\n":                     `the file ends inside the braces of "b"`,
		"[a]\nb =\nc = d\n":              `krb5.conf:3: "b" has no value, and no { follows: "c = d"`,
		"[a]\nb = \"c\n":                 `krb5.conf:2: quotation mark is not closed: "b = \"c"`,
		"[libdefaults]\nticket_lifetime = soon\n":                   `krb5.conf:2: "soon" is no duration such as 10h or 1d: "ticket_lifetime = soon"`,
		"[libdefaults]\nticket_lifetime = 99999d\n":                 `no duration`,
		"[libdefaults]\nticket_lifetime = 1:2:x\n":                  `no duration`,
		"include DIR/krb5.conf\n":                                   `krb5.conf:1: includes nest deeper than 10`,
		"[a]\ninclude DIR/none\n":                                   `krb5.conf:2: open DIR/none: no such file`,
		"\nincludedir DIR/none\n":                                   `krb5.conf:2: open DIR/none: no such file`,
		"include DIR\n":                                             `krb5.conf:1: DIR is not a regular file`,
		"[a]\n" + strings.Repeat("b = {\n", 11):                     `levels of braces`,
		"[a]\n#" + strings.Repeat("x", maxConfigSize):               `larger than 1024 KiB`,
		strings.Repeat("include DIR/fine\n", maxConfigFiles) + "\n": `more than 256 configuration files`,
	} {
		dir := write(t, map[string]string{"krb5.conf": text, "fine": ""})
		_, err := LoadConfig(filepath.Join(dir, "krb5.conf"))
		want = strings.ReplaceAll(want, "DIR", dir)
		if api.CodeOf(err) != api.Krb5ConfInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: error %v\nwant %s", text, err, want)
		}
	}
	if _, err := LoadConfig("/none/one", "/none/two"); api.CodeOf(err) != api.Krb5ConfInvalid || !strings.Contains(err.Error(), "/none/one, /none/two") {
		t.Errorf("no file at all: %v", err)
	}
}

// The file that Debian installs (package krb5-config, which krb5-user brings)
// loads as it is, or as this machine has it.
func TestOwnConfig(t *testing.T) {
	rig.Require(t, "kinit")
	if _, err := LoadConfig("/etc/krb5.conf"); err != nil {
		t.Error(err)
	}
}

func FuzzLoadConfig(f *testing.F) {
	f.Add("[libdefaults]\ndefault_realm = A\nticket_lifetime = 1d 2h\n[realms]*\nA = {\n kdc = \"a\\tb\"\n}*\n[domain_realm]\n.a = A\n")
	f.Add("\ufeff[realms]\r\nA =\r\n{\r\nkdc = [::1]:88\r\n}\r\n")
	f.Add("[a]\nb = {\nc = {\n}\n}\n}")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "include") {
			return // it would read other files
		}
		dir := t.TempDir()
		name := filepath.Join(dir, "krb5.conf")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := LoadConfig(name)
		if err != nil {
			if api.CodeOf(err) != api.Krb5ConfInvalid {
				t.Errorf("error without its code: %v", err)
			}
			return
		}
		if c.lifetime <= 0 || c.lifetime > maxLifetime {
			t.Errorf("lifetime %s", c.lifetime)
		}
		c.KDCs(c.DefaultRealm())
		c.RealmOf("a.b")
	})
}
