package rig

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"time"
)

// ProxyOptions say what a proxy asks for, and what it answers. Without any it
// lets everybody through.
type ProxyOptions struct {
	// Acceptor judges Negotiate tokens. nil: they are refused.
	Acceptor *Acceptor
	// Users are names and passwords for Basic.
	Users map[string]string
	// Challenges are the values of the 407's Proxy-Authenticate fields. nil: one
	// for each scheme that can be answered.
	Challenges []string
	// ConnectionBound lets requests without credentials pass on a connection that
	// a Negotiate token has come on, as Squid does (measured with 5.7). Otherwise
	// each request needs its own.
	ConnectionBound bool
	// Tokens answers a token with one, in Proxy-Authenticate: the AP-REP with
	// success, a reject token with the 407. Squid 5.7 sends none.
	Tokens bool
	// Endless answers 407 to whatever comes.
	Endless bool
	// TLS is the server's side of TLS between client and proxy. nil: none.
	TLS *tls.Config
	// Dial connects to origins. nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// ProxyCounts is what has come to a proxy so far.
type ProxyCounts struct {
	Requests   int // for http URLs
	Connects   int // CONNECT
	Challenged int // of both: answered 407
	Tokens     int // with a Negotiate token
	Basics     int // with a user and password
}

// ProxyConnection is what has come over one connection to a proxy.
type ProxyConnection struct {
	Requests int // CONNECT too
	Tokens   int
	Users    []string // who it has come from: each once, in their order
}

// Proxy is a forward proxy in this process (RFC 9110, 3.7 and 9.3.6), on a free
// port of 127.0.0.1 under the name localhost. It takes Proxy-Authorization away
// before it passes a request on (RFC 9110, 11.7.2).
type Proxy struct {
	options    ProxyOptions
	addr       string
	server     *http.Server
	forward    *httputil.ReverseProxy
	serving    sync.WaitGroup
	disconnect func() // ends the connections to origins that wait for requests

	mu          sync.Mutex
	closed      bool
	refusal     int
	counts      ProxyCounts
	connections []*proxyConnection
	tunnels     map[net.Conn]bool // both ends
}

// proxyConnection is guarded by the proxy's lock.
type proxyConnection struct {
	ProxyConnection
	user string // who it is bound to, "" for nobody
}

type proxyConnectionKey struct{}

// StartProxy starts a proxy. Close it.
func StartProxy(o ProxyOptions) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	transport := &http.Transport{DisableCompression: true, DialContext: o.Dial}
	p := &Proxy{options: o, addr: ln.Addr().String(), disconnect: transport.CloseIdleConnections, tunnels: make(map[net.Conn]bool)}
	if p.options.Challenges == nil {
		if o.Acceptor != nil {
			p.options.Challenges = append(p.options.Challenges, "Negotiate")
		}
		if len(o.Users) > 0 {
			p.options.Challenges = append(p.options.Challenges, `Basic realm="proxy"`)
		}
	}
	quiet := log.New(io.Discard, "", 0)
	p.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { // the URL is the origin's already
			// A proxy of one's own site hides nobody, nor what he says of himself.
			if said := r.In.Header["X-Forwarded-For"]; said != nil {
				r.Out.Header["X-Forwarded-For"] = said
			}
		},
		Transport: transport,
		ErrorLog:  quiet,
		// As Squid says that it cannot connect.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusServiceUnavailable) },
	}
	p.server = &http.Server{
		Handler:           p,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          quiet,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			c := new(proxyConnection)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.connections = append(p.connections, c)
			return context.WithValue(ctx, proxyConnectionKey{}, c)
		},
	}
	if o.TLS != nil {
		ln = tls.NewListener(ln, o.TLS)
	}
	p.serving.Go(func() { p.server.Serve(ln) })
	return p, nil
}

// URL returns http://localhost:port, or https with TLS.
func (p *Proxy) URL() string {
	scheme := "http"
	if p.options.TLS != nil {
		scheme = "https"
	}
	_, port, _ := net.SplitHostPort(p.addr)
	return scheme + "://localhost:" + port
}

// Refuse makes the proxy answer with a status, such as 403 or 502, what it would
// let through. 0 ends that.
func (p *Proxy) Refuse(status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusal = status
}

// Counts returns what has come so far. Whatever a client has had an answer for
// is counted.
func (p *Proxy) Counts() ProxyCounts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Connections returns what has come over each connection, in their order.
func (p *Proxy) Connections() []ProxyConnection {
	p.mu.Lock()
	defer p.mu.Unlock()
	shown := make([]ProxyConnection, len(p.connections))
	for i, c := range p.connections {
		shown[i] = c.ProxyConnection
		shown[i].Users = slices.Clone(c.Users)
	}
	return shown
}

// Close ends the proxy with all that goes through it, and waits until nothing of
// it runs.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	for conn := range p.tunnels {
		conn.Close()
	}
	p.mu.Unlock()
	p.server.Close()
	p.serving.Wait()
	p.disconnect()
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(proxyConnectionKey{}).(*proxyConnection)
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.serving.Add(1)
	defer p.serving.Done()
	c.Requests++
	if r.Method == http.MethodConnect {
		p.counts.Connects++
	} else {
		p.counts.Requests++
	}
	p.mu.Unlock()

	proof, ok := p.authenticate(c, r.Header.Get("Proxy-Authorization"))
	p.mu.Lock()
	refusal := p.refusal
	if !ok {
		p.counts.Challenged++
	}
	p.mu.Unlock()
	switch {
	case !ok:
		for _, challenge := range p.options.Challenges {
			if proof != "" && challenge == "Negotiate" {
				challenge = proof
			}
			w.Header().Add("Proxy-Authenticate", challenge)
		}
		w.WriteHeader(http.StatusProxyAuthRequired)
	case refusal != 0:
		w.WriteHeader(refusal)
	case r.Method == http.MethodConnect:
		p.tunnel(w, r, proof)
	case !r.URL.IsAbs():
		w.WriteHeader(http.StatusBadRequest) // RFC 9112, 3.2.2
	default:
		p.forward.ServeHTTP(&proving{w, proof}, r)
	}
}

// authenticate says whether a request may pass. proof is the Proxy-Authenticate
// field with a token for the client, or "".
func (p *Proxy) authenticate(c *proxyConnection, authorization string) (proof string, ok bool) {
	o := p.options
	scheme, value, _ := strings.Cut(authorization, " ")
	decoded, err := base64.StdEncoding.DecodeString(value)
	known := err == nil && value != ""
	negotiate := known && strings.EqualFold(scheme, "Negotiate")
	basic := known && strings.EqualFold(scheme, "Basic")
	var user string
	switch {
	case negotiate && o.Acceptor != nil:
		var reply []byte
		user, reply, _ = o.Acceptor.Accept(decoded)
		if o.Tokens {
			proof = "Negotiate " + base64.StdEncoding.EncodeToString(reply)
		}
	case basic:
		name, password, _ := strings.Cut(string(decoded), ":")
		if want, exists := o.Users[name]; exists && want == password {
			user = name
		}
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if basic {
		p.counts.Basics++
	}
	if negotiate {
		p.counts.Tokens++
		c.Tokens++
		if o.ConnectionBound {
			c.user = user
		}
	} else if authorization == "" {
		user = c.user
	}
	if user != "" && !slices.Contains(c.Users, user) {
		c.Users = append(c.Users, user)
	}
	open := o.Acceptor == nil && len(o.Users) == 0 && len(o.Challenges) == 0
	return proof, !o.Endless && (open || user != "")
}

// proving adds the proxy's own token to the response of an origin.
type proving struct {
	http.ResponseWriter
	proof string
}

func (w *proving) WriteHeader(status int) {
	if w.proof != "" {
		w.Header().Set("Proxy-Authenticate", w.proof)
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController flush.
func (w *proving) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// tunnel answers a CONNECT (RFC 9110, 9.3.6).
func (p *Proxy) tunnel(w http.ResponseWriter, r *http.Request, proof string) {
	origin, err := p.options.Dial(r.Context(), "tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer origin.Close()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	defer client.Close()
	if !p.keep(client, origin) {
		return
	}
	defer p.drop(client, origin)
	if proof != "" {
		proof = "Proxy-Authenticate: " + proof + "\r\n"
	}
	if _, err := fmt.Fprintf(client, "HTTP/1.1 200 Connection established\r\n%s\r\n", proof); err != nil {
		return
	}
	var copying sync.WaitGroup
	copying.Go(func() {
		io.Copy(origin, buffered)
		origin.Close()
	})
	io.Copy(client, origin)
	client.Close()
	copying.Wait()
}

// keep remembers the ends of a tunnel for Close. It returns false if that was
// called already.
func (p *Proxy) keep(ends ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range ends {
		p.tunnels[conn] = true
	}
	return !p.closed
}

func (p *Proxy) drop(ends ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range ends {
		delete(p.tunnels, conn)
	}
}
