package rig

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/flate"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Hostile is a front of a site in this process, with TLS on a free port of
// 127.0.0.1 under the name localhost. At first it passes everything on to the
// site; Turn makes it hostile in one of the ways that HostileKinds names. It
// writes by hand what no HTTP library would, and it goes on for as long as the
// client stays.
type Hostile struct {
	site      http.Handler
	authority *Authority
	listener  net.Listener
	serving   sync.WaitGroup

	mu     sync.Mutex
	kind   hostility
	conns  map[net.Conn]bool
	ended  chan struct{}  // closed at the end of each connection
	tokens map[string]int // Negotiate tokens since the last turn, by path
	stop   bool
}

// hostility is one way to be hostile. The zero value is none.
type hostility struct {
	// instead takes the place of TLS.
	instead func(net.Conn)
	// tls is what the server shows instead of its good certificate.
	tls func(*Authority) (*tls.Config, error)
	// answer takes the place of the site. It is the last of its connection.
	answer func(net.Conn, *http.Request)
	// to says which requests it answers; nil: all.
	to func(*http.Request) bool
}

// hostilities are the kinds, in groups that aim at one weakness each. They are
// made when they are needed: some hold a megabyte.
var hostilities = sync.OnceValue(func() map[string]hostility {
	return map[string]hostility{
		// Connections. Aim: whoever waits without a limit, or takes any end for an answer.
		"closes at once":                {instead: func(net.Conn) {}},
		"resets at once":                {instead: reset},
		"never shakes hands":            {instead: hold},
		"shakes hands slowly":           {instead: func(c net.Conn) { drips("\x16\x03\x03\x40\x00", "\x02")(c, nil) }},
		"plain text instead of TLS":     {instead: closing("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")},
		"SSH instead of TLS":            {instead: closing("SSH-2.0-OpenSSH_9.2p1\r\n")},
		"alerts without end":            {instead: func(c net.Conn) { flood(c, "", "\x15\x03\x03\x00\x02\x01\x5a") }},
		"handshake records without end": {instead: func(c net.Conn) { flood(c, "", "\x16\x03\x03\x00\x04\x00\x00\x00\x00") }},
		"handshake message of 16 MB": {instead: func(c net.Conn) {
			flood(c, "\x16\x03\x03\x40\x00\x02\xff\xff\xff", strings.Repeat("\x00", 16<<10-4)+"\x16\x03\x03\x40\x00\x00\x00\x00\x00")
		}},
		"closes before the status line":   {answer: says("")},
		"resets before the status line":   {answer: func(c net.Conn, _ *http.Request) { reset(c) }},
		"never answers":                   {answer: silent("")},
		"closes in the status line":       {answer: says("HTTP/1.1 2")},
		"closes in the head":              {answer: says("HTTP/1.1 200 OK\r\nContent-Type: applic")},
		"closes in the body":              {answer: says("HTTP/1.1 200 OK\r\n" + jsonType + "Content-Length: 100\r\n\r\n{\"user\":")},
		"closes in a chunk":               {answer: says("HTTP/1.1 200 OK\r\n" + jsonType + "Transfer-Encoding: chunked\r\n\r\n64\r\n{\"user\":")},
		"closes at the password or token": {answer: says(""), to: withProof},
		"resets in the body": {answer: func(c net.Conn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
			reset(c)
		}},

		// TLS. Aim: clients that look away.
		"expired certificate":               {tls: shows(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = c.NotBefore.AddDate(-1, 0, 0), c.NotBefore })},
		"certificate that is not yet valid": {tls: shows(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = c.NotAfter, c.NotAfter.AddDate(1, 0, 0) })},
		"certificate for another name":      {tls: shows(func(c *x509.Certificate) { c.DNSNames = []string{"other.example"} })},
		"certificate without a name":        {tls: shows(func(c *x509.Certificate) { c.DNSNames = nil })},
		"certificate for clients":           {tls: shows(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })},
		"certificate signed with SHA-1":     {tls: shows(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 })},
		"certificate with a critical riddle": {tls: shows(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true}}
		})},
		"certificate of an unknown authority": {tls: stranger},
		"self-signed certificate":             {tls: selfSigned},
		"certificate chain of 5,000": {tls: configured(func(c *tls.Config) {
			chain := &c.Certificates[0]
			chain.Certificate = slices.Repeat(chain.Certificate, 5000)
		})},
		"TLS 1.0":                      {tls: configured(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 })},
		"TLS 1.1":                      {tls: configured(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })},
		"demands a client certificate": {tls: configured(func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert })},

		// Heads. Aim: readers that keep all of it, and parsers.
		"status line without end":      {answer: floods("HTTP/1.1 200 ", "O")},
		"head line of 100 MB and more": {answer: floods("HTTP/1.1 200 OK\r\nX-Long: ", "a")},
		"head lines without end":       {answer: floods("HTTP/1.1 200 OK\r\n", "X-Many: a\r\n")},
		"head in drips":                {answer: drips("HTTP/1.1 200 OK\r\n", "X-Slow: a\r\n")},
		"head that stops":              {answer: silent("HTTP/1.1 200 OK\r\nX-Slow: ")},
		"10,000 head lines":            {answer: bare("500 No", strings.Repeat("X-Many: a\r\n", 10_000))},
		"50,000 cookies":               {answer: bare("200 OK", cookies(50_000))},
		"5,000 cookies on an error page": {answer: func(c net.Conn, r *http.Request) {
			bare("500 No", numbered("", "Set-Cookie: n%d=CANARY-value\r\n", "")(r)[:5000*27])(c, r)
		}},
		"cookie of 1 MB": {answer: bare("200 OK", "Set-Cookie: CANARY=CANARY-"+strings.Repeat("a", 1<<20)+"\r\n")},
		"takes the cookies on an error page": {answer: bare("500 No", "Set-Cookie: gssapi_session=; Max-Age=0; Path=/\r\nSet-Cookie: sessionid=; Max-Age=0; Path=/\r\n"+
			"Set-Cookie: JSESSIONID=; Max-Age=0; Path=/jira\r\nClear-Site-Data: \"*\"\r\n")},
		"folded head lines":              {answer: bare("500 No", "X-Folded: a\r\n b\r\n\tc\r\nSet-Cookie: CANARY=CANARY-a;\r\n Path=/\r\n")},
		"head line without a name":       {answer: bare("200 OK", ": a\r\n")},
		"NUL bytes in the head":          {answer: bare("200 OK", "X-Nul: a\x00b\r\nX\x00: a\r\n")},
		"challenges of 200 KB":           {answer: bare("401 No", "WWW-Authenticate: "+strings.Repeat("a b=c,", 200<<10/6)+"\r\n")},
		"login reasons of 200 KB":        {answer: bare("500 No", "X-Seraph-LoginReason: "+strings.Repeat("a,", 100<<10)+"\r\n")},
		"100 Continue without end":       {answer: floods("", "HTTP/1.1 100 Continue\r\n\r\n")},
		"103 Early Hints without end":    {answer: floods("", "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n")},
		"103 Early Hints in drips":       {answer: drips("", "HTTP/1.1 103 Early Hints\r\n\r\n")},
		"another protocol, and silence":  {answer: silent("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")},
		"101 without an upgrade":         {answer: silent("HTTP/1.1 101 Switching Protocols\r\n\r\n")},
		"HTTP/0.9":                       {answer: says("<html><body>hello</body></html>\n")},
		"HTTP/2 frames":                  {answer: says("\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\xff\x00\x01")},
		"binary junk":                    {answer: func(c net.Conn, _ *http.Request) { io.CopyN(c, rand.Reader, 64<<10) }},
		"two status lines":               {answer: says("HTTP/1.1 200 OK\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")},
		"status in words":                {answer: bare("OK fine", "")},
		"status of four digits":          {answer: bare("2000 OK", "")},
		"negative status":                {answer: bare("-20 OK", "")},
		"status 000":                     {answer: bare("000 Nothing", "")},
		"status 099":                     {answer: bare("099 Less", "")},
		"status 999":                     {answer: bare("999 More", "")},
		"status 204":                     {answer: says("HTTP/1.1 204 No Content\r\n\r\n")},
		"status 205":                     {answer: bare("205 Reset Content", "")},
		"status 206":                     {answer: whole("206 Partial Content", jsonType+"Content-Range: bytes 0-0/9\r\n", always("{"))},
		"status 300":                     {answer: bare("300 Multiple Choices", "")},
		"status 304":                     {answer: says("HTTP/1.1 304 Not Modified\r\n\r\n")},
		"status 305":                     {answer: bare("305 Use Proxy", "Location: http://127.0.0.1:1/\r\n")},
		"status 407":                     {answer: bare("407 Proxy Authentication Required", "Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm=\"a\"\r\n")},
		"status 418":                     {answer: bare("418 I'm a teapot", "")},
		"status 500":                     {answer: bare("500 No", "")},
		"503 for ten years":              {answer: bare("503 No", "Retry-After: 315360000\r\n")},
		"503 for more than numbers hold": {answer: bare("503 No", "Retry-After: 99999999999999999999999999\r\n")},
		"429 for less than nothing":      {answer: bare("429 No", "Retry-After: -5\r\n")},
		"429 until the year 9999":        {answer: bare("429 No", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n")},
		"429 until nobody knows when":    {answer: bare("429 No", "Retry-After: CANARY-soon\r\n")},

		// Challenges. Aim: clients that send tokens for ever (gokrb5 sent 4,951 a second).
		"401 Negotiate for ever":            {answer: bare("401 No", "WWW-Authenticate: Negotiate\r\n")},
		"401 Negotiate refused for ever":    {answer: bare("401 No", "WWW-Authenticate: Negotiate "+rejection+"\r\n")},
		"401 Negotiate with a long token":   {answer: bare("401 No", "WWW-Authenticate: Negotiate "+strings.Repeat("oYIC", 50<<10)+"\r\n")},
		"401 Negotiate with a broken token": {answer: bare("401 No", "WWW-Authenticate: Negotiate =oQcwBaADCgEC=\r\n")},
		"401 only for tokens":               {answer: bare("401 No", "WWW-Authenticate: Negotiate oQcwBaADCgEC\r\n"), to: withToken},
		"false proof for a token":           {answer: whole("200 OK", jsonType+"Set-Cookie: gssapi_session=CANARY-false\r\nWWW-Authenticate: Negotiate oRQwEqADCgEAoQsGCSqGSIb3EgECAg==\r\n", always("{}")), to: withToken},
		"401 without a challenge":           {answer: bare("401 No", "")},
		"401 with NTLM alone":               {answer: bare("401 No", "WWW-Authenticate: NTLM\r\n")},
		"401 with junk":                     {answer: bare("401 No", "WWW-Authenticate: \"\\\"=,,;Negotiate\xff\xfe\"\r\nWWW-Authenticate: =\r\n")},
		"403 and nothing else":              {answer: bare("403 No", "")},

		// Redirects. Aim: clients that follow them for ever, or to anywhere.
		"redirects to itself":      {answer: leads("302 Found", func(r *http.Request) string { return r.URL.String() })},
		"redirects to ever longer": {answer: leads("302 Found", func(r *http.Request) string { return r.URL.Path + "/" + strings.Repeat("a", len(r.URL.Path)) })},
		"redirects to and fro": {answer: leads("307 Temporary Redirect", func(r *http.Request) string {
			if r.URL.Path == "/to" {
				return "/fro"
			}
			return "/to"
		})},
		"redirects with a challenge": {answer: func(c net.Conn, r *http.Request) {
			if !withToken(r) {
				bare("401 No", "WWW-Authenticate: Negotiate\r\n")(c, r)
				return
			}
			bare("302 Found", "Location: "+r.URL.Path+"a\r\n")(c, r)
		}},
		"redirects to 200 KB":         {answer: leads("302 Found", always("/"+strings.Repeat("a", 200<<10)))},
		"redirects to data:":          {answer: leads("302 Found", always("data:text/html,CANARY"))},
		"redirects to javascript:":    {answer: leads("302 Found", always("javascript:alert(1)"))},
		"redirects to file:":          {answer: leads("302 Found", always("file:///etc/passwd"))},
		"redirects to what is no URL": {answer: leads("302 Found", always("http://[::1:%zz/"))},
		"redirects to another host":   {answer: leads("302 Found", always("https://127.0.0.1:1/"))},
		"redirects to http":           {answer: leads("302 Found", func(r *http.Request) string { return "http://" + r.Host + r.URL.Path })},
		"redirects the password":      {answer: leads("307 Temporary Redirect", always("https://127.0.0.1:1/")), to: withPassword},
		"redirects to nowhere":        {answer: bare("302 Found", "")},

		// Bodies. Aim: readers that keep or unpack all of it, and parsers.
		"body in drips":               {answer: drips("HTTP/1.1 200 OK\r\n"+jsonType+"\r\n", " ")},
		"body that stops":             {answer: silent("HTTP/1.1 200 OK\r\n" + jsonType + "Content-Length: 10\r\n\r\n{")},
		"body of 10 GB that stops":    {answer: silent("HTTP/1.1 200 OK\r\n" + jsonType + "Content-Length: 10000000000\r\n\r\n{")},
		"body of 10 GB":               {answer: floods("HTTP/1.1 200 OK\r\n"+jsonType+"Content-Length: 10000000000\r\n\r\n{", " ")},
		"body without end":            {answer: floods("HTTP/1.1 200 OK\r\n"+jsonType+"\r\n{", " ")},
		"chunks without end":          {answer: floods("HTTP/1.1 200 OK\r\n"+jsonType+"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "1\r\n \r\n")},
		"chunk extension without end": {answer: floods("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=", "a")},
		"chunks full of extensions":   {answer: floods("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1;"+strings.Repeat("a", 1000)+"\r\na\r\n")},
		"chunk of no size":            {answer: says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n")},
		"chunk of any size":           {answer: says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n")},
		"trailer without end":         {answer: floods("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "X-Many: a\r\n")},
		"other transfer coding":       {answer: says("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n" + "\x1f\x8b")},
		"negative length":             {answer: says("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}")},
		"two lengths":                 {answer: says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 1\r\n\r\n{}")},
		"too short a length":          {answer: says("HTTP/1.1 200 OK\r\n" + jsonType + "Content-Length: 5\r\n\r\n{\"user\":\"build\",\"name\":\"build\"}")},
		"gzip bomb":                   {answer: packed("gzip", func() string { return gzipped(zeros(), 1) })},
		"gzip in gzip bomb":           {answer: packed("gzip, gzip", func() string { return gzipped(zeros(), 2) })},
		"deflate bomb":                {answer: packed("deflate", func() string { return deflated(zeros()) })},
		"brotli by name":              {answer: packed("br", func() string { return "\x5b\xff\xff\xff\x00" })},
		"empty 200":                   {answer: bare("200 OK", ""), to: asksWho},
		"session of another user":     {answer: whole("200 OK", jsonType, always(`{"user":"mallory","name":"mallory"}`)), to: asksWho},
		"session of two users":        {answer: whole("200 OK", jsonType, always(`{"user":"build","user":"mallory","name":"build","name":"mallory"}`)), to: asksWho},
		"session of a number":         {answer: whole("200 OK", jsonType, always(`{"user":1e999999999,"name":1e999999999}`)), to: asksWho},
		"user name of 1 MB":           {answer: whole("200 OK", jsonType, full(`{"user":"`, "a", `"}`)), to: asksWho},
		"user name full of controls":  {answer: whole("200 OK", jsonType, always(`{"user":"\u001b[2J\r\nmallory\u202e","name":"\u001b[2J\r\nmallory\u202e"}`)), to: asksWho},
		"JSON 1 MB deep":              {answer: whole("200 OK", jsonType, full("", "[", "")), to: asksWho},
		"JSON objects 1 MB deep":      {answer: whole("200 OK", jsonType, full("", `{"name":`, "")), to: asksWho},
		"JSON of many members":        {answer: whole("200 OK", jsonType, numbered(`{"errorMessages":[]`, `,"m%d":0`, "}")), to: asksWho},
		"JSON of many messages":       {answer: whole("401 No", jsonType, full(`{"errorMessages":[""`, `,""`, "]}")), to: asksWho},
		"login page for ever":         {answer: whole("200 OK", htmlType, always(loginForm("/login")))},
		"login page to javascript:":   {answer: whole("200 OK", htmlType, always(loginForm("javascript:alert(1)")))},
		"login page to another host":  {answer: whole("200 OK", htmlType, always(loginForm("https://127.0.0.1:1/")))},
		"login page to http":          {answer: whole("200 OK", htmlType, always(loginForm("http://localhost:1/")))},
		"login page to no URL":        {answer: whole("200 OK", htmlType, always(loginForm("https://[::1:%zz/")))},
		"login page with a refresh":   {answer: whole("200 OK", htmlType+"Refresh: 0\r\n", always(`<meta http-equiv="refresh" content="0">`))},
		"nested tags":                 {answer: whole("200 OK", htmlType, full("", "<div>", ""))},
		"nested templates":            {answer: whole("200 OK", htmlType, full("", "<template>", ""))},
		"nested fieldsets":            {answer: whole("200 OK", htmlType, full("", "<fieldset>", "<input type=password>"))},
		"forms without end":           {answer: whole("200 OK", htmlType, numbered("", "<form a%d></form>", ""))},
		"login forms without end":     {answer: whole("200 OK", htmlType, full("", "<form><input type=password></form>", ""))},
		"inputs without end":          {answer: whole("200 OK", htmlType, full("<form method=post>", "<input name=a>", loginForm("/login")))},
		"options without end":         {answer: whole("200 OK", htmlType, numbered("<form method=post><select name=s>", "<option a%d>", "</select>"+loginForm("/login")))},
		"attributes without end":      {answer: whole("200 OK", htmlType, numbered("<form method=post ", "a%d ", ">"+loginForm("/login")))},
		"attribute of 1 MB":           {answer: whole("200 OK", htmlType, full(`<form method=post action="`, "a", `">`+loginForm("/login")))},
		"tag without end":             {answer: whole("200 OK", htmlType, full("<form ", "<", ""))},
		"page in UTF-16":              {answer: whole("200 OK", "Content-Type: text/html; charset=utf-16\r\n", full("", "\x00<", ""))},
		"character references":        {answer: whole("200 OK", htmlType, full(`<form method=post action="`, "&NotEqualTilde;", `">`+loginForm("/login")))},
	}
})

// loginForm is a page with a form for a password.
func loginForm(action string) string {
	return `<form method="post" action="` + action + `"><input name="username"><input type="password" name="password"></form>`
}

// StartHostile starts a front of a site, with a certificate of an authority.
func StartHostile(a *Authority, site http.Handler) (*Hostile, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h := &Hostile{site: site, authority: a, listener: l, conns: map[net.Conn]bool{}, ended: make(chan struct{}), tokens: map[string]int{}}
	h.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if h.begin(c) {
				h.serving.Go(func() {
					h.serve(c)
					h.end(c)
				})
			}
		}
	})
	return h, nil
}

// URL returns https://localhost:port, without a slash at its end.
func (h *Hostile) URL() string {
	_, port, _ := net.SplitHostPort(h.listener.Addr().String())
	return "https://localhost:" + port
}

// HostileKinds returns the names of all kinds of hostility, sorted.
func HostileKinds() []string { return slices.Sorted(maps.Keys(hostilities())) }

// Turn makes the front hostile from its next connection on, or good again with
// kind "". It panics if there is no such kind.
func (h *Hostile) Turn(kind string) {
	k, ok := hostilities()[kind]
	if !ok && kind != "" {
		panic("rig: no hostility " + kind)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kind = k
	clear(h.tokens)
}

// Tokens returns how many Negotiate tokens the URL has got that got most of them
// since the last Turn.
func (h *Hostile) Tokens() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Max(append(slices.Collect(maps.Values(h.tokens)), 0))
}

// Idle waits until no connection is open, without ending any.
func (h *Hostile) Idle(ctx context.Context) error {
	for {
		h.mu.Lock()
		n, ended := len(h.conns), h.ended
		h.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return fmt.Errorf("%d connections are still open: %w", n, ctx.Err())
		}
	}
}

// Stop ends the front and its connections.
func (h *Hostile) Stop() {
	h.listener.Close()
	h.mu.Lock()
	h.stop = true
	for c := range h.conns {
		c.Close()
	}
	h.mu.Unlock()
	h.serving.Wait()
}

func (h *Hostile) begin(c net.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stop {
		c.Close()
		return false
	}
	h.conns[c] = true
	return true
}

func (h *Hostile) end(c net.Conn) {
	c.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, c)
	close(h.ended)
	h.ended = make(chan struct{})
}

// serve does what the front does at the time the connection begins.
func (h *Hostile) serve(c net.Conn) {
	h.mu.Lock()
	k := h.kind
	h.mu.Unlock()
	if k.instead != nil {
		k.instead(c)
		return
	}
	show := shows(func(*x509.Certificate) {})
	if k.tls != nil {
		show = k.tls
	}
	config, err := show(h.authority)
	if err != nil {
		panic(err) // it does not depend on what the client sends
	}
	t := tls.Server(c, config)
	if t.Handshake() != nil {
		return
	}
	defer t.Close()
	from := bufio.NewReader(t)
	for {
		r, err := http.ReadRequest(from)
		if err != nil {
			return
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		h.count(r)
		if k.answer != nil && (k.to == nil || k.to(r)) {
			k.answer(t, r)
			return
		}
		w := &answerWriter{header: http.Header{}}
		h.site.ServeHTTP(w, r)
		if w.send(t, r) != nil {
			return
		}
	}
}

func (h *Hostile) count(r *http.Request) {
	if scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Negotiate") {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.tokens[r.URL.Path]++
	}
}

// answerWriter keeps the site's answer until it is whole.
type answerWriter struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *answerWriter) Header() http.Header { return w.header }

func (w *answerWriter) WriteHeader(status int) { w.status = cmp.Or(w.status, status) }

func (w *answerWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

func (w *answerWriter) send(c net.Conn, r *http.Request) error {
	return (&http.Response{ProtoMajor: 1, ProtoMinor: 1, Request: r, Header: w.header,
		StatusCode: cmp.Or(w.status, http.StatusOK), ContentLength: int64(w.body.Len()), Body: io.NopCloser(&w.body)}).Write(c)
}

// Authority is a certification authority of fronts.
type Authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewAuthority makes an authority that is good for a day.
func NewAuthority() (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "rig authority of fronts"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageCertSign,
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &Authority{key, cert}, err
}

// PEM returns the authority's certificate.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// shows makes a TLS server with the authority's certificate for localhost, as
// edited.
func shows(edit func(*x509.Certificate)) func(*Authority) (*tls.Config, error) {
	return func(a *Authority) (*tls.Config, error) {
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(2),
			Subject:      pkix.Name{CommonName: "localhost"},
			NotBefore:    a.cert.NotBefore,
			NotAfter:     a.cert.NotAfter,
			KeyUsage:     x509.KeyUsageDigitalSignature,
			ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			DNSNames:     []string{"localhost"},
		}
		edit(leaf)
		der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, a.key.Public(), a.key)
		if err != nil {
			return nil, err
		}
		return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: a.key}}}, nil
	}
}

// configured makes a good server with other settings.
func configured(change func(*tls.Config)) func(*Authority) (*tls.Config, error) {
	return func(a *Authority) (*tls.Config, error) {
		c, err := shows(func(*x509.Certificate) {})(a)
		if err == nil {
			change(c)
		}
		return c, err
	}
}

// stranger is an authority that nobody trusts.
func stranger(*Authority) (*tls.Config, error) {
	a, err := NewAuthority()
	if err != nil {
		return nil, err
	}
	return shows(func(*x509.Certificate) {})(a)
}

// selfSigned is a certificate for localhost that vouches for itself.
func selfSigned(*Authority) (*tls.Config, error) {
	a, err := NewAuthority()
	if err != nil {
		return nil, err
	}
	a.cert.Subject = pkix.Name{CommonName: "localhost"}
	return shows(func(*x509.Certificate) {})(a)
}

// dripInterval is the pace of those who go on slowly.
const dripInterval = 100 * time.Millisecond

// hold waits until the client ends the connection.
func hold(c net.Conn) { io.Copy(io.Discard, c) }

// closing waits for the client's first bytes, sends a text and closes the
// connection. It is also for servers that do not speak TLS.
func closing(text string) func(net.Conn) {
	return func(c net.Conn) {
		c.Read(make([]byte, 4<<10))
		io.WriteString(c, text)
	}
}

// reset makes the end of a connection a reset (RST).
func reset(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// says sends a text and closes the connection.
func says(text string) func(net.Conn, *http.Request) {
	return func(c net.Conn, _ *http.Request) { io.WriteString(c, text) }
}

// silent sends a text and then nothing.
func silent(text string) func(net.Conn, *http.Request) {
	return func(c net.Conn, _ *http.Request) {
		io.WriteString(c, text)
		hold(c)
	}
}

// drips sends a text, and then another for ever, slowly.
func drips(head, piece string) func(net.Conn, *http.Request) {
	return func(c net.Conn, _ *http.Request) {
		tick := time.NewTicker(dripInterval)
		defer tick.Stop()
		_, err := io.WriteString(c, head)
		for ; err == nil; _, err = io.WriteString(c, piece) {
			<-tick.C
		}
	}
}

// floods sends a text, and then another for ever, as fast as it is taken.
func floods(head, piece string) func(net.Conn, *http.Request) {
	return func(c net.Conn, _ *http.Request) { flood(c, head, piece) }
}

func flood(c net.Conn, head, piece string) {
	block := strings.Repeat(piece, 1+(64<<10)/len(piece))
	_, err := io.WriteString(c, head)
	for ; err == nil; _, err = io.WriteString(c, block) {
	}
}

// whole is an answer with a status, head lines and a body that is made when
// it is asked for.
func whole(status, head string, body func(*http.Request) string) func(net.Conn, *http.Request) {
	return func(c net.Conn, r *http.Request) {
		text := ""
		if body != nil {
			text = body(r)
		}
		fmt.Fprintf(c, "HTTP/1.1 %s\r\n%sConnection: close\r\nContent-Length: %d\r\n\r\n%s", status, head, len(text), text)
	}
}

// bare is an answer without a body.
func bare(status, head string) func(net.Conn, *http.Request) { return whole(status, head, nil) }

// leads redirects to what a request's answer is made of.
func leads(status string, to func(*http.Request) string) func(net.Conn, *http.Request) {
	return func(c net.Conn, r *http.Request) { bare(status, "Location: "+to(r)+"\r\n")(c, r) }
}

func always(to string) func(*http.Request) string { return func(*http.Request) string { return to } }

const (
	htmlType = "Content-Type: text/html; charset=utf-8\r\n"
	jsonType = "Content-Type: application/json\r\n"
)

// full repeats a piece to the size of the longest login page, or at other places
// of the most that is read of an answer.
func full(head, piece, tail string) func(*http.Request) string {
	return func(r *http.Request) string {
		size := 1 << 20
		if r.URL.Path == "/login" {
			size = 512 << 10
		}
		n := (size - len(head) - len(tail)) / len(piece)
		return head + strings.Repeat(piece, n) + tail
	}
}

// numbered is full with a number in each piece.
func numbered(head, piece, tail string) func(*http.Request) string {
	return func(r *http.Request) string {
		b := bytes.NewBufferString(head)
		size := len(full("", " ", tail)(r))
		for i := 0; b.Len()+len(piece)+10 < size; i++ {
			fmt.Fprintf(b, piece, i)
		}
		return b.String() + tail
	}
}

// cookies are head lines that set n cookies.
func cookies(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "Set-Cookie: n%d=CANARY-value; Path=/\r\n", i)
	}
	return b.String()
}

// Requests that carry what a login is made of.
func withToken(r *http.Request) bool    { return r.Header.Get("Authorization") != "" }
func withPassword(r *http.Request) bool { return r.Method == http.MethodPost }
func withProof(r *http.Request) bool    { return withToken(r) || withPassword(r) }

// asksWho is for requests that ask whose the session is.
func asksWho(r *http.Request) bool {
	return r.Method == http.MethodGet && (strings.HasSuffix(r.URL.Path, "/whoami") || strings.HasSuffix(r.URL.Path, "/session"))
}

// gzipped packs a text as often as is said.
func gzipped(text string, times int) string {
	for range times {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		io.WriteString(w, text)
		w.Close()
		text = b.String()
	}
	return text
}

func deflated(text string) string {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		panic(err) // the level is one
	}
	io.WriteString(w, text)
	w.Close()
	return b.String()
}

// zeros are what compressed bombs hold: each block of a few KiB unfolds to 10 MB.
func zeros() string { return strings.Repeat("\x00", 10<<20) }

// packed is an endless body of packed blocks.
func packed(coding string, block func() string) func(net.Conn, *http.Request) {
	return func(c net.Conn, _ *http.Request) {
		flood(c, "HTTP/1.1 200 OK\r\n"+jsonType+"Content-Encoding: "+coding+"\r\n\r\n", block())
	}
}

// rejection is a SPNEGO token that refuses without a reason (RFC 4178, section
// 4.2.2: negState reject).
var rejection = base64.StdEncoding.EncodeToString([]byte{0xa1, 0x07, 0x30, 0x05, 0xa0, 0x03, 0x0a, 0x01, 0x02})
