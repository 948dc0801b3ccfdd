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
	"slices"

	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// Driver logs in at one kind of site. A driver is made once per site, filled
// with the site's options, and then used by one login at a time.
//
// A driver is a pointer to a struct. Its exported fields with a toml tag, also
// those of structs embedded in it by value, are its options: strings, booleans,
// integers or lists of strings, under names that no other option of a site has.
// What the struct holds when it is made are the defaults; all else in it is the
// driver's own.
type Driver interface {
	// Login drives x from nothing to a session. It returns an *api.Error.
	Login(ctx context.Context, x *web.Exchange) error
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
