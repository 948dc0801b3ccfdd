package peer

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

func TestUnitNames(t *testing.T) {
	for name, want := range map[string][2]string{
		// As systemd 252 calls.
		"@67ad1cc54e38e765/unit/consumer-ok.service/ok":      {"consumer-ok.service", "ok"},
		"@5/unit/app@1.service/jira":                         {"app@1.service", "jira"},
		`@a/unit/dev-disk\x2dby:1.service/a.b-c_d`:           {`dev-disk\x2dby:1.service`, "a.b-c_d"},
		"@a/unit/" + strings.Repeat("x", 247) + ".service/a": {strings.Repeat("x", 247) + ".service", "a"},
		"@a/unit/" + strings.Repeat("x", 248) + ".service/a": {},
		"":                               {},
		"@":                              {},
		"@/unit/app.service/jira":        {},
		"a/unit/app.service/jira":        {},
		"/a/unit/app.service/jira":       {},
		"@a/unit/app.service/":           {},
		"@a/unit/app.service":            {},
		"@a/unit/app.service/jira/":      {},
		"@a/unit/app.service/a/b":        {},
		"@a/b/unit/app.service/jira":     {},
		"@a/unit//jira":                  {},
		"@a/unit/.service/jira":          {},
		"@a/unit/app@.service/jira":      {},
		"@a/unit/@1.service/jira":        {},
		"@a/unit/app.socket/jira":        {},
		"@a/unit/app/jira":               {},
		"@a/unit/a pp.service/jira":      {},
		"@a/unit/app\n.service/jira":     {},
		"@a/user/app.service/jira":       {},
		"@a/unit/app.service\x00/a":      {},
		"@a/unit/b.service/app.service/": {},
	} {
		unit, credential, ok := parseUnitName(name)
		if unit != want[0] || credential != want[1] || ok != (want[0] != "") {
			t.Errorf("%q: %q %q %v", name, unit, credential, ok)
		}
	}
}

func FuzzUnitName(f *testing.F) {
	f.Add("@67ad1cc54e38e765/unit/app@1.service/jira")
	f.Add("@/unit/app.service/")
	f.Fuzz(func(t *testing.T, name string) {
		unit, credential, ok := parseUnitName(name)
		if !ok {
			if unit+credential != "" {
				t.Errorf("%q: %q %q", name, unit, credential)
			}
			return
		}
		random, _, _ := strings.Cut(name, "/")
		if name != random+"/unit/"+unit+"/"+credential || strings.Contains(credential, "/") {
			t.Errorf("%q: %q %q", name, unit, credential)
		}
		if r, err := ParseRule("unit:" + unit); err != nil || !Allowed([]Rule{r}, Caller{Unit: unit}) {
			t.Errorf("nobody can allow %q: %v", unit, err)
		}
	})
}

// TestUnitRules: rules for users let no unit in, and those for units nobody else.
func TestUnitRules(t *testing.T) {
	rule := func(text string) Rule {
		r, err := ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		if r.String() != text || r.ForUnit() != strings.HasPrefix(text, "unit:") {
			t.Errorf("%q: %+v", text, r)
		}
		return r
	}
	app, other := Caller{Unit: "app.service"}, Caller{Unit: "other.service"} // both root's
	for _, c := range []struct {
		rules  []Rule
		caller Caller
		want   bool
	}{
		{[]Rule{rule("unit:app.service")}, app, true},
		{[]Rule{rule("uid:5"), rule("unit:app.service")}, app, true},
		{[]Rule{rule("unit:app.service")}, other, false},
		{[]Rule{rule("unit:app.service")}, Caller{}, false},
		{[]Rule{rule("unit:app@1.service")}, Caller{Unit: "app@1.service"}, true},
		{[]Rule{rule("unit:app@1.service")}, Caller{Unit: "app@2.service"}, false},
		{[]Rule{rule("unit:App.service")}, app, false},
		{[]Rule{rule("uid:0"), rule("user:root"), rule("gid:0"), rule("group:root"), User(0)}, app, false},
		{nil, app, false},
		{[]Rule{rule("uid:0"), rule("unit:app.service")}, Caller{}, true},
		{[]Rule{rule("unit:app.service")}, Caller{UID: overflow, Unit: "app.service"}, false},
	} {
		if got := Allowed(c.rules, c.caller); got != c.want {
			t.Errorf("%v, %+v: %v", c.rules, c.caller, got)
		}
	}
	for _, s := range []string{"unit:", "unit:app", "unit:app.socket", "unit:app@.service", "unit:*.service", "unit:.service", "unit:a/b.service", "UNIT:app.service"} {
		if r, err := ParseRule(s); err == nil {
			t.Errorf("%q gave %+v", s, r)
		}
	}
}

// TestWordOfOthers: whoever is not root may name his end as systemd does.
func TestWordOfOthers(t *testing.T) {
	const address = "@67ad1cc54e38e765/unit/app.service/jira"
	for _, uid := range []uint32{1, 1000, overflow, 1<<32 - 1} {
		if caller, credential, err := ofUnit(Caller{UID: uid}, address); err == nil || caller.Unit != "" || credential != "" {
			t.Errorf("uid %d: %+v %q %v", uid, caller, credential, err)
		}
	}
	if caller, credential, err := ofUnit(Caller{}, address); err != nil || caller.Unit != "app.service" || credential != "jira" {
		t.Errorf("root: %+v %q %v", caller, credential, err)
	}
}

// TestOfUnit: root's word counts for a unit, and nobody else's.
func TestOfUnit(t *testing.T) {
	rig.Require(t, "root")
	dir, err := os.MkdirTemp("", "peer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, name := range []string{"@peer-test-67ad/unit/app.service/jira", "@peer-test-67ad/user/app.service/jira", ""} {
		from := &net.UnixAddr{Name: name, Net: "unix"}
		if name == "" {
			from = nil
		}
		c, err := net.DialUnix("unix", from, l.Addr().(*net.UnixAddr))
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		caller, credential, err := OfUnit(s)
		if strings.Contains(name, "/unit/") {
			if err != nil || caller.Unit != "app.service" || caller.UID != 0 || credential != "jira" {
				t.Errorf("%q: %+v %q %v", name, caller, credential, err)
			}
			if again, ok := Of(With(t.Context(), caller)); !ok || again.Unit != caller.Unit {
				t.Errorf("in a context it is %+v", again)
			}
		} else if err == nil || caller.Unit != "" || credential != "" {
			t.Errorf("%q: %+v %q %v", name, caller, credential, err)
		}
		c.Close()
		s.Close()
	}
}
