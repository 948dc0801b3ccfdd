package rig_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

func startDNSMasq(t *testing.T, lines ...string) *rig.DNSMasq {
	t.Helper()
	rig.Require(t, "dnsmasq")
	d, err := rig.StartDNSMasq(t.Context(), t.TempDir(), lines...)
	must(t, err)
	t.Cleanup(d.Stop)
	return d
}

func TestDNSMasq(t *testing.T) {
	d := startDNSMasq(t,
		"srv-host=_kerberos._tcp.RIG.TEST,last.rig.test,90,20,100",
		"srv-host=_kerberos._tcp.RIG.TEST,first.rig.test,88,0,100",
		"srv-host=_kerberos._tcp.RIG.TEST,second.rig.test,89,10,100",
		"srv-host=_kerberos._udp.RIG.TEST", // no target: not offered (RFC 2782)
		"host-record=web.rig.test,127.0.0.1,::1",
		"cname=www.rig.test,web.rig.test",
	)
	r, ctx := d.Resolver(), t.Context()

	_, records, err := r.LookupSRV(ctx, "kerberos", "tcp", "RIG.TEST.")
	must(t, err)
	var targets []string
	for _, srv := range records {
		targets = append(targets, fmt.Sprintf("%s:%d", srv.Target, srv.Port))
	}
	if want := []string{"first.rig.test.:88", "second.rig.test.:89", "last.rig.test.:90"}; !slices.Equal(targets, want) {
		t.Errorf("SRV records %q, want %q", targets, want)
	}
	if _, records, err := r.LookupSRV(ctx, "kerberos", "udp", "RIG.TEST."); err != nil || len(records) != 1 || records[0].Target != "." {
		t.Errorf("SRV record without a target: %v, %v", records, err)
	}

	for host, want := range map[string]string{
		"www.rig.test.": "web.rig.test.",
		"web.rig.test.": "web.rig.test.",
	} {
		if got, err := r.LookupCNAME(ctx, host); err != nil || got != want {
			t.Errorf("canonical name of %s: %q, %v", host, got, err)
		}
	}
	addrs, err := r.LookupHost(ctx, "www.rig.test.")
	slices.Sort(addrs)
	if err != nil || !slices.Equal(addrs, []string{"127.0.0.1", "::1"}) {
		t.Errorf("addresses %q, %v", addrs, err)
	}

	_, _, unknownSRV := r.LookupSRV(ctx, "kerberos", "tcp", "OTHER.TEST.")
	_, unknownHost := r.LookupHost(ctx, "other.test.")
	for what, err := range map[string]error{"SRV": unknownSRV, "host": unknownHost} {
		if e, ok := errors.AsType[*net.DNSError](err); !ok || !e.IsNotFound {
			t.Errorf("unknown %s: %v", what, err)
		}
	}

	d.Stop()
	d.Stop()
	_, _, err = r.LookupSRV(ctx, "kerberos", "tcp", "RIG.TEST.")
	if e, ok := errors.AsType[*net.DNSError](err); !ok || e.IsNotFound {
		t.Errorf("after Stop: %v", err)
	}
}

// An answer that is too long for UDP comes by TCP, on the same port.
func TestDNSMasqTCP(t *testing.T) {
	var lines []string
	for _, c := range "abcdefghijklmnopqrstuvwxyz" {
		lines = append(lines, "srv-host=_kerberos._tcp.RIG.TEST,"+strings.Repeat(string(c), 60)+".rig.test,88,0,100")
	}
	d := startDNSMasq(t, lines...)
	networks := make(map[string]bool)
	r := d.Resolver()
	dial := r.Dial
	r.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		networks[network] = true
		return dial(ctx, network, address)
	}
	_, records, err := r.LookupSRV(t.Context(), "kerberos", "tcp", "RIG.TEST.")
	if err != nil || len(records) != len(lines) || !networks["udp"] || !networks["tcp"] {
		t.Errorf("%d of %d records by %v: %v", len(records), len(lines), networks, err)
	}
}

func TestDNSMasqErrors(t *testing.T) {
	rig.Require(t, "dnsmasq")
	if _, err := rig.StartDNSMasq(t.Context(), t.TempDir(), "no-such-option"); err == nil || !strings.Contains(err.Error(), "no-such-option") && !strings.Contains(err.Error(), "bad option") {
		t.Errorf("unknown option: %v", err)
	}
	if _, err := rig.StartDNSMasq(t.Context(), t.TempDir(), "# x\nport=1"); err == nil || !strings.HasPrefix(err.Error(), "line break") {
		t.Errorf("two lines in one: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := rig.StartDNSMasq(t.Context(), file); err == nil {
		t.Error("started below a file")
	}
}
