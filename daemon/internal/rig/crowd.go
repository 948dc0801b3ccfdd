package rig

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// CrowdOptions are the settings of a Crowd.
type CrowdOptions struct {
	// Host is the name that Crowd is reached by, such as crowd.corp.localhost for
	// clients with DialLocalhost; "": localhost.
	Host string
	// Domain is the SSO domain, such as ".corp.localhost", which all hosts of the
	// single sign-on are in (Crowd's documentation, "Domain"); "": each host has
	// a cookie of its own.
	Domain string
	// SameIP binds a token to the client's address ("Require consistent client IP
	// address" on the page "Session configuration").
	SameIP bool
	// TrustedProxies are the addresses, or networks in CIDR notation, whose
	// X-Forwarded-For counts ("Configuring Trusted Proxy Servers").
	TrustedProxies []string
	// Timeout is how long a token lives that nobody asks about ("Session
	// configuration"); 0: 30 minutes, which is a guess at the default.
	Timeout time.Duration
	// Keytab is a keytab file's bytes with keys of HTTP/ and the Host; the
	// console's login page then asks for Negotiate, as with a filter of IWAAC's
	// kind in front. nil: Crowd knows no Kerberos.
	Keytab []byte
	// Now is the clock of tokens; nil: time.Now.
	Now func() time.Time
}

// Crowd is a model of Atlassian Crowd in this process, on a free port of
// 127.0.0.1 under the context path /crowd: the tokens of its single sign-on, its
// REST API for applications, and its console. No Crowd was at hand to measure, so
// each behaviour names the public document or code that tells of it, or says that
// it is a guess.
//
// Applications in this process ask it by Validate, Login, Mint and Logout, which
// also work while it is stopped for visitors.
//
// A token is a value of the cookie crowd.token_key that all applications of one
// Crowd take. The same user with the same factors gets the same token as long as
// it lives (developer.atlassian.com, Crowd's REST API, "Token"); one who comes
// after its end gets another. Every secret that it makes up begins with CANARY-.
type Crowd struct {
	webServer
	host     string
	domain   string
	sameIP   bool
	trusted  []netip.Prefix
	timeout  time.Duration
	acceptor *Acceptor // nil: no Kerberos
	now      func() time.Time

	mu           sync.Mutex
	users        map[string]string // name → password, "" for none
	applications map[string]*crowdApplication
	tokens       map[string]*crowdToken // by value
	failing      int
}

// CrowdCounts is what happened at a Crowd since it was made.
type CrowdCounts struct {
	Logins      int // good passwords that brought a token
	Refused     int // wrong passwords
	Minted      int // tokens given out without a password
	Validations int // questions whether a token is good
	Dead        int // those of them that were answered with no
	Logouts     int // tokens that were ended by their users
}

// Factors are what a token can be bound to, as an application sees it (Crowd's
// REST API, "validation-factors").
type Factors struct {
	// RemoteAddress is the address of the application's client, without a port:
	// the factor remote_address.
	RemoteAddress string
	// ForwardedFor is the client's X-Forwarded-For, "" for none: the factor of
	// that name.
	ForwardedFor string
}

// crowdToken is a token. It dies of too long a time without a question about it.
type crowdToken struct {
	user    string
	address string // that it is bound to; "" for none
	created time.Time
	used    time.Time
}

// crowdApplication is who may use the REST API.
type crowdApplication struct {
	password  string
	addresses []string // where it may come from; none: anywhere
	counts    CrowdCounts
}

const (
	crowdContext = "/crowd"
	crowdCookie  = "crowd.token_key"
	// crowdItself is the application that the console is.
	crowdItself = "crowd"
	// crowdDirect stands for the applications in this process.
	crowdDirect = ""
)

// StartCrowd starts a Crowd that knows no user and no application yet.
func StartCrowd(o CrowdOptions) (*Crowd, error) {
	c := &Crowd{
		host:         cmp.Or(o.Host, "localhost"),
		domain:       o.Domain,
		sameIP:       o.SameIP,
		timeout:      cmp.Or(o.Timeout, 30*time.Minute),
		now:          o.Now,
		users:        make(map[string]string),
		applications: map[string]*crowdApplication{crowdItself: {}, crowdDirect: {}},
		tokens:       make(map[string]*crowdToken),
	}
	if c.now == nil {
		c.now = time.Now
	}
	if d := strings.TrimPrefix(c.domain, "."); d != "" && c.host != d && !strings.HasSuffix(c.host, "."+d) {
		return nil, fmt.Errorf("rig: %s is not in the SSO domain %s", c.host, c.domain)
	}
	for _, p := range o.TrustedProxies {
		network, err := trustedNetwork(p)
		if err != nil {
			return nil, fmt.Errorf("rig: trusted proxy: %w", err)
		}
		c.trusted = append(c.trusted, network)
	}
	if o.Keytab != nil {
		var err error
		if c.acceptor, err = NewAcceptor(o.Keytab, c.SPN()); err != nil {
			return nil, err
		}
	}
	return c, c.Start()
}

// trustedNetwork reads an address or a network.
func trustedNetwork(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return a.Prefix(a.BitLen())
}

// Start starts Crowd after Stop, on the same port, with its tokens.
func (c *Crowd) Start() error { return c.start(c) }

// URL returns Crowd's base URL: http://host:port/crowd.
func (c *Crowd) URL() string { return c.base() + crowdContext }

// base returns Crowd's origin.
func (c *Crowd) base() string { return strings.Replace(c.origin(), "localhost", c.host, 1) }

// SPN returns the host's service principal name, HTTP/name.
func (c *Crowd) SPN() string { return "HTTP/" + c.host }

// AddUser adds a user, or changes a user's password. Without a password the user
// gets tokens by Mint and Negotiate only.
func (c *Crowd) AddUser(name, password string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users[name] = password
}

// AddApplication lets an application use the REST API, from some addresses or,
// if none is given, from everywhere.
func (c *Crowd) AddApplication(name, password string, addresses ...string) {
	if name == crowdDirect || name == crowdItself || password == "" {
		panic("rig: an application of Crowd needs a name of its own and a password")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applications[name] = &crowdApplication{password: password, addresses: addresses}
}

// KillToken ends all tokens of a user, as an administrator does who expires the
// user's sessions.
func (c *Crowd) KillToken(user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kill(user, "")
}

// Fail makes Crowd answer everything over HTTP with a status, 503 for one; 0 ends
// that.
func (c *Crowd) Fail(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failing = status
}

// Counts returns what happened so far.
func (c *Crowd) Counts() CrowdCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum CrowdCounts
	for _, a := range c.applications {
		sum.Logins += a.counts.Logins
		sum.Refused += a.counts.Refused
		sum.Minted += a.counts.Minted
		sum.Validations += a.counts.Validations
		sum.Dead += a.counts.Dead
		sum.Logouts += a.counts.Logouts
	}
	return sum
}

// CountsOf returns what happened so far by one application: of the REST API,
// "crowd" for the console, or "" for all applications in this process. It panics
// if there is none of that name.
func (c *Crowd) CountsOf(application string) CrowdCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.applications[application]
	if a == nil {
		panic("rig: no application of Crowd " + application)
	}
	return a.counts
}

// Tokens returns how many live.
func (c *Crowd) Tokens() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bury()
	return len(c.tokens)
}

// Validate returns whose token it is, if it is good for these factors. The
// question makes the token live on.
func (c *Crowd) Validate(token string, f Factors) (user string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.validate(c.applications[crowdDirect], token, f)
	if t == nil {
		return "", false
	}
	return t.user, true
}

// Login checks a password and returns a token.
func (c *Crowd) Login(user, password string, f Factors) (token string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.login(c.applications[crowdDirect], user, password, f)
}

// Mint returns a token for a user whom the application knows by other means, such
// as Kerberos; "" if there is no such user.
func (c *Crowd) Mint(user string, f Factors) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mint(c.applications[crowdDirect], user, f)
}

// Logout ends a token, at all applications.
func (c *Crowd) Logout(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logout(c.applications[crowdDirect], token)
}

// CookieLine returns the Set-Cookie line that applications answer with; for the
// token "" the one that removes the cookie. The attributes are those of the Crowd
// client's cookie code: Path=/, the SSO domain if there is one, HttpOnly always,
// and no age.
func (c *Crowd) CookieLine(token string) string {
	line := crowdCookie + "=" + token + "; Path=/"
	if c.domain != "" {
		line += "; Domain=" + c.domain
	}
	if token == "" {
		line += "; Max-Age=0"
	}
	return line + "; HttpOnly"
}

// DialLocalhost connects to hosts of the domain localhost, all of which are this
// machine whether or not a resolver knows it (RFC 6761, 6.3), and to nothing else.
func DialLocalhost(ctx context.Context, network, address string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if name != "localhost" && !strings.HasSuffix(name, ".localhost") {
		return nil, &net.DNSError{Err: "rig: no host of this machine", Name: name, IsNotFound: true}
	}
	return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
}

// factorsOf are the factors of an application's client.
func factorsOf(r *http.Request) Factors {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return Factors{RemoteAddress: host, ForwardedFor: strings.Join(r.Header.Values("X-Forwarded-For"), ", ")}
}

// address is what a token is bound to: the first address that is no trusted
// proxy's, from the application's client through X-Forwarded-For from right to
// left ("Configuring Trusted Proxy Servers"). Where nothing is bound it is "".
func (c *Crowd) address(f Factors) string {
	if !c.sameIP {
		return ""
	}
	at := f.RemoteAddress
	hops := strings.Split(f.ForwardedFor, ",")
	for _, hop := range slices.Backward(hops) {
		if hop = strings.TrimSpace(hop); hop == "" || !c.trusts(at) {
			break
		}
		at = hop
	}
	return at
}

func (c *Crowd) trusts(address string) bool {
	a, err := netip.ParseAddr(address)
	return err == nil && slices.ContainsFunc(c.trusted, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}

// bury removes the tokens that nobody asked about for too long.
func (c *Crowd) bury() {
	maps.DeleteFunc(c.tokens, func(_ string, t *crowdToken) bool { return c.now().Sub(t.used) >= c.timeout })
}

// find returns a token that lives and is good for these factors, nil for none.
func (c *Crowd) find(value string, f Factors) *crowdToken {
	c.bury()
	t := c.tokens[value]
	if t == nil || t.address != c.address(f) {
		return nil
	}
	return t
}

func (c *Crowd) validate(by *crowdApplication, value string, f Factors) *crowdToken {
	by.counts.Validations++
	t := c.find(value, f)
	if t == nil {
		by.counts.Dead++
		return nil
	}
	t.used = c.now()
	return t
}

// right reports whether a password is its user's.
func (c *Crowd) right(by *crowdApplication, user, password string) bool {
	if known := c.users[user]; known == "" || known != password {
		by.counts.Refused++
		return false
	}
	return true
}

func (c *Crowd) login(by *crowdApplication, user, password string, f Factors) (string, bool) {
	if !c.right(by, user, password) {
		return "", false
	}
	by.counts.Logins++
	return c.issue(user, f), true
}

func (c *Crowd) mint(by *crowdApplication, user string, f Factors) string {
	if _, known := c.users[user]; !known {
		return ""
	}
	by.counts.Minted++
	return c.issue(user, f)
}

// issue returns the token of a user with these factors, a new one if none lives.
func (c *Crowd) issue(user string, f Factors) string {
	c.bury()
	for value, t := range c.tokens {
		if t.user == user && t.address == c.address(f) {
			t.used = c.now()
			return value
		}
	}
	value := secretID()
	c.tokens[value] = &crowdToken{user: user, address: c.address(f), created: c.now(), used: c.now()}
	return value
}

func (c *Crowd) logout(by *crowdApplication, value string) {
	c.bury()
	if c.tokens[value] != nil {
		by.counts.Logouts++
		delete(c.tokens, value)
	}
}

// kill ends all tokens of a user but one.
func (c *Crowd) kill(user, but string) {
	maps.DeleteFunc(c.tokens, func(value string, t *crowdToken) bool { return t.user == user && value != but })
}

// ServeHTTP implements http.Handler.
func (c *Crowd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.count(r)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	path, here := strings.CutPrefix(r.URL.Path, crowdContext)
	resource, rest := strings.CutPrefix(path, "/rest/usermanagement/")
	_, resource, _ = strings.Cut(resource, "/") // whatever the version
	switch {
	case !here || path != "" && path[0] != '/':
		http.NotFound(w, r)
	case c.failing != 0:
		http.Error(w, "out of order", c.failing)
	case path == "/status":
		// The same resource as Jira's (Atlassian's dc-app-performance-toolkit).
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"state":"RUNNING"}`)
	case rest:
		c.rest(w, r, resource, body)
	default:
		c.console(w, r, path, body)
	}
}
