package rig_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

func newDNS(t *testing.T) *rig.DNS {
	t.Helper()
	d, err := rig.NewDNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func TestDNS(t *testing.T) {
	d := newDNS(t)
	d.SRV("_kerberos._udp.A.TEST", 20, 0, "kdc2.a.test", 88)
	d.SRV("_kerberos._udp.A.TEST", 10, 0, "kdc1.a.test.", 8888)
	d.SRV("_kerberos._tcp.none.test", 0, 0, ".", 0)
	d.Host("kdc1.a.test", netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"))
	d.Host("v6.a.test", netip.MustParseAddr("2001:db8::2"))
	d.CNAME("www.a.test", "web.a.test")
	d.CNAME("web.a.test", "kdc1.a.test")
	d.CNAME("loop.a.test", "loop.a.test")
	r, ctx := d.Resolver(), t.Context()

	_, srvs, err := r.LookupSRV(ctx, "kerberos", "udp", "a.test")
	if err != nil || len(srvs) != 2 || *srvs[0] != (net.SRV{Target: "kdc1.a.test.", Port: 8888, Priority: 10}) || srvs[1].Target != "kdc2.a.test." {
		t.Errorf("SRV: %v, %v", srvs, err)
	}
	if _, srvs, err := r.LookupSRV(ctx, "kerberos", "tcp", "none.test"); err != nil || len(srvs) != 1 || srvs[0].Target != "." {
		t.Errorf("SRV of a service that is not there: %v, %v", srvs, err)
	}
	if addrs, err := r.LookupHost(ctx, "KDC1.a.test"); err != nil || !slices.Contains(addrs, "192.0.2.1") || !slices.Contains(addrs, "2001:db8::1") {
		t.Errorf("host: %v, %v", addrs, err)
	}
	if addrs, err := r.LookupHost(ctx, "v6.a.test"); err != nil || !slices.Equal(addrs, []string{"2001:db8::2"}) {
		t.Errorf("host with AAAA alone: %v, %v", addrs, err)
	}
	if name, err := r.LookupCNAME(ctx, "web.a.test"); err != nil || name != "kdc1.a.test." {
		t.Errorf("CNAME: %q, %v", name, err)
	}
	// Of a chain Go names the first target or the last, by chance.
	if addrs, err := r.LookupHost(ctx, "www.a.test"); err != nil || !slices.Contains(addrs, "192.0.2.1") {
		t.Errorf("CNAME of a CNAME: %v, %v", addrs, err)
	}
	if addrs, err := r.LookupHost(ctx, "loop.a.test."); err == nil {
		t.Errorf("CNAME of itself: %q", addrs)
	}
	notFound := func(err error) bool {
		e, ok := errors.AsType[*net.DNSError](err)
		return ok && e.IsNotFound
	}
	if _, err := r.LookupHost(ctx, "none.test."); !notFound(err) {
		t.Errorf("unknown host: %v", err)
	}
	d.Remove("v6.a.test")
	if _, err := r.LookupHost(ctx, "v6.a.test."); !notFound(err) {
		t.Errorf("forgotten host: %v", err)
	}
	if asked := d.Queries(); asked[0] != "SRV _kerberos._udp.a.test." || !slices.Contains(asked, "AAAA v6.a.test.") {
		t.Errorf("queries %q", asked)
	}

	// What is too large for UDP comes over TCP.
	for i := range 100 {
		d.SRV("_kerberos._udp.large.test", 0, 0, fmt.Sprintf("kdc%d.a-long-name-of-a-host.large.test", i), 88)
	}
	if _, srvs, err := r.LookupSRV(ctx, "kerberos", "udp", "large.test"); err != nil || len(srvs) != 100 {
		t.Errorf("many SRV: %d, %v", len(srvs), err)
	}
}

func TestDNSSilent(t *testing.T) {
	d := newDNS(t)
	d.Host("a.test", netip.MustParseAddr("192.0.2.1"))
	d.SetSilent(true)
	conn, err := net.Dial("udp", d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	query := []byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01")
	if _, err := conn.Write(query); err != nil {
		t.Fatal(err)
	}
	for len(d.Queries()) == 0 {
		if t.Context().Err() != nil {
			t.Fatal("the query never arrived")
		}
		runtime.Gosched()
	}
	d.SetSilent(false)
	query[1] = 2 // its number
	if _, err := conn.Write(query); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 512)
	if n, err := conn.Read(reply); err != nil || n < 12 || reply[1] != 2 {
		t.Errorf("the first answer is %x, %v; want that to the second query", reply[:n], err)
	}
	d.Close()
	if _, err := d.Resolver().LookupHost(t.Context(), "a.test."); err == nil || strings.Contains(err.Error(), "no such host") {
		t.Errorf("after its end: %v", err)
	}
}

func FuzzDNS(f *testing.F) {
	d, err := rig.NewDNS()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(d.Close)
	d.CNAME("a.test", "a.test")
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01"))
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, query []byte) {
		conn, err := net.Dial("tcp", d.Addr())
		if err != nil {
			t.Fatalf("the server is gone: %v", err)
		}
		defer conn.Close()
		if len(query) > 1<<16-1 {
			return
		}
		message := append([]byte{byte(len(query) >> 8), byte(len(query))}, query...)
		if _, err := conn.Write(message); err != nil {
			t.Fatal(err)
		}
		conn.(*net.TCPConn).CloseWrite()
		reply := make([]byte, 2)
		if n, err := conn.Read(reply); err == nil && n == 2 && int(reply[0])<<8|int(reply[1]) < 12 {
			t.Errorf("a reply of %x bytes has no header", reply)
		}
	})
}
