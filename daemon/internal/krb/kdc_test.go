package krb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// fakeKDC answers the nth message of a connection or socket, counted from 0;
// nil hangs up. The context ends with the connection.
type fakeKDC func(ctx context.Context, n int) []byte

func silent(ctx context.Context, _ int) []byte {
	<-ctx.Done()
	return nil
}

func hangUp(context.Context, int) []byte { return nil }

func after(d time.Duration, b []byte) fakeKDC {
	return func(ctx context.Context, _ int) []byte {
		select {
		case <-time.After(d):
			return b
		case <-ctx.Done():
			return nil
		}
	}
}

// addressOf is the address of a fake host, whose name is in it.
func addressOf(host string) netip.Addr {
	b := [16]byte{0x20, 0x01, 0x0d, 0xb8} // RFC 3849
	copy(b[4:], strings.TrimSuffix(host, "."))
	return netip.AddrFrom16(b)
}

// hostAt is who has an address of addressOf.
func hostAt(address string) string {
	b := netip.MustParseAddr(address).As16()
	return string(bytes.TrimRight(b[4:], "\x00"))
}

// bare leaves out the addresses of named KDCs.
func bare(text string) string {
	return regexp.MustCompile(`, [0-9a-f:.]+\)`).ReplaceAllString(text, ")")
}

// fakeNetwork has a KDC behind each key "udp host" or "tcp host". Other ports
// are closed, and "dark" hosts are not there at all.
type fakeNetwork struct {
	kdcs  map[string]fakeKDC
	start time.Time

	mu  sync.Mutex
	got []string // messages, as "150ms udp host"
}

// reset begins a new record of messages.
func (f *fakeNetwork) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.start, f.got = time.Now(), nil
}

func (f *fakeNetwork) log() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.got, ", ")
}

func (f *fakeNetwork) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port != "88" {
		return nil, fmt.Errorf("address %s: %w", address, err)
	}
	host = hostAt(host)
	key := network + " " + host
	kdc := f.kdcs[key]
	if kdc == nil && strings.HasPrefix(host, "dark") && network == "tcp" {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
	}
	if kdc == nil && network == "tcp" {
		return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	client, server := net.Pipe()
	if kdc == nil && !strings.HasPrefix(host, "dark") {
		go io.Copy(io.Discard, server)
		return closedPort{client}, nil
	}
	life, cancel := context.WithCancel(context.Background())
	go func() {
		defer server.Close()
		defer cancel()
		for n := 0; ; n++ {
			if !f.receive(server, network) {
				return
			}
			f.mu.Lock()
			f.got = append(f.got, time.Since(f.start).Round(time.Millisecond).String()+" "+key)
			f.mu.Unlock()
			if kdc == nil {
				continue
			}
			go func() {
				b := kdc(life, n)
				switch {
				case b == nil:
					server.Close()
				case network == "tcp":
					server.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
				default:
					server.Write(b)
				}
			}()
		}
	}()
	return client, nil
}

// receive takes one message.
func (f *fakeNetwork) receive(conn net.Conn, network string) bool {
	if network == "udp" {
		_, err := conn.Read(make([]byte, maxDatagram))
		return err == nil
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return false
	}
	_, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(size[:])))
	return err == nil
}

// closedPort is a socket whose datagrams come back as ICMP port unreachable.
type closedPort struct{ net.Conn }

func (closedPort) Read([]byte) (int, error) {
	return 0, &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNREFUSED)}
}

// fakeResolver is a DNS of SRV records, by protocol. All fake hosts have an
// address.
type fakeResolver func(ctx context.Context, proto, name string) ([]*net.SRV, error)

func (f fakeResolver) LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error) {
	if service != "kerberos" {
		return "", nil, errors.New("service " + service)
	}
	srvs, err := f(ctx, proto, name)
	return "", srvs, err
}

func (f fakeResolver) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	if network != "ip" {
		return nil, errors.New("network " + network)
	}
	return []netip.Addr{addressOf(host)}, nil
}

func (f fakeResolver) LookupCNAME(context.Context, string) (string, error) {
	return "", errors.New("asked for a CNAME")
}

func noDNS(context.Context, string, string) ([]*net.SRV, error) {
	return nil, errors.New("DNS was asked")
}

// testConfig has these KDCs of the realm R.
func testConfig(t testing.TB, libdefaults string, kdcs ...string) *Config {
	t.Helper()
	conf := "[libdefaults]\n" + libdefaults + "\n"
	if len(kdcs) > 0 {
		conf += "[realms]\nR = {\nkdc = " + strings.Join(kdcs, "\nkdc = ") + "\n}\n"
	}
	path := filepath.Join(t.TempDir(), "krb5.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// exchangeTime is how long the tests let an exchange take.
const exchangeTime = 10 * time.Second

func TestExchange(t *testing.T) {
	one, two, three := refusing(t, 1), refusing(t, 2), refusing(t, 3)
	now := func(b []byte) fakeKDC { return after(0, b) }
	tooBig, unavailable := now(refusing(t, 52)), now(refusing(t, 29))
	all := func(a, b, c fakeKDC) map[string]fakeKDC {
		return map[string]fakeKDC{"udp a": a, "udp b": b, "udp c": c, "tcp a": a, "tcp b": b, "tcp c": c}
	}
	var datagrams atomic.Int32
	lost := func(ctx context.Context, n int) []byte { // the first two
		if datagrams.Add(1) <= 2 {
			return silent(ctx, n)
		}
		return one
	}
	large := make([]byte, 1466)
	for _, c := range []struct {
		name    string
		kdcs    map[string]fakeKDC
		hosts   string // of krb5.conf; "": a b c
		message []byte
		attempt bool
		want    int32 // KRB-ERROR code, 0: an error
		took    time.Duration
		got     string // the messages
		text    string // of the error
	}{
		{name: "the first answers in time", kdcs: all(after(99*time.Millisecond, one), now(two), now(three)), want: 1, took: 99 * time.Millisecond, got: "0s udp a"},
		{name: "the first is slow", kdcs: all(after(150*time.Millisecond, one), after(time.Second, two), silent), want: 1, took: 150 * time.Millisecond, got: "0s udp a, 100ms udp b"},
		{name: "one is silent", kdcs: all(silent, now(two), now(three)), want: 2, took: 100 * time.Millisecond, got: "0s udp a, 100ms udp b"},
		{name: "two are silent", kdcs: all(silent, silent, now(three)), want: 3, took: 200 * time.Millisecond, got: "0s udp a, 100ms udp b, 200ms udp c"},
		{name: "the first has no open port", kdcs: map[string]fakeKDC{"udp b": now(two), "tcp b": now(two)}, want: 2, got: "0s udp b"},
		{name: "only TCP is open", kdcs: map[string]fakeKDC{"tcp a": now(one), "tcp b": now(two), "udp b": now(two)}, want: 1, got: "0s tcp a"},
		{name: "datagrams are dropped", hosts: "dark1 dark2 dark3 dark4 dark5", kdcs: map[string]fakeKDC{"tcp dark1": now(one)}, want: 1, took: 300 * time.Millisecond,
			got: "0s udp dark1, 100ms udp dark2, 200ms udp dark3, 300ms tcp dark1"},
		{name: "the first hangs up", kdcs: all(hangUp, now(two), silent), message: large, want: 2, got: "0s tcp a, 0s tcp b"},
		{name: "the first is out of service", kdcs: all(unavailable, now(two), silent), want: 2, got: "0s udp a, 0s udp b"},
		{name: "the first fails late", kdcs: all(after(50*time.Millisecond, []byte("babble")), silent, now(three)), want: 3, took: 150 * time.Millisecond, got: "0s udp a, 50ms udp b, 150ms udp c"},
		{name: "the first babbles", kdcs: all(now([]byte("HTTP/1.1")), now(two), silent), want: 2, got: "0s udp a, 0s udp b"},
		{name: "an empty answer", kdcs: all(now([]byte{}), now(two), silent), message: large, want: 2, got: "0s tcp a, 0s tcp b"},
		{name: "a large message", kdcs: all(now(one), now(two), silent), message: large, want: 1, got: "0s tcp a"},
		{name: "just small enough", kdcs: all(now(one), now(two), silent), message: large[1:], want: 1, got: "0s udp a"},
		{name: "a large message, only UDP is open", kdcs: map[string]fakeKDC{"udp a": now(one)}, message: large, want: 1, got: "0s udp a"},
		{name: "too big for a datagram", kdcs: map[string]fakeKDC{"udp a": tooBig, "tcp a": after(50*time.Millisecond, one), "udp b": now(two)}, want: 1, took: 50 * time.Millisecond, got: "0s udp a, 0s tcp a"},
		{name: "too big, and TCP is closed", kdcs: map[string]fakeKDC{"udp a": tooBig, "udp b": now(two)}, want: 2, got: "0s udp a, 0s udp b"},
		{name: "too big for TCP", kdcs: all(tooBig, now(two), silent), want: 2, got: "0s udp a, 0s tcp a, 0s udp b"},
		{name: "datagrams are lost", hosts: "dark", kdcs: map[string]fakeKDC{"udp dark": lost}, want: 1, took: 1500 * time.Millisecond, got: "0s udp dark, 500ms udp dark, 1.5s udp dark"},
		{name: "all silent", kdcs: all(silent, silent, silent), message: large, took: exchangeTime,
			got:  "0s tcp a, 100ms tcp b, 200ms tcp c, 300ms udp a, 400ms udp b, 500ms udp c, 800ms udp a, 900ms udp b, 1s udp c, 1.8s udp a, 1.9s udp b, 2s udp c",
			text: "no KDC of R answers: a:88 (tcp): no answer in time; b:88 (tcp): no answer in time; c:88 (tcp): no answer in time; a:88 (udp): no answer in time; b:88 (udp): no answer in time; c:88 (udp): no answer in time"},
		{name: "nobody there", kdcs: map[string]fakeKDC{}, text: "no KDC of R answers: a:88 (udp): connection refused; a:88 (tcp): connection refused; b:88 (udp): connection refused; b:88 (tcp): connection refused; c:88 (udp): connection refused; c:88 (tcp): connection refused"},
		{name: "each in its own way", kdcs: map[string]fakeKDC{"udp a": now([]byte("HTTP")), "tcp a": now(make([]byte, maxReply+1)), "udp b": unavailable, "udp dark": silent}, hosts: "a b dark", took: exchangeTime,
			got:  "0s udp a, 0s udp b, 0s udp dark, 100ms tcp a, 500ms udp dark, 1.5s udp dark",
			text: "no KDC of R answers: a:88 (udp): its answer is no Kerberos message; b:88 (udp): it says that its service is unavailable; dark:88 (udp): no answer in time; a:88 (tcp): announces an answer of 262145 bytes, more than 262144; dark:88 (tcp): no connection in time"},

		// Pre-authentication is not spread.
		{name: "attempt", kdcs: all(after(time.Second, one), now(two), now(three)), attempt: true, want: 1, took: time.Second, got: "0s tcp a"},
		{name: "attempt, the first is silent", kdcs: all(silent, now(two), now(three)), attempt: true, took: exchangeTime, got: "0s tcp a", text: "a:88 (tcp): no answer in time"},
		{name: "attempt, the first hangs up", kdcs: all(hangUp, now(two), now(three)), attempt: true, got: "0s tcp a", text: "a:88 (tcp): the connection broke before an answer"},
		{name: "attempt, the first babbles", kdcs: all(now([]byte("HTTP/1.1")), now(two), now(three)), attempt: true, got: "0s tcp a", text: "a:88 (tcp): its answer is no Kerberos message"},
		{name: "attempt, the first refuses connections", kdcs: map[string]fakeKDC{"tcp b": after(time.Second, two), "udp b": now(two), "tcp c": now(three)}, attempt: true, want: 2, took: time.Second, got: "0s tcp b"},
		{name: "attempt, the first cannot be dialled", hosts: "dark b", kdcs: map[string]fakeKDC{"udp dark": hangUp, "tcp b": now(two)}, attempt: true, want: 2, took: dialTime, got: "2s tcp b"},
		{name: "attempt, none can be dialled", hosts: "dark1 dark2", kdcs: map[string]fakeKDC{"udp dark1": now(one), "udp dark2": now(two)}, attempt: true, want: 1, took: 2 * dialTime, got: "4s udp dark1"},
		{name: "attempt, the first is out of service", kdcs: all(unavailable, now(two), silent), attempt: true, want: 2, got: "0s tcp a, 0s tcp b"},
		{name: "attempt, only UDP is open", kdcs: map[string]fakeKDC{"udp b": now(two)}, attempt: true, want: 2, got: "0s udp b"},
		{name: "attempt, a datagram is sent once", kdcs: map[string]fakeKDC{"udp a": silent, "udp b": now(two)}, attempt: true, took: exchangeTime, got: "0s udp a", text: "a:88 (tcp): connection refused; a:88 (udp): no answer in time"},
		{name: "attempt, too big for a datagram", kdcs: map[string]fakeKDC{"udp a": tooBig, "udp b": now(two), "tcp b": now(two)}, attempt: true, got: "0s udp a", text: "a:88 (udp): its answer does not fit into a datagram"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.hosts == "" {
				c.hosts = "a b c"
			}
			config := testConfig(t, "", strings.Fields(c.hosts)...)
			synctest.Test(t, func(t *testing.T) {
				f := &fakeNetwork{kdcs: c.kdcs, start: time.Now()}
				k := newRealmKDCs("R", config, fakeResolver(noDNS), f.dial, time.Now)
				ctx, cancel := context.WithTimeout(t.Context(), exchangeTime)
				defer cancel()
				if c.message == nil {
					c.message = []byte("message")
				}
				r, err := k.exchange(ctx, c.message, c.attempt)
				if took := time.Since(f.start); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
				synctest.Wait()
				if got := f.log(); got != c.got {
					t.Errorf("messages %q, want %q", got, c.got)
				}
				if c.want == 0 {
					if api.CodeOf(err) != api.KDCUnreachable || !strings.Contains(bare(err.Error()), c.text) {
						t.Errorf("error %v, want %q", err, c.text)
					}
					if errors.Is(err, errDelivered) != (c.attempt && c.got != "") {
						t.Errorf("delivered: %v", err)
					}
					return
				}
				if err != nil || r.refusal == nil || r.refusal.ErrorCode != c.want {
					t.Fatalf("answer %+v, %v; want of KDC %d", r, err, c.want)
				}
				// The next message goes to the one that answered.
				f.reset()
				again, err := k.exchange(ctx, []byte("message"), true)
				if err != nil || again.refusal.ErrorCode != c.want {
					t.Errorf("second answer %+v, %v", again, err)
				}
				synctest.Wait()
				if got := f.log(); strings.Contains(got, ",") {
					t.Errorf("messages %q, want one", got)
				}
			})
		})
	}
}

// The KDC that answered last is asked first, those that did not answer last.
func TestExchangeMemory(t *testing.T) {
	config := testConfig(t, "", "a", "b", "c")
	synctest.Test(t, func(t *testing.T) {
		one := after(0, refusing(t, 1))
		f := &fakeNetwork{kdcs: make(map[string]fakeKDC)}
		k := newRealmKDCs("R", config, fakeResolver(noDNS), f.dial, time.Now)
		ask := func(size int, attempt bool, want string) {
			t.Helper()
			f.reset()
			if _, err := k.exchange(t.Context(), make([]byte, size), attempt); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := f.log(); got != want {
				t.Errorf("messages %q, want %q", got, want)
			}
		}
		set := func(kdc fakeKDC, keys ...string) {
			for _, key := range keys {
				f.kdcs[key] = kdc
			}
		}
		set(silent, "udp a", "tcp a")
		set(one, "udp b", "tcp b", "udp c", "tcp c")
		ask(10, false, "0s udp a, 100ms udp b")
		ask(10, false, "0s udp b")
		ask(2000, false, "0s tcp b") // the same KDC
		ask(10, true, "0s tcp b")
		ask(10, false, "0s tcp b") // TCP will do
		set(silent, "udp b", "tcp b")
		ask(10, false, "0s tcp b, 100ms udp c") // udp a is bad, and b is waited for
		ask(10, false, "0s udp c")
		<-time.After(badTime - 400*time.Millisecond)
		set(hangUp, "udp c", "tcp c")
		set(one, "udp a", "tcp a", "udp b", "tcp b")
		ask(10, false, "0s udp c, 0s udp b") // udp a still is
		<-time.After(badTime)
		set(hangUp, "udp b")
		ask(10, false, "0s udp b, 0s udp a")
		if len(k.bad) != 1 {
			t.Errorf("bad: %v, want what failed now", k.bad)
		}
		set(hangUp, "udp a", "tcp a", "udp b", "tcp b")
		set(one, "tcp c")
		ask(10, false, "0s udp a, 0s udp c, 0s tcp a, 0s tcp b, 0s tcp c")
		// All are bad: in the order of krb5.conf again, the good one first when
		// nobody is bad any more.
		set(silent, "tcp c")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := k.exchange(ctx, nil, true); !errors.Is(err, errDelivered) {
			t.Errorf("error %v", err)
		}
		set(one, "udp b")
		ask(10, false, "0s udp a, 0s udp b")
		ask(10, false, "0s udp b") // it is no longer bad
	})
}

// An answer too big for a datagram speaks for a KDC, and who failed before the
// clock was set back is asked again.
func TestExchangeMemoryOfGood(t *testing.T) {
	config := testConfig(t, "", "a", "b")
	synctest.Test(t, func(t *testing.T) {
		one := after(0, refusing(t, 1))
		f := &fakeNetwork{kdcs: map[string]fakeKDC{"udp a": after(0, refusing(t, 52)), "tcp a": one, "udp b": one}}
		var set time.Duration
		k := newRealmKDCs("R", config, fakeResolver(noDNS), f.dial, func() time.Time { return time.Now().Add(set) })
		ask := func(want string) {
			t.Helper()
			f.reset()
			if _, err := k.exchange(t.Context(), []byte("message"), false); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := f.log(); got != want {
				t.Errorf("messages %q, want %q", got, want)
			}
		}
		ask("0s udp a, 0s tcp a")
		f.kdcs["tcp a"], f.kdcs["udp a"] = hangUp, one
		ask("0s tcp a, 0s udp a")
		f.kdcs["udp a"] = hangUp
		ask("0s udp a, 0s udp b")
		f.kdcs["udp a"], f.kdcs["udp b"], f.kdcs["tcp b"] = one, hangUp, one
		set = -time.Hour
		ask("0s udp b, 0s udp a")
	})
}

// Two of three KDCs are silent.
func TestSilentKDCs(t *testing.T) {
	config := testConfig(t, "", "a", "b", "c")
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNetwork{kdcs: map[string]fakeKDC{"tcp a": silent, "udp b": silent, "tcp b": silent, "udp a": silent,
			"udp c": after(time.Millisecond, refusing(t, 1)), "tcp c": after(time.Millisecond, refusing(t, 1))}}
		k := newRealmKDCs("R", config, fakeResolver(noDNS), f.dial, time.Now)
		for n := range 5 {
			start := time.Now()
			if _, err := k.exchange(t.Context(), []byte("message"), false); err != nil {
				t.Fatal(err)
			}
			want := time.Millisecond
			if n == 0 {
				want += 2 * hedge
			}
			if took := time.Since(start); took != want {
				t.Errorf("exchange %d took %s, want %s", n, took, want)
			}
		}
	})
}

// Two of three real KDCs are silent, by the clock on the wall.
func TestSilentKDCsForReal(t *testing.T) {
	request := asRequest(t)
	for name, shut := range map[string]func(*rig.KDC) error{
		"UDP and TCP": func(*rig.KDC) error { return nil },
		"TCP alone":   func(k *rig.KDC) error { return k.SetUDP(rig.Refusing) },
		"UDP alone":   func(k *rig.KDC) error { return k.SetTCP(rig.Refusing) },
		"UDP dropped": func(k *rig.KDC) error { return k.SetUDP(rig.Silent) },
	} {
		t.Run(name, func(t *testing.T) {
			var addrs []string
			for n := range 3 {
				kdc, err := rig.NewKDC("R")
				if err != nil {
					t.Fatal(err)
				}
				defer kdc.Close()
				mode := rig.Silent
				if n == 2 {
					mode = rig.Answering
				}
				if err := errors.Join(kdc.SetMode(mode), shut(kdc)); err != nil {
					t.Fatal(err)
				}
				addrs = append(addrs, kdc.Addr())
			}
			k := newRealmKDCs("R", testConfig(t, "", addrs...), fakeResolver(noDNS), new(net.Dialer).DialContext, time.Now)
			var times []time.Duration
			for range 102 {
				start := time.Now()
				if _, err := k.exchange(t.Context(), request, false); err != nil {
					t.Fatal(err)
				}
				times = append(times, time.Since(start))
			}
			first, rest := times[0], times[1:]
			slices.Sort(rest)
			t.Logf("first %s, then %s, at most %s", first, rest[len(rest)/2], rest[len(rest)-1])
			// Datagrams that vanish in a firewall, of all KDCs, are beyond what
			// is promised.
			if name != "UDP dropped" && first > 500*time.Millisecond || rest[len(rest)/2] > 20*time.Millisecond {
				t.Error("too slow")
			}
		})
	}
}

// asRequest is an AS-REQ of somebody unknown.
func asRequest(t testing.TB) []byte {
	t.Helper()
	req := messages.ASReq{KDCReqFields: messages.KDCReqFields{PVNO: iana.PVNO, MsgType: msgtype.KRB_AS_REQ,
		ReqBody: messages.KDCReqBody{
			KDCOptions: types.NewKrbFlags(), Realm: "R", Till: time.Now().Add(time.Hour), Nonce: 1, EType: []int32{18},
			CName: types.NewPrincipalName(nametype.KRB_NT_PRINCIPAL, "nobody"),
			SName: types.NewPrincipalName(nametype.KRB_NT_SRV_INST, "krbtgt/R"),
		}}}
	b, err := req.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An exchange ends with its context, whatever it waits for.
func TestExchangeContext(t *testing.T) {
	hosts, none := testConfig(t, "", "dark"), testConfig(t, "")
	for name, c := range map[string]struct {
		config  *Config
		kdcs    map[string]fakeKDC
		size    int
		attempt bool
	}{
		"DNS":                   {config: none},
		"connection":            {config: hosts, size: 2000},
		"connection of attempt": {config: hosts, attempt: true},
		"TCP":                   {config: hosts, kdcs: map[string]fakeKDC{"tcp dark": silent}, size: 2000},
		"UDP":                   {config: hosts, kdcs: map[string]fakeKDC{"udp dark": silent}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeNetwork{kdcs: c.kdcs, start: time.Now()}
				hangs := fakeResolver(func(ctx context.Context, _, _ string) ([]*net.SRV, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				})
				k := newRealmKDCs("R", c.config, hangs, f.dial, time.Now)
				ctx, cancel := context.WithCancel(t.Context())
				defer time.AfterFunc(50*time.Millisecond, cancel).Stop()
				if _, err := k.exchange(ctx, make([]byte, c.size), c.attempt); api.CodeOf(err) != api.KDCUnreachable {
					t.Errorf("error %v", err)
				}
				if took := time.Since(f.start); took != 50*time.Millisecond {
					t.Errorf("took %s", took)
				}
				// Nobody is bad for the impatience of others.
				if len(k.bad) > 0 {
					t.Errorf("bad: %v", k.bad)
				}
			})
		})
	}
}

// Exchanges at the same time do not disturb each other.
func TestExchangesAtOnce(t *testing.T) {
	config := testConfig(t, "", "a", "b", "c")
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNetwork{kdcs: map[string]fakeKDC{"udp a": silent, "tcp a": hangUp, "udp b": after(0, refusing(t, 52)), "tcp b": after(0, refusing(t, 2))}}
		k := newRealmKDCs("R", config, fakeResolver(noDNS), f.dial, time.Now)
		var group sync.WaitGroup
		for n := range 50 {
			group.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), exchangeTime)
				defer cancel()
				attempt := n%7 == 6
				r, err := k.exchange(ctx, make([]byte, 100*n), attempt)
				if !attempt && (err != nil || r.refusal.ErrorCode != 2) {
					t.Errorf("answer %+v, %v", r, err)
				}
			})
		}
		group.Wait()
	})
}

func TestSRV(t *testing.T) {
	srv := func(targets ...string) (srvs []*net.SRV) {
		for _, target := range targets {
			srvs = append(srvs, &net.SRV{Target: target, Port: 88})
		}
		return srvs
	}
	none := &net.DNSError{Err: "no such host", Name: "name", IsNotFound: true}
	broken := &net.DNSError{Err: "server misbehaving", Name: "name", IsTemporary: true}
	var many []string
	for n := range 30 {
		many = append(many, fmt.Sprintf("k%d.", n))
	}
	dns := testConfig(t, "")
	for _, c := range []struct {
		name             string
		config           *Config
		udp, tcp         []*net.SRV
		udpErr, tcpErr   error
		udpTime, tcpTime time.Duration
		routes           string
		code             api.Code
		text             string
		took             time.Duration
	}{
		{name: "both", udp: srv("a.", "b."), tcp: srv("b.", "a."), routes: "[a:88 (udp) b:88 (udp) b:88 (tcp) a:88 (tcp)]"},
		{name: "UDP alone", udp: srv("a."), tcpErr: none, routes: "[a:88 (udp)]"},
		{name: "TCP alone", udpErr: none, tcp: srv("a.", "a.", "b."), routes: "[a:88 (tcp) b:88 (tcp)]"},
		{name: "not offered over UDP", udp: srv("."), tcp: srv("a."), routes: "[a:88 (tcp)]"},
		{name: "some malformed", udp: srv("a."), udpErr: broken, tcpErr: none, routes: "[a:88 (udp)]"},
		{name: "both at once", udp: srv("a."), udpTime: time.Second, tcp: srv("b."), tcpTime: time.Second, routes: "[a:88 (udp) b:88 (tcp)]", took: time.Second},
		{name: "one hangs", udp: srv("a."), tcp: srv("b."), tcpTime: time.Minute, routes: "[a:88 (udp)]", took: hedge},
		{name: "one fails", udpErr: broken, tcp: srv("b."), routes: "[b:88 (tcp)]"},
		{name: "neither exists", udpErr: none, tcpErr: none, code: api.KDCUnreachable, text: "_kerberos._udp.R: lookup name: no such host; _kerberos._tcp.R: lookup name: no such host"},
		{name: "neither is offered", udp: srv("."), tcp: srv("."), code: api.KDCUnreachable, text: "_kerberos._udp.R: not offered; _kerberos._tcp.R: not offered"},
		{name: "DNS fails", udpErr: broken, tcpErr: broken, code: api.KDCUnreachable, text: "_kerberos._tcp.R: lookup name: server misbehaving"},
		{name: "DNS hangs", udpTime: time.Minute, tcpTime: time.Minute, code: api.KDCUnreachable, text: "_kerberos._udp.R: no answer in time", took: exchangeTime},
		{name: "very many", udp: srv(many...), tcpErr: none, routes: "[k0:88 (udp) k1:88 (udp) k2:88 (udp) k3:88 (udp) k4:88 (udp) k5:88 (udp) k6:88 (udp) k7:88 (udp) k8:88 (udp) k9:88 (udp) k10:88 (udp) k11:88 (udp) k12:88 (udp) k13:88 (udp) k14:88 (udp) k15:88 (udp)]"},
		{name: "krb5.conf has KDCs", config: testConfig(t, "", "a:750"), udp: srv("b."), routes: "[a:750 (udp) a:750 (tcp)]"},
		{name: "DNS is not wanted", config: testConfig(t, "dns_lookup_kdc = false"), udp: srv("b."), code: api.Krb5ConfInvalid, text: "no KDC of the realm R is configured"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				resolver := fakeResolver(func(ctx context.Context, proto, name string) ([]*net.SRV, error) {
					srvs, err, wait := c.udp, c.udpErr, c.udpTime
					if proto == "tcp" {
						srvs, err, wait = c.tcp, c.tcpErr, c.tcpTime
					}
					if name != "R." {
						t.Errorf("asked for %s", name)
					}
					select {
					case <-time.After(wait):
						return srvs, err
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				})
				if c.config == nil {
					c.config = dns
				}
				k := newRealmKDCs("R", c.config, resolver, nil, time.Now)
				ctx, cancel := context.WithTimeout(t.Context(), exchangeTime)
				defer cancel()
				start := time.Now()
				kdcs, err := k.servers(ctx)
				if took := time.Since(start); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
				if api.CodeOf(err) != c.code || err != nil && !strings.Contains(err.Error(), c.text) {
					t.Fatalf("error %v, want %q", err, c.text)
				}
				known, _ := k.resolve(ctx, kdcs)
				if got := bare(fmt.Sprint(k.routes(kdcs, known, 0, false))); err == nil && got != c.routes {
					t.Errorf("routes %s, want %s", got, c.routes)
				}
			})
		})
	}
}

// What DNS said is used for five minutes, and longer while it says nothing.
func TestSRVLife(t *testing.T) {
	config := testConfig(t, "")
	synctest.Test(t, func(t *testing.T) {
		var target string
		asked, both := 0, true
		var err error
		resolver := fakeResolver(func(ctx context.Context, proto, _ string) ([]*net.SRV, error) {
			if proto == "udp" {
				asked++
			}
			if target == "" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			if err != nil && (both || proto == "udp") {
				return nil, err
			}
			return []*net.SRV{{Target: target, Port: 88}}, nil
		})
		k := newRealmKDCs("R", config, resolver, nil, time.Now)
		look := func(wantTarget string, wantAsked int, wantTime time.Duration) {
			t.Helper()
			start := time.Now()
			kdcs, err := k.servers(t.Context())
			took := time.Since(start)
			synctest.Wait() // what came too late
			if err != nil || fmt.Sprint(kdcs["udp"], kdcs["tcp"]) != fmt.Sprintf("[%[1]s:88] [%[1]s:88]", wantTarget) {
				t.Errorf("servers %v, %v; want %s", kdcs, err, wantTarget)
			}
			if asked != wantAsked || took != wantTime {
				t.Errorf("asked %d times, in %s; want %d, %s", asked, took, wantAsked, wantTime)
			}
		}
		target = "a."
		look("a.", 1, 0)
		target = "b."
		<-time.After(dnsLife - time.Second)
		look("a.", 1, 0)
		<-time.After(time.Second)
		look("b.", 2, 0)
		<-time.After(dnsLife)
		target, err = "c.", &net.DNSError{IsNotFound: true}
		look("b.", 3, 0)
		look("b.", 3, 0)
		<-time.After(badTime)
		target = "" // hangs
		look("b.", 4, staleTime)
		look("b.", 4, 0)
		<-time.After(badTime)
		target, err = "c.", nil
		look("c.", 5, 0)
		<-time.After(dnsLife)
		both, err = false, &net.DNSError{IsTimeout: true}
		look("c.", 6, 0)
		<-time.After(badTime) // half of it was no news
		look("c.", 7, 0)
	})
}

// SRV records of a real DNS server, and the KDC that the second one names.
func TestSRVForReal(t *testing.T) {
	rig.Require(t, "dnsmasq")
	kdc, err := rig.NewKDC("R.TEST")
	if err != nil {
		t.Fatal(err)
	}
	defer kdc.Close()
	_, port, err := net.SplitHostPort(kdc.Addr())
	if err != nil {
		t.Fatal(err)
	}
	dns, err := rig.StartDNSMasq(t.Context(), t.TempDir(), "host-record=kdc.r.test,127.0.0.1", "local=/r.test/",
		"srv-host=_kerberos._udp.r.test,kdc.r.test,1,0", "srv-host=_kerberos._udp.r.test,kdc.r.test,"+port+",10",
		"srv-host=_kerberos._tcp.r.test,kdc.r.test,"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Stop()
	dialer := net.Dialer{Resolver: dns.Resolver()}
	k := newRealmKDCs("R.TEST", testConfig(t, ""), dns.Resolver(), dialer.DialContext, time.Now)
	for _, c := range []struct {
		attempt bool
		want    rig.Requests
	}{{false, rig.Requests{UDP: 1}}, {true, rig.Requests{UDP: 1, TCP: 1}}} {
		if _, err := k.exchange(t.Context(), asRequest(t), c.attempt); err != nil {
			t.Fatal(err)
		}
		if got := kdc.Requests(); got != c.want {
			t.Errorf("requests %+v, want %+v", got, c.want)
		}
	}
	if good := k.good.String(); good != "kdc.r.test:"+port+" (tcp, 127.0.0.1)" {
		t.Errorf("good: %s", good)
	}
}

// fakeHosts is a DNS of addresses: each name's are those of fake hosts, or as they
// stand there, in their order, after a time, or there is an error. A negative time
// is never over.
type fakeHosts map[string]fakeHost

type fakeHost struct {
	hosts string
	wait  time.Duration
	err   error
}

func (f fakeHosts) LookupNetIP(ctx context.Context, _, name string) ([]netip.Addr, error) {
	h := f[name]
	var over <-chan time.Time
	if h.wait >= 0 {
		over = time.After(h.wait)
	}
	select {
	case <-over:
	case <-ctx.Done():
		return nil, &net.DNSError{Err: "operation was canceled", Name: name}
	}
	var addrs []netip.Addr
	for _, host := range strings.Fields(h.hosts) {
		addr, err := netip.ParseAddr(host)
		if err != nil {
			addr = addressOf(host)
		}
		addrs = append(addrs, addr)
	}
	return addrs, h.err
}

func (f fakeHosts) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", nil, errors.New("asked for SRV records")
}

func (f fakeHosts) LookupCNAME(context.Context, string) (string, error) {
	return "", errors.New("asked for a CNAME")
}

// Each address of a name is a KDC of its own, and a name that DNS does not resolve
// delays the others by 100 ms at most.
func TestAddresses(t *testing.T) {
	one, two := after(0, refusing(t, 1)), after(0, refusing(t, 2))
	live := func(key string) map[string]fakeKDC { return map[string]fakeKDC{"udp " + key: two, "tcp " + key: two} }
	silentA := map[string]fakeKDC{"udp a": silent, "tcp a": silent, "udp b": two, "tcp b": two}
	gone := &net.DNSError{Err: "no such host", Name: "gone", Server: "192.0.2.53:53", IsNotFound: true}
	broken := &net.DNSError{Err: "server misbehaving", Name: "broken", Server: "192.0.2.53:53", IsTemporary: true}
	names := fakeHosts{"ab": {hosts: "a b"}, "darkb": {hosts: "dark b"}, "bc": {hosts: "b c"}, "b": {hosts: "b"}, "closed": {hosts: "c"},
		"late": {hosts: "a", wait: 250 * time.Millisecond}, "never": {wait: -1}, "gone": {err: gone}, "broken": {err: broken}, "empty": {},
		"mapped": {hosts: "::ffff:192.0.2.1"}} // as getaddrinfo(3) may have it
	large := 2000
	for _, c := range []struct {
		name    string
		names   string // of krb5.conf
		kdcs    map[string]fakeKDC
		size    int
		attempt bool
		want    int32 // KRB-ERROR code, 0: an error
		took    time.Duration
		got     string // the messages
		text    string // of the error
	}{
		{name: "the first is silent over UDP", names: "ab", kdcs: silentA, want: 2, took: hedge, got: "0s udp a, 100ms udp b"},
		{name: "the first is silent over TCP", names: "ab", kdcs: silentA, size: large, want: 2, took: hedge, got: "0s tcp a, 100ms tcp b"},
		{name: "the first cannot be dialled", names: "darkb", kdcs: live("b"), size: large, want: 2, took: hedge, got: "100ms tcp b"},
		{name: "the first has no open port", names: "ab", kdcs: live("b"), want: 2, got: "0s udp b"},
		{name: "attempt, the first cannot be dialled", names: "darkb", kdcs: live("b"), attempt: true, want: 2, took: dialTime, got: "2s tcp b"},
		{name: "attempt, the first has no open port", names: "ab", kdcs: live("b"), attempt: true, want: 2, got: "0s tcp b"},
		{name: "two names of one", names: "ab bc", kdcs: map[string]fakeKDC{"udp c": one}, want: 1, got: "0s udp c"},
		{name: "none answers", names: "ab bc", kdcs: nil, text: "no KDC of R answers: " +
			"ab:88 (udp, 2001:db8:6100::): connection refused; ab:88 (tcp, 2001:db8:6100::): connection refused; " +
			"ab:88 (udp, 2001:db8:6200::): connection refused; ab:88 (tcp, 2001:db8:6200::): connection refused; " +
			"bc:88 (udp, 2001:db8:6300::): connection refused; bc:88 (tcp, 2001:db8:6300::): connection refused ("},

		{name: "IPv4", names: "mapped", text: "mapped:88 (udp, 192.0.2.1): connection refused"},
		{name: "DNS has not the first", names: "gone b", kdcs: live("b"), want: 2, got: "0s udp b"},
		{name: "DNS fails for the first", names: "broken b", kdcs: live("b"), want: 2, got: "0s udp b"},
		{name: "DNS is silent for the first", names: "never b", kdcs: live("b"), want: 2, took: hedge, got: "100ms udp b"},
		{name: "DNS is silent for the second", names: "b never", kdcs: live("b"), want: 2, took: hedge, got: "100ms udp b"},
		{name: "DNS is silent beside an address", names: "never [2001:db8:6200::]", kdcs: live("b"), want: 2, took: hedge, got: "100ms udp b"},
		{name: "attempt, DNS is silent for the first", names: "never b", kdcs: live("b"), attempt: true, want: 2, took: hedge, got: "100ms tcp b"},
		{name: "DNS is late for the only one", names: "late", kdcs: live("a"), want: 2, took: 250 * time.Millisecond, got: "250ms udp a"},
		{name: "DNS is late for the live one", names: "late b", kdcs: map[string]fakeKDC{"udp a": one, "udp b": silent, "tcp b": silent}, want: 1, took: 300 * time.Millisecond, got: "100ms udp b, 300ms udp a"},
		{name: "DNS is late for the one with open ports", names: "closed late", kdcs: live("a"), want: 2, took: 250 * time.Millisecond, got: "250ms udp a"},
		{name: "attempt, DNS is late for the one with open ports", names: "closed late", kdcs: live("a"), attempt: true, want: 2, took: 250 * time.Millisecond, got: "250ms tcp a"},
		{name: "attempt, the first hangs up, DNS is late", names: "late b", kdcs: map[string]fakeKDC{"tcp a": one, "tcp b": hangUp}, attempt: true, took: hedge, got: "100ms tcp b",
			text: "b:88 (tcp, 2001:db8:6200::): the connection broke before an answer"},
		{name: "DNS has none", names: "gone broken empty", text: "broken: not resolved: lookup broken on 192.0.2.53:53: server misbehaving"},
		{name: "DNS has none of that name", names: "gone", text: "no KDC of R answers: gone: not resolved: no such host"},
		{name: "DNS has a name without addresses", names: "empty", text: "no KDC of R answers: empty: not resolved: it has no address"},
		{name: "DNS is silent", names: "never", took: exchangeTime, text: "no KDC of R answers: never: not resolved: no answer in time"},
		{name: "DNS is silent, and so is the KDC", names: "b never", kdcs: map[string]fakeKDC{"tcp b": silent}, attempt: true, took: exchangeTime, got: "100ms tcp b", text: "b:88 (tcp, 2001:db8:6200::): no answer in time"},
		{name: "one refuses, of the other nothing is known", names: "closed never", took: exchangeTime, text: "closed:88 (tcp, 2001:db8:6300::): connection refused; never: not resolved: no answer in time"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := testConfig(t, "", strings.Fields(c.names)...)
			synctest.Test(t, func(t *testing.T) {
				f := &fakeNetwork{kdcs: c.kdcs, start: time.Now()}
				k := newRealmKDCs("R", config, names, f.dial, time.Now)
				ctx, cancel := context.WithTimeout(t.Context(), exchangeTime)
				defer cancel()
				r, err := k.exchange(ctx, make([]byte, c.size), c.attempt)
				if took := time.Since(f.start); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
				synctest.Wait()
				if got := f.log(); got != c.got {
					t.Errorf("messages %q, want %q", got, c.got)
				}
				if c.want == 0 {
					if api.CodeOf(err) != api.KDCUnreachable || !strings.Contains(err.Error(), c.text) {
						t.Errorf("error %v, want %q", err, c.text)
					}
					return
				}
				if err != nil || r.refusal == nil || r.refusal.ErrorCode != c.want {
					t.Fatalf("answer %+v, %v; want of KDC %d", r, err, c.want)
				}
				// What went wrong the first time delays nobody again, not even an
				// attempt, of which there is but one.
				for _, attempt := range []bool{c.attempt, true} {
					f.reset()
					if _, err := k.exchange(ctx, make([]byte, c.size), attempt); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					if got := f.log(); strings.Contains(got, ",") || !strings.HasPrefix(got, "0s ") {
						t.Errorf("then messages %q, want one, at once", got)
					}
				}
			})
		})
	}
}

// countedLooks is a Resolver that counts.
type countedLooks struct {
	Resolver
	n atomic.Int32
}

func (c *countedLooks) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	c.n.Add(1)
	return c.Resolver.LookupNetIP(ctx, network, host)
}

// Addresses are used for a minute, and longer while DNS does not answer.
func TestAddressLife(t *testing.T) {
	config, two := testConfig(t, "", "k"), testConfig(t, "", "never", "k")
	synctest.Test(t, func(t *testing.T) {
		one := after(0, refusing(t, 1))
		f := &fakeNetwork{kdcs: map[string]fakeKDC{"udp a": one, "udp b": one}}
		names := fakeHosts{"k": {hosts: "a"}, "never": {wait: -1}}
		looks := &countedLooks{Resolver: names}
		k := newRealmKDCs("R", config, looks, f.dial, time.Now)
		ask := func(want string) {
			t.Helper()
			f.reset()
			_, err := k.exchange(t.Context(), []byte("message"), false)
			synctest.Wait()
			if got := f.log(); got != want || (err == nil) != (want != "") {
				t.Errorf("messages %q, %v; want %q", got, err, want)
			}
		}
		ask("0s udp a")
		names["k"] = fakeHost{hosts: "b"}
		<-time.After(addressLife - time.Second)
		ask("0s udp a")
		if n := looks.n.Load(); n != 1 {
			t.Errorf("%d looks within a minute", n)
		}
		<-time.After(time.Second)
		ask("0s udp b")
		<-time.After(addressLife)
		names["k"] = fakeHost{wait: -1}
		ask("100ms udp b")
		ask("0s udp b")
		<-time.After(badTime)
		ask("100ms udp b")
		<-time.After(badTime)
		names["k"] = fakeHost{err: &net.DNSError{Err: "server misbehaving", IsTemporary: true}}
		ask("0s udp b")
		names["k"] = fakeHost{hosts: "a"}
		ask("0s udp b")
		<-time.After(badTime)
		ask("0s udp a")
		<-time.After(addressLife)
		names["k"] = fakeHost{err: &net.DNSError{Err: "no such host", IsNotFound: true}}
		ask("")
		names["k"] = fakeHost{hosts: "b", wait: time.Second}
		ask("1s udp b") // it is looked for at once when there is no other

		// A name of which nothing is known is waited for every half minute.
		names["k"] = fakeHost{hosts: "a"}
		k = newRealmKDCs("R", two, looks, f.dial, time.Now)
		ask("100ms udp a")
		<-time.After(badTime)
		ask("100ms udp a")
		<-time.After(addressLife - badTime - hedge)
		names["k"] = fakeHost{hosts: "b"}
		ask("0s udp b") // not when the other one is looked for again
	})
}

// The number of addresses is bounded, no name is left out, and those that failed
// leave their places to others.
func TestManyAddresses(t *testing.T) {
	var all []string
	for n := range 40 {
		all = append(all, fmt.Sprintf("a%02d", n))
	}
	names := fakeHosts{"farm": {hosts: strings.Join(all, " ")}, "b": {hosts: "b"}}
	many := []string{"b"}
	for n := range 19 {
		name := fmt.Sprintf("m%02d", n)
		names[name] = fakeHost{hosts: name + "x " + name + "y " + name + "z"}
		many = append(many, name)
	}
	look := func(k *realmKDCs) (udp, tcp []string) {
		t.Helper()
		kdcs, err := k.servers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		known, _ := k.resolve(t.Context(), kdcs)
		for _, r := range k.routes(kdcs, known, 0, false) {
			if at := hostAt(r.addr.Addr().String()); r.network == "udp" {
				udp = append(udp, at)
			} else {
				tcp = append(tcp, at)
			}
		}
		return udp, tcp
	}
	want := func(k *realmKDCs, want []string) {
		t.Helper()
		if udp, tcp := look(k); !slices.Equal(udp, want) || !slices.Equal(tcp, want) {
			t.Errorf("over UDP %s, over TCP %s; want %s", udp, tcp, want)
		}
	}
	k := newRealmKDCs("R", testConfig(t, "", "farm"), names, nil, time.Now)
	want(k, all[:16])
	for _, host := range all[:10] {
		for _, network := range []string{"udp", "tcp"} {
			k.bad[route{network, netip.AddrPortFrom(addressOf(host), 88), "farm"}] = time.Now()
		}
	}
	want(k, all[10:26])
	want(newRealmKDCs("R", testConfig(t, "", "farm", "b"), names, nil, time.Now), append(slices.Clone(all[:8]), "b"))
	two := []string{"b"}
	for _, name := range many[1:] {
		two = append(two, name+"x", name+"y")
	}
	k = newRealmKDCs("R", testConfig(t, "", many...), names, nil, time.Now)
	want(k, two)
	k.resolve(t.Context(), servers{"udp": {"b:88"}})
	if len(k.hosts) != 1 {
		t.Errorf("%d hosts are remembered, want those there are", len(k.hosts))
	}
}

// Where krb5.conf has addresses DNS is not asked.
func TestNoNames(t *testing.T) {
	a, b := netip.AddrPortFrom(addressOf("a"), 88).String(), netip.AddrPortFrom(addressOf("b"), 88).String()
	config := testConfig(t, "", a, b)
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNetwork{start: time.Now()}
		k := newRealmKDCs("R", config, nil, f.dial, time.Now) // to ask it is a panic
		_, err := k.exchange(t.Context(), []byte("message"), false)
		if want := fmt.Sprintf("%[1]s (udp): connection refused; %[1]s (tcp): connection refused; %[2]s (udp)", a, b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	})
}

// A name with two addresses in a real DNS: the first takes connections and says
// nothing, the second is a KDC.
func TestAddressesForReal(t *testing.T) {
	kdc, err := rig.NewKDC("R")
	if err != nil {
		t.Fatal(err)
	}
	defer kdc.Close()
	_, port, err := net.SplitHostPort(kdc.Addr())
	if err != nil {
		t.Fatal(err)
	}
	dead := net.JoinHostPort("127.0.0.2", port)
	ln, err := net.Listen("tcp", dead)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	packets, err := net.ListenPacket("udp", dead)
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	dns, err := rig.NewDNS()
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	dns.Host("corp.example", netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1"))
	for _, option := range []string{"", "udp_preference_limit = 0"} {
		var dialled []string
		var mu sync.Mutex
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			dialled = append(dialled, address)
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		k := newRealmKDCs("R", testConfig(t, option, "corp.example:"+port), dns.Resolver(), dial, time.Now)
		for _, attempt := range []bool{false, true} {
			start := time.Now()
			if _, err := k.exchange(t.Context(), asRequest(t), attempt); err != nil {
				t.Fatalf("%q, attempt %t: %v", option, attempt, err)
			}
			t.Logf("%q, attempt %t: %s", option, attempt, time.Since(start))
		}
		if want := []string{dead, kdc.Addr(), kdc.Addr()}; !slices.Equal(dialled, want) {
			t.Errorf("%q: dialled %s, want %s", option, dialled, want)
		}
	}
}

// allocated is how many bytes a function allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A KDC that is none, or lies about its answer, costs at most 1 MiB and is told
// by its deed.
func TestHostileKDCs(t *testing.T) {
	request := asRequest(t)
	for _, c := range []struct {
		name     string
		tcp, udp rig.Mode
		want     string
	}{
		{"HTTP server", rig.HTTPServer, rig.Refusing, "(tcp): it is an HTTP server"},
		{"HTTP in the frame", rig.Garbage, rig.Refusing, "(tcp): its answer is no Kerberos message"},
		{"cut off", rig.Truncating, rig.Refusing, "(tcp): the connection broke inside its answer, after "},
		{"huge length", rig.HugeLength, rig.Refusing, "(tcp): announces an answer of 3221225472 bytes"},
		{"flood", rig.Flood, rig.Refusing, "(tcp): its answer is no Kerberos message"},
		{"long flood", rig.LongFlood, rig.Refusing, "(tcp): announces an answer of 1048575 bytes"},
		{"garbage in a datagram", rig.Refusing, rig.Garbage, "(udp): its answer is no Kerberos message"},
		{"datagram cut off", rig.Refusing, rig.Truncating, "(udp): its answer is no Kerberos message"},
	} {
		t.Run(c.name, func(t *testing.T) {
			kdc, err := rig.NewKDC("R")
			if err != nil {
				t.Fatal(err)
			}
			defer kdc.Close()
			if err := errors.Join(kdc.SetTCP(c.tcp), kdc.SetUDP(c.udp)); err != nil {
				t.Fatal(err)
			}
			k := newRealmKDCs("R", testConfig(t, "", kdc.Addr()), fakeResolver(noDNS), new(net.Dialer).DialContext, time.Now)
			for _, attempt := range []bool{false, true} {
				ctx, cancel := context.WithTimeout(t.Context(), exchangeTime)
				bytes := allocated(func() { _, err = k.exchange(ctx, request, attempt) })
				if ctx.Err() != nil {
					t.Error("until the context's end")
				}
				cancel()
				if api.CodeOf(err) != api.KDCUnreachable || !strings.Contains(err.Error(), kdc.Addr()+" "+c.want) || errors.Is(err, errDelivered) != attempt {
					t.Errorf("error %v, want %q", err, c.want)
				}
				if bytes > 1<<20 {
					t.Errorf("%d bytes allocated", bytes)
				}
			}
		})
	}
}

// A KDC that sends its answer byte by byte is a silent one.
func TestSlowKDC(t *testing.T) {
	config := testConfig(t, "", "a", "b")
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNetwork{kdcs: map[string]fakeKDC{"tcp b": after(0, refusing(t, 2))}, start: time.Now()}
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			if network != "tcp" || address != netip.AddrPortFrom(addressOf("a"), 88).String() {
				return f.dial(ctx, network, address)
			}
			client, server := net.Pipe()
			go func() {
				defer server.Close()
				go io.Copy(io.Discard, server)
				for _, b := range append([]byte{0, 0, 255, 0}, make([]byte, 255<<8)...) {
					<-time.After(hedge / 2)
					if _, err := server.Write([]byte{b}); err != nil {
						return
					}
				}
			}()
			return client, nil
		}
		k := newRealmKDCs("R", config, fakeResolver(noDNS), dial, time.Now)
		r, err := k.exchange(t.Context(), make([]byte, 2000), false)
		if took := time.Since(f.start); err != nil || r.refusal.ErrorCode != 2 || took != hedge {
			t.Errorf("answer %+v, %v, after %s", r, err, took)
		}
		<-time.After(hedge) // the slow one notices
	})
}

// asReply is an AS-REP with these PA-DATA and a ticket of that size.
func asReply(t testing.TB, padata, size int) []byte {
	t.Helper()
	rep := messages.ASRep{KDCRepFields: messages.KDCRepFields{PVNO: iana.PVNO, MsgType: msgtype.KRB_AS_REP,
		PAData: slices.Repeat([]types.PAData{{PADataType: 19, PADataValue: []byte{}}}, padata), CRealm: "R", CName: types.NewPrincipalName(nametype.KRB_NT_PRINCIPAL, "svc"),
		Ticket: messages.Ticket{TktVNO: iana.PVNO, Realm: "R", SName: types.NewPrincipalName(nametype.KRB_NT_SRV_INST, "krbtgt/R"),
			EncPart: types.EncryptedData{EType: 18, Cipher: make([]byte, size)}},
		EncPart: types.EncryptedData{EType: 18, Cipher: []byte("sealed")}}}
	b, err := rep.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// preauthRequired is a KRB-ERROR with METHOD-DATA.
func preauthRequired(t testing.TB) []byte {
	t.Helper()
	info, err := asn1.Marshal(types.ETypeInfo2{{EType: 18, Salt: "Rsvc", S2KParams: []byte{0, 0, 16, 0}}, {EType: 17}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := asn1.Marshal(types.PADataSequence{{PADataType: patype.PA_ETYPE_INFO2, PADataValue: info},
		{PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: []byte{}}, {PADataType: patype.PA_FX_COOKIE, PADataValue: []byte("MIT")}})
	if err != nil {
		t.Fatal(err)
	}
	e := messages.NewKRBError(types.NewPrincipalName(nametype.KRB_NT_SRV_INST, "krbtgt/R"), "R", errorcode.KDC_ERR_PREAUTH_REQUIRED, "NEEDED_PREAUTH")
	e.EData = data
	b, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// No answer makes the decoder allocate more than 1 MiB.
func TestReplyLimits(t *testing.T) {
	names := func(n int) []byte { // a KRB-ERROR whose server's name has n components
		e := messages.KRBError{PVNO: iana.PVNO, MsgType: msgtype.KRB_ERROR, Realm: "R", SName: types.PrincipalName{NameString: slices.Repeat([]string{"a"}, n)}}
		b, err := asn1.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return asn1tools.AddASNAppTag(b, asnAppTag.KRBError)
	}
	const frame = 200 // bytes of an AS-REP around its ticket, at most
	for _, c := range []struct {
		name  string
		reply []byte
		good  bool
	}{
		{"a large ticket", asReply(t, 1, maxReply-frame), true},
		{"too large a ticket", asReply(t, 1, maxReply), false},
		{"many PA-DATA", asReply(t, 190, 10), true},
		{"too many PA-DATA", asReply(t, 5000, 10), false},
		{"many names", names(950), true},
		{"too many names", names(80000), false},
		{"deep", bytes.Repeat([]byte{0x7e, 0x80}, 100000), false},
		{"zeros", make([]byte, maxReply), false},
	} {
		var err error
		n := allocated(func() { _, err = parseReply(c.reply) })
		t.Logf("%s: %d bytes allocated for %d", c.name, n, len(c.reply))
		if n > 1<<20 {
			t.Error("too much")
		}
		if (err == nil) != c.good {
			t.Errorf("%s: error %v", c.name, err)
		}
	}
	config := testConfig(t, "udp_preference_limit = 0", "a")
	synctest.Test(t, func(t *testing.T) {
		for reply, want := range map[*[]byte]string{
			new(asReply(t, 1, maxReply-frame)): "",
			new(make([]byte, maxReply)):        "its answer is no Kerberos message",
			new(make([]byte, maxReply+1)):      "announces an answer of 262145 bytes, more than 262144",
		} {
			f := &fakeNetwork{kdcs: map[string]fakeKDC{"tcp a": after(0, *reply)}}
			k := newRealmKDCs("R", config, fakeResolver(noDNS), f.dial, time.Now)
			_, err := k.exchange(t.Context(), []byte("message"), false)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%d bytes: error %v, want %q", len(*reply), err, want)
			}
		}
	})
}

func TestWellFormed(t *testing.T) {
	nest := func(n int) string { // n SEQUENCEs
		var b []byte
		for range n {
			b = append([]byte{0x30, byte(len(b))}, b...)
		}
		return string(b)
	}
	for _, c := range []struct {
		name, der, want string
	}{
		{"INTEGER", "\x02\x01\x05", ""},
		{"empty SEQUENCE", "\x30\x00", ""},
		{"long length", "\x30\x82\x00\x80\x04\x7e" + strings.Repeat("x", 0x7e), ""},
		{"reject token", string(rig.RejectToken()), ""},
		{"AS-REP", string(asReply(t, 2, 1000)), ""},
		{"KRB-ERROR", string(refusing(t, 25)), ""},
		{"nested", nest(maxNesting), ""},
		{"nothing", "", "cut off"},
		{"half a header", "\x30", "cut off"},
		{"half a header inside", "\x30\x01\x02", "cut off"},
		{"more than there is", "\x30\x05\x02\x01\x05", "longer than what holds it"},
		{"more than its parent has", "\x30\x03\x02\x02\x05\x05", "longer than what holds it"},
		{"4 GiB", "\x30\x84\xff\xff\xff\xff", "malformed"},
		{"indefinite length", "\x30\x80\x00\x00", "malformed"},
		{"half a length", "\x30\x82\x01", "malformed"},
		{"something behind", "\x30\x00\x00", "1 bytes follow"},
		{"tag of several bytes", "\x3f\x81\x01\x00", "several bytes"},
		{"OCTET STRING in parts", "\x24\x02\x04\x00", "tag 0x24"},
		{"implicit tag", "\x30\x02\x80\x00", "tag 0x80"},
		{"primitive SEQUENCE", "\x10\x00", "tag 0x10"},
		{"nested too deep", nest(maxNesting + 1), "deeper than 32"},
		{"very many", "\x30\x82\x08\x00" + strings.Repeat("\x05\x00", 1024), "more than 1024"},
		{"HTTP", "HTTP/1.1 400 Bad Request\r\n\r\n", "longer than what holds it"},
		{"huge", strings.Repeat("x", maxReply+1), "more than 262144"},
	} {
		err := wellFormed([]byte(c.der))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

// What is well-formed gokrb5's decoder takes apart, or refuses, without panic.
func FuzzWellFormed(f *testing.F) {
	f.Add(asReply(f, 2, 10))
	f.Add(preauthRequired(f))
	f.Add(rig.RejectToken())
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if wellFormed(b) != nil {
			return
		}
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(b, &v)
		if err == nil && (len(rest) > 0 || len(v.FullBytes) != len(b)) {
			t.Errorf("%d bytes follow %x", len(rest), b)
		}
		var e messages.KRBError
		_ = e.Unmarshal(b)
		_ = new(messages.ASRep).Unmarshal(b)
		_ = new(messages.TGSRep).Unmarshal(b)
		_ = new(types.PADataSequence).Unmarshal(b)
		_ = new(types.ETypeInfo2).Unmarshal(b)
	})
}
