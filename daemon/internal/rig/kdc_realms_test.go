package rig_test

import (
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"slices"
	"strings"
	"testing"
	"time"
)

const password = "CANARY-password"

// MIT's client goes from realm to realm: named by [domain_realm], by referral,
// and through a realm between.
func TestKDCTrust(t *testing.T) {
	rig.Require(t, "kinit", "kvno")
	a, b, c := newRealm(t, "A.TEST"), newRealm(t, "B.TEST"), newRealm(t, "C.TEST")
	a.Trust(b)
	b.Trust(c)
	a.AddPrincipal("svc", password)
	b.AddService("HTTP/app.b.example")
	c.AddService("HTTP/app.c.example")
	a.Refer("App.B.example", "B.TEST")
	a.Refer("app.c.example", "C.TEST")
	a.Route("C.TEST", "B.TEST")
	b.Refer("app.c.example", "C.TEST")
	a.Refer("loop.example", "B.TEST")
	b.Refer("loop.example", "A.TEST")
	a.Refer("far.example", "D.TEST") // nobody trusts it

	plain := a.Krb5Conf(b, c)
	mapped := plain + "[domain_realm]\n app.b.example = B.TEST\n"
	for _, tc := range []struct {
		name, conf, host string
		spn              string // of the ticket; "" : none
		in               *rig.KDC
		transited        []string
		counts           [3]rig.Counts // of A, B and C
		complaint        string
	}{
		{"mapped", mapped, "app.b.example", "HTTP/app.b.example@B.TEST", b, nil,
			[3]rig.Counts{{TGS: 1}, {TGS: 1}, {}}, ""},
		{"referred", plain, "app.b.example", "HTTP/app.b.example@B.TEST", b, nil,
			[3]rig.Counts{{TGS: 1, Referrals: 1}, {TGS: 1}, {}}, ""},
		{"through B", plain, "app.c.example", "HTTP/app.c.example@C.TEST", c, []string{"B.TEST"},
			[3]rig.Counts{{TGS: 1, Referrals: 1}, {TGS: 1, Referrals: 1}, {TGS: 1}}, ""},
		{"in a circle", plain, "loop.example", "", nil, nil, [3]rig.Counts{}, ""},
		{"to nowhere", plain, "far.example", "", nil, nil, [3]rig.Counts{}, "not found in Kerberos database"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mit := mitClient(t, tc.conf)
			if out, err := mit(password+"\n", "kinit", "svc"); err != nil {
				t.Fatalf("kinit: %v: %s", err, out)
			}
			before := [3]rig.Counts{a.Counts(), b.Counts(), c.Counts()}
			out, err := mit("", "kvno", "-S", "HTTP", tc.host)
			if tc.spn == "" {
				if err == nil || !strings.Contains(out, tc.complaint) {
					t.Errorf("kvno: %v: %s", err, out)
				}
				return
			}
			if err != nil {
				t.Fatalf("kvno: %v: %s", err, out)
			}
			got := tc.in.LastTicket()
			if got.Client != "svc@A.TEST" || got.Server != tc.spn || !slices.Equal(got.Transited, tc.transited) {
				t.Errorf("ticket %+v", got)
			}
			if checked := got.Flags&(1<<(31-12)) != 0; !checked {
				t.Errorf("flags %#x: the service would have to check the way itself", got.Flags)
			}
			for i, k := range []*rig.KDC{a, b, c} {
				after := k.Counts()
				diff := rig.Counts{TGS: after.TGS - before[i].TGS, Referrals: after.Referrals - before[i].Referrals}
				if diff != tc.counts[i] {
					t.Errorf("%s: %+v, want %+v", k.Realm(), diff, tc.counts[i])
				}
			}
			// The way is not open to a name that is no host's.
			if out, err := mit("", "kvno", "HTTP/"+tc.host+"@A.TEST"); err == nil {
				t.Errorf("kvno without the host-based type: %s", out)
			}
		})
	}

	// New keys on one side only: the TGT between the realms does not open.
	mit := mitClient(t, mapped)
	a.Rekey("krbtgt/B.TEST", "")
	if out, err := mit(password+"\n", "kinit", "svc"); err != nil {
		t.Fatalf("kinit: %v: %s", err, out)
	}
	if out, err := mit("", "kvno", "HTTP/app.b.example@B.TEST"); err == nil {
		t.Errorf("kvno after the trust has ended: %s", out)
	}
	a.Trust(b)
	if out, err := mit(password+"\n", "kinit", "svc"); err != nil {
		t.Fatalf("kinit: %v: %s", err, out)
	}
	if out, err := mit("", "kvno", "HTTP/app.b.example@B.TEST"); err != nil {
		t.Errorf("kvno after the new trust: %v: %s", err, out)
	}
}

// MIT's kinit gets and renews tickets with the flags it asks for.
func TestKDCRenews(t *testing.T) {
	rig.Require(t, "kinit", "kvno")
	k := newKDC(t)
	k.AddPrincipal("svc", password)
	k.AddService("HTTP/app.example")
	mit := mitClient(t, k.Krb5Conf())
	const forwardable, proxiable, renewable, initial, preauth = 1 << 30, 1 << 28, 1 << 23, 1 << 22, 1 << 21
	kinit := func(flags uint32, args ...string) rig.Ticket {
		t.Helper()
		if out, err := mit(password+"\n", "kinit", append(args, "svc")...); err != nil {
			t.Fatalf("kinit: %v: %s", err, out)
		}
		got := k.LastTicket()
		if got.Flags != flags {
			t.Errorf("kinit %v: flags %#x, want %#x", args, got.Flags, flags)
		}
		return got
	}
	near := func(got, want time.Time) bool { return got.Sub(want).Abs() < time.Minute }

	kinit(initial|preauth, "-r", "7d") // the KDC renews nothing
	if out, err := mit("", "kinit", "-R"); err == nil {
		t.Errorf("kinit -R of what is not renewable: %s", out)
	}
	k.SetRenewLife(3 * 24 * time.Hour)
	tgt := kinit(initial|preauth|renewable|forwardable|proxiable, "-r", "7d", "-f", "-p", "-l", "1h")
	if !near(tgt.RenewTill, tgt.StartTime.Add(72*time.Hour)) || !near(tgt.EndTime, tgt.StartTime.Add(time.Hour)) {
		t.Errorf("times of %+v", tgt)
	}
	if out, err := mit("", "kvno", "HTTP/app.example"); err != nil {
		t.Fatalf("kvno: %v: %s", err, out)
	}
	if got := k.LastTicket(); got.Flags&^(forwardable|proxiable|renewable) != preauth || got.EndTime.After(tgt.EndTime) || !got.AuthTime.Equal(tgt.AuthTime) {
		t.Errorf("service ticket %+v from %+v", got, tgt)
	}
	k.SetClock(func() time.Time { return time.Now().Add(4 * time.Minute) })
	if out, err := mit("", "kinit", "-R"); err != nil {
		t.Fatalf("kinit -R: %v: %s", err, out)
	}
	got := k.LastTicket()
	if got.Flags != tgt.Flags || !near(got.EndTime, tgt.EndTime.Add(4*time.Minute)) || !near(got.RenewTill, tgt.RenewTill) || !near(got.AuthTime, tgt.AuthTime) {
		t.Errorf("renewed %+v, was %+v", got, tgt)
	}
	if n := k.Counts().Renewed; n != 1 {
		t.Errorf("%d renewed tickets", n)
	}

	// Not beyond renew-till.
	k.SetClock(time.Now)
	kinit(initial|preauth|renewable, "-r", "3m", "-l", "2m")
	k.SetClock(func() time.Time { return time.Now().Add(2 * time.Minute) })
	if out, err := mit("", "kinit", "-R"); err != nil {
		t.Errorf("kinit -R: %v: %s", err, out)
	} else if got := k.LastTicket(); !got.EndTime.Equal(got.RenewTill) {
		t.Errorf("renewed %+v", got)
	}
	k.SetClock(func() time.Time { return time.Now().Add(4 * time.Minute) })
	if out, err := mit("", "kinit", "-R"); err == nil || !strings.Contains(out, "expired") {
		t.Errorf("kinit -R after renew-till: %v: %s", err, out)
	}

	// A longer life than the KDC gives (RENEWABLE-OK, which kinit always says).
	k.SetClock(time.Now)
	if got := kinit(initial|preauth|renewable, "-l", "20h"); !near(got.RenewTill, got.StartTime.Add(20*time.Hour)) {
		t.Errorf("renewable instead of long: %+v", got)
	}
}
