// Package keeper owns the live session of each site and user: it decides when
// to log in, when to ask the site again, what to serve in between, and when to
// leave a credential alone. Single flight, schedule, back-off and latches live
// here.
//
// What is proven is stored before it is served. What the store does not take is served
// all the same, flagged, and is tried again until it does, as is the removal of what has
// ended, and what was learned (see unwritten). Nobody else writes these records: where
// the store has others than the keeper has in mind, it was mended, and memory counts.
//
// How a login is done does not belong here (package login), nor who may have
// a session (packages daemon and peer), nor how records are sealed (package
// store).
package keeper

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// Records is what the keeper needs of a store: records that are replaced
// only by someone who has seen the present one.
type Records interface {
	// Load returns a record and its revision; nil and 0 if there is none.
	Load(key string) (record []byte, revision uint64, err error)
	// Swap replaces the record of that revision, or deletes it if record is
	// nil, and returns the new revision after the change is durable.
	Swap(ctx context.Context, key string, revision uint64, record []byte) (uint64, error)
}

// Site is one site and one user, as the keeper sees them.
type Site struct {
	// ID names the session among all of a keeper; "": as Name does.
	ID string
	// Name is the site's name, Kind its kind.
	Name, Kind string
	// Credential is the name of the credential that logs in.
	Credential string
	// URL is the site's own URL.
	URL *url.URL
	// Account is who logs in, as the credential says: "build@CORP.EXAMPLE".
	Account string
	// Fingerprint changes when a stored session must not be used any more.
	Fingerprint string
	// Setup changes with anything that the site was made from, also with what
	// leaves its session good.
	Setup string
	// Expect says whose session the site has to give us.
	Expect login.Expectation
	// Recheck is how long a proof is good for, if RecheckSet; if not, that depends
	// on how long the site's sessions live unused.
	Recheck    time.Duration
	RecheckSet bool
	// KeepAlive has the session looked after even if nobody asks for it.
	KeepAlive bool
	// IdP is the ID of the identity provider whose session logs in here, "" for
	// none. Cookies of its IdPOrigins are its own, and not of the site's session.
	IdP        string
	IdPOrigins []web.Origin
	// Realm is the Kerberos realm that a login needs a KDC of, "" for none.
	Realm string
	// Password is the credential, if it is one. If not, Ready says what keeps it
	// from being used, before anybody is asked: a file that cannot be read, or a
	// refusal that stands; and Forgive lifts that refusal, for one attempt.
	Password *Password
	Ready    func() error
	Forgive  func(context.Context) error
	// Bring, if it is not nil, proves a password to the credential's realm and
	// keeps it as Brought, once more after a refusal with retry. It returns an
	// *api.Error.
	Bring   func(ctx context.Context, password []byte, retry bool) error
	Brought *Password
	// Fallback, if it is not nil, logs in when the site has no use for the
	// credential, which then is no password.
	Fallback *Password
	// ForgiveProxy lifts what stands against the credential at the site's proxy;
	// nil if it has none. ProxyPassword is that credential, if it is a password.
	ForgiveProxy  func(context.Context) error
	ProxyPassword *Password
	// Driver logs in.
	Driver login.Driver
	// Exchange starts a dialogue with the site. Without tickets it must not answer
	// the site's challenges.
	Exchange func(jar *web.Jar, tickets bool) *web.Exchange

	isIdP bool // one of Options.IdPs
}

// password returns the password that the site logs in with, at first or in the
// end; nil if it has none.
func (s *Site) password() *Password {
	if s.Password != nil {
		return s.Password
	}
	return s.Fallback
}

// Options are what a Keeper works with.
type Options struct {
	Sites []Site
	// IdPs are identity providers: their sessions log in to sites, and are never
	// handed out.
	IdPs    []Site
	Records Records
	// Lives keeps what is known of how long sessions live.
	Lives   Records
	Latches *Latches
	Log     *slog.Logger
	// Clock is the agent's time; nil: time.Now's.
	Clock *Clock
}

// Time limits of the keeper's own work, whoever waits for it.
const (
	loginTimeout = 30 * time.Second
	probeTimeout = 5 * time.Second
	// logoutTimeout bounds what is asked of a site about a session that is dropped
	// in any case.
	logoutTimeout = 5 * time.Second
)

// More than maxLogins automatic logins of a site within loginWindow do not help:
// its sessions die at once.
const (
	maxLogins   = 10
	loginWindow = time.Minute
)

// A watched session is proven once in watchRecheck at most, but for one whose
// cookies end sooner: once in minWatch at most.
const (
	watchRecheck = 30 * time.Second
	minWatch     = 10 * time.Second
)

// Keeper keeps the sessions. Its methods are safe for concurrent use.
//
// Locks are taken in the order: reloading, the keeper's, an entry's, the agenda's, the
// circuits' or that of what is unwritten. A site's flight may wait for that of its identity provider, never the
// other way round.
type Keeper struct {
	o        Options
	clock    *Clock
	agenda   agenda
	circuits circuits
	deaths   deaths
	// unwritten is what the store did not take yet.
	unwritten unwritten
	ctx       context.Context
	cancel    context.CancelFunc
	flights   sync.WaitGroup

	// reloading is held while a configuration is applied, or what it has left is
	// purged.
	reloading sync.Mutex

	mu      sync.RWMutex
	entries map[string]*entry // sites, by ID
	idps    map[string]*entry // identity providers, by ID
	order   []*entry          // the sites in the order of the configuration

	logins, failures atomic.Int64
	background       atomic.Int64 // flights that the agenda has launched
}

// New returns a keeper of the sites. It loads nothing yet, but for those to be
// kept alive.
func New(o Options) *Keeper {
	k := &Keeper{o: o, clock: o.Clock}
	if k.clock == nil { // of one that nobody sets
		began := time.Now()
		k.clock = newClock(time.Now, func() time.Duration { return time.Since(began) })
	}
	k.agenda.k = k
	k.circuits.all = map[string]*circuit{}
	k.deaths.last = map[web.Origin]map[*entry]*death{}
	k.unwritten.k, k.unwritten.entries = k, map[string]*entry{}
	o.Latches.onFailure(k.unwritten.latch)
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.Reconfigure(o.Sites, o.IdPs)
	return k
}

// Close ends the work under way and waits for it. What the store did not take is tried
// a last time.
func (k *Keeper) Close() {
	k.cancel()
	k.agenda.close()
	k.unwritten.close()
	k.flights.Wait()
	k.unwritten.write()
}

// Served is a session as it is handed out.
type Served struct {
	*Session
	// Stale says that the site could not be asked lately.
	Stale bool
	// NotDurable says that the session is not in the store yet.
	NotDurable bool
}

// GetOptions say what a caller asks of a session.
type GetOptions struct {
	// MinValidity is how long it should still live.
	MinValidity time.Duration
	// CachedOnly forbids to wait for a probe or a login.
	CachedOnly bool
}

// Get returns a proven session of a site, logging in if there is none. All
// errors of the keeper's methods are *api.Error.
func (k *Keeper) Get(ctx context.Context, site string, o GetOptions) (Served, error) {
	return k.current(site, func(e *entry) (Served, error) {
		return e.get(ctx, want{minValidity: o.MinValidity, cachedOnly: o.CachedOnly})
	})
}

// errRetired says that a reload has put another entry in the place of this one.
var errRetired = errors.New("the entry is retired")

// current does something with the entry of a site, and once more if a reload has
// replaced that meanwhile.
func (k *Keeper) current(site string, do func(*entry) (Served, error)) (Served, error) {
	for {
		e, err := k.entry(site)
		if err != nil {
			return Served{}, err
		}
		if s, err := do(e); !errors.Is(err, errRetired) {
			return s, err
		}
	}
}

// Refresh is called by somebody whose request was refused with the session of
// a generation, or who wants a new one. A generation that is no longer current
// changes nothing; else the session is probed, and made anew if it is dead.
// With force it is made anew in any case, and no back-off is waited for: that is
// for a person who may, not for every caller.
func (k *Keeper) Refresh(ctx context.Context, site, generation string, force bool) (Served, error) {
	return k.current(site, func(e *entry) (Served, error) { return e.refresh(ctx, generation, force) })
}

func (e *entry) refresh(ctx context.Context, generation string, force bool) (Served, error) {
	w := want{strict: true, force: force}
	e.mu.Lock()
	e.load()
	switch {
	case e.session == nil:
	case generation != "" && generation != e.session.Generation:
		w = want{}
	case force:
		w.not = e.session.Generation
	default:
		w.proof = e.proofs + 1
	}
	e.mu.Unlock()
	return e.get(ctx, w)
}

// LoginOptions say how a person wants a login.
type LoginOptions struct {
	// Setup is that of the Site that was asked about, if it is not "": nothing that a
	// person brings goes to one that was set up in another way meanwhile.
	Setup string
	// Retry first lifts a latched refusal, for one attempt.
	Retry bool
	// Password, if it is not nil, is used instead of the stored one, and stored
	// once the site has accepted it.
	Password []byte
	// Adopt, if it is not nil, holds the cookies of a session that a person made
	// elsewhere.
	Adopt *web.Jar
}

// Login logs in anew, whatever there is. A session that lives stays if that
// fails. At a site with an identity provider, a password and a retry are for that.
func (k *Keeper) Login(ctx context.Context, site string, o LoginOptions) (Served, error) {
	e, err := k.entry(site)
	if err != nil {
		return Served{}, err
	}
	changed := &api.Error{Code: api.InvalidRequest, Detail: "the site was set up in another way meanwhile", Remedy: "see sessionctl list, then log in once more"}
	if o.Setup != "" && o.Setup != e.site.Setup {
		return Served{}, changed
	}
	s, err := e.loginOptions(ctx, o)
	if errors.Is(err, errRetired) {
		err = changed
	}
	return s, err
}

func (e *entry) loginOptions(ctx context.Context, o LoginOptions) (Served, error) {
	if jar := e.sharedWith(o.Adopt); jar != nil {
		if _, err := e.provider.loginAnew(ctx, LoginOptions{Adopt: jar}); err != nil {
			return Served{}, e.throughIdP(err)
		}
		o = LoginOptions{}
	}
	if p := e.provider; p != nil && o.Adopt == nil && (o.Password != nil || o.Retry) {
		if _, err := p.loginAnew(ctx, o); err != nil {
			if errors.Is(err, errRetired) {
				return Served{}, err
			}
			return Served{}, e.remedied(e.throughIdP(err), offeredBy(o))
		}
		o = LoginOptions{}
	}
	return e.loginAnew(ctx, o)
}

// offeredBy is the attempt with the password that a person brings, nil if none is.
func offeredBy(o LoginOptions) *attempt {
	if o.Password == nil {
		return nil
	}
	return &attempt{offered: true}
}

func (e *entry) loginAnew(ctx context.Context, o LoginOptions) (Served, error) {
	if o.Password != nil && e.site.Bring != nil {
		if err := CheckPassword(o.Password); err != nil {
			return Served{}, err
		}
		return e.alone(ctx, func() *api.Error { return e.bring(o.Password, o.Retry) })
	}
	var offered *attempt
	if o.Password != nil {
		p := e.site.password()
		if p == nil {
			return Served{}, &api.Error{Code: api.InvalidRequest, Detail: "the site does not log in with a password", Remedy: "leave out the keytab or ccache of its credential, or give that a username instead of a principal"}
		}
		if err := p.Fixed(); err != nil {
			return Served{}, err
		}
		if err := CheckPassword(o.Password); err != nil {
			return Served{}, err
		}
		offered = &attempt{p: p, site: &e.site, secret: secret.New(string(o.Password)), offered: true}
	}
	if o.Retry {
		e.doubtFindings()
		if err := e.forgive(ctx, offered); err != nil {
			return Served{}, e.remedied(err, offered)
		}
	}
	switch {
	case o.Adopt != nil:
		return e.alone(ctx, func() *api.Error { return e.adopt(o.Adopt) })
	case offered != nil:
		return e.alone(ctx, func() *api.Error { return e.renew(offered) })
	}
	return e.refresh(ctx, "", true)
}

// Resume ends the back-off of a site, because a person has mended what kept its
// logins from succeeding.
func (k *Keeper) Resume(site string) {
	e, err := k.entry(site)
	if err != nil {
		return
	}
	for ; e != nil; e = e.provider {
		k.circuits.forget(e.needs(aLogin))
		e.resume()
	}
}

// resume ends the entry's own back-off.
func (e *entry) resume() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if held := !e.retryAt.IsZero() || e.stale; held && e.flight == nil && !e.k.agenda.at(e).IsZero() {
		e.k.agenda.put(e, e.k.clock.Now().Add(rand.N(spread)))
	}
	e.retryAt = time.Time{}
}

// Watch hands a site's session over, and again whenever it changes or the site is
// set up anew, until ctx ends or there is none to be had. While somebody watches, the
// session counts as asked for.
func (k *Keeper) Watch(ctx context.Context, site string, handOver func(Served) error) error {
	for {
		var changed <-chan struct{}
		fresh := watchRecheck
		s, err := k.current(site, func(e *entry) (Served, error) {
			e.mu.Lock()
			changed, fresh = e.changed, max(watchRecheck, e.recheck())
			e.mu.Unlock()
			// What a flight has just brought is not asked for again.
			return e.get(ctx, want{fresh: fresh})
		})
		if err != nil {
			return err
		}
		if err := handOver(s); err != nil {
			return err
		}
		next := fresh
		if !s.ExpireTime.IsZero() { // what has ended is not good until then
			next = min(next, max(s.ExpireTime.Sub(k.clock.Now()), minWatch))
		}
		t := time.NewTimer(next)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			err = callerError(ctx.Err())
		}
		t.Stop()
		if err != nil {
			return err
		}
	}
}

// Deleted is what became of a session that is no longer wanted.
type Deleted struct {
	Had     bool       // there was one
	Ended   bool       // the site has confirmed its end
	Refusal *api.Error // why the site has not; nil: its kind cannot
	IdP     string     // the identity provider whose session goes on, "" for none
}

// DeleteOptions say what else ends.
type DeleteOptions struct {
	// IdP ends the session at the site's identity provider, and drops those of all
	// sites that it logs in to.
	IdP bool
}

// Delete ends a site's session, at the site if its kind can, and drops it here
// and in the store.
func (k *Keeper) Delete(ctx context.Context, site string, o DeleteOptions) (Deleted, error) {
	var d Deleted
	_, err := k.current(site, func(e *entry) (Served, error) {
		p := e.provider
		if !o.IdP || p == nil {
			var err error
			if d, err = e.delete(ctx, p == nil); p != nil && p.living() {
				d.IdP = p.site.Name
			}
			return Served{}, err
		}
		var err error
		if d, err = p.delete(ctx, true); err != nil {
			return Served{}, err
		}
		for _, member := range k.members(p) {
			_, merr := k.current(member.site.ID, func(e *entry) (Served, error) {
				m, err := e.delete(ctx, false)
				d.Had = d.Had || m.Had
				return Served{}, err
			})
			if merr != nil && api.CodeOf(merr) != api.UnknownSite {
				err = merr
			}
		}
		return Served{}, err
	})
	if err != nil {
		return Deleted{}, err
	}
	return d, nil
}

// living reports whether there is a session.
func (e *entry) living() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.load()
	return e.session != nil && !e.session.ended(e.k.clock.Now())
}

// delete drops the session, and ends it at the site if it is told to.
func (e *entry) delete(ctx context.Context, there bool) (Deleted, error) {
	var d Deleted // safe to read when alone has waited for the end
	_, err := e.alone(ctx, func() *api.Error {
		e.mu.Lock()
		s := e.session
		e.mu.Unlock()
		err := e.forget() // first, so that nobody is served what is about to end
		if d.Had = s != nil; d.Had && there {
			d.Ended, d.Refusal = e.logout(s)
		}
		return err
	})
	if err != nil {
		return Deleted{}, err
	}
	return d, nil
}

func (k *Keeper) entry(site string) (*entry, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if e := k.entries[site]; e != nil {
		return e, nil
	}
	return nil, &api.Error{Code: api.UnknownSite, Detail: "no such site"}
}

// all returns the entries of sites and identity providers. The caller holds the
// lock.
func (k *Keeper) all() []*entry {
	return append(slices.Collect(maps.Values(k.entries)), slices.Collect(maps.Values(k.idps))...)
}

// State is where a session stands.
type State int

// The states of a session.
const (
	None State = iota
	Live
	Stale
	LoggingIn
	Latched
)

// Summary is the state of one site without its secrets.
type Summary struct {
	Site       Site
	Found      login.Findings // zero: nobody has looked
	State      State
	Session    *Session   // nil if there is none
	Failure    *api.Error // the failure that stands, or nil
	RetryTime  time.Time  // no attempt before
	CheckTime  time.Time  // when the session is looked after; zero: nobody uses it
	NotDurable bool
	// Life is how long sessions live after their login, Idle how long unused; 0:
	// not known. What is not learned is documented.
	Life, Idle               time.Duration
	LifeLearned, IdleLearned bool
}

// List tells the state of every site, in the order of the configuration.
func (k *Keeper) List() []Summary {
	k.mu.RLock()
	order := k.order
	k.mu.RUnlock()
	k.checkClock()
	all := make([]Summary, len(order))
	for i, e := range order {
		all[i] = e.summary()
	}
	return all
}

// IdPs tells the state of every identity provider, in the order of their names.
func (k *Keeper) IdPs() []Summary {
	k.mu.RLock()
	var all []*entry
	for _, id := range slices.Sorted(maps.Keys(k.idps)) {
		all = append(all, k.idps[id])
	}
	k.mu.RUnlock()
	var states []Summary
	for _, e := range all {
		s := e.summary()
		if f := s.Failure; f != nil && f.Remedy == "" {
			s.Failure = &api.Error{Code: f.Code, Detail: f.Detail, Remedy: "see its sites: sessionctl list", Err: f.Err}
		}
		states = append(states, s)
	}
	return states
}

// Counts returns how many logins succeeded and failed so far.
func (k *Keeper) Counts() (logins, failures int64) { return k.logins.Load(), k.failures.Load() }

// callerError is the error of a caller who could not wait any longer.
func callerError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return &api.Error{Code: api.Deadline, Detail: "the caller's time is over; the login goes on", Remedy: "try again", Err: err}
	}
	return api.AsError(err)
}
