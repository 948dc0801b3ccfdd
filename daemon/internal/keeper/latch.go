package keeper

import (
	"cmp"
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

const (
	// maxSecrets is how many secrets are remembered for one account.
	maxSecrets = 32
	// unknownTries is how often a secret that was accepted before may be tried
	// in a row without learning the outcome, before it is tried slowly.
	unknownTries = 2
	// unknownPause is how long it is then left alone: such attempts may count as
	// failures at the verifier, and this is its usual window for them.
	unknownPause = 10 * time.Minute
	// storeTimeout bounds a write, so that a disk that hangs does not hang logins.
	storeTimeout = 5 * time.Second
)

// Latches remember what became of secrets at their verifier, across callers,
// sites, restarts and crashes, so that none is tried a second time after a
// refusal before a person acts. They hold no secret, only keyed hashes.
//
// An attempt is written down before it is made. If its outcome never becomes
// known, because the agent or the network died, a secret that was never
// accepted counts as refused; one that was may be tried again, soon slowly.
//
// What the store does not take holds for this process, and a Keeper has it written
// again. Where the store turns out to hold something else, as it was mended, what this
// process knows counts, and what it never could read counts besides, for the worse.
type Latches struct {
	records Records
	mac     func(data ...[]byte) []byte

	mu     sync.Mutex
	known  map[string]*account
	wrote  bool   // the store could be written in the life of this process
	failed func() // is called when it could not, see onFailure
}

// account is what is known of one user's secrets.
type account struct {
	revision  uint64
	secrets   []secretState
	unread    bool // the stored record was there, maybe, and could not be read
	unwritten bool // it is not what is known
}

// secretState is what became of one secret.
type secretState struct {
	Hash     []byte    `json:"hash"`
	Time     time.Time `json:"time"`              // of the last attempt
	Pending  int       `json:"pending,omitempty"` // attempts in a row without a known outcome
	underway int       // those of them that this process is making
	seen     time.Time // the last acceptance that this process remembers (see)
	verdicts
	// Of a refusal that stands:
	Code   api.Code `json:"code,omitempty"`
	Detail string   `json:"detail,omitempty"`
	Remedy string   `json:"remedy,omitempty"`
	// Loss is how the last attempt of unknown outcome ended, as far as known.
	Loss *loss `json:"loss,omitempty"`
}

// verdicts are what became of a secret, whether or not it is latched now.
type verdicts struct {
	Accepted bool `json:"accepted,omitempty"` // at some time
	Refused  bool `json:"refused,omitempty"`  // since then
}

type loss struct {
	Code   api.Code `json:"code"`
	Detail string   `json:"detail"`
}

// String ends a sentence.
func (l *loss) String() string {
	if l == nil {
		return ""
	}
	return ": " + l.Detail + " (" + string(l.Code) + ")"
}

// NewLatches returns the latches of a store; mac is a keyed hash.
func NewLatches(records Records, mac func(data ...[]byte) []byte) *Latches {
	return &Latches{records: records, mac: mac, known: map[string]*account{}, failed: func() {}}
}

// onFailure has somebody told when something was not stored, who then calls rewrite.
func (l *Latches) onFailure(tell func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = tell
}

// again has everything stored once more by rewrite.
func (l *Latches) again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.known {
		a.unwritten = true
	}
}

// rewrite stores what was not stored, until a failure says that others would fail, too.
func (l *Latches) rewrite() (failure error) {
	l.mu.Lock()
	known := maps.Clone(l.known)
	l.mu.Unlock()
	for key := range known {
		err := l.rewriteOne(key)
		if refusesAll(err) {
			return err
		}
		failure = cmp.Or(failure, err)
	}
	return failure
}

func (l *Latches) rewriteOne(key string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.known[key]
	if !a.unwritten {
		return nil
	}
	return l.keep(context.Background(), key, a)
}

// Check returns what stands against trying one of the secrets, as an
// *api.Error: of code api.Latched if a person has to act, and then of the code of
// the refusal inside, or nil.
func (l *Latches) Check(verifier, user string, secrets ...[]byte) error {
	return l.check(false, verifier, user, secrets...)
}

// check is Check. If it is strict, an attempt of unknown outcome counts as
// refused even of a secret that was accepted before.
func (l *Latches) check(strict bool, verifier, user string, secrets ...[]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, err := l.load(latchKey(verifier, user))
	if err != nil {
		// What was refused cannot be known: an attempt now might be the one
		// that locks the account.
		return &api.Error{Code: api.StoreDamaged, Detail: "earlier refusals of " + user + " cannot be read: " + api.AsError(err).Detail, Err: err}
	}
	for _, secret := range secrets {
		s := a.find(l.hash(verifier, user, secret))
		if s == nil {
			continue
		}
		at := s.Time.UTC().Format(time.RFC3339)
		unknown := s.Pending - s.underway
		switch {
		case s.Code != "":
			return &api.Error{Code: api.Latched,
				Detail: fmt.Sprintf("not tried again since %s: %s (%s)", at, s.Detail, s.Code), Remedy: s.Remedy, Err: &api.Error{Code: s.Code}}
		case unknown > 0 && (strict || !s.Accepted || s.Refused):
			return &api.Error{Code: api.Latched,
				Detail: fmt.Sprintf("not tried again: nobody knows what became of the attempt of %s at %s%v", user, at, s.Loss)}
		case unknown >= unknownTries && time.Since(s.Time).Abs() < unknownPause:
			code := api.NetworkError
			if s.Loss != nil {
				code = s.Loss.Code
			}
			return &api.Error{Code: code,
				Detail: fmt.Sprintf("nobody knows what became of the last %d attempts of %s%v; the next one is at %s", unknown, user, s.Loss, s.Time.Add(unknownPause).UTC().Format(time.RFC3339)),
				Remedy: "check the way to the server, and its log"}
		}
	}
	return nil
}

// Begin writes down that a secret is about to be tried. After an error it must
// not be: a refusal might be forgotten. A secret that was accepted before may
// be tried all the same when the store cannot be written.
func (l *Latches) Begin(ctx context.Context, verifier, user string, secret []byte) error {
	err := l.change(ctx, verifier, user, secret, func(s *secretState) { s.Pending, s.underway = s.Pending+1, s.underway+1 })
	var accepted bool
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if s := l.known[latchKey(verifier, user)].find(l.hash(verifier, user, secret)); s != nil {
			// With a store that never could be written, every restart would be one
			// more attempt.
			if accepted = s.Accepted && l.wrote; !accepted { // it is not tried
				s.Pending, s.underway = s.Pending-1, s.underway-1
			}
		}
	}
	if err == nil || accepted {
		return nil
	}
	return &api.Error{Code: api.StoreFailed, Detail: "the secret of " + user + " is not tried, because a refusal could not be remembered: " + api.AsError(err).Detail,
		Remedy: cmp.Or(api.AsError(err).Remedy, "see that the store can be written: sessionctl status"), Err: err}
}

// End writes down what became of the attempt: nil, accepted; an *api.Error
// whose code is a refusal, refused; any other error, no verdict. It holds for
// this process even when it cannot be stored, which the error then says.
func (l *Latches) End(ctx context.Context, verifier, user string, secret []byte, verdict error) error {
	var refused *api.Error
	errors.As(verdict, &refused)
	return l.change(ctx, verifier, user, secret, func(s *secretState) {
		s.underway = max(s.underway-1, 0)
		switch {
		case verdict == nil:
			s.Pending, s.Accepted, s.Refused, s.Code, s.Loss = 0, true, false, "", nil
		case refused != nil && refused.Code.Refusal():
			s.refuse(refused)
		default:
			s.Pending = max(s.Pending-1, 0)
		}
	})
}

// refuse latches a secret whatever the code of the failure is.
func (l *Latches) refuse(ctx context.Context, verifier, user string, secret []byte, failure *api.Error) error {
	return l.change(ctx, verifier, user, secret, func(s *secretState) { s.refuse(failure) })
}

func (s *secretState) refuse(e *api.Error) {
	s.Pending, s.Refused, s.Code, s.Detail, s.Remedy, s.Loss = 0, true, e.Code, e.Detail, e.Remedy, nil
}

// doubt writes down an attempt of which nobody will know what became. past is
// what became of the secret elsewhere.
func (l *Latches) doubt(ctx context.Context, verifier, user string, secret []byte, past verdicts, because error) error {
	e := api.AsError(because)
	return l.change(ctx, verifier, user, secret, func(s *secretState) {
		s.Pending, s.Loss = s.Pending+1, &loss{e.Code, e.Detail}
		s.Accepted, s.Refused = s.Accepted || past.Accepted, s.Refused || past.Refused
	})
}

// past returns what became of a secret so far.
func (l *Latches) past(verifier, user string, secret []byte) verdicts {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, err := l.load(latchKey(verifier, user))
	if err != nil {
		return verdicts{}
	}
	if s := a.find(l.hash(verifier, user, secret)); s != nil {
		return s.verdicts
	}
	return verdicts{}
}

// note writes down what a verifier says of a secret whose refusals stand elsewhere,
// if that is not known already.
func (l *Latches) note(ctx context.Context, verifier, user string, secret []byte, v verdicts) error {
	if l.past(verifier, user, secret) == v {
		return nil
	}
	return l.change(ctx, verifier, user, secret, func(s *secretState) { s.verdicts = v })
}

// see remembers in this process that a verifier has accepted a secret just now.
func (l *Latches) see(verifier, user string, secret []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.known[latchKey(verifier, user)].find(l.hash(verifier, user, secret)); s != nil {
		s.seen = time.Now()
	}
}

// seen returns when that was last, the zero time if never.
func (l *Latches) seen(verifier, user string, secret []byte) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.known[latchKey(verifier, user)].find(l.hash(verifier, user, secret)); s != nil {
		return s.seen
	}
	return time.Time{}
}

// Lost ends an attempt of which nobody will know what became, because of an
// error.
func (l *Latches) Lost(verifier, user string, secret []byte, because error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.known[latchKey(verifier, user)].find(l.hash(verifier, user, secret)); s != nil {
		e := api.AsError(because)
		s.underway, s.Loss = max(s.underway-1, 0), &loss{e.Code, e.Detail}
	}
}

// Clear lets secrets be tried again. What cannot be read is forgotten.
func (l *Latches) Clear(ctx context.Context, verifier, user string, secrets ...[]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := latchKey(verifier, user)
	a, err := l.load(key)
	next := *cmp.Or(a, l.known[key], &account{unread: true})
	next.secrets = slices.Clone(next.secrets)
	for changed := err != nil; ; changed = false {
		for _, secret := range secrets {
			if s := next.find(l.hash(verifier, user, secret)); s != nil && (s.Code != "" || s.Pending > s.underway) {
				s.Pending, s.Code, s.Detail, s.Remedy, s.Loss = s.underway, "", "", "", nil
				changed = true
			}
		}
		if !changed {
			return nil
		}
		if err := l.store(ctx, key, &next); err != nil {
			return err
		}
		l.known[key] = &next // once more, as it may be readable after all
	}
}

// change applies a change to what is known of a secret, in memory and then in
// the store.
func (l *Latches) change(ctx context.Context, verifier, user string, secret []byte, f func(*secretState)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := latchKey(verifier, user)
	a, err := l.load(key)
	if err != nil {
		a = cmp.Or(l.known[key], &account{unread: true})
		l.known[key] = a
	}
	hash := l.hash(verifier, user, secret)
	s := a.find(hash)
	if s == nil {
		a.makeRoom()
		a.secrets = append(a.secrets, secretState{Hash: hash})
		s = &a.secrets[len(a.secrets)-1]
	}
	s.Time = time.Now()
	f(s)
	return l.keep(ctx, key, a)
}

// makeRoom forgets a secret, if there is no room for another.
func (a *account) makeRoom() {
	if len(a.secrets) >= maxSecrets {
		i := a.least()
		a.secrets = slices.Delete(a.secrets, i, i+1)
	}
}

// least returns the secret to be forgotten first: the oldest of which nothing is
// known, else the oldest that was refused and never accepted, else the oldest.
func (a *account) least() int {
	rank := func(s secretState) int {
		switch {
		case s.Accepted, s.Pending > 0:
			return 2
		case s.Refused:
			return 1
		}
		return 0
	}
	least := 0
	for i, s := range a.secrets {
		if l := a.secrets[least]; rank(s) < rank(l) || rank(s) == rank(l) && s.Time.Before(l.Time) {
			least = i
		}
	}
	return least
}

func (a *account) find(hash []byte) *secretState {
	if a == nil {
		return nil
	}
	i := slices.IndexFunc(a.secrets, func(s secretState) bool { return hmac.Equal(s.Hash, hash) })
	if i < 0 {
		return nil
	}
	return &a.secrets[i]
}

func (l *Latches) load(key string) (*account, error) {
	a := l.known[key]
	if a != nil && !a.unread {
		return a, nil
	}
	record, revision, err := l.records.Load(key)
	if err != nil {
		return nil, err
	}
	a = cmp.Or(a, &account{unread: true})
	if err := a.meet(record); err != nil {
		return nil, err
	}
	a.revision, a.unread = revision, false
	l.known[key] = a
	return a, nil
}

// meet takes over what a stored record knows besides, and, if it was not read before,
// knows worse.
func (a *account) meet(record []byte) error {
	if record == nil {
		return nil
	}
	var stored []secretState
	if err := json.Unmarshal(record, &stored); err != nil {
		return err
	}
	for _, o := range stored {
		s := a.find(o.Hash)
		switch {
		case s == nil:
			a.secrets = append(a.secrets, o)
		case a.unread:
			s.meet(o)
		}
	}
	for len(a.secrets) > maxSecrets {
		a.makeRoom()
	}
	return nil
}

// meet takes over what an earlier state of the secret knows worse.
func (s *secretState) meet(o secretState) {
	s.Pending += o.Pending
	s.Accepted, s.Refused = s.Accepted || o.Accepted, s.Refused || o.Refused
	if s.Loss = cmp.Or(s.Loss, o.Loss); s.Code == "" {
		s.Code, s.Detail, s.Remedy = o.Code, o.Detail, o.Remedy
	}
}

// keep is store for what holds also if that fails.
func (l *Latches) keep(ctx context.Context, key string, a *account) error {
	err := l.store(ctx, key, a)
	if err != nil {
		l.failed()
	}
	return err
}

// store writes what is known of an account. A damaged record counts as absent:
// revision 0 replaces it, also by an empty list.
func (l *Latches) store(ctx context.Context, key string, a *account) error {
	revision, err := swap(ctx, l.records, key, a.revision, a.record(), func(stored []byte) []byte {
		if err := a.meet(stored); err == nil {
			a.unread = false
		}
		return a.record()
	})
	a.revision, a.unwritten = revision, err != nil
	l.wrote, a.unread = l.wrote || err == nil, a.unread && err != nil
	return err
}

// record is the stored form of an account.
func (a *account) record() []byte {
	b, err := json.Marshal(a.secrets)
	if err != nil {
		panic(err) // nothing in the record can fail
	}
	return b
}

func (l *Latches) hash(verifier, user string, secret []byte) []byte {
	return l.mac([]byte(verifier), []byte(user), secret)
}

func latchKey(verifier, user string) string { return verifier + "\x00" + user }

// swap replaces a record that nobody else writes, whoever has stopped waiting
// for it, and returns the revision that is stored afterwards. A swap that
// failed may have been done all the same, and a store that was mended may have lost
// the record, have an earlier one, or one that does not open, which counts as none; then
// the next swap would be refused, so the revision is asked for, and the swap tried once
// more if it was that. meet, if it is not nil, is told what is stored, and returns what
// is to be stored then.
func swap(ctx context.Context, records Records, key string, revision uint64, record []byte, meet func(stored []byte) []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	for again := true; ; again = false {
		next, err := records.Swap(ctx, key, revision, record)
		if err == nil {
			return next, nil
		}
		there, stored, lerr := records.Load(key)
		if lerr != nil && api.CodeOf(lerr) != api.StoreDamaged {
			return revision, err
		}
		if stored == revision || !again {
			return stored, err
		}
		if revision = stored; meet != nil && lerr == nil {
			record = meet(there)
		}
	}
}
