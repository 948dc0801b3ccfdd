// Package krb turns a keytab into a SPNEGO token: keytab → TGT → service
// ticket → token, with own AS and TGS exchanges (RFC 4120) over gokrb5's
// codecs and crypto, an own reader of krb5.conf, and the check of the
// service's answer.
//
// Tickets live in memory and, through Records, in the store. A refused key is
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
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jcmturner/gokrb5/v8/types"
	"github.com/sessionctl/sessionctl/api"
	"golang.org/x/sync/singleflight"
)

// Credential is what a login consumes: a principal and where its keys are.
type Credential struct {
	Principal Principal
	Keytab    string // path of a keytab file, read again for each login
}

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
	// Dial connects to KDCs; nil means net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
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
	config  *Config
	records Records
	latch   Latch
	now     func() time.Time
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	log     *slog.Logger

	flights singleflight.Group // by ticketKey.record
	ctx     context.Context    // of the flights
	cancel  context.CancelFunc
	flying  sync.WaitGroup

	mu        sync.Mutex
	tickets   map[ticketKey]*ticket // nil: looked for in records, none there
	realms    map[string]*realmKDCs
	turns     map[string]chan struct{} // by principal
	lastStamp time.Time
}

// ticketKey names a ticket: whose, made with which keys, for whom.
type ticketKey struct {
	client, fingerprint, server string
}

// record is the key of the ticket's record.
func (k ticketKey) record() string { return path(k.client, k.fingerprint, k.server) }

// New returns an Engine.
func New(o Options) *Engine {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	e := &Engine{
		config: o.Config, records: o.Records, latch: o.Latch, now: o.Now, dial: o.Dial, log: o.Log,
		tickets: make(map[ticketKey]*ticket),
		realms:  make(map[string]*realmKDCs),
		turns:   make(map[string]chan struct{}),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

// Close ends the exchanges under way and waits for them. It must not be called
// while Initiate may still be.
func (e *Engine) Close() {
	e.cancel()
	e.flying.Wait()
}

// Verifier names who judges a principal's keys: its realm.
func Verifier(p Principal) string { return "realm:" + p.Realm }

// Initiate makes a token that shows the credential's principal to a service.
// The spn is written service/host; unless @REALM follows, its realm is what
// [domain_realm] says of the host, else the principal's. Each call makes a new
// token from the ticket at hand; fresh asks the KDC for a new service ticket
// first.
//
// Errors are *api.Error, or the context's when that ends first.
func (e *Engine) Initiate(ctx context.Context, cred Credential, spn string, fresh bool) (*Context, error) {
	client := cred.Principal
	server, err := e.service(spn, client.Realm)
	if err != nil {
		return nil, err
	}
	long, err := readKeytab(cred.Keytab, client)
	if err != nil {
		return nil, err
	}
	key := ticketKey{client.String(), long.fingerprint(), server.String()}
	var unwanted *ticket
	if fresh {
		unwanted = e.cached(key)
	}
	t, err := e.ticket(ctx, key, unwanted, serviceTime, func(ctx context.Context) (*ticket, error) {
		return e.fromTGT(ctx, client, long, server)
	})
	if err != nil {
		return nil, err
	}
	return e.newContext(t)
}

// service reads an SPN.
func (e *Engine) service(spn, clientRealm string) (Principal, error) {
	p, err := ParsePrincipal(spn, clientRealm)
	if err != nil {
		return Principal{}, err
	}
	if len(p.Components) < 2 {
		return Principal{}, &api.Error{Code: api.ConfigInvalid, Detail: "SPN " + quote(spn) + " is not of the form service/host"}
	}
	if realm := e.config.RealmOf(p.Components[1]); realm != "" && !strings.Contains(spn, "@") {
		p.Realm = realm
	}
	if p.Realm != clientRealm {
		return Principal{}, &api.Error{Code: api.SPNUnknown,
			Detail: fmt.Sprintf("%s is in another realm than the principal's, %s, and the agent does not cross realms", p, clientRealm),
			Remedy: "use a principal of " + p.Realm}
	}
	return p, nil
}

// fromTGT gets a service ticket. A TGT that the KDC refuses, because its own
// key changed for example, is replaced once.
func (e *Engine) fromTGT(ctx context.Context, client Principal, long keys, server Principal) (*ticket, error) {
	tgt, err := e.tgt(ctx, client, long, nil)
	if err != nil {
		return nil, err
	}
	t, err := e.serviceTicket(ctx, tgt, server)
	if errors.Is(err, errTGTRefused) {
		e.log.Warn("the KDC refuses the TGT, logging in again", "principal", client.String(), "error", err)
		if tgt, err = e.tgt(ctx, client, long, tgt); err != nil {
			return nil, err
		}
		t, err = e.serviceTicket(ctx, tgt, server)
	}
	if errors.Is(err, errUndecipherable) {
		err = badReply("TGS-REQ", err.Error())
	}
	return t, err
}

// tgt returns a TGT of the client other than the unwanted one.
func (e *Engine) tgt(ctx context.Context, client Principal, long keys, unwanted *ticket) (*ticket, error) {
	key := ticketKey{client.String(), long.fingerprint(), ticketGranting(client.Realm).String()}
	return e.ticket(ctx, key, unwanted, tgtTime, func(ctx context.Context) (*ticket, error) {
		done, err := e.turn(ctx, client)
		if err != nil {
			return nil, err
		}
		defer done()
		if err := e.latch.Check(Verifier(client), client.String(), long.secrets()...); err != nil {
			return nil, err
		}
		return e.authenticate(ctx, client, long)
	})
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
func (e *Engine) verdict(ctx context.Context, client Principal, key types.EncryptionKey, verdict error) {
	// Not for the flight's deadline, which may be all but over.
	if err := e.latch.End(context.WithoutCancel(ctx), Verifier(client), client.String(), secretOf(key), verdict); err != nil {
		e.log.Error("what became of a keytab's key could not be written down", "principal", client.String(), "error", err)
	}
}

// Ready says what keeps a credential from being used, before any KDC or site is
// asked: a keytab that cannot be read, or a refusal that stands.
func (e *Engine) Ready(cred Credential) error {
	long, err := readKeytab(cred.Keytab, cred.Principal)
	if err != nil {
		return err
	}
	return e.latch.Check(Verifier(cred.Principal), cred.Principal.String(), long.secrets()...)
}

// Forgive lifts a refusal that stands against the keys of a credential.
func (e *Engine) Forgive(ctx context.Context, cred Credential) error {
	long, err := readKeytab(cred.Keytab, cred.Principal)
	if err != nil {
		return err
	}
	if err := e.latch.Clear(ctx, Verifier(cred.Principal), cred.Principal.String(), long.secrets()...); err != nil {
		return &api.Error{Code: api.StoreFailed, Detail: "the refusal could not be lifted: " + api.AsError(err).Detail, Err: err,
			Remedy: cmp.Or(api.AsError(err).Remedy, "see that the store can be written: sessionctl status")}
	}
	return nil
}

// ticket returns the ticket of a key, if it is usable and not the unwanted
// one; else it gets one in a flight that all callers share and that takes no
// longer than the limit.
func (e *Engine) ticket(ctx context.Context, key ticketKey, unwanted *ticket, limit time.Duration, get func(context.Context) (*ticket, error)) (*ticket, error) {
	for {
		if t := e.cached(key); t != nil && t != unwanted && t.usable(e.now()) {
			return t, nil
		}
		e.flying.Add(1) // before it flies, or Close could miss it
		flight := e.flights.DoChan(key.record(), func() (any, error) {
			// An earlier flight may have landed since.
			if t := e.cached(key); t != nil && t != unwanted && t.usable(e.now()) {
				return t, nil
			}
			ctx, cancel := context.WithTimeout(e.ctx, limit)
			defer cancel()
			t, err := get(ctx)
			if err != nil {
				return nil, err
			}
			e.keep(ctx, key, t)
			e.log.Info("ticket", "client", key.client, "server", key.server, "end", t.end)
			return t, nil
		})
		select {
		case <-ctx.Done():
			go func() {
				defer e.flying.Done()
				<-flight
			}()
			return nil, fmt.Errorf("waiting for a ticket for %s: %w", key.server, context.Cause(ctx))
		case landed := <-flight:
			e.flying.Done()
			if landed.Err != nil {
				return nil, landed.Err
			}
			// A flight that began for others may bring what is unwanted here.
			if t := landed.Val.(*ticket); t != unwanted {
				return t, nil
			}
		}
	}
}

// cached returns the ticket of a key from memory or its record, or nil.
func (e *Engine) cached(key ticketKey) *ticket {
	e.mu.Lock()
	t, looked := e.tickets[key]
	e.mu.Unlock()
	if looked {
		return t
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
	if err == nil {
		t, err = decodeTicket(record)
	}
	if err == nil && (t.client.String() != key.client || t.server.String() != key.server) {
		err = errors.New("ticket record of another ticket")
	}
	if err != nil {
		e.log.Warn("a stored ticket is of no use", "client", key.client, "server", key.server, "error", err)
		return nil
	}
	return t
}

// keep puts a ticket into memory and its record.
func (e *Engine) keep(ctx context.Context, key ticketKey, t *ticket) {
	e.mu.Lock()
	e.tickets[key] = t
	e.mu.Unlock()
	record, err := t.encode()
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

// kdcsOf returns the KDCs of a realm.
func (e *Engine) kdcsOf(realm string) (*realmKDCs, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if k, ok := e.realms[realm]; ok {
		return k, nil
	}
	if err := e.config.CheckRealm(realm); err != nil {
		return nil, err
	}
	k := &realmKDCs{realm: realm, addrs: e.config.KDCs(realm), dial: e.dial}
	e.realms[realm] = k
	return k, nil
}

// stamp returns the time of a new authenticator. No two are alike, because
// services take two of the same microsecond for a replay.
func (e *Engine) stamp() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now().UTC().Truncate(time.Microsecond)
	if !now.After(e.lastStamp) && e.lastStamp.Sub(now) < time.Second {
		now = e.lastStamp.Add(time.Microsecond)
	}
	e.lastStamp = now
	return now
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
		if t != nil && t.end.After(now) {
			infos = append(infos, TicketInfo{t.client.String(), t.server.String(),
				enctypeNames([]int32{t.key.KeyType}), t.auth, t.end, t.renew})
		}
	}
	slices.SortFunc(infos, func(a, b TicketInfo) int {
		return cmp.Or(cmp.Compare(a.Client, b.Client), cmp.Compare(a.Server, b.Server), a.EndTime.Compare(b.EndTime))
	})
	return infos
}
