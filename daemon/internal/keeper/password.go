package keeper

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

// maxPassword is the longest password, in bytes.
const maxPassword = 1024

// turnTimeout is how long a login waits for another one with the same password.
// What is left of loginTimeout is for its own attempt.
const turnTimeout = loginTimeout / 2

// Password is the password of one credential, for all sites that name it. Its
// verifier is the credential itself: a password that one site refuses is tried
// at no other. What one site only may have refused, because its answer was lost,
// or made no sense, or wants a CAPTCHA solved, is remembered for that site alone.
type Password struct {
	credential, user string
	file             string // holds the password; "": the store does
	records          Records
	latches          *Latches

	turn chan struct{} // one attempt at a time, over all sites
	mu   sync.Mutex    // of the record
	// changes is how often there was another password, or one was refused.
	changes atomic.Uint64
}

// NewPassword returns the password of a user, for a credential of that name.
// It is kept in records, or stands in a file that somebody else looks after.
func NewPassword(credential, user, file string, records Records, latches *Latches) *Password {
	return &Password{credential: credential, user: user, file: file, records: records, latches: latches, turn: make(chan struct{}, 1)}
}

// passwordVersion is the version of the stored form.
const passwordVersion = 1

// passwordRecord is the stored form.
type passwordRecord struct {
	Version  int    `json:"v"`
	Password []byte `json:"password"`
}

// Fixed returns what keeps the password from being replaced, or nil.
func (p *Password) Fixed() error {
	if p.file == "" {
		return nil
	}
	return &api.Error{Code: api.InvalidRequest, Detail: "the password stands in " + p.file, Remedy: "change it there, and restart the agent"}
}

// CheckPassword returns what keeps a text from being a password. Logins send
// UTF-8: what is not would arrive as something else, and be an attempt.
func CheckPassword(p []byte) error {
	wrong := func(what string) error {
		return &api.Error{Code: api.InvalidRequest, Detail: "the password is " + what, Remedy: "give the password alone, in UTF-8, on one line"}
	}
	switch {
	case len(p) == 0:
		return wrong("empty")
	case len(p) > maxPassword:
		return wrong("too long")
	case !utf8.Valid(p):
		return wrong("not UTF-8")
	case bytes.ContainsAny(p, "\r\n"):
		return wrong("more than one line")
	case bytes.ContainsFunc(p, unicode.IsControl):
		return wrong("with a control character in it, as a key makes on a terminal")
	}
	return nil
}

func (p *Password) key() string      { return p.credential + "\x00" + p.user }
func (p *Password) verifier() string { return "[credential." + p.credential + "]" }

// check returns what stands against trying a password at a site, or nil.
func (p *Password) check(site *Site, pw secret.String) error {
	// With no verdict at all the agent has died in the middle of an attempt.
	if err := p.latches.check(true, p.verifier(), p.user, []byte(pw.Reveal())); err != nil {
		return err
	}
	return p.latches.Check(site.verifier(), p.user, site.secret(pw))
}

// forgive lifts what stands against trying a password at a site, for one attempt.
func (p *Password) forgive(ctx context.Context, site *Site, pw secret.String) error {
	return errors.Join(
		p.latches.Clear(ctx, p.verifier(), p.user, []byte(pw.Reveal())),
		p.latches.Clear(ctx, site.verifier(), p.user, site.secret(pw)))
}

// verifier is the site as one that judges an account by itself.
func (s *Site) verifier() string {
	if s.isIdP {
		return "[idp." + s.Name + "]"
	}
	return "[site." + s.Name + "]"
}

// secret is a password at the site as it is set up: another set-up is worth
// another attempt.
func (s *Site) secret(pw secret.String) []byte {
	return []byte(s.Fingerprint + "\x00" + pw.Reveal())
}

// Load returns the password: an *api.Error of code api.NoSecret if there is none.
func (p *Password) Load() (secret.String, error) {
	if p.file != "" {
		return p.read()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	record, _, err := p.records.Load(p.key())
	if err != nil {
		return secret.String{}, &api.Error{Code: api.StoreDamaged, Detail: "the password of " + p.user + " cannot be read: " + api.AsError(err).Detail, Err: err}
	}
	var r passwordRecord
	if record == nil {
		return secret.String{}, &api.Error{Code: api.NoSecret, Detail: "no password of " + p.user + " is stored for the credential " + p.credential}
	}
	if err := json.Unmarshal(record, &r); err != nil || r.Version != passwordVersion {
		return secret.String{}, &api.Error{Code: api.NoSecret, Detail: "the stored password of " + p.user + " has an unknown form"}
	}
	return secret.New(string(r.Password)), nil
}

// read returns the password that systemd hands over in a file.
func (p *Password) read() (secret.String, error) {
	b, err := os.ReadFile(p.file)
	if err != nil {
		var cause *fs.PathError
		if errors.As(err, &cause) {
			err = cause.Err
		}
		return secret.String{}, &api.Error{Code: api.NoSecret, Detail: p.file + ": " + err.Error(), Remedy: "see LoadCredential= of the agent's unit"}
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if err := CheckPassword(b); err != nil {
		return secret.String{}, &api.Error{Code: api.NoSecret, Detail: p.file + ": " + api.AsError(err).Detail, Remedy: "see LoadCredential= of the agent's unit"}
	}
	return secret.New(string(b)), nil
}

// Store keeps a password that was accepted.
func (p *Password) Store(ctx context.Context, pw secret.String) error {
	defer p.changes.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	_, revision, err := p.records.Load(p.key())
	if err != nil {
		revision = 0 // damaged: replaced
	}
	record, err := json.Marshal(passwordRecord{passwordVersion, []byte(pw.Reveal())})
	if err != nil {
		panic(err) // nothing in the record can fail
	}
	_, err = swap(ctx, p.records, p.key(), revision, record, nil)
	return err
}

// attempt lends a password to one login (login.Password), and remembers what
// became of it.
type attempt struct {
	p    *Password
	site *Site
	// secret is what is lent; unset until it is asked for, unless it is offered:
	// to be stored after it was accepted.
	secret   secret.String
	offered  bool
	begun    bool
	unseen   bool
	accepted bool
	// unkept is why an offered password that was accepted could not be stored.
	unkept error
}

// secrets are what must not be shown of it; a may be nil.
func (a *attempt) secrets() []string {
	if a == nil || a.secret.Empty() {
		return nil
	}
	return []string{a.secret.Reveal()}
}

// noSecrets are those of who lends none.
func noSecrets() []string { return nil }

// spent reports whether somebody may have looked at what was lent; a may be nil.
func (a *attempt) spent() bool { return a != nil && a.begun && !a.unseen }

// password returns what is lent.
func (a *attempt) password() (pw secret.String, err error) {
	if !a.offered {
		a.secret, err = a.p.Load()
	}
	return a.secret, err
}

// ready returns what keeps the password from being tried.
func (a *attempt) ready() error {
	pw, err := a.password()
	if err != nil {
		return err
	}
	return a.p.check(a.site, pw)
}

// forgive lifts what stands against the password.
func (a *attempt) forgive(ctx context.Context) error {
	pw, err := a.password()
	if err != nil {
		return err
	}
	return a.p.forgive(ctx, a.site, pw)
}

// User implements login.Password.
func (a *attempt) User() string { return a.p.user }

// Take implements login.Password.
func (a *attempt) Take(ctx context.Context) (secret.String, error) {
	if a.begun {
		if !a.unseen {
			return secret.String{}, &api.Error{Code: api.Unknown, Detail: "a login asks for the password twice"}
		}
		a.unseen = false
		return a.secret, nil
	}
	wait, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	select {
	case a.p.turn <- struct{}{}:
	case <-wait.Done():
		return secret.String{}, &api.Error{Code: api.Timeout, Detail: "another login with the password of " + a.p.user + " is still under way", Remedy: "try again", Err: wait.Err()}
	}
	if err := a.begin(ctx); err != nil {
		<-a.p.turn
		return secret.String{}, err
	}
	a.begun = true
	return a.secret, nil
}

func (a *attempt) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return api.AsError(err) // nobody would wait for the outcome
	}
	if err := a.ready(); err != nil {
		return err
	}
	return a.p.latches.Begin(ctx, a.p.verifier(), a.p.user, []byte(a.secret.Reveal()))
}

// GiveBack implements login.Password.
func (a *attempt) GiveBack() { a.unseen = true }

// Accepted implements login.Password.
func (a *attempt) Accepted() { a.accepted = true }

// overtaken reports whether what is known of the secret that a session is may have
// changed since its proof: there may be another one, or this one was refused.
func (e *entry) overtaken(s *Session) bool {
	p := e.site.password()
	return p != nil && !s.Authorization().Empty() && s.secretAt != p.changes.Load()
}

// carried returns why a session is over that is the credential's secret itself, which
// goes with each request: the credential has another one, or this one was refused.
func (e *entry) carried(s *Session, p *Password) error {
	a := &attempt{p: p, site: &e.site}
	err := a.ready()
	switch {
	case a.secret.Empty(): // it cannot be read
		return nil
	case !s.carries(a.secret):
		return &api.Error{Code: api.Expired, Detail: "the credential has another secret now"}
	case api.CodeOf(err) == api.Latched:
		return &api.Error{Code: api.Expired, Detail: "the credential's secret was refused", Err: err}
	}
	return nil
}

// carries reports whether a session is a secret itself: a token, or a password as the
// Basic scheme sends it (RFC 7617, section 2).
func (s *Session) carries(pw secret.String) bool {
	_, credentials, _ := strings.Cut(s.Authorization().Reveal(), " ")
	plain, err := base64.StdEncoding.DecodeString(credentials)
	_, password, _ := strings.Cut(string(plain), ":")
	return credentials == pw.Reveal() || err == nil && password == pw.Reveal()
}

// proofAlone is how long the proof of a session that is a secret keeps other attempts
// with that waiting. Its site may hang.
const proofAlone = 500 * time.Millisecond

// proveCarried is prove. The proof of a session that is a secret itself is an attempt
// with that: those of many sites go one after the other, so that what one of them
// refuses no other tries.
func (e *entry) proveCarried(s *Session, f login.Findings) (*Session, error) {
	p := e.site.password()
	if s.Authorization().Empty() || p == nil {
		return e.prove(s, f)
	}
	select {
	case p.turn <- struct{}{}:
	case <-e.k.ctx.Done():
		return nil, api.AsError(e.k.ctx.Err())
	}
	giveBack := sync.OnceFunc(func() { <-p.turn })
	defer giveBack()
	now := *s
	now.secretAt = p.changes.Load()
	if err := e.carried(s, p); err != nil {
		return nil, err
	}
	defer time.AfterFunc(proofAlone, giveBack).Stop()
	proven, err := e.prove(&now, f)
	if api.CodeOf(err) != api.BadCredentials {
		return proven, err
	}
	if pw, lerr := p.Load(); lerr == nil && s.carries(pw) {
		if err := p.refuse(e.k.ctx, pw, api.BadCredentials); err != nil {
			e.log.Error("what became of a password is not stored", "err", err)
		}
	}
	return nil, &api.Error{Code: api.Expired, Detail: api.AsError(err).Detail, Err: err}
}

// refuse remembers that a password was refused, in words that do not name a site.
func (p *Password) refuse(ctx context.Context, pw secret.String, c api.Code) error {
	defer p.changes.Add(1)
	return p.latches.End(ctx, p.verifier(), p.user, []byte(pw.Reveal()), &api.Error{Code: c, Detail: "the password of " + p.user + " was refused"})
}

// end says what became of the login, its proof included. The error is of the
// store, and says what is not remembered.
func (a *attempt) end(ctx context.Context, verdict error) error {
	captcha, more := api.CodeOf(verdict) == api.Captcha, api.CodeOf(verdict) == api.SecondFactor
	if !a.begun {
		if !captcha {
			return nil
		}
		// The login page has said so already.
		pw, err := a.password()
		if err != nil {
			return err
		}
		return a.p.latches.refuse(ctx, a.site.verifier(), a.p.user, a.site.secret(pw), api.AsError(verdict))
	}
	defer func() { <-a.p.turn }()
	a.begun = false
	l, pw, here := a.p.latches, []byte(a.secret.Reveal()), a.site.secret(a.secret)
	e := api.AsError(verdict)
	var alone error                                  // of what is written for this site
	var others error = &api.Error{Code: api.Unknown} // the verdict for all sites: none
	switch {
	case more: // the password was right, and not enough here
		others, alone = nil, l.refuse(ctx, a.site.verifier(), a.p.user, here, e)
	case verdict == nil, a.accepted: // the password was right, whatever else went wrong
		others, alone = nil, l.End(ctx, a.site.verifier(), a.p.user, here, nil)
	case captcha:
		alone = l.refuse(ctx, a.site.verifier(), a.p.user, here, e)
	case e.Code.Refusal():
		// Callers at the credential's other sites may not know this one.
		defer a.p.changes.Add(1)
		others = &api.Error{Code: e.Code, Detail: "the password of " + a.p.user + " was refused"}
	case a.unseen, e.Code == api.ProxyAuthRequired, e.Code == api.ProxyAuthFailed: // no further than the proxy
	case unanswered(e.Code):
		alone = l.doubt(ctx, a.site.verifier(), a.p.user, here, l.past(a.p.verifier(), a.p.user, pw), e)
	default: // an answer, and not that of a login
		alone = l.refuse(ctx, a.site.verifier(), a.p.user, here, e)
	}
	err := l.End(ctx, a.p.verifier(), a.p.user, pw, others)
	if others == nil && a.offered {
		a.unkept = a.p.Store(ctx, a.secret)
	}
	return errors.Join(err, alone)
}

// unanswered reports whether a failure leaves open what the site makes of a
// password: there was no answer, or that of a server in trouble.
func unanswered(c api.Code) bool {
	switch c {
	case api.DNSError, api.NetworkError, api.Timeout, api.TLSError, api.RateLimited, api.Maintenance, api.Server5xx, api.ProxyError, api.Deadline, api.Unknown:
		return true
	}
	return false
}
