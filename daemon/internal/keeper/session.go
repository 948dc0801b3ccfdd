package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// Session is one proven web session. It is never changed once published.
type Session struct {
	Site       string
	Generation string // opaque
	Identity   string // whose it is, as the site says
	Unproven   bool   // the site cannot say
	LoginTime  time.Time
	ProveTime  time.Time
	// ExpireTime is when the first of the cookies for the site's own URL ends;
	// zero if none says.
	ExpireTime time.Time

	restored   bool          // from the store, and not proven since
	foreign    bool          // from a run of the machine before this one: its times may be those of a wrong clock
	shifted    int64         // what Clock.shifted was for its times
	stored     int64         // and when it was stored
	secretAt   uint64        // what Password.changes was before its proof, if it is a secret
	lastExpire time.Time     // when the last of them ends; zero if one does not say
	lastLife   time.Duration // for how long that was set
	life       time.Duration // how long the session had when ExpireTime was set
	jar        *web.Jar
	// home is the URL of the product, which is at path below the site's.
	home *url.URL
	path string
}

// Cookies returns the cookies for a request to u.
func (s *Session) Cookies(u *url.URL, now time.Time) []*web.Cookie { return s.jar.Cookies(u, now) }

// Home returns the URL of the product at the site.
func (s *Session) Home() *url.URL { return s.home }

// Authorization returns the value of the Authorization field that is sent in place
// of cookies; empty: cookies are.
func (s *Session) Authorization() secret.String { return s.jar.Authorization() }

// LogValue keeps cookies out of logs.
func (s *Session) LogValue() slog.Value {
	return slog.GroupValue(slog.String("site", s.Site), slog.String("generation", s.Generation))
}

// ended reports whether the session has no cookie left.
func (s *Session) ended(now time.Time) bool { return s.jar.Living(now) == 0 }

// changed reports whether a cookie has ended since the proof, so that what would
// be served now is not what was proven.
func (s *Session) changed(now time.Time) bool {
	next := s.jar.NextExpiry(s.ProveTime)
	return !next.IsZero() && !next.After(now)
}

// endsWithin reports whether the session is known to end within d, if d is
// positive and a new login could give more. The site's sessions may not live
// that long: half of their life is then enough, and with very short ones
// nothing is, or every call would be a login.
func (s *Session) endsWithin(d time.Duration, now time.Time) bool {
	if d <= 0 || s.ExpireTime.IsZero() {
		return false
	}
	if d > s.life*3/4 {
		if s.life < time.Minute {
			return false
		}
		d = s.life / 2
	}
	return !s.ExpireTime.After(now.Add(d))
}

// ends finds out when the cookies for the product's URL end that lived at the proof.
func (s *Session) ends() {
	s.ExpireTime, s.lastExpire, s.lastLife = s.jar.Ends(s.home, s.ProveTime)
}

// at returns the session for an agent's time that was shifted so.
func (s *Session) at(shifted int64) *Session {
	d := time.Duration(shifted - s.shifted)
	if d == 0 {
		return s
	}
	t := *s
	if t.shifted = shifted; s.restored && s.foreign {
		return &t
	}
	t.LoginTime, t.ProveTime, t.jar = s.LoginTime.Add(d), s.ProveTime.Add(d), s.jar.Shift(d)
	t.ends()
	return &t
}

// recordVersion is the version of the stored form of a session.
const recordVersion = 1

type sessionRecord struct {
	Version     int             `json:"v"`
	Fingerprint string          `json:"fingerprint"`
	Generation  string          `json:"generation"`
	Identity    string          `json:"identity"`
	Unproven    bool            `json:"unproven,omitempty"`
	Login       time.Time       `json:"login"`
	Prove       time.Time       `json:"prove"`
	Life        time.Duration   `json:"life,omitempty"`
	Cookies     []web.SetCookie `json:"cookies"`
	// Authorization is there in place of cookies.
	Authorization []byte `json:"authorization,omitempty"`
	Clock         moment `json:"clock,omitzero"` // of the times
	Path          string `json:"path,omitempty"` // of the product below the site's URL
}

func encodeSession(s *Session, fingerprint string, c *Clock) []byte {
	b, err := json.Marshal(sessionRecord{
		Version: recordVersion, Fingerprint: fingerprint, Generation: s.Generation,
		Identity: s.Identity, Unproven: s.Unproven, Login: s.LoginTime, Prove: s.ProveTime, Life: s.life, Cookies: s.jar.Lines(), Clock: c.at(s.shifted), Path: s.path,
		Authorization: []byte(s.jar.Authorization().Reveal()),
	})
	if err != nil {
		panic(err) // nothing in the record can fail
	}
	return b
}

// decodeSession makes the session of a site again, whose URL is given.
func decodeSession(record []byte, fingerprint string, c *Clock, site *url.URL) (*Session, error) {
	var r sessionRecord
	if err := json.Unmarshal(record, &r); err != nil {
		return nil, fmt.Errorf("the record is malformed: %w", err)
	}
	switch {
	case r.Version != recordVersion:
		return nil, fmt.Errorf("the record has version %d", r.Version)
	case r.Fingerprint != fingerprint:
		return nil, errors.New("the site's configuration has changed")
	}
	distant := func(t time.Time) bool { return t.Year() > 9000 } // not to be written again, once it is shifted
	if distant(r.Login) || distant(r.Prove) || slices.ContainsFunc(r.Cookies, func(c web.SetCookie) bool { return distant(c.Time) }) {
		return nil, errors.New("the record has no possible time")
	}
	shifted := c.shifted.Load()
	set, known := c.since(r.Clock)
	s := &Session{
		Generation: r.Generation, Identity: r.Identity, Unproven: r.Unproven,
		LoginTime: r.Login, ProveTime: r.Prove, life: r.Life, jar: web.NewJar(r.Cookies),
		shifted: shifted - int64(set), foreign: !known,
		home: web.Below(site, r.Path), path: r.Path,
	}
	if len(r.Authorization) > 0 {
		s.jar.Authorize(secret.New(string(r.Authorization)))
	}
	s.ends()
	s = s.at(shifted)
	s.restored, s.stored = true, shifted
	return s, nil
}
