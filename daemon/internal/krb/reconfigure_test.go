package krb_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jcmturner/gokrb5/v8/messages"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// kdcAt returns the lab's krb5.conf with other KDCs, and with more lines in
// [libdefaults] if there are any.
func (l *lab) kdcAt(more string, addrs ...string) *krb.Config {
	l.t.Helper()
	text := strings.Replace(l.kdc.Krb5Conf(), "[libdefaults]\n", "[libdefaults]\n"+more+"\n", 1)
	return l.config(strings.Replace(text, "kdc = "+l.kdc.Addr(), "kdc = "+strings.Join(addrs, "\n kdc = "), 1))
}

// places is a network in which the lab's KDC is where the test says.
type places struct {
	l *lab

	mu     sync.Mutex
	open   map[string]bool // by host:port
	dialed []string
}

func (p *places) dial(ctx context.Context, network, address string) (net.Conn, error) {
	p.mu.Lock()
	p.dialed = append(p.dialed, address)
	open := p.open[address]
	p.mu.Unlock()
	if !open || network != "tcp" {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	return new(net.Dialer).DialContext(ctx, network, p.l.kdc.Addr())
}

// move opens the named places, and closes all others.
func (p *places) move(to ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open, p.dialed = make(map[string]bool), nil
	for _, address := range to {
		p.open[address] = true
	}
}

// asked returns which places were dialled since the last time, in their order.
func (p *places) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := slices.Compact(p.dialed)
	p.dialed = nil
	return asked
}

const before, after = "192.0.2.1:88", "192.0.2.2:88" // RFC 5737

// A realm whose KDC has moved: nothing new from it until krb5.conf says where it
// is. The tickets at hand go on.
func TestReconfigure(t *testing.T) {
	l := newLab(t)
	l.kdc.AddService("HTTP/b.example")
	p := &places{l: l}
	p.move(before)
	l.options.Config, l.options.Dial = l.kdcAt("", before), p.dial
	e, cred := krb.New(l.options), l.credential("svc")
	defer e.Close()
	initiate(t, e, cred, site)

	p.move(after)
	_, err := e.Initiate(t.Context(), cred, "HTTP/b.example", krb.InitiateOptions{})
	wantCode(t, err, api.KDCUnreachable, before)
	e.Reconfigure(l.kdcAt("", after))
	initiate(t, e, cred, "HTTP/b.example")
	initiate(t, e, cred, site)
	l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 2})

	// A file that has the realm no more: what is at hand serves, nothing new comes.
	e.Reconfigure(l.config("[libdefaults]\n default_realm = RIG.TEST\n dns_lookup_kdc = false\n"))
	initiate(t, e, cred, site)
	_, err = e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Fresh: true})
	wantCode(t, err, api.Krb5ConfInvalid, "RIG.TEST")
	e.Reconfigure(l.kdcAt("", after))
	if _, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Fresh: true}); err != nil {
		t.Error(err)
	}
	l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 3})
}

// All of krb5.conf is new after it, not only where KDCs are.
func TestReconfigureOptions(t *testing.T) {
	l := newLab(t)
	e, cred := krb.New(l.options), l.credential("svc")
	defer e.Close()
	initiate(t, e, cred, site)
	lifeOf := func(server string) time.Duration {
		for _, ti := range e.Tickets() {
			if strings.HasPrefix(ti.Server, server) {
				return time.Until(ti.EndTime).Round(time.Minute)
			}
		}
		return 0
	}
	if life := lifeOf(site); life != 10*time.Hour { // the KDC's own limit
		t.Errorf("a ticket for %s", life)
	}
	e.Reconfigure(l.kdcAt(" ticket_lifetime = 1h\n permitted_enctypes = aes128-cts", l.kdc.Addr()))
	_, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Fresh: true})
	if err != nil {
		t.Fatal(err)
	}
	if life := lifeOf(site); life != time.Hour {
		t.Errorf("a ticket for %s after ticket_lifetime was set to an hour", life)
	}
	e.Reconfigure(l.kdcAt(" permitted_enctypes = aes128-sha2", l.kdc.Addr()))
	_, err = e.Initiate(t.Context(), cred, site, krb.InitiateOptions{})
	wantCode(t, err, api.EtypeUnsupported)
	e.Reconfigure(l.config(l.kdc.Krb5Conf() + "[domain_realm]\n app.example = ELSE.TEST\n"))
	_, err = e.Initiate(t.Context(), cred, site, krb.InitiateOptions{})
	wantCode(t, err, api.SPNUnknown, "ELSE.TEST")
}

// What was learnt of a realm's KDCs outlives a krb5.conf that says the same of
// it, whatever it says of other realms, and no other one.
func TestReconfigureForgets(t *testing.T) {
	const third = "192.0.2.3:88"
	l := newLab(t)
	p := &places{l: l}
	p.move(after)
	same := l.kdcAt("", before, after)
	l.options.Config, l.options.Dial = same, p.dial
	e, cred := krb.New(l.options), l.credential("svc")
	defer e.Close()
	want := func(when string, places ...string) {
		t.Helper()
		p.asked()
		if _, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Fresh: true}); err != nil {
			t.Fatal(err)
		}
		if got := p.asked(); !slices.Equal(got, places) {
			t.Errorf("%s: %v are asked, want %v", when, got, places)
		}
	}
	initiate(t, e, cred, site)
	want("known", after)
	e.Reconfigure(same)
	want("the same", after)
	e.Reconfigure(l.kdcAt("", before, after))
	want("read anew", after)
	e.Reconfigure(l.config(strings.Replace(l.kdc.Krb5Conf(), l.kdc.Addr()+"\n", before+"\n kdc = "+after+"\n }\n ELSE.TEST = {\n kdc = "+third+"\n", 1)))
	want("another realm is new", after)
	e.Reconfigure(l.kdcAt(" forwardable = true", before, after))
	want("another option", after)
	e.Reconfigure(l.kdcAt("", before, after, third))
	want("one more KDC", before, after)
	want("known again", after)
	e.Reconfigure(l.kdcAt("", third, before, after))
	want("in another order", third, before, after)
	e.Reconfigure(l.kdcAt("", third))
	e.Reconfigure(l.kdcAt("", third, before, after))
	want("elsewhere for a while", third, before, after)
}

// A TGT that was refused a moment ago is not replaced once more, unless there are
// other KDCs to judge that.
func TestReconfigureAfterRefusedTGT(t *testing.T) {
	l := newLab(t)
	p := &places{l: l}
	p.move(before, after)
	l.options.Config, l.options.Dial = l.kdcAt("", before), p.dial
	e, cred := krb.New(l.options), l.credential("svc")
	defer e.Close()
	fresh := func() error {
		_, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Fresh: true})
		return err
	}
	initiate(t, e, cred, site)
	l.kdc.Rekey("krbtgt/RIG.TEST", "")
	if err := fresh(); err != nil {
		t.Fatal(err)
	}
	l.kdc.Rekey("krbtgt/RIG.TEST", "")
	wantCode(t, fresh(), api.KDCError)
	e.Reconfigure(l.kdcAt("", before))
	wantCode(t, fresh(), api.KDCError)
	e.Reconfigure(l.kdcAt("", after))
	if err := fresh(); err != nil {
		t.Error(err)
	}
	l.counts(rig.Counts{AS: 6, ASTGT: 3, TGS: 3})
}

// Who joins an exchange that began by the krb5.conf before, and fails by it, gets
// a ticket by the new one; who began it gets the failure.
func TestReconfigureUnderWay(t *testing.T) {
	l := newLab(t)
	old := l.kdcAt("", before)
	cred := l.credential("svc")
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		l.kdc.SetClock(func() time.Time { return now })
		release := make(chan struct{})
		l.options.Config, l.options.Now = old, time.Now
		l.options.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != before {
				return new(net.Dialer).DialContext(ctx, network, address)
			}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
		e := krb.New(l.options)
		defer e.Close()
		began, joined := make(chan error, 1), make(chan error, 1)
		start := func(result chan error) {
			go func() {
				_, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{})
				result <- err
			}()
			synctest.Wait() // until it waits for the KDC
		}
		start(began)
		e.Reconfigure(l.config(l.kdc.Krb5Conf()))
		start(joined)
		l.counts(rig.Counts{})
		close(release)
		wantCode(t, <-began, api.KDCUnreachable, before)
		if err := <-joined; err != nil {
			t.Error(err)
		}
	})
	l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 1})
}

// asked is a connection that looks at the requests it carries (RFC 4120, 7.2.2).
type asked struct {
	net.Conn
	look func(etypes []int32)
}

func (c asked) Write(b []byte) (int, error) {
	var as messages.ASReq
	var tgs messages.TGSReq
	if len(b) > 4 && as.Unmarshal(b[4:]) == nil {
		c.look(as.ReqBody.EType)
	} else if len(b) > 4 && tgs.Unmarshal(b[4:]) == nil {
		c.look(tgs.ReqBody.EType)
	} else {
		c.look(nil)
	}
	return c.Conn.Write(b)
}

// Exchanges go on while krb5.conf changes over and over, none fails, and each is
// by one krb5.conf as a whole.
func TestReconfigureUnderLoad(t *testing.T) {
	l := newLab(t)
	const workers, exchanges = 6, 15
	for i := range workers {
		l.kdc.AddPrincipal(fmt.Sprint("w", i), password, rig.AES128SHA1, rig.AES256SHA1)
		l.kdc.AddService(fmt.Sprintf("HTTP/%d.example", i), rig.AES128SHA1, rig.AES256SHA1)
	}
	configs := map[int32]*krb.Config{
		rig.AES128SHA1: l.kdcAt(" permitted_enctypes = aes128-cts", before),
		rig.AES256SHA1: l.kdcAt(" permitted_enctypes = aes256-cts", after),
	}
	var mu sync.Mutex
	seen := make(map[string]int)
	l.options.Config = configs[rig.AES128SHA1]
	l.options.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if network != "tcp" {
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
		c, err := new(net.Dialer).DialContext(ctx, network, l.kdc.Addr())
		if err != nil {
			return nil, err
		}
		return asked{c, func(etypes []int32) {
			mu.Lock()
			defer mu.Unlock()
			seen[fmt.Sprint(address, etypes)]++
		}}, nil
	}
	e := krb.New(l.options)
	defer e.Close()
	var creds []krb.Credential
	for i := range workers {
		creds = append(creds, l.credential(fmt.Sprint("w", i)))
	}
	var working sync.WaitGroup
	done := make(chan struct{})
	for i := range workers {
		working.Go(func() {
			for range exchanges {
				_, err := e.Initiate(t.Context(), creds[i], fmt.Sprintf("HTTP/%d.example", i), krb.InitiateOptions{Fresh: true})
				if err != nil {
					t.Error(err)
				}
				if err := e.Ready(t.Context(), creds[i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() {
		working.Wait()
		close(done)
	}()
	changes := 0
	for running := true; running; changes++ {
		for _, c := range configs {
			e.Reconfigure(c)
		}
		select {
		case <-done:
			running = false
		default:
		}
	}
	good := []string{fmt.Sprint(before, []int32{rig.AES128SHA1}), fmt.Sprint(after, []int32{rig.AES256SHA1})}
	for what, n := range seen {
		if !slices.Contains(good, what) {
			t.Errorf("%d requests of two configurations: %s", n, what)
		}
	}
	for _, what := range good {
		if seen[what] == 0 {
			t.Errorf("no request %s: %v, %d changes", what, seen, changes)
		}
	}
}
