package rig_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// hostileFront is a front of a site that says hello and counts its visits.
func hostileFront(t *testing.T) (*rig.Hostile, *tls.Config, *int) {
	a, err := rig.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	visits := new(int)
	h, err := rig.StartHostile(a, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*visits++
		w.Header().Add("Set-Cookie", "a=CANARY-1")
		w.Header().Add("Set-Cookie", "b=CANARY-2")
		fmt.Fprint(w, "hello ", r.URL.Path)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Stop)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.PEM())
	return h, &tls.Config{RootCAs: roots, ServerName: "localhost"}, visits
}

// dial connects to a front until the test ends or a while has passed.
func dial(t *testing.T, h *rig.Hostile, config *tls.Config) (*tls.Conn, error) {
	t.Helper()
	address := strings.Replace(strings.TrimPrefix(h.URL(), "https://"), "localhost", "127.0.0.1", 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c.(*tls.Conn), c.SetDeadline(time.Now().Add(time.Second))
}

// TestHostileBehaves: a front that nobody has turned is the site.
func TestHostileBehaves(t *testing.T) {
	h, config, visits := hostileFront(t)
	c, err := dial(t, h, config)
	if err != nil {
		t.Fatal(err)
	}
	from := bufio.NewReader(c)
	for range 2 { // on one connection
		io.WriteString(c, "POST /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Negotiate dG9rZW4=\r\nContent-Length: 3\r\n\r\nabc")
		r, err := http.ReadResponse(from, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r.Body)
		if err != nil || string(b) != "hello /x" || len(r.Cookies()) != 2 {
			t.Errorf("%q %v %v", b, r.Cookies(), err)
		}
	}
	if *visits != 2 || h.Tokens() != 2 {
		t.Errorf("%d visits, %d tokens", *visits, h.Tokens())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if h.Idle(ctx) == nil {
		t.Error("idle with a connection that is open")
	}
	c.Close()
	if err := h.Idle(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestHostilities: no kind is the site as it was, each ends when its client
// goes, and whoever turns back is good again.
func TestHostilities(t *testing.T) {
	h, config, visits := hostileFront(t)
	for _, kind := range rig.HostileKinds() {
		h.Turn(kind)
		if h.Tokens() != 0 {
			t.Errorf("%s: tokens are counted before there are any", kind)
		}
		*visits = 0
		for _, request := range []string{
			"GET /login HTTP/1.1\r\nHost: localhost\r\n\r\n",
			"GET /whoami HTTP/1.1\r\nHost: localhost\r\nAuthorization: Negotiate dG9rZW4=\r\n\r\n",
			"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\na",
		} {
			if c, err := dial(t, h, config); err == nil {
				io.WriteString(c, request)
				c.Read(make([]byte, 100))
				c.Close()
			}
		}
		if *visits == 3 {
			t.Errorf("%s: all goes to the site", kind)
		}
		if err := h.Idle(t.Context()); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	h.Turn("")
	if _, err := dial(t, h, config); err != nil {
		t.Error(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a kind that there is not")
		}
	}()
	h.Turn("nice")
}
