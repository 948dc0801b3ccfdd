package krb

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
					"  default_realm = \"A.TEST\"   \r\n  default_realm = LATER.TEST\r\n  ticket_lifetime = 1d 2h 30s\r\n" +
					"  forwardable = on\r\n  proxiable = off\r\n  udp_preference_limit = 65535\r\n  kdc_timesync = -1\r\n" +
					"  A.TEST = {\r\n    x = y\r\n    deep = {\r\n      er = 1\r\n    }\r\n  }\r\n" +
					"[realms]\r\n  A.TEST =\r\n  {\r\n    kdc = 192.0.2.1\r\n    auth_to_local_names = {\r\n      a = b\r\n    }\r\n    v4_realm = X\r\n  }\r\n" +
					"include DIR/more\r\n  B.TEST = {\r\n    kdc = b\r\n  }\r\n" +
					"[unknown section]*\r\n  tag* = value\r\n[domain_realm]\r\n  .deep.a.test = DEEP.TEST\r\n  a.test = A.TEST\r\n" +
					"[realms]\r\n  A.TEST = {\r\n    kdc = [2001:db8::1]:8888\r\n    kdc = [2001:db8::3]\r\n    kdc = 192.0.2.1\r\n    kdc = https://proxy/KdcProxy\r\n  }\r\n",
				"more": "[realms]\n A.TEST = {\n  kdc = included # not host\n }\n",
			},
			want: answers{realm: "A.TEST", host: "x.y.deep.a.test", hostIn: "DEEP.TEST", lifetime: 26*time.Hour + 30*time.Second,
				kdcs: []string{"192.0.2.1:88", "included:88", "[2001:db8::1]:8888", "[2001:db8::3]:88"}},
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

// Wrong lines are quoted with file and line. That MIT refuses these files too is
// TestConfigMIT's.
func TestConfigErrors(t *testing.T) {
	for text, want := range map[string]string{
		"[libdefaults]\nnonsense line\n":              `krb5.conf:2: neither a section nor tag = value: "nonsense line"`,
		"[libdefaults\n":                              `krb5.conf:1: no section header: "[libdefaults"`,
		"[a] b\n":                                     `krb5.conf:1: no section header: "[a] b"`,
		"[a]\n= b\n":                                  `krb5.conf:2: no single word before the =: "= b"`,
		"[a]\nb c = d\n":                              `krb5.conf:2: no single word before the =: "b c = d"`,
		"[a]\n}\n":                                    `krb5.conf:2: } without {: "}"`,
		"[a]\nb = {\n[c]\n":                           `krb5.conf:3: section inside the braces of "b": "[c]"`,
		"[a]\nb =\nc = d\n":                           `krb5.conf:3: "b" has no value, and the line after it does not begin with {: "c = d"`,
		"[a]\n#" + strings.Repeat("x", 2047):          `krb5.conf:2: neither a section nor tag = value: "x"`,
		"# x\nmodule /lib/x.so:y\n":                   `krb5.conf:2: the agent loads no modules: "module /lib/x.so:y"`,
		"include DIR/krb5.conf\n":                     `krb5.conf:1: includes nest deeper than 10: "include DIR/krb5.conf"`,
		"[a]\ninclude DIR/none\n":                     `krb5.conf:2: open DIR/none: no such file or directory: "include DIR/none"`,
		"\nincludedir DIR/none\n":                     `krb5.conf:2: open DIR/none: no such file or directory: "includedir DIR/none"`,
		"include DIR/fine \n":                         `krb5.conf:1: open "DIR/fine ": no such file or directory`,
		"include DIR/fifo\n":                          `krb5.conf:1: DIR/fifo is not a regular file`,
		"include DIR/wrong\n":                         `wrong:3: neither a section nor tag = value: "wrong"`,
		"[a]\n" + strings.Repeat("b = {\n", 11):       `krb5.conf:11: more than 10 levels of braces`,
		"[a]\n#" + strings.Repeat("x", maxConfigSize): `larger than 1024 KiB`,
		strings.Repeat("include DIR/fine\n", maxConfigFiles) + "\n": `more than 256 configuration files`,

		"[libdefaults]\nticket_lifetime = soon\n":               `krb5.conf:2: "soon" is no duration such as 10h or 1d: "ticket_lifetime = soon"`,
		"[libdefaults]\nA = {\nrenew_lifetime = soon\n}\n":      `krb5.conf:3: "soon" is no duration such as 10h or 1d: "renew_lifetime = soon"`,
		"[libdefaults]\nticket_lifetime = -1h\n":                `krb5.conf:2: tickets would end when they begin: "ticket_lifetime = -1h"`,
		"[libdefaults]\ndns_canonicalize_hostname = perhaps\n":  `krb5.conf:2: "perhaps" is neither yes nor no: "dns_canonicalize_hostname = perhaps"`,
		"[libdefaults]\nudp_preference_limit = 1 # TCP\n":       `krb5.conf:2: "1 # TCP" is no number: "udp_preference_limit = 1 # TCP"`,
		"[libdefaults]\n\npermitted_enctypes = des-cbc-crc x\n": `krb5.conf:3: none of these is an encryption type that MIT krb5 knows and allows: "permitted_enctypes = des-cbc-crc x"`,
	} {
		dir := write(t, map[string]string{"krb5.conf": text, "fine": "", "wrong": "\n[a]\n wrong\n"})
		if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(filepath.Join(dir, "krb5.conf"))
		want = strings.ReplaceAll(want, "DIR", dir)
		if api.CodeOf(err) != api.Krb5ConfInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: error %v\nwant %s", text, err, want)
		}
	}
}

// A realm is checked when it is asked for: other realms do without it.
func TestCheckRealm(t *testing.T) {
	for text, want := range map[string]string{
		"": "",
		"[realms]\nA.TEST = {\nadmin_server = x\n}\n":                                  "",
		"[realms]\nA.TEST = {\nkdc = https://x\nkdc = x\n}\n":                          "",
		"[realms]\nB.TEST = {\nkdc = x\n}\n[libdefaults]\ndns_lookup_kdc = no\n":       "no KDC of the realm A.TEST is configured in DIR/krb5.conf, and dns_lookup_kdc is off",
		"[realms]\nA.TEST = {\nkdc = https://x\n}\n":                                   "all KDCs of the realm A.TEST in DIR/krb5.conf are KDC proxies",
		"[realms]\nA.TEST = {\nkdc = good\nkdc = 2001:db8::1\n}\n":                     `krb5.conf:4: "2001:db8::1" is no host, host:port or [address]:port, and MIT's library finds no KDC of the realm because of it: "kdc = 2001:db8::1"`,
		"[realms]\nA.TEST = {\nkdc = kdc.a.test:88 # first\n}\n":                       `krb5.conf:3: "kdc.a.test:88 # first" is no host`,
		"[realms]\nA.TEST = {\nkdc = \" x\"\n}\n":                                      `krb5.conf:3: " x" is no host`,
		"[libdefaults]\ndns_lookup_kdc = maybe\n":                                      "dns_lookup_kdc is off",
		"[realms]*\nA.TEST* = {\n}\n[libdefaults]\ndns_lookup_kdc = false\n[a]\nb=c\n": "no KDC of the realm A.TEST",
	} {
		dir := write(t, map[string]string{"krb5.conf": text})
		c, err := LoadConfig(filepath.Join(dir, "krb5.conf"))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		err = c.CheckRealm("A.TEST")
		if want == "" && err == nil {
			continue
		}
		if want = strings.ReplaceAll(want, "DIR", dir); want == "" || api.CodeOf(err) != api.Krb5ConfInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v\nwant %s", text, err, want)
		}
	}
}

// MIT passes over these in silence; the agent tells.
func TestConfigWarnings(t *testing.T) {
	dir := write(t, map[string]string{
		"krb5.conf": `
; no warning
default_realm = LOST
[libdefaults]
default_realm = "A.TEST" and more
default_realm = A.TEST
default_realm = B.TEST
ticket_lifetime = 1w
renew_lifetime = 7d # a week
forwardable = true # yes
proxiable = f
dns_lookup_kdc = \
kdc_timesync = yes
A.TEST = {
	forwardable = sure
	dns_lookup_kdc = no effect here, as in MIT
} # no warning
default_tkt_enctypes = aes banana des-cbc-crc, rc4-hmac-exp
permitted_enctypes = -rc4 DEFAULT
include DIR/directory
include DIR/more
[ realms ]
[realms]
A.TEST = {
	kdc = one
	kdc = two
	kdc = https://proxy.a.test/KdcProxy
} x
B.TEST =
{ kdc = three
	kdc = four
`,
		"more":        "[domain_realm]\na.test = A.TEST\na.test = A.TEST\na.test = B.TEST\n",
		"second":      "[libdefaults]\ndefault_realm = OVERRULED\n",
		"directory/x": "",
	})
	file := filepath.Join(dir, "krb5.conf")
	c, err := LoadConfig(filepath.Join(dir, "none"), file, filepath.Join(dir, "second"))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.ReplaceAll(`stat DIR/none: no such file or directory: nothing is read from it
DIR/krb5.conf:3: this stands before the first line that begins with [, and has no effect: "default_realm = LOST"
DIR/krb5.conf:5: "and more" has no effect: "default_realm = \"A.TEST\" and more"
DIR/directory is a directory: nothing is read from it
DIR/krb5.conf:22: the blanks inside the brackets are part of the section's name: "[ realms ]"
DIR/krb5.conf:28: "x" has no effect: "} x"
DIR/krb5.conf:30: "kdc = three" has no effect: "{ kdc = three"
DIR/krb5.conf:31: the file ends inside the braces of "B.TEST": "kdc = four"
DIR/krb5.conf:18: "banana" is no encryption type that MIT krb5 knows and allows: "default_tkt_enctypes = aes banana des-cbc-crc, rc4-hmac-exp"
DIR/krb5.conf:18: "des-cbc-crc" is no encryption type that MIT krb5 knows and allows: "default_tkt_enctypes = aes banana des-cbc-crc, rc4-hmac-exp"
DIR/krb5.conf:18: "rc4-hmac-exp" is no encryption type that MIT krb5 knows and allows: "default_tkt_enctypes = aes banana des-cbc-crc, rc4-hmac-exp"
DIR/krb5.conf:13: "yes" is no number, and has no effect: "kdc_timesync = yes"
DIR/more:4: the first "a.test" counts, which is at DIR/more:2: "a.test = B.TEST"
DIR/krb5.conf:7: the first "default_realm" counts, which is at DIR/krb5.conf:5: "default_realm = B.TEST"
DIR/krb5.conf:12: "\\" is neither yes nor no, and taken for no: "dns_lookup_kdc = \\"
DIR/krb5.conf:10: "true # yes" is neither yes nor no, and taken for no: "forwardable = true # yes"
DIR/krb5.conf:11: "f" is neither yes nor no, and taken for no: "proxiable = f"
DIR/krb5.conf:8: it means 1s; "w" has no effect: "ticket_lifetime = 1w"
DIR/krb5.conf:15: "sure" is neither yes nor no, and taken for no: "forwardable = sure"
DIR/krb5.conf:27: the agent does not speak to KDC proxies: "kdc = https://proxy.a.test/KdcProxy"`, "DIR", dir), "\n")
	if got := c.Warnings(); !slices.Equal(got, want) {
		t.Errorf("warnings\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What distributions install gives no cause.
func TestConfigNoWarnings(t *testing.T) {
	for _, name := range []string{"Debian", "RHEL 9", "Fedora", "FreeIPA", "SUSE", "lifetimes, comment"} {
		c := configCases[name]
		if c.text != "" {
			c.files = map[string]string{"krb5.conf": c.text}
		}
		if c, err := LoadConfig(filepath.Join(write(t, c.files), "krb5.conf")); err != nil || len(c.Warnings()) > 0 {
			t.Errorf("%s: %v, warnings %q", name, err, c.Warnings())
		}
	}
}

// A file as large as files may be costs neither much memory nor a long list of
// warnings, whatever is in it.
func TestConfigLimits(t *testing.T) {
	full := func(head string, line func(i int) string) string {
		var b strings.Builder
		b.WriteString(head)
		for i := 0; ; i++ {
			l := line(i)
			if b.Len()+len(l) > maxConfigSize {
				return b.String()
			}
			b.WriteString(l)
		}
	}
	same := func(l string) func(int) string { return func(int) string { return l } }
	number := func(format string) func(int) string { return func(i int) string { return fmt.Sprintf(format, i) } }
	long := strings.Repeat("n", 2000)
	deep := "[" + long + "]\n" + strings.Repeat(long+"={\n", maxConfigDepth-1)
	for name, c := range map[string]struct {
		text     string
		warnings bool // more than are told
	}{
		"lines before the first section": {full("", same("a\n")), true},
		"text after the end":             {full("[a]\nb = {\n", same("}a\nb={\n")), true},
		"a second value":                 {full("[domain_realm]\n", number("a=%d\n")), true},
		"unreadable text":                {full("", same(strings.Repeat("\x01", 2000)+"\n")), true},
		"one relation":                   {full("[a]\n", same("b=c\n")), false},
		"relations":                      {full("[a]\n", number("%d=b\n")), false},
		"sections":                       {full("", number("[%d]\n")), false},
		"subsections":                    {full("[a]\n", number("%d={\n}\n")), false},
		"relations below long names":     {full(deep, number("%d=b\n")), false},
		"sections below long names":      {full(deep[:strings.LastIndex(deep[:len(deep)-1], "\n")+1], number("%d={\n}\n")), false},
		"KDCs":                           {full("[realms]\nA.TEST={\n", number("kdc=%d\n")), false},
	} {
		file := filepath.Join(write(t, map[string]string{"krb5.conf": c.text}), "krb5.conf")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		loaded, err := LoadConfig(file)
		runtime.ReadMemStats(&after)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		mib := (after.TotalAlloc - before.TotalAlloc) >> 20
		t.Logf("%s: %d MiB", name, mib)
		if mib > 128 {
			t.Errorf("%s: reading 1 MiB took %d MiB of memory", name, mib)
		}
		told := loaded.Warnings()
		if size := len(strings.Join(told, "")); len(told) > maxWarnings+1 || size > 256<<10 {
			t.Errorf("%s: %d warnings of %d bytes", name, len(told), size)
		}
		if c.warnings && !strings.HasSuffix(told[len(told)-1], " more warnings") {
			t.Errorf("%s: the last warning is %q", name, told[len(told)-1])
		}
		loaded.KDCs("A.TEST")
	}

	half := strings.Repeat("#\n", maxConfigSize/4)
	dir := write(t, map[string]string{"krb5.conf": "includedir DIR/d\n", "d/a": half, "d/b": half})
	for _, list := range [][]string{{dir + "/krb5.conf"}, {dir + "/d/a", dir + "/d/b", dir + "/krb5.conf"}} {
		_, err := LoadConfig(list...)
		if api.CodeOf(err) != api.Krb5ConfInvalid || !strings.Contains(err.Error(), "larger than 1024 KiB together") {
			t.Errorf("%q: %v", list, err)
		}
	}
	if _, err := LoadConfig(dir + "/d"); err != nil {
		t.Errorf("exactly as much as may be: %v", err)
	}
}

// What others have a say in comes into a message quoted, and not at full length.
func TestConfigNamesInMessages(t *testing.T) {
	files := map[string]string{"krb5.conf": "[libdefaults]\ndns_lookup_kdc = false\nincludedir DIR/d\n"}
	for i := range 200 {
		files[fmt.Sprintf("d/%03d\x1b%s.conf", i, strings.Repeat("x", 200))] = "[a]\n"
	}
	dir := write(t, files)
	c, err := LoadConfig(filepath.Join(dir, "krb5.conf"))
	if err != nil {
		t.Fatal(err)
	}
	err = c.CheckRealm("EVIL\n" + strings.Repeat("x", 1<<20))
	if e := api.AsError(err); e.Code != api.Krb5ConfInvalid || !strings.Contains(e.Detail, `"EVIL\nxx`) || !strings.Contains(e.Detail, " and others") ||
		strings.ContainsAny(e.Detail+e.Remedy, "\n\x1b") || len(e.Detail) > 2<<10 || len(e.Remedy) > 1<<10 {
		t.Errorf("%.3000s", err)
	}
	wrong := filepath.Join(dir, "wrong\x1b.conf")
	if err := os.WriteFile(wrong, []byte("include "+dir+"/none\x1b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = LoadConfig(wrong); err == nil || !strings.Contains(err.Error(), `none\x1b": no such file`) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%q", err)
	}
	if c, err = LoadConfig(wrong + "\n"); err != nil || strings.ContainsAny(c.Warnings()[0], "\n\x1b") {
		t.Errorf("%q, %v", c.Warnings(), err)
	}
}

func TestConfigMissing(t *testing.T) {
	c, err := LoadConfig("/none/one", "/none/two")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Warnings(); len(got) != 2 || !strings.Contains(got[1], "/none/two") {
		t.Errorf("warnings %q", got)
	}
	if err := c.CheckRealm("A.TEST"); err != nil {
		t.Errorf("DNS may know: %v", err)
	}
	home := write(t, map[string]string{"krb5.conf": "[libdefaults]\ndefault_realm = HOME\n"})
	t.Setenv("HOME", home)
	if c, err = LoadConfig("~/krb5.conf"); err != nil || c.DefaultRealm() != "HOME" {
		t.Errorf("in the home directory: %v", err)
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
	for _, c := range configCases {
		f.Add(c.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c := new(Config)
		p := parser{config: c, source: 1}
		err := p.text("krb5.conf", text, maxConfigDepth) // so it can include no files
		if err == nil {
			err = c.check()
		}
		if err != nil {
			if api.CodeOf(err) != api.Krb5ConfInvalid {
				t.Errorf("error without its code: %v", err)
			}
			return
		}
		if c.lifetime <= 0 || c.lifetime > math.MaxInt32*time.Second {
			t.Errorf("lifetime %s", c.lifetime)
		}
		if c.RenewLifetime() < 0 || c.UDPPreferenceLimit() < 0 {
			t.Errorf("renew lifetime %s, UDP preference limit %d", c.RenewLifetime(), c.UDPPreferenceLimit())
		}
		if realms := c.root.below("realms"); realms != nil {
			for _, realm := range slices.Sorted(maps.Keys(realms.sections)) {
				if kdcs := c.KDCs(realm); len(kdcs) > 0 && c.CheckRealm(realm) != nil {
					t.Errorf("KDCs %q, but %v", kdcs, c.CheckRealm(realm))
				}
				c.ForRealm(realm).TicketLifetime()
				c.CAPath(realm, realm)
			}
		}
		for _, request := range []string{"tkt", "tgs"} {
			if list := c.Enctypes(request); list != nil && len(list) == 0 {
				t.Errorf("no enctype at all: %q", text)
			}
		}
		for _, w := range c.Warnings() {
			if strings.ContainsFunc(w, func(r rune) bool { return r < ' ' }) {
				t.Errorf("control character in %q", w)
			}
		}
		c.RealmOf("a.b")
	})
}

// A file that nobody lets the agent read is passed over, as MIT's library does,
// unless nothing else was read.
func TestConfigDenied(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	denied, other := filepath.Join(dir, "denied.conf"), filepath.Join(dir, "other.conf")
	for path, mode := range map[string]os.FileMode{denied: 0, other: 0o644} {
		if err := os.WriteFile(path, []byte("[libdefaults]\ndefault_realm = R\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		// For root to be refused, this thread, and no other, is nobody for a moment.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		defer unix.Setfsuid(0)
	}
	if _, err := LoadConfig(denied); api.CodeOf(err) != api.Krb5ConfInvalid || !strings.Contains(err.Error(), denied) {
		t.Errorf("alone: %v", err)
	}
	if c, err := LoadConfig(denied, other); err != nil || len(c.Warnings()) != 1 {
		t.Errorf("beside another: %v", err)
	}
}
