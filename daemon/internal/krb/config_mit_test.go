package krb

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

//go:embed testdata/profile.py
var profileScript string

type mitQuestion struct {
	List   string   `json:"list"`   // as KRB5_CONFIG has it
	Client string   `json:"client"` // whose AS-REQ to make
	Hosts  []string `json:"hosts"`
}

type mitAnswer struct {
	Refused   string              `json:"refused"` // by the library, or at each login
	Relations map[string][]string `json:"relations"`
	Sections  []string            `json:"sections"`
	Request   struct {            // what an AS-REQ asks for
		Till        [2]int64  `json:"till"`  // seconds from now, at least and at most
		Rtime       *[2]int64 `json:"rtime"` // likewise
		Enctypes    []int32   `json:"enctypes"`
		Forwardable bool      `json:"forwardable"`
		Proxiable   bool      `json:"proxiable"`
		Renewable   bool      `json:"renewable"`
	} `json:"request"`
	TGS      []int32               `json:"tgs"`
	UDP      int                   `json:"udp"`
	Timesync int                   `json:"timesync"`
	DNS      bool                  `json:"dns"`
	Hosts    []string              `json:"hosts"`   // the realms of the hosts asked for
	Service  string                `json:"service"` // the service principal of the host 127.0.0.1
	KDCs     map[string][]struct { // null: there is a wrong one
		Host  string `json:"host"`
		Port  int    `json:"port"`
		Proxy bool   `json:"proxy"`
	} `json:"kdcs"`
	Paths map[string][]string `json:"paths"` // [capaths], from the client's realm to the server's
}

// askMIT lets MIT's library, version 1.20, answer questions and read durations;
// of a wrong duration the answer is nil.
func askMIT(t *testing.T, questions []mitQuestion, durations []string) ([]mitAnswer, []*int64) {
	t.Helper()
	rig.Require(t, "python3", "kinit")
	q := struct {
		Questions []mitQuestion `json:"questions"`
		Durations []string      `json:"durations,omitempty"`
	}{questions, durations}
	asked, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "python3", "-c", profileScript)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KRB5") }), "LC_ALL=C")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(asked), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	var a struct {
		Answers   []mitAnswer `json:"answers"`
		Durations []*int64    `json:"durations"`
	}
	if err := json.Unmarshal(stdout.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	if len(a.Answers) != len(questions) || len(a.Durations) != len(durations) {
		t.Fatalf("%d and %d answers to %d and %d questions", len(a.Answers), len(a.Durations), len(questions), len(durations))
	}
	return a.Answers, a.Durations
}

// latin1 writes bytes as characters, as the script does.
func latin1(s string) string {
	var b strings.Builder
	for i := range len(s) {
		b.WriteRune(rune(s[i]))
	}
	return b.String()
}

// fromLatin1 is its inverse.
func fromLatin1(s string) string {
	var b []byte
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}

// configHosts are looked up in [domain_realm] of every file.
var configHosts = []string{
	"a.test", "A.Test", "b.a.test", "b.a.test.", "c.b.a.test", "x.a.test", "y.x.a.test", "test", "other.test", "a.test..", ".a.test", "a..test",
	"a", "short", "localhost", "192.0.2.1", "192.0.2.1.", "256.2.2.1", "2.1", "0.2.1", "9.192.0.2.1", "::1", "b.test", "a.test:80", ".", "",
}

// judge compares what we make of a list of files with MIT's answer. The
// realm of the client is A.TEST.
func judge(t *testing.T, paths []string, mit mitAnswer) {
	t.Helper()
	c, err := LoadConfig(paths...)
	if err != nil {
		if api.CodeOf(err) != api.Krb5ConfInvalid {
			t.Errorf("error without its code: %v", err)
		}
		if mit.Refused == "" {
			t.Errorf("MIT loads it, we do not: %v", err)
		}
		return
	}
	if mit.Refused != "" {
		t.Errorf("MIT refuses it, we load it: %s", mit.Refused)
		return
	}

	got := map[string][]string{}
	var sections []string
	var walk func(s *section, path string)
	walk = func(s *section, path string) {
		for tag, relations := range s.relations {
			for _, r := range relations {
				got[path+latin1(tag)] = append(got[path+latin1(tag)], latin1(r.value))
			}
		}
		for name, below := range s.sections {
			sections = append(sections, path+latin1(name))
			walk(below, path+latin1(name)+"\x00")
		}
	}
	walk(&c.root, "")
	if !maps.EqualFunc(got, mit.Relations, slices.Equal) {
		t.Errorf("relations %q\nMIT %q", got, mit.Relations)
	}
	slices.Sort(sections)
	slices.Sort(mit.Sections)
	if !slices.Equal(sections, mit.Sections) {
		t.Errorf("sections %q, MIT %q", sections, mit.Sections)
	}

	of := c.ForRealm("A.TEST")
	within := func(d time.Duration, seconds [2]int64) bool {
		return int64(d/time.Second) >= seconds[0] && int64(d/time.Second) <= seconds[1]
	}
	if got := of.TicketLifetime(); !within(got, mit.Request.Till) {
		t.Errorf("ticket lifetime %s, MIT's %d s", got, mit.Request.Till)
	}
	// MIT asks at least for the ticket's own lifetime.
	if got := of.RenewLifetime(); got > 0 != mit.Request.Renewable || got > 0 && !within(max(got, of.TicketLifetime()), *mit.Request.Rtime) {
		t.Errorf("renew lifetime %s, MIT's %t, %v s", got, mit.Request.Renewable, mit.Request.Rtime)
	}
	for what, both := range map[string][2]bool{
		"forwardable":   {of.Forwardable(), mit.Request.Forwardable},
		"proxiable":     {of.Proxiable(), mit.Request.Proxiable},
		"DNS lookup":    {c.DNSLookupKDC(), mit.DNS},
		"KDC time sync": {c.KDCTimeSync(), mit.Timesync != 0},
	} {
		if both[0] != both[1] {
			t.Errorf("%s %t, MIT %t", what, both[0], both[1])
		}
	}
	// The library looks the address up only if it may, and not for fallback,
	// which to the agent is an order of names.
	_, rdns := c.option("rdns")
	r, _ := c.option("dns_canonicalize_hostname")
	if want := !strings.HasPrefix(mit.Service, "HTTP/127.0.0.1@") || strings.EqualFold(r.value, "fallback"); !rdns && c.CanonicalizeHostname() != want {
		t.Errorf("canonical host names %t, MIT %t (%s)", c.CanonicalizeHostname(), want, mit.Service)
	}
	if want := mit.UDP; c.UDPPreferenceLimit() != min(want, 32700) && !(want < 0 && c.UDPPreferenceLimit() == 1465) {
		t.Errorf("UDP preference limit %d, MIT %d", c.UDPPreferenceLimit(), want)
	}
	for request, want := range map[string][]int32{"tkt": mit.Request.Enctypes, "tgs": mit.TGS} {
		got := c.Enctypes(request)
		if got == nil {
			got = enctypeNumbers["default"]
		}
		if !slices.Equal(got, want) {
			t.Errorf("enctypes for %s %d, MIT %d", request, got, want)
		}
	}
	for i, host := range configHosts {
		if got := latin1(c.RealmOf(host)); got != mit.Hosts[i] {
			t.Errorf("realm of %q: %q, MIT %q", host, got, mit.Hosts[i])
		}
	}
	for realm, kdcs := range mit.KDCs {
		realm = fromLatin1(realm)
		if !c.HasRealm(realm) {
			t.Errorf("no realm %q", realm)
		}
		var want []string
		for _, k := range kdcs {
			if a := net.JoinHostPort(fromLatin1(k.Host), strconv.Itoa(k.Port)); !k.Proxy && !slices.Contains(want, a) {
				want = append(want, a)
			}
		}
		if got := c.KDCs(realm); !slices.Equal(got, want) {
			t.Errorf("KDCs of %q: %q, MIT %q", realm, got, want)
		}
		if err := c.CheckRealm(realm); (err == nil) != (len(want) > 0) {
			t.Errorf("check of %q: %v; KDCs %q", realm, err, want)
		}
	}
	for key, want := range mit.Paths {
		way := strings.Split(fromLatin1(key), "\x00")[1:]
		between := c.CAPath(way[0], way[1])
		got := slices.Concat(way[:1], between, way[1:])
		for i := range got {
			got[i] = latin1(got[i])
		}
		if between == nil || !slices.Equal(got, want) {
			t.Errorf("path of %q: %q, MIT %q", way, got, want)
		}
	}
}

// TestConfigMIT holds what we make of files against MIT's library.
func TestConfigMIT(t *testing.T) {
	var questions []mitQuestion
	var lists [][]string
	names := slices.Sorted(maps.Keys(configCases))
	for _, name := range names {
		c := configCases[name]
		dir := write(t, c.files)
		if c.text != "" {
			dir = write(t, map[string]string{"krb5.conf": c.text})
		}
		list := c.list
		if list == nil {
			list = []string{"krb5.conf"}
		}
		var paths []string
		for _, f := range list {
			if f != "" && f[0] != '/' {
				f = filepath.Join(dir, f)
			}
			paths = append(paths, f)
		}
		lists = append(lists, paths)
		questions = append(questions, mitQuestion{List: strings.Join(paths, ":"), Client: "user@A.TEST", Hosts: configHosts})
	}
	answers, _ := askMIT(t, questions, nil)
	for i, name := range names {
		t.Run(name, func(t *testing.T) {
			reason := configCases[name].differs
			if reason == "" {
				judge(t, lists[i], answers[i])
				return
			}
			// The reason stands for a file that MIT loads and we do not.
			if _, err := LoadConfig(lists[i]...); answers[i].Refused != "" || api.CodeOf(err) != api.Krb5ConfInvalid {
				t.Errorf("the difference is gone: MIT %q, we %v", answers[i].Refused, err)
			}
		})
	}
	if len(names) < 120 {
		t.Errorf("only %d files", len(names))
	}
}

// TestConfigMITRandom goes on with files that nobody would write.
func TestConfigMITRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 0)) // any other seed does as well
	pick := func(from []string) string { return from[r.IntN(len(from))] }
	lines := []string{
		"[libdefaults]", "[libdefaults]", "[realms]", "[realms]*", "[domain_realm]", "[capaths]", "[x]*", "[x] ", "[x", "[ x ]", "[]", "[x]*y", " [libdefaults]",
		"A.TEST = {", "A.TEST = {", "A.TEST = {", "A.TEST* = {", "B = ", "B =", "{", "{ x", "  {", "}", "}", "}", "}*", "} x", " }", "b = {c", "b = \"{\"",
		"kdc = a.test", "kdc = a.test:88", "kdc = [::1]:88", "kdc = b c", "kdc = https://p.test/x", "kdc* = final.test",
		"default_realm = A.TEST", "default_realm* = B", "ticket_lifetime = 10h", "ticket_lifetime = 1d 2h # x", "renew_lifetime = 7d", "forwardable = true", "forwardable = yes please",
		"permitted_enctypes = aes rc4", "default_tgs_enctypes = DEFAULT -des3", "dns_lookup_kdc = off", "udp_preference_limit = 1", "kdc_timesync = 0",
		".a.test = A.TEST", "a.test = \"B\" x", "test = T", "A.TEST = C", "tag", "tag = ", "= v", "two words = v", "tag = v = w", "tag=\"a\\tb\\\"c\\n\"", "tag = \"open", "*=x", "a*b = c", "tag\t=\tv\v",
		"# comment", "; comment", "   # comment", "", "", "   ", "\t", "\xef\xbb\xbf[libdefaults]", "\x00tag", "tag = v\x00w", "include DIR/other", "include DIR/other ", " include DIR/other", "includedir DIR/d", "include DIR/none",
		"include = x", "includex = y", "tag = \r", "long = " + strings.Repeat("l", 2030) + " = x", strings.Repeat("#", 2100), "\xe9 = \xff",
	}
	text := func() string {
		var b strings.Builder
		if r.IntN(4) > 0 {
			b.WriteString("[libdefaults]\n")
		}
		for range r.IntN(14) {
			b.WriteString(pick(lines) + pick([]string{"\n", "\n", "\n", "\r\n", "\n\n"}))
		}
		return strings.TrimSuffix(b.String(), pick([]string{"", "\n"}))
	}
	var questions []mitQuestion
	var lists [][]string
	var dirs []string
	for range 300 {
		dir := write(t, map[string]string{"one": text(), "two": text(), "other": "[libdefaults]\ndefault_realm = O\n[realms]\nA.TEST = {\nkdc = other\n}\n", "d/a.conf": "[x]\ntag = included\n", "d/~": "[x"})
		list := []string{filepath.Join(dir, "one")}
		if r.IntN(3) == 0 {
			list = append(list, filepath.Join(dir, "two"))
		}
		dirs = append(dirs, dir)
		lists = append(lists, list)
		questions = append(questions, mitQuestion{List: strings.Join(list, ":"), Client: "user@A.TEST", Hosts: configHosts})
	}
	durations := []string{"-2147483648", "-2147483647", "2147483648", "24855d3h14m7s", "24855d3h14m8s", ""}
	for range 5000 {
		var b strings.Builder
		for range r.IntN(9) {
			b.WriteString(pick([]string{"0", "1", "2", "9", "59", "100", "24855", "2147483647", "-", ":", ":", "d", "h", "m", "s", " ", "\t", "\r", "\v", "x", "#", "D", "+", "."}))
		}
		durations = append(durations, b.String())
	}
	answers, seconds := askMIT(t, questions, durations)
	loaded := 0
	for i, list := range lists {
		judge(t, list, answers[i])
		if answers[i].Refused == "" {
			loaded++
		}
		if t.Failed() {
			for _, name := range []string{"one", "two"} {
				b, _ := os.ReadFile(filepath.Join(dirs[i], name))
				t.Logf("%s: %.3000q", name, b)
			}
			t.FailNow()
		}
	}
	if loaded < 50 || loaded > 250 {
		t.Errorf("of the %d files MIT loads %d: they try little", len(lists), loaded)
	}
	for i, d := range durations {
		got, _, ok := lifetime(d)
		if ok != (seconds[i] != nil) || ok && got != time.Duration(*seconds[i])*time.Second {
			mit := "none"
			if seconds[i] != nil {
				mit = fmt.Sprint(*seconds[i], " s")
			}
			t.Errorf("duration %q: %s, %t; MIT %s", d, got, ok, mit)
		}
	}
}

// TestConfigMITTransport has kinit send a request to a port where nobody
// listens and tells from its trace whether it takes UDP or TCP first.
func TestConfigMITTransport(t *testing.T) {
	rig.Require(t, "kinit")
	size := 1
	for _, limit := range []string{"1", "size-1", "size", "0", "-5", "65535"} {
		limit = strings.NewReplacer("size-1", strconv.Itoa(size-1), "size", strconv.Itoa(size)).Replace(limit)
		dir := write(t, map[string]string{"krb5.conf": "[libdefaults]\nudp_preference_limit = " + limit + "\n[realms]\nA.TEST = {\nkdc = 127.0.0.1:1\n}\n"})
		file := filepath.Join(dir, "krb5.conf")
		cmd := exec.CommandContext(t.Context(), "kinit", "-c", "MEMORY:", "user@A.TEST")
		cmd.Env = append(os.Environ(), "KRB5_CONFIG="+file, "KRB5_TRACE=/dev/stdout", "LC_ALL=C")
		out, _ := cmd.Output() // it fails: there is no KDC
		trace := string(out)
		if _, after, ok := strings.Cut(trace, "Sending request ("); ok {
			fmt.Sscan(after, &size)
		}
		tcp, udp := strings.Index(trace, "Initiating TCP"), strings.Index(trace, "initial UDP")
		c, err := LoadConfig(file)
		if err != nil || tcp < 0 || udp < 0 {
			t.Fatalf("%v; trace %s", err, trace)
		}
		if first := size > c.UDPPreferenceLimit(); first != (tcp < udp) {
			t.Errorf("limit %s, %d bytes: TCP first %t, MIT %t", limit, size, first, tcp < udp)
		}
	}
	if size == 1 {
		t.Error("the trace does not say how large the request is")
	}
}
