package krb

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/messages"

	"github.com/sessionctl/sessionctl/api"
)

const (
	// hedge is how long the agent waits for one KDC before it asks the next
	// as well: more than a round trip in most networks.
	hedge = 100 * time.Millisecond
	// alternative is how many KDCs are asked over the better transport before
	// the first is asked over the other: a firewall that drops all datagrams
	// costs no more than that, however many KDCs there are.
	alternative = 2
	// sameKDC is how long a KDC is waited for before it is asked over its other
	// transport as well: it is more likely busy than behind a firewall that drops
	// one of them.
	sameKDC = 300 * time.Millisecond
	// dialTime is how long an attempt, which goes to one KDC after the other,
	// waits for a connection.
	dialTime = 2 * time.Second
	// resendAfter is when a datagram without an answer is sent again, twice as
	// long when again, resends times in all.
	resendAfter = 500 * time.Millisecond
	resends     = 2
	// badTime is how long a KDC that failed or was silent is asked after the
	// others.
	badTime = 30 * time.Second
	// dnsLife is how long SRV records are used without looking again, and
	// staleTime how long a new look may take while there are old ones.
	dnsLife   = 5 * time.Minute
	staleTime = time.Second
	// addressLife is how long the addresses of a KDC's name are used without
	// looking again.
	addressLife = time.Minute
	// maxServers is how many SRV records of one name are used, and how many
	// addresses by one transport: at most two of each name if there are many.
	maxServers = 16
)

const (
	// maxReply is the largest answer of a KDC or a service that is decoded, in
	// bytes: nothing proves yet who sent it. The largest tickets are Windows',
	// with tokens of up to 65,535 bytes (MaxTokenSize).
	maxReply = 256 << 10
	// maxDatagram holds every datagram.
	maxDatagram = 64 << 10
	// maxElements and maxNesting bound what is decoded: an answer has some
	// fifty elements, nine deep.
	maxElements = 1024
	maxNesting  = 32
)

// Resolver looks names up in DNS, as net.Resolver does. The name of LookupSRV
// ends in a dot: it is not looked for below the domains of resolv.conf. A look
// ends with its context. LookupNetIP is asked for the network "ip".
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, addrs []*net.SRV, err error)
	LookupCNAME(ctx context.Context, host string) (cname string, err error)
}

// realmKDCs asks the KDCs of one realm (RFC 4120, 7.2): those of krb5.conf,
// else those that DNS names. It remembers who answered and who did not, and is
// safe for concurrent use.
type realmKDCs struct {
	realm    string
	config   *Config
	resolver Resolver
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	now      func() time.Time

	*kdcMemory
}

// kdcMemory is what was learnt of a realm's KDCs.
type kdcMemory struct {
	mu      sync.Mutex
	good    route               // answered last
	bad     map[route]time.Time // when it failed or was silent
	dns     servers             // what DNS said last
	dnsTime time.Time           // when, …
	dnsUse  time.Duration       // … and for how long that is used
	hosts   map[string]host     // what DNS said of the KDCs' names
}

// newRealmKDCs returns the KDCs of a realm. dial is called with the networks
// "udp" and "tcp", and with addresses, not names.
func newRealmKDCs(realm string, config *Config, resolver Resolver, dial func(ctx context.Context, network, address string) (net.Conn, error), now func() time.Time) *realmKDCs {
	return &realmKDCs{realm: realm, config: config, resolver: resolver, dial: dial, now: now,
		kdcMemory: &kdcMemory{bad: make(map[route]time.Time), hosts: make(map[string]host)}}
}

// route is one way to a KDC. Of a name with several addresses each is a way of
// its own.
type route struct {
	network string         // udp or tcp
	addr    netip.AddrPort // where it is
	name    string         // its host in krb5.conf or DNS
}

func (r route) String() string {
	if _, err := netip.ParseAddr(r.name); err == nil {
		return fmt.Sprintf("%s (%s)", r.addr, r.network)
	}
	return fmt.Sprintf("%s:%d (%s, %s)", strings.TrimSuffix(r.name, "."), r.addr.Port(), r.network, r.addr.Addr())
}

// same tells whether two names lead the same way.
func (r route) same(other route) bool { return r.network == other.network && r.addr == other.addr }

// servers are KDCs as host:port by network, the best first. A host from DNS ends
// in a dot.
type servers map[string][]string

// split takes one of servers apart. They are well-formed.
func split(server string) (host string, port uint16) {
	host, digits, _ := net.SplitHostPort(server)
	n, _ := strconv.ParseUint(digits, 10, 16)
	return host, uint16(n)
}

// host is what DNS said last of a KDC's name.
type host struct {
	addrs []netip.Addr  // in the resolver's order; nil: none known
	at    time.Time     // of the last look, …
	use   time.Duration // … and for how long that counts
}

// question is a message on its way to a KDC.
type question struct {
	route
	since time.Time
	err   error // what came of it, once that is known
}

// found is what came of a look for a host.
type found struct {
	host  string
	addrs []netip.Addr
	err   error
}

// answer is what came of a question.
type answer struct {
	*question
	reply     reply
	delivered bool // the KDC may have acted on the message
	err       error
}

var (
	// errDelivered says that a KDC may have acted on a message it did not
	// answer.
	errDelivered = errors.New("a KDC may have got the message")

	errNoConnection = errors.New("no connection in time")
	errNoAnswer     = errors.New("no answer in time")
	errUnavailable  = errors.New("it says that its service is unavailable")
	errTooBig       = errors.New("its answer does not fit into a datagram")
)

// exchange sends a message and returns the first answer. It begins with the
// KDC that answered last and goes on in the order of krb5.conf or of the SRV
// records, and of a name's addresses, those last that failed within badTime. The
// next one is asked when one fails, or when it has been silent for the time of
// hedge. A KDC whose name DNS is slow to resolve joins in when it does.
//
// A message of at most udp_preference_limit bytes is sent over UDP first, over
// TCP otherwise; the other transport is the alternative in both cases, as
// krb5.conf(5) has it.
//
// An attempt carries pre-authentication, of which a realm counts the failures:
// it goes to one KDC after the other, and to no other once one may have it.
// That is why it prefers TCP, which tells whether it was delivered, and is sent
// once where only UDP is left.
//
// The error is an *api.Error of code KDCUnreachable that names each KDC asked and
// each name that DNS did not resolve, or of code Krb5ConfInvalid if there is none
// to be asked.
func (k *realmKDCs) exchange(ctx context.Context, message []byte, attempt bool) (reply, error) {
	kdcs, err := k.servers(ctx)
	if err != nil {
		return reply{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	known, looks := k.resolve(ctx, kdcs)
	routes := k.routes(kdcs, known, len(message), attempt)
	if len(routes) == 0 {
		return reply{}, k.unreachable(nil, looks, nil) // all have failed
	}
	answers := make(chan answer, 1) // one may come before the race begins
	over := make(chan struct{})     // nobody waits for those that come late
	var asked []*question
	pending := 0
	begin := func() func() { // what it returns asks at the next route
		q := &question{route: routes[0], since: time.Now()}
		routes = routes[1:]
		asked = append(asked, q)
		pending++
		return func() {
			a := answer{question: q}
			a.reply, a.delivered, a.err = k.ask(ctx, q.route, message, attempt)
			select {
			case answers <- a:
			case <-over:
			}
		}
	}
	silent := func() { // for the time of hedge
		i := slices.IndexFunc(routes, func(r route) bool {
			return !slices.ContainsFunc(asked, func(q *question) bool {
				return q.addr == r.addr && q.err == nil && time.Since(q.since) < sameKDC
			})
		})
		if i < 0 || ctx.Err() != nil || attempt {
			return
		}
		r := routes[i]
		routes = slices.Insert(slices.Delete(routes, i, i+1), 0, r)
		go begin()()
	}
	race := func() (reply, error) {
		defer close(over)
		var cause error
		next := time.NewTicker(hedge)
		defer next.Stop()
		for pending > 0 || looks.left > 0 && cause == nil { // all end with the context
			select {
			case f := <-looks.found:
				found := map[string][]netip.Addr{f.host: k.learn(ctx, looks, f)}
				for _, r := range k.routes(kdcs, found, len(message), attempt) {
					if !slices.ContainsFunc(routes, r.same) && !slices.ContainsFunc(asked, func(q *question) bool { return r.same(q.route) }) {
						routes = append(routes, r)
					}
				}
				if pending == 0 && len(routes) > 0 && ctx.Err() == nil {
					go begin()()
					next.Reset(hedge)
				}
			case a := <-answers:
				pending--
				a.question.err = a.err
				if a.err == nil {
					k.remember(asked, a.question)
					return a.reply, nil
				}
				if attempt && a.delivered {
					cause, routes = errDelivered, nil
				}
				switch tcp := (route{"tcp", a.addr, a.name}); {
				case a.err == errUnavailable:
					routes = slices.DeleteFunc(routes, func(r route) bool { return r.addr == a.addr })
				case a.err == errNoConnection && attempt: // a datagram would get lost there, and be the last one
					if i := slices.IndexFunc(routes, func(r route) bool { return r.addr == a.addr }); i >= 0 {
						r := routes[i]
						routes = append(slices.Delete(routes, i, i+1), r)
					}
				case a.err == errTooBig && !slices.ContainsFunc(asked, func(q *question) bool { return q.route == tcp }),
					a.err == syscall.ECONNREFUSED && slices.Contains(routes, tcp):
					routes = slices.DeleteFunc(routes, func(r route) bool { return r == tcp })
					routes = slices.Insert(routes, 0, tcp)
				}
				if len(routes) > 0 && ctx.Err() == nil {
					go begin()()
					next.Reset(hedge)
				}
			case <-next.C:
				silent()
			}
		}
		k.remember(asked, nil)
		return reply{}, k.unreachable(asked, looks, cause)
	}
	// The first question is the only one as a rule, and asked in this goroutine:
	// to wake another takes longer than to make a request.
	type result struct {
		reply reply
		err   error
	}
	results := make(chan result, 1)
	first := begin()
	late := time.AfterFunc(hedge, func() {
		silent()
		r, err := race()
		cancel() // of the first question, if it is not answered yet
		results <- result{r, err}
	})
	first()
	if late.Stop() {
		return race()
	}
	r := <-results
	return r.reply, r.err
}

// servers returns where the realm's KDCs are.
func (k *realmKDCs) servers(ctx context.Context) (servers, error) {
	if kdcs := k.config.KDCs(k.realm); len(kdcs) > 0 {
		return servers{"udp": kdcs, "tcp": kdcs}, nil
	}
	if !k.config.DNSLookupKDC() {
		return nil, k.config.CheckRealm(k.realm)
	}
	k.mu.Lock()
	known, usable := k.dns, k.within(k.dnsTime, k.dnsUse)
	k.mu.Unlock()
	if usable {
		return known, nil
	}
	found, life, err := k.lookup(ctx, known)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dns, k.dnsTime, k.dnsUse = found, k.now(), life
	return found, nil
}

// lookup asks DNS for the realm's KDCs (RFC 4120, 7.2.3.2), and how long the
// answer is good for. What DNS does not tell now stays as known.
func (k *realmKDCs) lookup(ctx context.Context, known servers) (servers, time.Duration, error) {
	limit := dnsLife // longer than any context
	if known != nil {
		limit = staleTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type records struct {
		network string
		addrs   []string
		err     error
	}
	answers := make(chan records, 2)
	for _, network := range []string{"udp", "tcp"} {
		go func() {
			_, srvs, err := k.resolver.LookupSRV(ctx, "kerberos", network, k.realm+".")
			r := records{network: network, err: err}
			for _, srv := range srvs { // in order of priority, and of weight by chance
				addr := net.JoinHostPort(srv.Target, strconv.Itoa(int(srv.Port)))
				if srv.Target != "." && len(r.addrs) < maxServers && !slices.Contains(r.addrs, addr) {
					r.addrs = append(r.addrs, addr)
				}
			}
			answers <- r
		}()
	}
	found := servers{"udp": known["udp"], "tcp": known["tcp"]}
	said := map[string]string{"udp": errNoAnswer.Error(), "tcp": errNoAnswer.Error()}
	told := 0
	for range 2 {
		select {
		case r := <-answers:
			missing, _ := errors.AsType[*net.DNSError](r.err)
			if len(r.addrs) > 0 || r.err == nil || missing != nil && missing.IsNotFound {
				found[r.network] = r.addrs
				told++
			}
			if len(r.addrs) > 0 { // no long wait for the other
				defer time.AfterFunc(hedge, cancel).Stop()
			}
			switch {
			case r.err == nil:
				said[r.network] = "not offered"
			case ctx.Err() == nil:
				said[r.network] = r.err.Error()
			}
		case <-ctx.Done():
		}
	}
	switch {
	case len(found["udp"])+len(found["tcp"]) > 0:
		if told == 2 {
			return found, dnsLife, nil
		}
		return found, badTime, nil
	case known != nil:
		return known, badTime, nil
	}
	return nil, 0, &api.Error{Code: api.KDCUnreachable, Err: &outage{k.realm, nil},
		Detail: fmt.Sprintf("krb5.conf names no KDC of %[1]s, and DNS none either: _kerberos._udp.%[1]s: %[2]s; _kerberos._tcp.%[1]s: %[3]s", k.realm, said["udp"], said["tcp"]),
		Remedy: fmt.Sprintf("check the network and the name of the realm, or add to [realms]: %s = { kdc = kdc.example.com }, with the realm's own KDC", k.realm)}
}

// looks are those for the addresses of hosts.
type looks struct {
	found  chan found
	left   int      // how many have not come to an end
	failed []string // why there are hosts without addresses
}

// resolve returns the addresses of the KDCs' hosts, as far as they are known. It
// waits for DNS until something is known, and for the time of hedge for those of
// whom nothing has been heard lately. What else is found comes later.
func (k *realmKDCs) resolve(ctx context.Context, kdcs servers) (known map[string][]netip.Addr, l *looks) {
	known, l = make(map[string][]netip.Addr), new(looks)
	var names []string
	for _, server := range slices.Concat(kdcs["udp"], kdcs["tcp"]) {
		name, _ := split(server)
		if addr, err := netip.ParseAddr(name); err == nil {
			known[name] = []netip.Addr{addr}
		} else if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return known, l
	}

	l.found = make(chan found, len(names))
	awaited := make(map[string]bool)
	k.mu.Lock()
	maps.DeleteFunc(k.hosts, func(name string, _ host) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		h := k.hosts[name]
		usable := k.within(h.at, h.use)
		if len(h.addrs) > 0 {
			if known[name] = h.addrs; usable {
				continue
			}
		}
		if !usable {
			awaited[name] = true
		}
		l.left++
		go func() {
			addrs, err := k.resolver.LookupNetIP(ctx, "ip", name)
			l.found <- found{name, addrs, err}
		}()
	}
	k.mu.Unlock()
	patience := time.NewTimer(hedge)
	defer patience.Stop()
	for l.left > 0 && (len(awaited) > 0 || len(known) == 0) { // all looks end with the context
		select {
		case f := <-l.found:
			delete(awaited, f.host)
			if known[f.host] = k.learn(ctx, l, f); len(known[f.host]) == 0 {
				delete(known, f.host)
			}
		case <-patience.C:
			k.mu.Lock()
			for name := range awaited {
				k.hosts[name] = host{k.hosts[name].addrs, k.now(), badTime}
			}
			k.mu.Unlock()
			clear(awaited)
		}
	}
	return known, l
}

// learn keeps what a look has brought, and returns the addresses that are known
// now. They stay as they were if DNS fails, not if it says that there are none.
func (k *realmKDCs) learn(ctx context.Context, l *looks, f found) []netip.Addr {
	l.left--
	k.mu.Lock()
	defer k.mu.Unlock()
	h, reason := k.hosts[f.host], "it has no address"
	told, _ := errors.AsType[*net.DNSError](f.err)
	switch {
	case len(f.addrs) > 0:
		h = host{f.addrs, k.now(), addressLife}
	case ctx.Err() != nil: // it might have come in time
		reason = errNoAnswer.Error()
	case f.err == nil:
		h = host{nil, k.now(), badTime}
	case told != nil && told.IsNotFound:
		h, reason = host{nil, k.now(), badTime}, told.Err
	default:
		h, reason = host{h.addrs, k.now(), badTime}, f.err.Error()
	}
	k.hosts[f.host] = h
	if len(h.addrs) == 0 {
		l.failed = append(l.failed, strings.TrimSuffix(f.host, ".")+": not resolved: "+reason)
	}
	return h.addrs
}

// routes returns the ways to KDCs of known addresses in the order they are tried
// for a message of a size.
func (k *realmKDCs) routes(kdcs servers, known map[string][]netip.Addr, size int, attempt bool) []route {
	first, second, lag := "udp", "tcp", alternative
	if attempt || size > k.config.UDPPreferenceLimit() {
		first, second = second, first
	}
	if attempt {
		lag = 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	good := k.good
	if first == "tcp" {
		good.network = "tcp"
	}
	class := func(r route) int {
		switch {
		case k.within(k.bad[r], badTime):
			return 3
		case r == good:
			return 0
		case r.addr == good.addr && attempt:
			return 1
		}
		return 2
	}
	byClass := func(a, b route) int { return cmp.Compare(class(a), class(b)) }
	ways := make(map[string][]route)
	for network, list := range kdcs {
		for _, server := range list {
			name, port := split(server)
			var own []route
			for _, addr := range known[name] {
				r := route{network, netip.AddrPortFrom(addr.Unmap(), port), name}
				if !slices.ContainsFunc(slices.Concat(ways[network], own), r.same) {
					own = append(own, r)
				}
			}
			slices.SortStableFunc(own, byClass)
			share := max(2, maxServers/len(list))
			ways[network] = append(ways[network], own[:min(len(own), share)]...)
		}
	}
	var routes []route
	for i := range max(len(ways[first]), len(ways[second])+lag) {
		if i < len(ways[first]) {
			routes = append(routes, ways[first][i])
		}
		if j := i - lag; j >= 0 && j < len(ways[second]) {
			routes = append(routes, ways[second][j])
		}
	}
	slices.SortStableFunc(routes, byClass)
	return routes
}

// remember keeps who answered, if anybody did, and who did not.
func (k *realmKDCs) remember(asked []*question, answered *question) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.bad, func(_ route, at time.Time) bool { return !k.within(at, badTime) })
	for _, q := range asked {
		switch {
		case q == answered:
			k.good = q.route
			delete(k.bad, q.route)
		case q.err == errTooBig:
		case q.err == nil || q.err == errNoAnswer || q.err == errNoConnection:
			if time.Since(q.since) >= hedge {
				k.bad[q.route] = k.now()
			}
		default:
			k.bad[q.route] = k.now()
		}
	}
}

// within tells whether a time is less than so long ago.
func (k *realmKDCs) within(at time.Time, life time.Duration) bool {
	age := k.now().Sub(at)
	return 0 <= age && age < life
}

// outage is the cause of a failure that everybody has who needs a KDC of a realm.
type outage struct {
	realm string
	err   error // or nil
}

// Outage names what is out of reach, as "realm " and its name.
func (o *outage) Outage() string { return "realm " + o.realm }
func (o *outage) Error() string  { return "no KDC of " + o.realm + " answers" }
func (o *outage) Unwrap() error  { return o.err }

func (k *realmKDCs) unreachable(asked []*question, l *looks, cause error) error {
	var each []string
	for _, q := range asked {
		each = append(each, q.route.String()+": "+q.err.Error())
	}
	each = append(each, l.failed...)
	where := "the kdc lines of " + k.realm + " in krb5.conf"
	if len(k.config.KDCs(k.realm)) == 0 {
		where = fmt.Sprintf("the SRV records _kerberos._udp.%[1]s and _kerberos._tcp.%[1]s", k.realm)
	}
	return &api.Error{Code: api.KDCUnreachable, Err: &outage{k.realm, cause},
		Detail: "no KDC of " + k.realm + " answers: " + strings.Join(each, "; "),
		Remedy: "check the network and " + where}
}

// ask sends the message to one KDC and reads its answer. delivered tells
// whether the KDC may have acted on it.
func (k *realmKDCs) ask(ctx context.Context, r route, message []byte, attempt bool) (_ reply, delivered bool, err error) {
	dialing := ctx
	if attempt {
		var cancel context.CancelFunc
		dialing, cancel = context.WithTimeout(ctx, dialTime)
		defer cancel()
	}
	conn, err := k.dial(dialing, r.network, r.addr.String())
	if err != nil {
		if dialing.Err() != nil {
			err = errNoConnection
		}
		return reply{}, false, plain(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	var b []byte
	switch {
	case r.network == "tcp":
		b, delivered, err = overTCP(conn, message)
	case attempt:
		b, delivered, err = overUDP(conn, message, 0)
	default:
		b, delivered, err = overUDP(conn, message, resends)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errNoAnswer
		}
		return reply{}, delivered, err
	}
	answer, err := parseReply(b)
	if err == nil && answer.refusal != nil {
		switch answer.refusal.ErrorCode {
		case errorcode.KDC_ERR_SVC_UNAVAILABLE:
			return reply{}, false, errUnavailable
		case errorcode.KRB_ERR_RESPONSE_TOO_BIG:
			return reply{}, true, errTooBig
		}
	}
	return answer, true, err
}

// plain takes off a network error what stands before its text anyway.
func plain(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		err = call.Err
	}
	return err
}

// overTCP exchanges messages with their lengths in front (RFC 4120, 7.2.2).
func overTCP(conn net.Conn, message []byte) (_ []byte, delivered bool, err error) {
	broken := errors.New("the connection broke before an answer")
	framed := binary.BigEndian.AppendUint32(nil, uint32(len(message)))
	if _, err := conn.Write(append(framed, message...)); err != nil {
		return nil, true, broken
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, true, broken
	}
	n := binary.BigEndian.Uint32(size[:])
	switch {
	case string(size[:]) == "HTTP":
		return nil, true, errors.New("it is an HTTP server")
	case n > maxReply:
		return nil, true, fmt.Errorf("announces an answer of %d bytes, more than %d", n, maxReply)
	}
	b := make([]byte, n)
	if n, err := io.ReadFull(conn, b); err != nil {
		return nil, true, fmt.Errorf("the connection broke inside its answer, after %d of %d bytes", n, len(b))
	}
	return b, true, nil
}

// overUDP exchanges datagrams (RFC 4120, 7.2.1), and sends a message that is
// not answered again.
func overUDP(conn net.Conn, message []byte, again int) (_ []byte, delivered bool, err error) {
	b := make([]byte, maxDatagram)
	for sent := 0; ; sent++ {
		if _, err := conn.Write(message); err != nil {
			return nil, false, plain(err)
		}
		var deadline time.Time // none
		if sent < again {
			deadline = time.Now().Add(resendAfter << sent)
		}
		if err := conn.SetReadDeadline(deadline); err != nil {
			return nil, true, plain(err)
		}
		n, err := conn.Read(b)
		switch {
		case err == nil:
			return b[:n], true, nil
		case errors.Is(err, syscall.ECONNREFUSED): // by ICMP: nobody got it
			return nil, false, syscall.ECONNREFUSED
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return nil, true, plain(err)
		}
	}
}

// reply is a KDC's answer: exactly one field is set.
type reply struct {
	refusal *messages.KRBError
	as      *messages.ASRep
	tgs     *messages.TGSRep
}

// parseReply reads an answer of a KDC (RFC 4120, 5.4.2 and 5.9.1).
func parseReply(b []byte) (r reply, err error) {
	err = decode(b, func(b []byte) error {
		switch application := int(b[0]) - 0x60; application {
		case asnAppTag.KRBError:
			r.refusal = new(messages.KRBError)
			return r.refusal.Unmarshal(b)
		case asnAppTag.ASREP:
			r.as = new(messages.ASRep)
			return r.as.Unmarshal(b)
		case asnAppTag.TGSREP:
			r.tgs = new(messages.TGSRep)
			return r.tgs.Unmarshal(b)
		}
		return errors.New("another message")
	})
	if err != nil {
		return reply{}, errors.New("its answer is no Kerberos message")
	}
	return r, nil
}

// wellFormed tells whether bytes are one ASN.1 element in DER as Kerberos and
// SPNEGO have them, all tags explicit (RFC 4120, 5.1; RFC 4178, 4.2), whose
// lengths agree and that is neither deep nor made of very many elements.
// gokrb5's decoder trusts no length, but takes some fifteen times the size of
// small elements.
func wellFormed(b []byte) error {
	if len(b) > maxReply {
		return fmt.Errorf("%d bytes, more than %d", len(b), maxReply)
	}
	rest, err := elements(b, 1, maxNesting, new(int))
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes follow the message", len(rest))
	}
	return err
}

// elements walks through count elements, or all there are if it is negative,
// and returns what follows them.
func elements(b []byte, count, nesting int, seen *int) (rest []byte, err error) {
	for ; count != 0 && (count > 0 || len(b) > 0); count-- {
		if *seen++; *seen > maxElements {
			return nil, fmt.Errorf("more than %d elements", maxElements)
		}
		if len(b) < 2 {
			return nil, errors.New("an element is cut off")
		}
		tag, size := b[0], int(b[1])
		b = b[2:]
		if size >= 0x80 {
			digits := size - 0x80
			if digits == 0 || digits > 3 || digits > len(b) {
				return nil, errors.New("the length of an element is malformed")
			}
			size = 0
			for _, d := range b[:digits] {
				size = size<<8 | int(d)
			}
			b = b[digits:]
		}
		if size > len(b) {
			return nil, errors.New("an element is longer than what holds it")
		}
		const class, constructed, number = 0xc0, 0x20, 0x1f
		switch holds := tag&constructed != 0; {
		case tag&number == number:
			return nil, errors.New("an element has a tag of several bytes")
		case holds != (tag&class != 0 || tag&number == 0x10 || tag&number == 0x11): // SEQUENCE, SET
			return nil, fmt.Errorf("an element has the tag %#x", tag)
		case holds && nesting == 0:
			return nil, fmt.Errorf("elements nest deeper than %d", maxNesting)
		case holds:
			if _, err := elements(b[:size], -1, nesting-1, seen); err != nil {
				return nil, err
			}
		}
		b = b[size:]
	}
	return b, nil
}
