package krb_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// forest is several realms, the first of which has the principal svc.
type forest struct {
	*lab
	realms map[string]*rig.KDC
}

// newForest makes realms that trust each other in a chain, a krb5.conf that
// knows all of them, and in each the service HTTP/app.NAME.example, of which
// krb5.conf says nothing.
func newForest(t *testing.T, names ...string) *forest {
	l := newLab(t)
	f := &forest{lab: l, realms: map[string]*rig.KDC{}}
	var all []*rig.KDC
	for i, name := range names {
		k := l.kdc
		if i > 0 {
			var err error
			if k, err = rig.NewKDC(name); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(k.Close)
			all[i-1].Trust(k)
		}
		k.AddService("HTTP/app." + strings.ToLower(name))
		f.realms[name] = k
		all = append(all, k)
	}
	l.options.Config = l.config(l.kdc.Krb5Conf(all[1:]...))
	return f
}

// accepts fails unless the service of a realm takes a token as svc's.
func (f *forest) accepts(realm string, c *krb.Context) {
	f.t.Helper()
	spn := "HTTP/app." + strings.ToLower(realm)
	a, err := rig.NewAcceptor(f.realms[realm].Keytab(spn), spn)
	if err != nil {
		f.t.Fatal(err)
	}
	who, reply, err := a.Accept(c.Token())
	if err != nil || who != "svc@RIG.TEST" {
		f.t.Errorf("%s: accepted as %q, %v", realm, who, err)
		return
	}
	if mutual, err := c.Verify(reply); !mutual || err != nil {
		f.t.Errorf("%s: %v, %v", realm, mutual, err)
	}
}

// A service is found in another realm by the KDCs' referrals, by [domain_realm],
// and at last by its domain's name.
func TestCrossRealm(t *testing.T) {
	for name, c := range map[string]struct {
		conf  string
		refer bool
		tgs   int // of the client's KDC, with what it refers
	}{
		"referral":      {"", true, 1},
		"domain_realm":  {"[domain_realm]\n.b.test = B.TEST\n", false, 1},
		"domain's name": {"", false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForest(t, "RIG.TEST", "B.TEST")
			f.options.Config = f.config(f.kdc.Krb5Conf(f.realms["B.TEST"]) + c.conf)
			if c.refer {
				f.kdc.Refer("app.b.test", "B.TEST")
			}
			e, cred := krb.New(f.options), f.credential("svc")
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() { f.accepts("B.TEST", initiate(t, e, cred, "HTTP/app.b.test")) })
			}
			wg.Wait()
			if n := f.kdc.Counts(); n.AS != 2 || n.TGS != c.tgs {
				t.Errorf("the client's KDC: %+v", n)
			}
			if n := f.realms["B.TEST"].Counts(); n.AS != 0 || n.TGS != 1 {
				t.Errorf("the service's KDC: %+v", n)
			}
			// After a restart, and without any KDC.
			for _, k := range f.realms {
				k.SetMode(rig.Refusing)
			}
			f.accepts("B.TEST", initiate(t, krb.New(f.options), cred, "HTTP/app.b.test"))
		})
	}
}

// A way through realms: the KDCs know it, or [capaths] does.
func TestCrossRealmPath(t *testing.T) {
	const capaths = "[domain_realm]\n.d.test = D.TEST\n[capaths]\nRIG.TEST = {\n D.TEST = B.TEST\n D.TEST = C.TEST\n}\n"
	for name, c := range map[string]struct {
		conf    string
		prepare func(f *forest)
		code    api.Code
		text    string
	}{
		"routes": {"[domain_realm]\n.d.test = D.TEST\n", func(f *forest) {
			f.kdc.Route("D.TEST", "B.TEST")
			f.realms["B.TEST"].Route("D.TEST", "C.TEST")
		}, "", ""},
		"capaths": {capaths, func(*forest) {}, "", ""},
		"referrals": {"", func(f *forest) {
			f.kdc.Refer("app.d.test", "B.TEST")
			f.realms["B.TEST"].Refer("app.d.test", "C.TEST")
			f.realms["C.TEST"].Refer("app.d.test", "D.TEST")
		}, "", ""},
		"a loop of referrals": {"", func(f *forest) {
			f.kdc.Refer("app.d.test", "B.TEST")
			f.realms["B.TEST"].Refer("app.d.test", "RIG.TEST")
		}, api.SPNUnknown, "asked for already"},
		"no way": {"[domain_realm]\n.d.test = D.TEST\n", func(*forest) {}, api.SPNUnknown, "no way for svc@RIG.TEST to the realm D.TEST"},
		"a loop of routes": {"[domain_realm]\n.d.test = D.TEST\n", func(f *forest) {
			f.kdc.Route("D.TEST", "B.TEST")
			f.realms["B.TEST"].Route("D.TEST", "RIG.TEST")
		}, api.SPNUnknown, "asked for already"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForest(t, "RIG.TEST", "B.TEST", "C.TEST", "D.TEST")
			f.options.Config = f.config(f.kdc.Krb5Conf(f.realms["B.TEST"], f.realms["C.TEST"], f.realms["D.TEST"]) + c.conf)
			c.prepare(f)
			ctx, err := krb.New(f.options).Initiate(t.Context(), f.credential("svc"), "HTTP/app.d.test", krb.InitiateOptions{Mutual: true})
			if c.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				f.accepts("D.TEST", ctx)
				return
			}
			wantCode(t, err, c.code, c.text)
		})
	}
}

// What is worthless across realms is made anew: after the realms' common key
// changed, and after an outage over which every ticket ended. gokrb5's client
// stays wedged then, until renew-till.
func TestCrossRealmRecovers(t *testing.T) {
	f := newForest(t, "RIG.TEST", "B.TEST")
	b := f.realms["B.TEST"]
	b.AddService("HTTP/other.b.test")
	f.options.Config = f.config(f.kdc.Krb5Conf(b) + "[domain_realm]\n.b.test = B.TEST\n")
	clock := newClock()
	f.options.Now = clock.now
	f.kdc.SetClock(clock.now)
	b.SetClock(clock.now)
	e, cred := krb.New(f.options), f.credential("svc")
	defer e.Close()
	initiate(t, e, cred, "HTTP/app.b.test")

	f.kdc.Trust(b)
	initiate(t, e, cred, "HTTP/other.b.test")

	clock.advance(100 * time.Hour)
	for _, k := range f.realms {
		if err := k.SetMode(rig.Refusing); err != nil {
			t.Fatal(err)
		}
	}
	_, err := e.Initiate(t.Context(), cred, "HTTP/app.b.test", krb.InitiateOptions{})
	wantCode(t, err, api.KDCUnreachable, "RIG.TEST")
	for _, k := range f.realms {
		if err := k.SetMode(rig.Answering); err != nil {
			t.Fatal(err)
		}
	}
	initiate(t, e, cred, "HTTP/app.b.test")
}

// Each realm's clock is made allowance for.
func TestCrossRealmClocks(t *testing.T) {
	f := newForest(t, "RIG.TEST", "B.TEST")
	b := f.realms["B.TEST"]
	f.options.Config = f.config(f.kdc.Krb5Conf(b) + "[domain_realm]\n.b.test = B.TEST\n")
	clock := newClock()
	f.options.Now = clock.now
	f.kdc.SetClock(clock.now)
	ahead := func() time.Time { return clock.now().Add(10 * time.Minute) }
	b.SetClock(ahead)
	a, err := rig.NewAcceptor(b.Keytab("HTTP/app.b.test"), "HTTP/app.b.test")
	if err != nil {
		t.Fatal(err)
	}
	a.Now = ahead
	e := krb.New(f.options)
	defer e.Close()
	if _, _, err := a.Accept(initiate(t, e, f.credential("svc"), "HTTP/app.b.test").Token()); err != nil {
		t.Error(err)
	}
}

// Several principals, keytabs and realms at once keep apart.
func TestPrincipalsAtOnce(t *testing.T) {
	f := newForest(t, "RIG.TEST", "B.TEST")
	b := f.realms["B.TEST"]
	b.AddPrincipal("svc", password+"-of-b")
	other := krb.Credential{Principal: krb.Principal{Components: []string{"svc"}, Realm: "B.TEST"}, Keytab: f.file("b.keytab", b.Keytab("svc"))}
	e := krb.New(f.options)
	defer e.Close()
	here, there := f.acceptor(site), must(rig.NewAcceptor(b.Keytab("HTTP/app.b.test"), "HTTP/app.b.test"))
	cred := f.credential("svc")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if who, _, err := here.Accept(initiate(t, e, cred, site).Token()); who != "svc@RIG.TEST" || err != nil {
				t.Errorf("%q, %v", who, err)
			}
		})
		wg.Go(func() {
			if who, _, err := there.Accept(initiate(t, e, other, "HTTP/app.b.test").Token()); who != "svc@B.TEST" || err != nil {
				t.Errorf("%q, %v", who, err)
			}
		})
	}
	wg.Wait()
}

// dns is a Resolver of canonical names.
type dns map[string]string

func (dns) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return nil, errors.New("no addresses here")
}

func (dns) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", nil, errors.New("no SRV records here")
}

func (d dns) LookupCNAME(_ context.Context, host string) (string, error) {
	if c, ok := d[host]; ok {
		return c, nil
	}
	return "", errors.New("no such host")
}

// The name as it was typed goes first, the host's canonical name second, and
// neither where the SPN is configured or krb5.conf forbids it.
func TestCanonicalName(t *testing.T) {
	for _, c := range []struct {
		name, spn, conf string
		exact           bool
		code            api.Code
	}{
		{"typed, though an alias", site, "", false, ""},
		{"alias", "HTTP/jira.example", "fallback", false, ""},
		{"alias, as MIT does by default", "HTTP/jira.example", "true", false, ""},
		{"alias, forbidden", "HTTP/jira.example", "false", false, api.SPNUnknown},
		{"alias, configured", "HTTP/jira.example", "fallback", true, api.SPNUnknown},
		{"no alias", "HTTP/none.example", "fallback", false, api.SPNUnknown},
		{"an alias of nothing", "HTTP/lost.example", "fallback", false, api.SPNUnknown},
		{"short name", "HTTP/app", "fallback", false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			conf := strings.Replace(l.kdc.Krb5Conf(), "dns_canonicalize_hostname = false", "dns_canonicalize_hostname = "+c.conf, 1)
			if c.conf == "" {
				conf = l.kdc.Krb5Conf()
			}
			l.options.Config = l.config(conf)
			l.options.Resolver = dns{"jira.example": "www.example.", "www.example": "App.Example.", "lost.example": "nowhere.example.", "app": "app.example."}
			if c.spn == site {
				l.options.Resolver = dns{"app.example": "other.example."}
			}
			e := krb.New(l.options)
			defer e.Close()
			ctx, err := e.Initiate(t.Context(), l.credential("svc"), c.spn, krb.InitiateOptions{Exact: c.exact})
			if c.code != "" {
				wantCode(t, err, c.code, c.spn)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := l.acceptor(site).Accept(ctx.Token()); err != nil {
				t.Error(err)
			}
		})
	}
}

// Names of Active Directory stand in configurations in any case.
func TestAnyCase(t *testing.T) {
	for _, c := range []struct {
		user, realm string
		fold        bool
		code        api.Code
	}{
		{"svc", "RIG.TEST", false, ""},
		{"svc", "rig.test", false, ""}, // krb5.conf knows the upper case alone
		{"SVC", "RIG.TEST", true, ""},
		{"Svc", "rig.test", true, ""},
		{"SVC", "RIG.TEST", false, ""}, // the keytab says how it is spelled
		{"other", "RIG.TEST", true, api.KeytabUnreadable},
	} {
		t.Run(fmt.Sprintf("%s@%s", c.user, c.realm), func(t *testing.T) {
			l := newLab(t)
			l.kdc.CaseInsensitive(c.fold)
			cred := l.credential("svc")
			cred.Principal = must(l.options.Config.Principal(c.user + "@" + c.realm))
			e := krb.New(l.options)
			defer e.Close()
			ctx, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{})
			wantCode(t, err, c.code)
			if err == nil {
				if who, _, err := l.acceptor(site).Accept(ctx.Token()); err != nil || !strings.EqualFold(who, "svc@RIG.TEST") {
					t.Errorf("%q, %v", who, err)
				}
			}
		})
	}
}
