// Package login holds the login drivers, one file per kind of site. A driver
// knows a product's pages: where to log in, how to see that it worked, and
// how the site names the user. Its struct is the schema of its options in the
// configuration.
//
// When to log in, and what to do with the session, does not belong here
// (package keeper), nor how cookies, redirects and Negotiate work (package
// web).
package login

import (
	"context"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// Driver logs in at one kind of site. A driver is made once per site, filled
// with the site's options, and then used by one login at a time.
//
// A driver is a pointer to a struct. Its exported fields with a toml tag, also
// those of structs embedded in it by value, are its options: strings, booleans,
// integers or lists of strings, under names that no other option of a site has.
// One that counts for the login alone, and not for the proof, has the tag
// for:"login": where an identity provider logs in, there is no use for it.
// What the struct holds when it is made are the defaults; all else in it is the
// driver's own.
type Driver interface {
	// Takes returns what the kind can log in with.
	Takes() []Means
	// Login drives x from nothing to a session. p is nil unless the site's
	// credential is a password. It returns an *api.Error.
	Login(ctx context.Context, x *web.Exchange, p Password) error
	// Probe asks, with nothing but the session's own cookies, whether the
	// session lives and whose it is. A dead session is an error of code
	// api.Expired; any other error leaves the question open.
	Probe(ctx context.Context, x *web.Exchange) (Identity, error)
}

// Checker is a Driver that can find mistakes in its options.
type Checker interface {
	// Check returns what is wrong with the options for a site: o has its Base,
	// LoginHosts and InsecureHTTP, identity is its identity setting.
	Check(o web.Options, identity string) error
}

// Dependent is a Driver that needs something of this machine.
type Dependent interface {
	// Missing returns what is not there, or not safe to use.
	Missing() error
}

// Logouter is a Driver that can end a session at the site.
type Logouter interface {
	// Logout ends the session whose cookies x has. It returns an *api.Error.
	Logout(ctx context.Context, x *web.Exchange) error
}

// Fallbacker is a Driver that logs in with something it does not take as a
// site's credential, where the site has no use for that.
type Fallbacker interface {
	// FallsBackTo returns what it is.
	FallsBackTo() Means
}

// FallsBack reports whether a driver can log in with a password where the site
// has no use for a ticket.
func FallsBack(d Driver) bool {
	f, ok := d.(Fallbacker)
	return ok && f.FallsBackTo() == Secret || slices.Contains(d.Takes(), Secret)
}

// Lasting is a Driver of a product that documents how long its sessions live.
type Lasting interface {
	// Life returns the product's defaults.
	Life() Life
}

// Paged is a Driver that knows where a person logs in with a browser.
type Paged interface {
	// LoginPage returns that page, absolute or relative to the site's url.
	LoginPage() string
}

// Life is how long sessions live: Idle, while nobody uses them; Absolute, after
// their login, used or not. 0: there is no such limit, or it is not documented.
type Life struct{ Idle, Absolute time.Duration }

// Companion is a Driver whose sites want more of a request than the cookies.
type Companion interface {
	// Headers returns what such a request needs beside the cookies.
	Headers(r Asked) []Header
}

// Asked is what is known of a request that somebody is to make.
type Asked struct {
	Method    string // "": any
	URL       *url.URL
	UserAgent string        // that the site's configuration names; "": the caller's own
	Cookies   []*web.Cookie // that go with it
}

// Header is one field of a request.
type Header struct {
	Name, Value string
	Secret      bool // the value is one
}

// Detector is a Driver that finds out what a site is like before it logs in there.
type Detector interface {
	Driver
	// Detect finds that out, without a credential. What cannot be seen stays empty.
	// It returns an *api.Error.
	Detect(ctx context.Context, x *web.Exchange) (Findings, error)
	// As returns the driver for a site that is as found; for one that nobody has
	// looked at yet, if f is zero.
	As(f Findings) Driver
}

// Findings is what of a site is found out by asking it, and remembered.
type Findings struct {
	Product string `json:"product,omitempty"` // as the kinds are named: "jira"
	Version string `json:"version,omitempty"` // as the site says it
	Path    string `json:"path,omitempty"`    // where the product is, below the site's url: "/jira"
	Login   string `json:"login,omitempty"`   // how it takes passwords; the kind's own word
	Gate    string `json:"gate,omitempty"`    // whom it asks for Negotiate; the kind's own word
	Probe   string `json:"probe,omitempty"`   // what proves a session there, if the kind does not know
	Users   string `json:"users,omitempty"`   // what names the user, if that does not
}

// Provider is a Driver that is another one as an identity provider's.
type Provider interface {
	// Provider returns that one.
	Provider() Driver
}

// Sharer is a Driver of an identity provider some of whose cookies its sites take
// as a login of their own. These are served with the sites' sessions.
type Sharer interface {
	// Shared returns those of its cookies.
	Shared(j *web.Jar) *web.Jar
	// Adopt makes the provider's session from the cookies that a person has brought
	// for one of its sites; nil if there is none of it among them.
	Adopt(j *web.Jar, base *url.URL, now time.Time) *web.Jar
	// Refused says what to look at when a site does not take them.
	Refused() string
}

// Member is a Driver whose sites begin a session for a Sharer's cookies only where
// somebody who has them goes a certain way.
type Member interface {
	// Enter goes that way with an exchange that has all of the Sharer's cookies, and
	// drops those that are not to be served. It returns an *api.Error, of code
	// api.Expired if they are not taken.
	Enter(ctx context.Context, x *web.Exchange) error
}

// Authorizer is a Driver whose sessions are a token in an Authorization field: cookies
// are none, whoever brings them, or lends them.
type Authorizer interface {
	// Authorizes names the field's scheme.
	Authorizes() string
}

// Impersonator is a Driver that may log in as somebody else than its credential.
type Impersonator interface {
	// Impersonates returns whom, "" for the credential's own account.
	Impersonates() string
}

// Means is what a login consumes.
type Means string

// The means, as messages name them.
const (
	Ticket Means = "a principal"
	Secret Means = "a username and its password"
)

// Password lends a driver the password of the site's credential, for one
// attempt in one login: what became of it is remembered, and a refused one is
// not lent again before a person acts.
type Password interface {
	// User is whose password it is.
	User() string
	// Take returns the password. After an error, an *api.Error, there must be
	// no attempt.
	Take(ctx context.Context) (secret.String, error)
	// GiveBack says that nobody has looked at the password.
	GiveBack()
	// Accepted says that the site has accepted the password, whatever becomes of
	// the login.
	Accepted()
	// If a login that took the password does neither, and fails in any other way
	// than by a refusal, nobody knows: that may count as an attempt at the site.
}

// Identity is what a probe learnt.
type Identity struct {
	// Name is the user as the site names it.
	Name string
	// Unproven says that the site cannot name the user: it only refuses
	// without the cookies and accepts with them.
	Unproven bool
}

// Unproven is the value of a site's identity setting that accepts sessions
// whose user the site cannot name.
const Unproven = "unproven"

var kinds = map[string]func() Driver{}

// register adds a kind. It is called from the kind's own file.
func register(kind string, make func() Driver) struct{} {
	kinds[kind] = make
	return struct{}{}
}

// New returns a driver with the kind's default options, nil if there is no
// such kind.
func New(kind string) Driver {
	if make := kinds[kind]; make != nil {
		return make()
	}
	return nil
}

// Kinds returns the names of all kinds, sorted.
func Kinds() []string { return slices.Sorted(maps.Keys(kinds)) }

// Expectation says whose session a site has to give us.
type Expectation struct {
	// Names are the accepted names, compared without regard to the case of
	// ASCII letters. No other folding: two accounts may differ by it.
	Names []string
	// Unproven accepts a site that cannot name the user.
	Unproven bool
}

// Met reports whether the proof fits the expectation.
func (e Expectation) Met(id Identity) bool {
	if id.Unproven {
		return e.Unproven
	}
	return id.Name != "" && slices.ContainsFunc(e.Names, func(n string) bool { return lower(n) == lower(id.Name) })
}

// lower is s with its ASCII letters in lower case.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
