// Package krb turns a keytab, a password or a ticket cache into a SPNEGO token:
// key → TGT → service ticket → token, with own AS and TGS exchanges (RFC 4120)
// over gokrb5's codecs and crypto, an own reader of krb5.conf, and the check of
// the service's answer.
//
// Tickets live in memory and, through Records, in the store. A refused secret is
// latched, through Latch, before anybody can try it again.
//
// HTTP, the store and the configuration of the agent do not belong here; of
// ours it imports only api. Only this package and rig import gokrb5.
package krb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jcmturner/gokrb5/v8/types"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb/ccache"
)

// Records keeps tickets over a restart. Its errors never fail a login.
type Records interface {
	// Load returns the record of a key and its revision: nil, 0, nil if there
	// is none.
	Load(key string) (record []byte, revision uint64, err error)
	// Swap replaces the record if its revision is still the one given, and
	// returns the new one. A nil record would delete.
	Swap(ctx context.Context, key string, revision uint64, record []byte) (uint64, error)
}

// Latch knows what became of secrets at their verifier. The verifier is
// Verifier's, the user the principal as Principal.String writes it, a secret one
// key; an implementation keeps only a keyed hash of it.
type Latch interface {
	// Check returns what stands against trying one of the secrets, or nil.
	Check(verifier, user string, secrets ...[]byte) error
	// Begin writes down, durably, that a secret is about to be tried. After an
	// error it must not be.
	Begin(ctx context.Context, verifier, user string, secret []byte) error
	// End writes down what became of it: nil, accepted; an *api.Error whose
	// code is a refusal; any other error, no verdict. A refusal may also come
	// before a secret was tried.
	End(ctx context.Context, verifier, user string, secret []byte, verdict error) error
	// Lost ends an attempt of which nobody will know what became, because of an
	// error.
	Lost(verifier, user string, secret []byte, because error)
	// Clear lets secrets be tried again.
	Clear(ctx context.Context, verifier, user string, secrets ...[]byte) error
}

// Options are what an Engine works with.
type Options struct {
	Config  *Config
	Records Records
	Latch   Latch
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Boot is a clock that nobody sets and that goes on in sleep; nil means
	// CLOCK_BOOTTIME (clock_gettime(2)), and Now itself where that is given.
	Boot func() time.Duration
	// Dial connects to KDCs; nil means net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Resolver finds KDCs and canonical host names; nil means net.DefaultResolver.
	Resolver Resolver
	// Log takes events; nil means slog.Default.
	Log *slog.Logger
}

// How long getting a ticket may take. It does not depend on the callers that
// wait for it: one that leaves cancels nothing. A service ticket may need a TGT
// first, whose own end tells more than the end of the wait for it.
const (
	tgtTime     = 10 * time.Second
	serviceTime = 2 * tgtTime
)

// Engine obtains, keeps and uses tickets. It is safe for concurrent use.
type Engine struct {
	config  atomic.Pointer[Config] // see Reconfigure
	records Records
	latch   Latch
	now     func() time.Time
	boot    func() time.Duration
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	dns     Resolver
	log     *slog.Logger

	flights singleflight.Group // by ticketKey.record
	ctx     context.Context    // of the flights
	cancel  context.CancelFunc
	flying  sync.WaitGroup

	mu        sync.Mutex
	tickets   map[ticketKey]*ticket // nil: looked for in records, none there
	realms    map[string]*realmKDCs
	turns     map[string]chan struct{} // by principal
	early     map[ticketKey]time.Time  // no TGT is replaced ahead of its end before
	refused   map[ticketKey]refusedTGT // the last one of each
	timers    map[ticketKey]*time.Timer
	lastStamp time.Time
}

// ticketKey names a ticket: whose, made with which keys, for whom.
type ticketKey struct {
	client, fingerprint string
	server              string // as it is asked for: service/host@REALM, without a realm if none is known
}

// record is the key of the ticket's record.
func (k ticketKey) record() string {
	return strings.Join([]string{k.client, k.fingerprint, k.server}, "\x00")
}

// New returns an Engine.
func New(o Options) *Engine {
	if o.Boot == nil {
		o.Boot = bootTime
		if o.Now != nil { // a clock of one's own is not set
			began := o.Now()
			o.Boot = func() time.Duration { return o.Now().Sub(began) }
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	e := &Engine{
		records: o.Records, latch: o.Latch, now: o.Now, boot: o.Boot, dial: o.Dial, dns: o.Resolver, log: o.Log,
		tickets: make(map[ticketKey]*ticket),
		realms:  make(map[string]*realmKDCs),
		turns:   make(map[string]chan struct{}),
		early:   make(map[ticketKey]time.Time),
		refused: make(map[ticketKey]refusedTGT),
		timers:  make(map[ticketKey]*time.Timer),
	}
	e.config.Store(o.Config)
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

// Close ends the exchanges under way and waits for them. It must not be called
// while Initiate may still be.
func (e *Engine) Close() {
	e.cancel()
	e.mu.Lock()
	for _, t := range e.timers {
		t.Stop()
	}
	e.mu.Unlock()
	e.flying.Wait()
}

// Reconfigure replaces krb5.conf. An exchange that is under way goes on by the one
// that it began with. What was learnt of a realm's KDCs is forgotten if the realm
// has others now, or finds them in another way; tickets stay.
func (e *Engine) Reconfigure(c *Config) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.config.Store(c)
	for realm, k := range e.realms {
		if !c.sameKDCs(k.config, realm) {
			delete(e.realms, realm)
			clear(e.refused) // by the KDCs of whatever realm
		}
	}
}

// Verifier names who judges a principal's keys: its realm.
func Verifier(p Principal) string { return "realm:" + p.Realm }

// InitiateOptions say what a context is to be like.
type InitiateOptions struct {
	// Fresh asks the KDC for a new service ticket first.
	Fresh bool
	// Bindings is the application data of channel bindings (RFC 5056), nil
	// without any: "tls-server-end-point:" and a hash, for TLS (RFC 5929).
	Bindings []byte
	// Mutual asks the service to prove itself.
	Mutual bool
	// Exact says that the SPN is as a person configured it: no other name of the
	// host is tried.
	Exact bool
}

// Initiate makes a token that shows the credential's principal to a service.
// The spn is written service/host. Unless @REALM follows, its realm is what
// [domain_realm] says of the host, else where the KDCs refer to. If no KDC knows
// the service, the host's canonical name in the DNS is tried, unless krb5.conf
// has dns_canonicalize_hostname = false. Each call makes a new token from the
// ticket at hand.
//
// Errors are *api.Error, or the context's when that ends first.
func (e *Engine) Initiate(ctx context.Context, cred Credential, spn string, o InitiateOptions) (*Context, error) {
	config := e.config.Load()
	server, err := service(config, spn)
	if err != nil {
		return nil, err
	}
	src, err := e.source(ctx, config, cred)
	if err != nil {
		return nil, err
	}
	t, err := e.serviceTicket(ctx, src, server, o.Fresh)
	if api.CodeOf(err) == api.SPNUnknown && !o.Exact {
		if canonical, cerr := e.canonical(ctx, config, server); cerr == nil {
			if t, cerr = e.serviceTicket(ctx, src, canonical, o.Fresh); cerr == nil {
				return e.newContext(t, o)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return e.newContext(t, o)
}

// service reads an SPN. Its realm stays empty if nothing is known of it.
func service(config *Config, spn string) (Principal, error) {
	const unknown = "?"
	p, err := ParsePrincipal(spn, unknown)
	if err != nil {
		return Principal{}, err
	}
	if len(p.Components) < 2 {
		return Principal{}, &api.Error{Code: api.ConfigInvalid, Detail: "SPN " + quote(spn) + " is not of the form service/host", Remedy: "write it as HTTP/host or HTTP/host@REALM"}
	}
	if p.Realm == unknown {
		p.Realm = config.RealmOf(p.Components[1])
	}
	return p, nil
}

// maxAliases is the longest chain of CNAME records that is followed.
const maxAliases = 8

// canonical returns the service under its host's canonical name in the DNS. That
// is asked only when no KDC knows the name as it was typed: who answers instead
// of the DNS can then have a token made for a service that the KDC does know,
// under TLS to the host as it was typed.
func (e *Engine) canonical(ctx context.Context, config *Config, server Principal) (Principal, error) {
	if !config.CanonicalizeHostname() {
		return Principal{}, errors.New("krb5.conf forbids to ask the DNS")
	}
	name := server.Components[1]
	for range maxAliases { // of a chain, net.Resolver tells but the next name
		next, err := e.dns.LookupCNAME(ctx, name)
		if next = strings.ToLower(strings.TrimSuffix(next, ".")); err != nil || next == name || next == "" {
			break
		}
		name = next
	}
	if name == server.Components[1] {
		return Principal{}, errors.New("the name is canonical")
	}
	c := Principal{Components: slices.Clone(server.Components), Realm: config.RealmOf(name)}
	c.Components[1] = name
	return c, nil
}

// serviceTicket returns a ticket for a service.
func (e *Engine) serviceTicket(ctx context.Context, src source, server Principal, fresh bool) (*ticket, error) {
	key := ticketKey{src.client.String(), src.fingerprint(), server.String()}
	var unwanted []*ticket
	if fresh {
		unwanted = []*ticket{e.cached(key)}
	}
	obtain := func(ctx context.Context) (*ticket, error) { return e.obtain(ctx, src, server) }
	t, err := e.ticket(ctx, src.config, key, unwanted, serviceTime, obtain)
	if err != nil {
		return nil, err
	}
	// While a ticket from memory serves, nobody looks at the TGT, and then both end
	// at the same time.
	tgt := e.cached(src.tgtKey())
	if tgt == nil {
		tgt = src.cached
	}
	if tgt != nil {
		e.lookAfter(src, tgt)
		if e.isDue(t) && tgt.end.After(t.end) && tgt.usable(e.now()) {
			e.ahead(src, key, t, obtain)
		}
	}
	return t, nil
}

// tgt returns a TGT of the source's realm other than the unwanted ones. One that
// is near its end is replaced ahead of it, while it still serves.
func (e *Engine) tgt(ctx context.Context, src source, unwanted ...*ticket) (*ticket, error) {
	key := src.tgtKey()
	t, err := e.ticket(ctx, src.config, key, unwanted, tgtTime, e.login(src))
	if err == nil {
		e.lookAfter(src, t)
	}
	return t, err
}

// isDue reports whether a ticket is to be replaced ahead of its end.
func (e *Engine) isDue(t *ticket) bool { return !t.due().After(e.now()) }

// lookAfter replaces a TGT ahead of its end, when it is used; that of a ticket
// cache, which nobody but its owner can make anew, is renewed in time also if it
// is not.
func (e *Engine) lookAfter(src source, t *ticket) {
	key := src.tgtKey()
	if e.isDue(t) {
		e.ahead(src, key, t, e.login(src))
	}
	if src.cached == nil || !t.renewable() {
		return
	}
	wait := max(t.due().Sub(e.now()), earlyPause)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.timers[key] != nil || e.ctx.Err() != nil {
		return
	}
	e.timers[key] = time.AfterFunc(wait, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.timers, key)
		if e.ctx.Err() != nil {
			return
		}
		e.flying.Go(func() {
			ctx, cancel := context.WithTimeout(e.ctx, tgtTime)
			defer cancel()
			now, err := e.source(ctx, e.config.Load(), src.cred)
			if err == nil {
				_, err = e.tgt(ctx, now)
			}
			if err != nil && e.ctx.Err() == nil {
				e.log.Warn("a TGT could not be renewed in time", "client", key.client, "error", err)
				if t.left(e.now()) > 0 {
					later := src // the cache may be back in a minute
					later.config = e.config.Load()
					e.lookAfter(later, t)
				}
			}
		})
	})
}

// bootTime is CLOCK_BOOTTIME.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux has it
	}
	return time.Duration(ts.Nano())
}

// maxStep is how far this machine's clock may be set before what is known of a
// KDC's clock is corrected by it.
const maxStep = time.Minute

// corrected returns a ticket as it is after this machine's clock was set: the KDC's
// clock is then as much further away.
func (e *Engine) corrected(key ticketKey, t *ticket) *ticket {
	step := e.place() - t.place
	if !t.placed || step.Abs() <= maxStep {
		return t
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.tickets[key] != t {
		return e.tickets[key] // somebody was faster
	}
	now := *t
	now.offset, now.place = t.offset-step, t.place+step
	e.tickets[key] = &now
	return &now
}

// place tells where this machine's clock stands beside the one that nobody sets.
func (e *Engine) place() time.Duration { return time.Duration(e.now().UnixNano()) - e.boot() }

// login returns what makes a new TGT.
func (e *Engine) login(src source) func(context.Context) (*ticket, error) {
	return func(ctx context.Context) (*ticket, error) {
		if src.cached != nil {
			return e.renewal(ctx, src)
		}
		done, err := e.turn(ctx, src.client)
		if err != nil {
			return nil, err
		}
		defer done()
		if err := e.latch.Check(Verifier(src.client), src.client.String(), src.secrets()...); err != nil {
			return nil, err
		}
		return e.authenticate(ctx, src)
	}
}

// renewal returns the TGT of a ticket cache, renewed if it is time and possible.
// What is renewed stays with the agent; the cache is its owner's.
func (e *Engine) renewal(ctx context.Context, src source) (*ticket, error) {
	best := src.cached
	if t := e.cached(src.tgtKey()); t != nil && !best.end.After(t.end) {
		best = t // renewed before
	}
	now := e.now()
	if !e.isDue(best) || !best.renewable() {
		return best, nil
	}
	t, err := e.renewed(ctx, src, best)
	if err != nil && best.left(now) > leastLeft {
		e.log.Warn("a TGT could not be renewed", "principal", src.client.String(), "end", best.end, "error", err)
		return best, nil
	}
	return t, err
}

// earlyPause is how long after an attempt to replace a TGT ahead of its end the
// next one is made.
const earlyPause = time.Minute

// ahead replaces a TGT that still serves, without anybody waiting for it.
func (e *Engine) ahead(src source, key ticketKey, old *ticket, get func(context.Context) (*ticket, error)) {
	if !e.mayTry(key) {
		return
	}
	e.flying.Go(func() {
		if _, err := e.ticket(e.ctx, src.config, key, []*ticket{old}, tgtTime, get); err != nil {
			e.log.Warn("a TGT could not be replaced ahead of its end", "client", key.client, "end", old.end, "error", err)
		}
	})
}

// mayTry reports whether a ticket may be replaced ahead of its end now: not again
// within earlyPause, nor when the engine ends.
func (e *Engine) mayTry(key ticketKey) bool {
	now := e.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.early[key].After(now) || e.ctx.Err() != nil {
		return false
	}
	e.early[key] = now.Add(earlyPause)
	return true
}

// Export is a principal's TGT for others to use.
type Export struct {
	// Cache is a ticket cache in version 4 of MIT's FILE format. It is a secret.
	Cache []byte
	// EndTime is when the ticket ends, RefreshTime from when on a newer one is
	// worth asking for.
	EndTime, RefreshTime time.Time
}

// Export returns a TGT of the credential's principal, made anew if it is near
// its end and a KDC answers.
func (e *Engine) Export(ctx context.Context, cred Credential) (Export, error) {
	src, err := e.source(ctx, e.config.Load(), cred)
	if err != nil {
		return Export{}, err
	}
	key := src.tgtKey()
	if old := e.cached(key); old != nil && old.usable(e.now()) && e.isDue(old) && e.mayTry(key) {
		// Not all of the caller's time: the one that lives is good, too.
		limit := tgtTime
		if end, ok := ctx.Deadline(); ok {
			limit = min(limit, time.Until(end)/2)
		}
		limited, cancel := context.WithTimeout(ctx, limit)
		if _, err := e.ticket(limited, src.config, key, []*ticket{old}, tgtTime, e.login(src)); err != nil {
			e.log.Warn("a TGT could not be replaced ahead of its end", "client", key.client, "end", old.end, "error", err)
		}
		cancel()
	}
	t, err := e.tgt(ctx, src)
	if err != nil {
		return Export{}, err
	}
	c := t.forCache()
	cache := ccache.Cache{Principal: c.Client, Credentials: []ccache.Credential{c}, Offset: t.offset}
	x := Export{EndTime: t.end.Add(-t.offset), RefreshTime: t.due()}
	if soon := e.now().Add(earlyPause); x.RefreshTime.Before(soon) {
		x.RefreshTime = soon
	}
	if x.EndTime.Before(x.RefreshTime) {
		x.RefreshTime = x.EndTime
	}
	x.Cache, err = cache.Encode()
	return x, err
}

// turn waits until nobody else tries a key of the principal. Flights are of a
// whole keytab, and two keytabs may share a key: the second one has to see what
// became of it.
func (e *Engine) turn(ctx context.Context, client Principal) (done func(), err error) {
	e.mu.Lock()
	turn := e.turns[client.String()]
	if turn == nil {
		turn = make(chan struct{}, 1)
		e.turns[client.String()] = turn
	}
	e.mu.Unlock()
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another login of %s: %w", client, context.Cause(ctx))
	}
}

// verdict tells the latch what became of a key.
func (e *Engine) verdict(ctx context.Context, src source, key types.EncryptionKey, verdict error) {
	// Not for the flight's deadline, which may be all but over.
	if err := e.latch.End(context.WithoutCancel(ctx), Verifier(src.client), src.client.String(), src.secret(key), verdict); err != nil {
		e.log.Error("what became of a secret could not be written down", "principal", src.client.String(), "error", err)
	}
}

// Ready says what keeps a credential from being used, before any KDC or site is
// asked: a keytab that cannot be read, a ticket cache without a TGT that lives, a
// password that is not at hand, or a refusal that stands.
func (e *Engine) Ready(ctx context.Context, cred Credential) error {
	src, err := e.source(ctx, e.config.Load(), cred)
	if err != nil {
		return err
	}
	return e.latch.Check(Verifier(src.client), src.client.String(), src.secrets()...)
}

// Forgive lifts a refusal that stands against the secrets of a credential.
func (e *Engine) Forgive(ctx context.Context, cred Credential) error {
	src, err := e.source(ctx, e.config.Load(), cred)
	if err != nil {
		return err
	}
	if err := e.latch.Clear(ctx, Verifier(src.client), src.client.String(), src.secrets()...); err != nil {
		return &api.Error{Code: api.StoreFailed, Detail: "the refusal could not be lifted: " + api.AsError(err).Detail, Err: err,
			Remedy: cmp.Or(api.AsError(err).Remedy, "see that the store can be written: sessionctl status")}
	}
	return nil
}

// Authenticate proves the credential to its realm's KDC, with a new TGT unless
// there is one from the same secret.
func (e *Engine) Authenticate(ctx context.Context, cred Credential) error {
	src, err := e.source(ctx, e.config.Load(), cred)
	if err == nil {
		_, err = e.tgt(ctx, src)
	}
	return err
}

// ticket returns the ticket of a key, if it is usable and not an unwanted
// one; else it gets one in a flight that all callers share and that takes no
// longer than the limit. What goes wrong in a flight by a krb5.conf that was
// replaced since does not count.
func (e *Engine) ticket(ctx context.Context, config *Config, key ticketKey, unwanted []*ticket, limit time.Duration, get func(context.Context) (*ticket, error)) (*ticket, error) {
	for {
		mine := false // safe to read when the flight has landed
		if t := e.cached(key); t != nil && !slices.Contains(unwanted, t) && t.usable(e.now()) {
			return t, nil
		}
		e.flying.Add(1) // before it flies, or Close could miss it
		flight := e.flights.DoChan(key.record(), func() (any, error) {
			mine = true
			// An earlier flight may have landed since.
			if t := e.cached(key); t != nil && !slices.Contains(unwanted, t) && t.usable(e.now()) {
				return landing{t, config}, nil
			}
			ctx, cancel := context.WithTimeout(e.ctx, limit)
			defer cancel()
			t, err := e.landed(ctx, get)
			if err != nil || t == e.cached(key) { // there is no better one
				return landing{t, config}, err
			}
			t.place, t.placed = e.place(), true
			e.keep(ctx, key, t)
			e.log.Info("ticket", "client", key.client, "server", key.server, "end", t.end)
			return landing{t, config}, nil
		})
		select {
		case <-ctx.Done():
			go func() {
				defer e.flying.Done()
				<-flight
			}()
			return nil, fmt.Errorf("waiting for a ticket for %s: %w", key.server, context.Cause(ctx))
		case result := <-flight:
			e.flying.Done()
			l := result.Val.(landing)
			switch {
			case result.Err != nil && (mine || l.config == config || config != e.config.Load()):
				return nil, result.Err
			// A flight that began for others may bring what is unwanted here.
			case result.Err == nil && (mine || !slices.Contains(unwanted, l.ticket)):
				return l.ticket, nil
			}
		}
	}
}

// landing is what a flight brings.
type landing struct {
	ticket *ticket // nil: nothing but an error
	config *Config // it flew by
}

// landed gets a ticket. What gokrb5 does with a KDC's bytes may panic: that is
// the end of the flight, not of the agent.
func (e *Engine) landed(ctx context.Context, get func(context.Context) (*ticket, error)) (t *ticket, err error) {
	defer func() {
		if r := recover(); r != nil {
			e.log.Error("panic in an exchange with a KDC", "panic", r, "stack", string(debug.Stack()))
			t, err = nil, &api.Error{Code: api.KDCError, Detail: "the agent failed over a KDC's answer; its log has more", Remedy: "ask the realm's administrator what the KDC answers"}
		}
	}()
	return get(ctx)
}

// cached returns the ticket of a key from memory or its record, or nil.
func (e *Engine) cached(key ticketKey) *ticket {
	e.mu.Lock()
	t, looked := e.tickets[key]
	e.mu.Unlock()
	if t != nil {
		return e.corrected(key, t)
	}
	if looked {
		return nil
	}
	t = e.load(key)
	e.mu.Lock()
	defer e.mu.Unlock()
	if known, looked := e.tickets[key]; looked {
		return known // somebody was faster
	}
	e.tickets[key] = t
	return t
}

// load returns the ticket in a key's record, or nil.
func (e *Engine) load(key ticketKey) *ticket {
	record, _, err := e.records.Load(key.record())
	if record == nil && err == nil {
		return nil
	}
	var t *ticket
	var asked string
	if err == nil {
		t, asked, err = decodeTicket(record)
	}
	if err == nil && asked != key.server {
		err = errors.New("ticket record of another ticket")
	}
	if err != nil {
		e.log.Warn("a stored ticket is of no use", "client", key.client, "server", key.server, "error", err)
		return nil
	}
	return t
}

// endedTime is how long after its end a ticket is forgotten, by whatever clock.
const endedTime = time.Hour

// keep puts a ticket into memory and its record, and takes those out that ended
// long ago: of a keytab that was replaced, or a cache whose owner logged in anew,
// nobody asks for them again.
func (e *Engine) keep(ctx context.Context, key ticketKey, t *ticket) {
	var ended []ticketKey
	e.mu.Lock()
	e.tickets[key] = t
	for other, t := range e.tickets {
		switch {
		case t == nil && other.fingerprint != key.fingerprint:
			delete(e.tickets, other) // its record is looked for again
		case t != nil && t.left(e.now()) < -endedTime && other != key:
			ended = append(ended, other)
			delete(e.tickets, other)
			delete(e.early, other)
			delete(e.refused, other)
		}
	}
	e.mu.Unlock()
	for _, other := range ended {
		if _, revision, err := e.records.Load(other.record()); err == nil && revision != 0 {
			if _, err := e.records.Swap(ctx, other.record(), revision, nil); err != nil {
				e.log.Warn("a ticket that has ended was not forgotten", "client", other.client, "server", other.server, "error", err)
			}
		}
	}
	record, err := t.encode(key.server)
	if err == nil {
		// Only this flight writes the record, so the revision cannot change.
		var revision uint64
		if _, revision, err = e.records.Load(key.record()); err == nil {
			_, err = e.records.Swap(ctx, key.record(), revision, record)
		}
	}
	if err != nil {
		e.log.Warn("a ticket was not stored", "client", key.client, "server", key.server, "error", err)
	}
}

// replace puts what is known better into the place of a ticket in memory.
func (e *Engine) replace(old, t *ticket) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, known := range e.tickets {
		if known == old {
			e.tickets[key] = t
		}
	}
}

// kdcsOf returns the KDCs of a realm, as a configuration has them.
func (e *Engine) kdcsOf(config *Config, realm string) (*realmKDCs, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	known, ok := e.realms[realm]
	if ok && known.config == config {
		return known, nil
	}
	if err := config.CheckRealm(realm); err != nil {
		return nil, err
	}
	k := newRealmKDCs(realm, config, e.dns, e.dial, e.now)
	if ok && config.sameKDCs(known.config, realm) {
		k.kdcMemory = known.kdcMemory
	}
	if config == e.config.Load() {
		e.realms[realm] = k
	}
	return k, nil
}

// stamp returns the time of a new authenticator, for a clock of that offset. No two are alike, because
// services take two of the same microsecond for a replay.
func (e *Engine) stamp(offset time.Duration) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now().UTC().Truncate(time.Microsecond)
	if !now.After(e.lastStamp) && e.lastStamp.Sub(now) < time.Second {
		now = e.lastStamp.Add(time.Microsecond)
	}
	e.lastStamp = now
	return now.Add(offset)
}

// Check returns what keeps a credential from being used by an engine with that
// configuration, as far as that shows without asking anybody: no KDC for its
// realm, a keytab or a ticket cache that is of no use.
func Check(ctx context.Context, c *Config, cred Credential) error {
	e := New(Options{Config: c, Records: noRecords{}})
	defer e.Close()
	if err := c.CheckRealm(cred.Principal.Realm); err != nil || cred.Keytab == "" && cred.Cache == "" {
		return err
	}
	_, err := e.source(ctx, c, cred)
	return err
}

type noRecords struct{}

func (noRecords) Load(string) ([]byte, uint64, error) { return nil, 0, nil }
func (noRecords) Swap(context.Context, string, uint64, []byte) (uint64, error) {
	return 0, errors.New("there is no store")
}

// TicketInfo tells about a ticket, without ticket bytes and keys.
type TicketInfo struct {
	Client   string    // name@REALM
	Server   string    // krbtgt/REALM@REALM or service/host@REALM
	Enctype  string    // of the session key, as in RFC 3962 and RFC 8009
	AuthTime time.Time // when the client proved itself to the KDC
	EndTime  time.Time
	// RenewTime is until when the ticket could be renewed; zero: it cannot.
	RenewTime time.Time
}

// Tickets lists the tickets in memory, in order of client and server. Those
// that have ended or were not yet asked for are not among them.
func (e *Engine) Tickets() []TicketInfo {
	e.mu.Lock()
	tickets := slices.Collect(maps.Values(e.tickets))
	e.mu.Unlock()
	now := e.now()
	var infos []TicketInfo
	for _, t := range tickets {
		if t != nil && t.left(now) > 0 {
			infos = append(infos, TicketInfo{t.client.String(), t.server.String(),
				enctypeNames([]int32{t.key.KeyType}), t.auth, t.end, t.renew})
		}
	}
	slices.SortFunc(infos, func(a, b TicketInfo) int {
		return cmp.Or(cmp.Compare(a.Client, b.Client), cmp.Compare(a.Server, b.Server), a.EndTime.Compare(b.EndTime))
	})
	return infos
}
