package krb

import "strings"

// configCase is a file, or several, and KRB5_CONFIG, which lists krb5.conf if
// nothing else is said. In texts, DIR stands for their directory.
type configCase struct {
	text    string
	files   map[string]string
	list    []string
	differs string // why we refuse what MIT loads
}

func libdefaults(lines string) configCase { return configCase{text: "[libdefaults]\n" + lines + "\n"} }

func kdcLine(kdc string) configCase {
	return configCase{text: "[libdefaults]\ndns_lookup_kdc = false\n[realms]\nA.TEST = {\nkdc = " + kdc + "\nkdc = second.a.test\n}\n"}
}

// configCases are what distributions and programs install, each construct of
// the format, and what people get wrong.
var configCases = map[string]configCase{
	"Debian": {text: `[libdefaults]
	default_realm = A.TEST

# What follows is for MIT Kerberos only.
	kdc_timesync = 1
	ccache_type = 4
	forwardable = true
	proxiable = true
        rdns = true

# What follows is for Heimdal only.
	fcc-mit-ticketflags = true

[realms]
	A.TEST = {
		kdc = kdc1.a.test
		kdc = kdc2.a.test:750
		admin_server = kdc1.a.test
		default_domain = a.test
	}
	B.TEST = {
		kdc = kerberos.b.test
		kdc = kerberos-1.b.test:88
		master_kdc = kerberos.b.test
		v4_instance_convert = {
			b = b.test
		}
	}

[domain_realm]
	.a.test = A.TEST
	a.test = A.TEST
	.b.test = B.TEST
`},
	"RHEL 9": {files: map[string]string{
		"krb5.conf": `# Snippets may hold further settings.
includedir DIR/krb5.conf.d/

[logging]
    default = FILE:/var/log/krb5libs.log
    kdc = FILE:/var/log/krb5kdc.log
    admin_server = FILE:/var/log/kadmind.log

[libdefaults]
    dns_lookup_realm = false
    ticket_lifetime = 24h
    renew_lifetime = 7d
    forwardable = true
    rdns = false
    pkinit_anchors = FILE:/etc/pki/tls/certs/ca-bundle.crt
    spake_preauth_groups = edwards25519
    dns_canonicalize_hostname = fallback
    qualify_shortname = ""
#    default_realm = A.TEST
    default_ccache_name = KEYRING:persistent:%{uid}

[realms]
# A.TEST = {
#     kdc = kerberos.a.test
# }

[domain_realm]
# .a.test = A.TEST
# a.test = A.TEST
`,
		"krb5.conf.d/crypto-policies":           "[libdefaults]\npermitted_enctypes = aes256-cts-hmac-sha1-96 aes256-cts-hmac-sha384-192 camellia256-cts-cmac aes128-cts-hmac-sha1-96 aes128-cts-hmac-sha256-128 camellia128-cts-cmac\n",
		"krb5.conf.d/kcm_default_ccache":        "# sssd-kcm\n[libdefaults]\n    default_ccache_name = KCM:\n",
		"krb5.conf.d/site.conf":                 "[libdefaults]\ndefault_realm = A.TEST\n[realms]\nA.TEST = {\n kdc = kdc.a.test\n}\n",
		"krb5.conf.d/site.conf.rpmsave":         "nonsense",
		"krb5.conf.d/.site.conf.swp":            "nonsense",
		"krb5.conf.d/enable_sssd_conf_dir":      "includedir DIR/pubconf/\n",
		"pubconf/localauth_plugin":              "[plugins]\n localauth = {\n  module = sssd:/usr/lib64/sssd/modules/sssd_krb5_localauth_plugin.so\n }\n",
		"pubconf/domain_realm_a_test":           "[domain_realm]\n.a.test = A.TEST\na.test = A.TEST\n[capaths]\nB.TEST = {\n  A.TEST = A.TEST\n}\nA.TEST = {\n  B.TEST = A.TEST\n}\n",
		"pubconf/krb5_libdefaults":              "[libdefaults]\n canonicalize = true\n",
		"pubconf/krb5.include.d/not_this_level": "nonsense",
	}},
	"Fedora": {files: map[string]string{
		"krb5.conf":                   "includedir DIR/krb5.conf.d/\n\n[logging]\n    default = FILE:/var/log/krb5libs.log\n\n[libdefaults]\n    dns_lookup_realm = false\n    dns_canonicalize_hostname = fallback\n    ticket_lifetime = 24h\n    renew_lifetime = 7d\n    forwardable = true\n    pkinit_anchors = FILE:/etc/pki/tls/certs/ca-bundle.crt\n    spake_preauth_groups = edwards25519\n    qualify_shortname = \"\"\n",
		"krb5.conf.d/crypto-policies": "[libdefaults]\npermitted_enctypes = aes256-cts-hmac-sha384-192 aes128-cts-hmac-sha256-128 aes256-cts-hmac-sha1-96 aes128-cts-hmac-sha1-96 camellia256-cts-cmac camellia128-cts-cmac\n",
		"krb5.conf.d/freeipa":         "[libdefaults]\n    spake_preauth_groups = edwards25519\n",
	}},
	"FreeIPA": {files: map[string]string{
		"krb5.conf": `#File modified by ipa-client-install

includedir DIR/krb5.conf.d/
includedir DIR/pubconf/krb5.include.d/

[libdefaults]
  default_realm = A.TEST
  dns_lookup_realm = false
  rdns = false
  dns_canonicalize_hostname = false
  dns_lookup_kdc = true
  ticket_lifetime = 24h
  forwardable = true
  udp_preference_limit = 0
  default_ccache_name = KEYRING:persistent:%{uid}

[realms]
  A.TEST = {
    kdc = ipa.a.test:88
    master_kdc = ipa.a.test:88
    admin_server = ipa.a.test:749
    kpasswd_server = ipa.a.test:464
    default_domain = a.test
    pkinit_anchors = FILE:/var/lib/ipa-client/pki/kdc-ca-bundle.pem
    pkinit_pool = FILE:/var/lib/ipa-client/pki/ca-bundle.pem
    auth_to_local = RULE:[1:$1@$0](^.*@B.TEST$)s/@B.TEST/@b.test/
    auth_to_local = DEFAULT
  }

[domain_realm]
  .a.test = A.TEST
  a.test = A.TEST
  x.a.test = A.TEST
`,
		"krb5.conf.d/x": "", "pubconf/krb5.include.d/domain_realm": "[domain_realm]\n.a.test = A.TEST\n.sub.a.test = B.TEST\n",
	}},
	"FreeIPA with a KDC proxy": {text: "[realms]\nA.TEST = {\n  kdc = https://ipa.a.test/KdcProxy\n  kpasswd_server = https://ipa.a.test/KdcProxy\n}\nB.TEST = {\nkdc = https://ipa.b.test:8443/KdcProxy\nkdc = kdc.b.test\n}\n"},
	"realmd and Active Directory": {text: `[libdefaults]
 default_realm = A.TEST
 dns_lookup_realm = true
 dns_lookup_kdc = true
 rdns = no
 default_tgs_enctypes = aes256-cts-hmac-sha1-96 aes128-cts-hmac-sha1-96 RC4-HMAC DES-CBC-CRC DES-CBC-MD5
 default_tkt_enctypes = aes256-cts-hmac-sha1-96,aes128-cts-hmac-sha1-96,rc4-hmac,des-cbc-crc,des-cbc-md5
 permitted_enctypes = aes256-cts-hmac-sha1-96 aes128-cts-hmac-sha1-96 rc4-hmac
 allow_weak_crypto = false
 clockskew = 300
 ticket_lifetime = 10h
 renew_lifetime = 7d

[realms]
A.TEST = {
}

[appdefaults]
 pam = {
  debug = false
  ticket_lifetime = 36000
  krb4_convert = false
 }
`},
	"SUSE": {files: map[string]string{
		"krb5.conf":              "includedir  DIR/krb5.conf.d\n\n[libdefaults]\n# \"dns_canonicalize_hostname\" is explained in krb5.conf(5)\n    dns_canonicalize_hostname = false\n    rdns = false\n    verify_ap_req_nofail = true\n    default_ccache_name = KEYRING:persistent:%{uid}\n\n[realms]\n\tA.TEST = {\n                kdc = kerberos.a.test\n\t\tadmin_server = kerberos.a.test\n\t}\n\n[logging]\n    kdc = FILE:/var/log/krb5/krb5kdc.log\n    default = SYSLOG:NOTICE:DAEMON\n",
		"krb5.conf.d/yast2.conf": "[libdefaults]\n\tdefault_realm = A.TEST\n\tclockskew = 300\n[domain_realm]\n\t.a.test = A.TEST\n",
	}},
	"of two worlds, with everything": {text: "[libdefaults]\n\tdefault_realm = A.TEST\n\tdefault_keytab_name = FILE:/etc/krb5.keytab\n\tnoaddresses = TRUE\n\tpreferred_preauth_types = 17, 16, 15, 14\n\tsafe_checksum_type = 8\n\trequest_timeout = 5s\n\tmax_retries = 2\n\tk5login_authoritative = n\n\n[appdefaults]\n\tpam = {\n\t\tALL = { \n\t\t\tdebug = true\n\t\t}\n\t\tA.TEST = {\n\t\t\tdebug = false\n\t\t}\n\t}\n\n[login]\n\tkrb4_convert = true\n\n[dbmodules]\n\tA.TEST = {\n\t\tdisable_last_success = true\n\t}\n"},

	// The file as a whole.
	"empty":                            {files: map[string]string{"krb5.conf": ""}},
	"only a comment":                   {text: "# nothing"},
	"no line feed at the end":          libdefaults("default_realm = A.TEST\n[realms]\nA.TEST = {\nkdc = a\n}"),
	"carriage returns":                 {text: "[libdefaults]\r\ndefault_realm = A.TEST\r\n[realms]\r\nA.TEST =\r\n{\r\nkdc = a.test\r\n}\r\n"},
	"carriage returns alone":           {text: "[libdefaults]\rdefault_realm = A.TEST\r"},
	"byte order mark":                  {text: "\ufeff[libdefaults]\ndefault_realm = A.TEST\n[realms]\nA.TEST = {\nkdc = a\n}\n"},
	"byte order mark and comment":      {text: "\ufeff# comment\n[libdefaults]\ndefault_realm = A.TEST\n"},
	"text before the first section":    {text: "hello = world\n}\n[libdefaults]\ndefault_realm = A.TEST\n"},
	"first section not at line start":  {text: " [libdefaults]\ndefault_realm = A.TEST\n[realms]\nA.TEST = {\nkdc = a\n}\n"},
	"later section not at line start":  libdefaults("  default_realm = A.TEST\n\t[realms]\n  A.TEST = {\n kdc = a\n }"),
	"zero bytes":                       libdefaults("default_realm = A.TEST\x00junk\nx\x00 = y\n"),
	"zero bytes that cut what matters": libdefaults("default_realm = A\x00.TEST\ntic\x00ket_lifetime = 1\n= y\n"),
	"Latin-1":                          {text: "[libdefaults]\n# gr\xfc\xdfe\ndefault_realm = M\xdcNCHEN.TEST\n"},
	"unclosed subsections":             {text: "[realms]\nA.TEST = {\nkdc = a\nB = {\nx = y\n"},
	"tabs and form feeds":              {text: "[libdefaults]\n\t\v\fdefault_realm\t=\f\tA.TEST\v\f\n\f\n"},

	// Long lines.
	"comment of 2046 bytes":         {text: "#" + strings.Repeat("x", 2045) + "\n[libdefaults]\ndefault_realm = A.TEST\n"},
	"comment of 2047 bytes":         libdefaults("#" + strings.Repeat("x", 2046) + "\ndefault_realm = A.TEST"),
	"comment of 2048 bytes":         libdefaults("#" + strings.Repeat("x", 2047) + "\ndefault_realm = A.TEST"),
	"comment of 4094 bytes":         libdefaults("#" + strings.Repeat("x", 2046) + "#" + strings.Repeat("x", 2046) + "\ndefault_realm = A.TEST"),
	"value of 3000 bytes":           libdefaults("x = " + strings.Repeat("v", 3000)),
	"value that goes on as another": libdefaults("x = " + strings.Repeat("v", 2043) + "default_realm = A.TEST"),
	"blanks of 5000 bytes":          libdefaults(strings.Repeat(" ", 5000) + "default_realm = A.TEST"),

	// Sections.
	"sections merge":              libdefaults("default_realm = A.TEST\n[realms]\nA.TEST = {\nkdc = one\n}\nB = {\nkdc = x\n}\n[libdefaults]\ndefault_realm = B\nforwardable = t\n[realms]\nA.TEST = {\nkdc = two\n}\n"),
	"blanks in the brackets":      {text: "[ libdefaults ]\ndefault_realm = A.TEST\n"},
	"blanks after the brackets":   {text: "[libdefaults] \t\r\ndefault_realm = A.TEST\n"},
	"comment after the brackets":  {text: "[libdefaults] # comment\n"},
	"text after the brackets":     {text: "[libdefaults]x\n"},
	"two brackets":                {text: "[a]b]\n"},
	"section without a name":      {text: "[]\ndefault_realm = A.TEST\n"},
	"unclosed section":            {text: "[libdefaults\n"},
	"section in braces":           {text: "[realms]\nA.TEST = {\n[libdefaults]\n}\n"},
	"final section":               {text: "[libdefaults]*\ndefault_realm = A.TEST\n[libdefaults]\nforwardable = yes\n"},
	"blank before the final mark": {text: "[libdefaults] *\n"},
	"upper case section":          {text: "[LIBDEFAULTS]\ndefault_realm = A.TEST\n"},
	"only a section":              {text: "[realms]"},

	// Braces.
	"brace on its own line":                  {text: "[realms]\nA.TEST =\n{\nkdc = a\n}\n"},
	"brace on its own line, with more":       {text: "[realms]\nA.TEST =\n  { kdc = no\nkdc = a\n}\n"},
	"comment before the brace":               {text: "[realms]\nA.TEST =\n# comment\n{\nkdc = a\n}\n"},
	"empty line before the brace":            {text: "[realms]\nA.TEST =\n\n{\nkdc = a\n}\n"},
	"include before the brace":               {files: map[string]string{"krb5.conf": "[realms]\nA.TEST =\ninclude DIR/x\n{\nkdc = a\n}\n", "x": "[realms]\nA.TEST = {\nkdc = x\n}\n"}},
	"no brace":                               {text: "[realms]\nA.TEST =\nkdc = a\n"},
	"no brace at the end":                    {text: "[realms]\nA.TEST =\n"},
	"brace with a value":                     {text: "[realms]\nA.TEST = { kdc = a }\n[libdefaults]\ndefault_realm = A.TEST\n"},
	"brace and blanks":                       {text: "[realms]\nA.TEST = { \t\nkdc = a\n}\n"},
	"brace and comment":                      {text: "[realms]\nA.TEST = { # comment\nkdc = a\n}\n"},
	"brace without a blank":                  {text: "[realms]\nA.TEST={\nkdc=a\n}\n"},
	"quoted brace":                           {text: "[realms]\nA.TEST = \"{\"\n"},
	"text after the closing brace":           {text: "[realms]\nA.TEST = {\nkdc = a\n} # A.TEST\n"},
	"relation after the closing brace":       {text: "[realms]\nA.TEST = {\nkdc = a\n} B = c\n"},
	"closing brace too many":                 {text: "[realms]\nA.TEST = {\nkdc = a\n}\n}\n"},
	"closing brace at once":                  {text: "[realms]\n}\n"},
	"closing brace before the first section": {text: "}\n[realms]\n"},
	"realm twice":                            {text: "[realms]\nA.TEST = {\nkdc = one\n}\nA.TEST = {\nkdc = two\n}\n"},
	"realm without content":                  {text: "[realms]\nA.TEST = {\n}\n"},
	"realm and relation of one name":         {text: "[realms]\nA.TEST = x\nA.TEST = {\nkdc = a\n}\nA.TEST = y\n"},
	"eight levels":                           {text: "[a]\n" + strings.Repeat("b = {\n", 8) + "c = d\n" + strings.Repeat("}\n", 8)},
	"v4_ and auth_to_local_names":            {text: "[realms]\nA.TEST = {\nkdc = a\nv4_realm = A\nv4_instance_convert = {\nx = y\n}\nauth_to_local_names = {\nalice = a\n}\nauth_to_local = {\nRULE:[1:$1] = x\n}\n}\n"},
	"brace alone":                            {text: "[realms]\n{\n}\n"},

	// Relations.
	"no equals sign":              libdefaults("default_realm A.TEST"),
	"no tag":                      libdefaults("= A.TEST"),
	"only blanks before =":        libdefaults("   = A.TEST"),
	"two words before =":          libdefaults("default realm = A.TEST"),
	"two equals signs":            libdefaults("default_realm = = A.TEST"),
	"comment with = before =":     libdefaults("default_realm # x = y"),
	"scalar twice":                libdefaults("default_realm = A.TEST\ndefault_realm = B.TEST\nticket_lifetime = 1h\nticket_lifetime = 2h\nforwardable = no\nforwardable = yes"),
	"value with a comment":        libdefaults("default_realm = A.TEST # mine\nticket_lifetime = 1h ; mine\nforwardable = true # mine"),
	"comments":                    libdefaults("#default_realm = B\n;default_realm = C\n  # default_realm = D\n\t;x\ndefault_realm = A.TEST#x"),
	"quoted":                      libdefaults("default_realm = \"A.TEST\"\nticket_lifetime = \"1h\"\nforwardable = \"true\"\npermitted_enctypes = \"aes, rc4\""),
	"quoted blanks":               libdefaults("default_realm = \" A.TEST \"\nforwardable = \" true\"\nrenew_lifetime = \" 1h \""),
	"quoted escapes":              libdefaults(`default_realm = "A\tB\nC\bD\qE\"F\\G\0H"`),
	"quoted and open":             libdefaults("default_realm = \"A.TEST"),
	"quoted and ending backslash": libdefaults("default_realm = \"A.TEST\\"),
	"quoted and more":             libdefaults("default_realm = \"A.TEST\" B.TEST"),
	"quoted and empty":            libdefaults("default_realm = \"\"\nqualify_shortname = \"\""),
	"quotes inside":               libdefaults("default_realm = A\"B\"C"),
	"single quotes":               libdefaults("default_realm = 'A.TEST'"),
	"backslash":                   libdefaults("default_realm = A\\tB \\"),
	"final tag":                   libdefaults("default_realm* = A.TEST\ndefault_realm = B\nx*y = z\n* = w\n**=v\nsub* = {\nx = y\n}"),
	"upper case tag":              libdefaults("DEFAULT_REALM = A.TEST"),
	"tag of signs":                libdefaults("[x = y"),
	"tag with brackets":           libdefaults("a[b] = c\n!$%&/() = d\n\"q\" = e"),

	// Includes.
	"include":                      {files: map[string]string{"krb5.conf": "include DIR/more\n[libdefaults]\ndefault_realm = A.TEST\n", "more": "[libdefaults]\ndefault_realm = B\n"}},
	"include in a section":         {files: map[string]string{"krb5.conf": "[libdefaults]\ninclude DIR/more\ndefault_realm = A.TEST\n", "more": "lost = yes\n[realms]\nA.TEST = {\nkdc = a\n}\n"}},
	"include in braces":            {files: map[string]string{"krb5.conf": "[realms]\nA.TEST = {\ninclude DIR/more\nkdc = b\n}\n", "more": "[realms]\nA.TEST = {\nkdc = a\n"}},
	"include not at line start":    {files: map[string]string{"krb5.conf": "[libdefaults]\n include DIR/more\n", "more": ""}},
	"include before all, indented": {files: map[string]string{"krb5.conf": " include DIR/more\n[libdefaults]\n", "more": "nonsense"}},
	"include as a tag":             libdefaults("include = x"),
	"include as a tag, no blank":   libdefaults("include=x\nincludedir=y\nincludes = z"),
	"include of nothing":           libdefaults("include \n"),
	"include, just the word":       libdefaults("include\n"),
	"include of what is missing":   libdefaults("include DIR/none"),
	"include with a blank after":   {files: map[string]string{"krb5.conf": "include DIR/more \n", "more": ""}},
	"include with blanks before":   {files: map[string]string{"krb5.conf": "include \t DIR/mo re\r\n[libdefaults]\n", "mo re": "[libdefaults]\ndefault_realm = A.TEST\n"}},
	"include in quotes":            {files: map[string]string{"krb5.conf": "include \"DIR/more\"\n", "more": ""}},
	"include of a directory":       {files: map[string]string{"krb5.conf": "include DIR/d\n[libdefaults]\ndefault_realm = A.TEST\n", "d/x": "nonsense"}},
	"include of /dev/null":         libdefaults("include /dev/null\ndefault_realm = A.TEST"),
	"include with a wrong line":    {files: map[string]string{"krb5.conf": "include DIR/more\n", "more": "[libdefaults]\nnonsense\n"}},
	"include with open braces":     {files: map[string]string{"krb5.conf": "include DIR/more\n[libdefaults]\ndefault_realm = A.TEST\n", "more": "[realms]\nA.TEST = {\nkdc = a\n"}},
	"include twice":                {files: map[string]string{"krb5.conf": "include DIR/more\ninclude DIR/more\n", "more": "[realms]\nA.TEST = {\nkdc = a\n}\n"}},
	"include of an include":        {files: map[string]string{"krb5.conf": "include DIR/more\n", "more": "include DIR/most\n[x]\ny = z\n", "most": "[libdefaults]\ndefault_realm = A.TEST\n"}},
	"include of a module":          {files: map[string]string{"krb5.conf": "include DIR/more\n", "more": "module /x:y\n"}},
	"include of itself":            {text: "include DIR/krb5.conf\n"},
	"module in a section":          libdefaults("module /x:y"),
	"module as a tag":              libdefaults("module = x"),
	"module without a blank":       {text: "module=/x:y\n[libdefaults]\ndefault_realm = A.TEST\n"},
	"module without a name":        {text: "module \n"},
	"includedir": {files: map[string]string{"krb5.conf": "includedir DIR/d\n[l]\nv = end\n",
		"d/b.conf": "[l]\nv = b\n", "d/a": "[l]\nv = a\n", "d/A": "[l]\nv = A\n", "d/.hidden.conf": "nonsense\n[", "d/.conf": "[", "d/0_-": "[l]\nv = 0\n", "d/x.y.conf": "[l]\nv = xy\n",
		"d/x.conf~": "[", "d/x.conf.bak": "[", "d/#x#": "[", "d/a b": "[", "d/a b.conf": "[l]\nv = ab\n", "d/x.CONF": "[", "d/\xe9": "[", "d/\xe9.conf": "[l]\nv = e\n", "d/conf": "[l]\nv = conf\n"}},
	"includedir with directories":     {files: map[string]string{"krb5.conf": "includedir DIR/d/\n", "d/sub/x": "[", "d/sub.conf/x": "[", "d/y": "[l]\nv = y\n"}},
	"includedir of what is missing":   libdefaults("includedir DIR/none"),
	"includedir of a file":            {files: map[string]string{"krb5.conf": "includedir DIR/x\n", "x": ""}},
	"includedir of an empty one":      {files: map[string]string{"krb5.conf": "includedir DIR/d/e\n", "d/e/.keep": "["}},
	"includedir with a wrong line":    {files: map[string]string{"krb5.conf": "includedir DIR/d\n", "d/x": "[libdefaults]\n}\n"}},
	"includedir with carriage return": {files: map[string]string{"krb5.conf": "includedir DIR/d\r\n", "d/x": "[libdefaults]\r\ndefault_realm = A.TEST\r\n"}},

	// KRB5_CONFIG.
	"list":                             {list: []string{"one", "two"}, files: listed("", "")},
	"list, final section":              {list: []string{"one", "two"}, files: listed("[libdefaults]*\n", "")},
	"list, final section of nothing":   {list: []string{"one", "two"}, files: map[string]string{"one": "[realms]*\n", "two": "[realms]\nA.TEST = {\nkdc = a\n}\n[libdefaults]\ndefault_realm = A.TEST\n"}},
	"list, final realm":                {list: []string{"one", "two"}, files: listed("[realms]\nA.TEST* = {\n}\n", "")},
	"list, final realm at its brace":   {list: []string{"one", "two"}, files: listed("[realms]\nA.TEST = {\n}*\n", "")},
	"list, final tag":                  {list: []string{"one", "two"}, files: map[string]string{"one": "[realms]\nA.TEST = {\nkdc* = one\n}\n[libdefaults]\ndefault_realm* = A.TEST\n", "two": "[realms]\nA.TEST = {\nkdc = two\n}\n[libdefaults]\ndefault_realm = B\n"}},
	"list, final in the second":        {list: []string{"one", "two", "three"}, files: map[string]string{"one": "[x]\n", "two": "[realms]*\nA.TEST = {\nkdc = two\n}\n", "three": "[realms]\nA.TEST = {\nkdc = three\n}\n"}},
	"list, final in an include":        {list: []string{"one", "two"}, files: map[string]string{"one": "include DIR/more\n[realms]\nA.TEST = {\nkdc = one\n}\n", "more": "[realms]*\n", "two": "[realms]\nA.TEST = {\nkdc = two\n}\n"}},
	"list, final at an open brace":     {list: []string{"one", "two"}, files: map[string]string{"one": "[realms]\nA.TEST* =\n{\nkdc = one\n", "two": "[realms]\nA.TEST = {\nkdc = two\nx = y\n}\nB = {\nkdc = b\n}\n"}},
	"list, first missing":              {list: []string{"none", "two"}, files: listed("", "")},
	"list, last missing":               {list: []string{"one", "none"}, files: listed("", "")},
	"list, all missing":                {list: []string{"none", "nil"}, files: listed("", "")},
	"list, below what is no directory": {list: []string{"one", "two/three"}, files: listed("", "")},
	"list, wrong line in the second":   {list: []string{"one", "two"}, files: listed("", "nonsense\n")},
	"list, empty name first":           {list: []string{"", "one"}, files: listed("", "")},
	"list, empty name between":         {list: []string{"one", "", "two"}, files: listed("", "")},
	"list, the same twice":             {list: []string{"one", "one"}, files: listed("", "")},
	"list, /dev/null":                  {list: []string{"/dev/null"}, files: listed("", "")},
	"list, a directory":                {list: []string{"d", "one"}, files: map[string]string{"d/b.conf": "[realms]\nA.TEST = {\nkdc = b\n}\n", "d/a": "[realms]\nA.TEST = {\nkdc = a\n}\n", "d/x~": "[", "one": "[realms]\nA.TEST = {\nkdc = one\n}\n"}},
	"list, a directory, final":         {list: []string{"d", "one"}, files: map[string]string{"d/b.conf": "[realms]*\nA.TEST = {\nkdc = b\n}\n", "d/c": "[realms]\nA.TEST = {\nkdc = c\n}\n", "one": "[realms]\nA.TEST = {\nkdc = one\n}\n"}},
	"list, a directory, wrong line":    {list: []string{"d"}, files: map[string]string{"d/b.conf": "[x]\n}\n"}},
	"list, an empty directory":         {list: []string{"d"}, files: map[string]string{"d/.keep": "["}},

	// Booleans.
	"booleans, yes":              libdefaults("forwardable = yes\nproxiable = on\ndns_lookup_kdc = T"),
	"booleans, 1":                libdefaults("forwardable = 1\nproxiable = y\ndns_lookup_kdc = TRUE"),
	"booleans, no":               libdefaults("forwardable = no\nproxiable = off\ndns_lookup_kdc = nil"),
	"booleans, 0":                libdefaults("forwardable = 0\nproxiable = n\ndns_lookup_kdc = False"),
	"booleans, wrong":            libdefaults("forwardable = f\nproxiable = banana\ndns_lookup_kdc = 2"),
	"booleans, empty":            libdefaults("forwardable = \"\"\ndns_lookup_kdc = \"\""),
	"dns_fallback":               libdefaults("dns_fallback = no"),
	"dns_fallback overruled":     libdefaults("dns_fallback = no\ndns_lookup_kdc = yes"),
	"dns_lookup_kdc overrules":   libdefaults("dns_fallback = yes\ndns_lookup_kdc = no"),
	"canonicalize, yes":          libdefaults("dns_canonicalize_hostname = yes"),
	"canonicalize, off":          libdefaults("dns_canonicalize_hostname = off"),
	"canonicalize, nil":          libdefaults("dns_canonicalize_hostname = NIL"),
	"canonicalize, fallback":     libdefaults("dns_canonicalize_hostname = fallback"),
	"canonicalize, Fallback":     libdefaults("dns_canonicalize_hostname = Fallback"),
	"canonicalize, banana":       libdefaults("dns_canonicalize_hostname = banana"),
	"canonicalize, empty":        libdefaults("dns_canonicalize_hostname = \"\""),
	"allow_weak_crypto, banana":  libdefaults("allow_weak_crypto = banana"),
	"ignore_acceptor, banana":    libdefaults("ignore_acceptor_hostname = banana"),
	"ok_as_delegate, banana":     libdefaults("enforce_ok_as_delegate = banana"),
	"other booleans, banana":     libdefaults("rdns = true\nnoaddresses = banana\nverify_ap_req_nofail = banana\ncanonicalize = banana\ndns_lookup_realm = banana\ndns_uri_lookup = banana\nclockskew = banana"),
	"section where an option is": libdefaults("forwardable = {\nx = y\n}"),

	// Numbers.
	"udp_preference_limit, 1":       libdefaults("udp_preference_limit = 1"),
	"udp_preference_limit, 0":       libdefaults("udp_preference_limit = 0"),
	"udp_preference_limit, below 0": libdefaults("udp_preference_limit = -5"),
	"udp_preference_limit, large":   libdefaults("udp_preference_limit = 65535"),
	"udp_preference_limit, signed":  libdefaults("udp_preference_limit = +100"),
	"udp_preference_limit, quoted":  libdefaults("udp_preference_limit = \" 100\""),
	"udp_preference_limit, banana":  libdefaults("udp_preference_limit = banana"),
	"udp_preference_limit, empty":   libdefaults("udp_preference_limit = \"\""),
	"udp_preference_limit, comment": libdefaults("udp_preference_limit = 1 # TCP"),
	"udp_preference_limit, 2^31":    libdefaults("udp_preference_limit = 2147483648"),
	"udp_preference_limit, 1_0":     libdefaults("udp_preference_limit = 1_0"),
	"kdc_timesync, 0":               libdefaults("kdc_timesync = 0"),
	"kdc_timesync, -1":              libdefaults("kdc_timesync = -1"),
	"kdc_timesync, banana":          libdefaults("kdc_timesync = banana"),
	"kdc_timesync, empty":           libdefaults("kdc_timesync = \"\""),

	// Durations.
	"lifetimes":                           libdefaults("ticket_lifetime = 10h\nrenew_lifetime = 7d"),
	"lifetimes, seconds":                  libdefaults("ticket_lifetime = 36000\nrenew_lifetime = 604800"),
	"lifetimes, clock":                    libdefaults("ticket_lifetime = 10:30\nrenew_lifetime = 7-00:00:01"),
	"lifetimes, units":                    libdefaults("ticket_lifetime = 1d 2h 3m 4s\nrenew_lifetime = 1d2h3m4s"),
	"lifetimes, renewal the shorter":      libdefaults("renew_lifetime = 1h"),
	"lifetimes, weeks":                    libdefaults("ticket_lifetime = 9000w\nrenew_lifetime = 9000 weeks"),
	"lifetimes, comment":                  libdefaults("ticket_lifetime = 10h # a day's work\nrenew_lifetime = 7d#x"),
	"lifetimes, no renewal":               libdefaults("renew_lifetime = 0"),
	"lifetimes, renewal below 0":          libdefaults("renew_lifetime = -1h"),
	"lifetimes, large":                    libdefaults("ticket_lifetime = 20000d\nrenew_lifetime = 20000d"),
	"lifetimes, too large":                libdefaults("ticket_lifetime = 24856d"),
	"lifetimes, banana":                   libdefaults("ticket_lifetime = banana"),
	"lifetimes, empty":                    libdefaults("ticket_lifetime = \"\""),
	"lifetimes, banana renewal":           libdefaults("renew_lifetime = banana"),
	"lifetimes, wrong order":              libdefaults("ticket_lifetime = 1m1h"),
	"lifetimes of the realm":              libdefaults("ticket_lifetime = 1h\nA.TEST = {\nticket_lifetime = 2h\nrenew_lifetime = 3d\nforwardable = yes\nproxiable = 1\n}\nB.TEST = {\nticket_lifetime = 3h\n}\nforwardable = no"),
	"lifetimes of another realm":          libdefaults("B.TEST = {\nticket_lifetime = 2h\nforwardable = yes\n}"),
	"lifetimes of the realm, banana":      libdefaults("A.TEST = {\nticket_lifetime = banana\n}"),
	"lifetimes of the realm, in [realms]": {text: "[realms]\nA.TEST = {\nticket_lifetime = 2h\nmax_renewable_life = 9d\nkdc = a\n}\n"},

	// Encryption types.
	"enctypes, families":          libdefaults("permitted_enctypes = aes rc4 camellia des3"),
	"enctypes, commas":            libdefaults("default_tkt_enctypes = aes256-cts,aes128-cts , rc4-hmac,,"),
	"enctypes, DEFAULT less":      libdefaults("permitted_enctypes = DEFAULT -rc4 -des3\ndefault_tgs_enctypes = default +arcfour-hmac-exp"),
	"enctypes, plus":              libdefaults("permitted_enctypes = +aes -aes256-cts +rc4"),
	"enctypes, order":             libdefaults("default_tkt_enctypes = rc4 aes128-sha2 aes rc4\ndefault_tgs_enctypes = aes256-sha2 aes128-sha2"),
	"enctypes, aliases":           libdefaults("default_tkt_enctypes = aes256-sha1 aes128-sha1 aes256-sha2 aes128-sha2 arcfour-hmac-md5 camellia256-cts camellia128-cts des3-hmac-sha1\ndefault_tgs_enctypes = AES256-CTS-HMAC-SHA1-96 aes128-cts-hmac-sha1-96 aes256-cts-hmac-sha384-192 aes128-cts-hmac-sha256-128 camellia256-cts-cmac camellia128-cts-cmac des3-cbc-sha1-kd des3-cbc-sha1 arcfour-hmac"),
	"enctypes, three lists":       libdefaults("default_tkt_enctypes = aes\ndefault_tgs_enctypes = rc4\npermitted_enctypes = camellia"),
	"enctypes, some unknown":      libdefaults("permitted_enctypes = aes banana des-cbc-crc aes256 18 aes256-cts:normal #x"),
	"enctypes, all unknown":       libdefaults("permitted_enctypes = banana"),
	"enctypes, DES only":          libdefaults("default_tkt_enctypes = des-cbc-crc des-cbc-md5\nallow_weak_crypto = true"),
	"enctypes, none for services": libdefaults("default_tgs_enctypes = banana"),
	"enctypes, none permitted":    libdefaults("permitted_enctypes = banana\ndefault_tkt_enctypes = aes\ndefault_tgs_enctypes = aes"),
	"enctypes, none left":         libdefaults("permitted_enctypes = rc4 -rc4"),
	"enctypes, empty":             libdefaults("permitted_enctypes = \"\""),
	"enctypes, weak":              libdefaults("permitted_enctypes = aes arcfour-hmac-exp rc4-hmac-exp arcfour-hmac-md5-exp des3-cbc-raw"),
	"enctypes, weak allowed":      libdefaults("allow_weak_crypto = true\npermitted_enctypes = aes arcfour-hmac-exp des3-cbc-raw"),
	"enctypes, only weak":         libdefaults("permitted_enctypes = rc4-hmac-exp"),
	"enctypes, twice a minus":     libdefaults("permitted_enctypes = aes --rc4 - + -+aes +-aes"),
	"enctypes of the realm":       libdefaults("A.TEST = {\npermitted_enctypes = rc4\ndefault_tkt_enctypes = rc4\n}"),

	// Realms.
	"KDC":                          kdcLine("kdc.a.test"),
	"KDC, port":                    kdcLine("kdc.a.test:750"),
	"KDC, blanks":                  kdcLine("kdc.a.test # first"),
	"KDC, tab":                     kdcLine("kdc.a.test\tx:9"),
	"KDC, port and text":           kdcLine("kdc.a.test:88 # first"),
	"KDC, blank before the port":   kdcLine("kdc.a.test: 88"),
	"KDC, address":                 kdcLine("192.0.2.1"),
	"KDC, address and port":        kdcLine("192.0.2.1:750"),
	"KDC, IPv6":                    kdcLine("[2001:db8::1]"),
	"KDC, IPv6 and port":           kdcLine("[2001:db8::1]:750"),
	"KDC, IPv6 without brackets":   kdcLine("2001:db8::1"),
	"KDC, IPv6 and text":           kdcLine("[2001:db8::1]x"),
	"KDC, IPv6 unclosed":           kdcLine("[2001:db8::1"),
	"KDC, IPv6 without the port":   kdcLine("[2001:db8::1]:"),
	"KDC, port missing":            kdcLine("kdc.a.test:"),
	"KDC, port in words":           kdcLine("kdc.a.test:kerberos"),
	"KDC, port 0":                  kdcLine("kdc.a.test:0"),
	"KDC, port 65535":              kdcLine("kdc.a.test:65535"),
	"KDC, port 65536":              kdcLine("kdc.a.test:65536"),
	"KDC, port -1":                 kdcLine("kdc.a.test:-1"),
	"KDC, port +088":               kdcLine("kdc.a.test:+088"),
	"KDC, port 0x58":               kdcLine("kdc.a.test:0x58"),
	"KDC, two ports":               kdcLine("kdc.a.test:88:88"),
	"KDC, only a port":             kdcLine(":88"),
	"KDC, empty":                   kdcLine("\"\""),
	"KDC, dot":                     kdcLine("kdc.a.test."),
	"KDC, transport":               kdcLine("tcp/kdc.a.test:88"),
	"KDC, twice":                   kdcLine("second.a.test:88"),
	"KDC, proxy":                   kdcLine("https://proxy.a.test/KdcProxy"),
	"KDC, proxy with a port":       kdcLine("https://proxy.a.test:8443"),
	"KDC, proxy at an address":     kdcLine("https://[::1]:8443/KdcProxy"),
	"KDC, proxy with a wrong port": kdcLine("https://proxy.a.test:x/"),
	"KDC, proxy without a host":    kdcLine("https://"),
	"KDC, upper case proxy":        kdcLine("HTTPS://proxy.a.test/"),
	"KDC, http":                    kdcLine("http://proxy.a.test/"),
	"KDC, one slash":               kdcLine("https:/proxy.a.test/"),
	"KDC, several on a line":       kdcLine("one.a.test, two.a.test"),
	"realm in lower case":          {text: "[realms]\na.test = {\nkdc = a\n}\n"},
	"only other servers":           {text: "[realms]\nA.TEST = {\nadmin_server = a\nmaster_kdc = b\nprimary_kdc = c\n}\n"},

	"domain_realm":             {text: "[domain_realm]\n.a.test = DOTTED\na.test = PLAIN\nx.a.test = HOST\n.test = TOP\ntest = TEST\nShort = UPPER\nOTHER.TEST = UPPER\n"},
	"domain_realm, parents":    {text: "[domain_realm]\na.test = PLAIN\nb.test = B\ntest = T\n"},
	"domain_realm, dots":       {text: "[domain_realm]\n. = ROOT\n.test. = NO\na.test. = NO\n"},
	"domain_realm, addresses":  {text: "[domain_realm]\n192.0.2.1 = NO\n.1 = ONE\n1 = PLAIN\n::1 = NO\n.0.2.1 = THREE\n"},
	"domain_realm, odd values": {text: "[domain_realm]\na.test = A B # c\nb.a.test = \"\"\n.x.a.test = \"Q R\"\na = lower\nshort = {\nx = y\n}\n"},
	"domain_realm, twice":      {text: "[domain_realm]\na.test = ONE\na.test = TWO\n"},
	"domain_realm, no section": {text: "[domain-realm]\na.test = ONE\n"},
	"capaths":                  {text: "[capaths]\nA.TEST = {\nB.TEST = .\nC.TEST = B.TEST\nD.TEST = B.TEST\nD.TEST = C.TEST\n}\nB.TEST = {\nC.TEST = D.TEST more\nA.TEST = . x\nE.TEST = .x\nE.TEST = C.TEST\nD.TEST = C.TEST\tx\n}\n"},

	// Knowingly different.
	"differs: depth":       {text: "[a]\n" + strings.Repeat("b = {\n", 11), differs: "a bound: braces nest to 10 levels"},
	"differs: size":        {text: "[a]\n" + strings.Repeat("#"+strings.Repeat("x", 1022)+"\n", 1025), differs: "a bound: a file has at most 1 MiB"},
	"differs: files":       {files: map[string]string{"krb5.conf": strings.Repeat("include DIR/x\n", 257), "x": ""}, differs: "a bound: at most 256 files are read"},
	"differs: includes":    {files: map[string]string{"krb5.conf": "include DIR/1\n", "1": "include DIR/2\n", "2": "include DIR/3\n", "3": "include DIR/4\n", "4": "include DIR/5\n", "5": "include DIR/6\n", "6": "include DIR/7\n", "7": "include DIR/8\n", "8": "include DIR/9\n", "9": "include DIR/10\n", "10": "include DIR/11\n", "11": ""}, differs: "a bound: includes nest to 10 levels"},
	"differs: lifetime":    {text: "[libdefaults]\nticket_lifetime = 0\n", differs: "MIT asks for tickets that end when they begin, which no KDC issues"},
	"differs: other realm": {text: "[libdefaults]\nB.TEST = {\nticket_lifetime = banana\n}\n", differs: "MIT fails only at logins into B.TEST; a file is judged as a whole"},
	"differs: default":     {text: "[libdefaults]\nticket_lifetime = banana\nA.TEST = {\nticket_lifetime = 1h\n}\n", differs: "MIT fails only at logins into other realms; a file is judged as a whole"},
	"differs: module":      {text: "module /none.so:x\n", differs: "the agent loads no foreign code"},
}

// listed are two files for a list, with what comes first in each.
func listed(one, two string) map[string]string {
	return map[string]string{
		"one": one + "[libdefaults]\ndefault_realm = A.TEST\nticket_lifetime = 1h\n[realms]\nA.TEST = {\nkdc = one.a.test\n}\n",
		"two": two + "[libdefaults]\ndefault_realm = B.TEST\nticket_lifetime = 2h\nforwardable = true\n[realms]\nA.TEST = {\nkdc = two.a.test\n}\nB.TEST = {\nkdc = b\n}\n",
	}
}
