package keeper

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// maxRefused is how many refused secrets are remembered for one account.
const maxRefused = 32

// Latches remember which secrets a verifier has refused, across callers,
// sites, restarts and crashes, so that none is tried a second time before a
// person acts. They hold no secret, only keyed hashes.
type Latches struct {
	records Records
	mac     func(data ...[]byte) []byte

	mu    sync.Mutex
	known map[string]*latch
}

type latch struct {
	revision uint64
	refused  []refused
}

type refused struct {
	Hash   []byte    `json:"hash"`
	Code   api.Code  `json:"code"`
	Detail string    `json:"detail"`
	Remedy string    `json:"remedy"`
	Time   time.Time `json:"time"`
}

// NewLatches returns the latches of a store; mac is a keyed hash.
func NewLatches(records Records, mac func(data ...[]byte) []byte) *Latches {
	return &Latches{records: records, mac: mac, known: map[string]*latch{}}
}

// Check returns the refusal that stands against a secret as an *api.Error of
// code api.Latched, or nil.
func (l *Latches) Check(verifier, user string, secret []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, err := l.load(verifier, user)
	if err != nil {
		// What was refused cannot be known: an attempt now might be the one
		// that locks the account.
		return &api.Error{Code: api.StoreDamaged, Detail: "earlier refusals of " + user + " cannot be read: " + err.Error(), Err: err}
	}
	hash := l.hash(verifier, user, secret)
	for _, r := range a.refused {
		if hmac.Equal(r.Hash, hash) {
			return &api.Error{Code: api.Latched,
				Detail: fmt.Sprintf("not tried again since %s: %s (%s)", r.Time.UTC().Format(time.RFC3339), r.Detail, r.Code),
				Remedy: r.Remedy}
		}
	}
	return nil
}

// Set remembers a refusal. It holds from now on even if it cannot be stored,
// but then not across a restart, and the error says so.
func (l *Latches) Set(ctx context.Context, verifier, user string, secret []byte, why *api.Error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, err := l.load(verifier, user)
	if err != nil {
		a = new(latch)
		l.known[latchKey(verifier, user)] = a
	}
	a.refused = append(a.refused, refused{l.hash(verifier, user, secret), why.Code, why.Detail, why.Remedy, time.Now()})
	if n := len(a.refused) - maxRefused; n > 0 {
		a.refused = slices.Delete(a.refused, 0, n)
	}
	return l.store(ctx, verifier, user, a)
}

// Clear forgets what was refused of an account, readable or not.
func (l *Latches) Clear(ctx context.Context, verifier, user string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, err := l.load(verifier, user)
	switch {
	case err != nil:
		a = new(latch)
		l.known[latchKey(verifier, user)] = a
	case len(a.refused) == 0:
		return nil
	}
	a.refused = nil
	return l.store(ctx, verifier, user, a)
}

func (l *Latches) load(verifier, user string) (*latch, error) {
	key := latchKey(verifier, user)
	if a := l.known[key]; a != nil {
		return a, nil
	}
	record, revision, err := l.records.Load(key)
	if err != nil {
		return nil, err
	}
	a := &latch{revision: revision}
	if record != nil {
		if err := json.Unmarshal(record, &a.refused); err != nil {
			return nil, err
		}
	}
	l.known[key] = a
	return a, nil
}

// store writes what is known of an account. A damaged record counts as absent:
// revision 0 replaces it, also by an empty list.
func (l *Latches) store(ctx context.Context, verifier, user string, a *latch) error {
	record, err := json.Marshal(a.refused)
	if err != nil {
		return err
	}
	key := latchKey(verifier, user)
	revision, err := l.records.Swap(ctx, key, a.revision, record)
	if err != nil {
		// It may have been done all the same: the next one goes by what is stored.
		if _, stored, lerr := l.records.Load(key); lerr == nil {
			a.revision = stored
		}
		return err
	}
	a.revision = revision
	return nil
}

func (l *Latches) hash(verifier, user string, secret []byte) []byte {
	return l.mac([]byte(verifier), []byte(user), secret)
}

func latchKey(verifier, user string) string { return verifier + "\x00" + user }
