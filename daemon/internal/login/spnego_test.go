package login

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// colon has a name that Basic cannot say (RFC 7617, section 2).
type colon struct{ lent }

func (*colon) User() string { return "a:b" }

// TestBasic: what a site makes of a password by Basic. Only the proof tells that it
// was accepted, so the login never does.
func TestBasic(t *testing.T) {
	const asks = `Basic realm="CANARY-realm"`
	for name, c := range map[string]struct {
		challenge string // of the page without a password; "": it needs none
		status    int    // with it
		cookie    bool
		to        string // where it then leads
		code      api.Code
		sent      int32 // passwords
	}{
		"good":                 {asks, 200, true, "", "", 1},
		"good, and leads on":   {asks, 302, true, "/app/home", "", 1},
		"beside Negotiate":     {`Negotiate, ` + asks, 200, true, "", "", 1},
		"wrong":                {asks, 401, false, "", api.BadCredentials, 1},
		"wrong, with 403":      {asks, 403, true, "", api.UnexpectedStatus, 1},
		"wrong, with 400":      {asks, 400, true, "", api.UnexpectedStatus, 1},
		"no session":           {asks, 200, false, "", api.NoSessionCookie, 1},
		"in trouble":           {asks, 503, true, "", api.Maintenance, 1},
		"leads away":           {asks, 302, true, "https://foreign.example/", api.SSORedirect, 1},
		"only Negotiate":       {"Negotiate", 200, true, "", api.ChallengeUnsupported, 0},
		"asks for nothing":     {"", 200, true, "", api.ChallengeUnsupported, 0},
		"asks in another name": {`Digest realm="Basic"`, 200, true, "", api.ChallengeUnsupported, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				user, password, ok := r.BasicAuth()
				switch {
				case r.URL.Path == "/app/home":
					if ok {
						t.Error("the password went on to another page")
					}
					return
				case ok:
					sent.Add(1)
					if user != "build" || password != "CANARY-password" {
						t.Errorf("%s:%s", user, password)
					}
					if c.cookie {
						w.Header().Set("Set-Cookie", "s=CANARY-session; Path=/app")
					}
					if c.to != "" {
						w.Header().Set("Location", c.to)
					}
					w.WriteHeader(c.status)
				case c.challenge != "":
					w.Header().Set("WWW-Authenticate", c.challenge)
					w.WriteHeader(http.StatusUnauthorized)
				}
			}))
			defer server.Close()
			base, err := url.Parse(server.URL + "/app/login")
			if err != nil {
				t.Fatal(err)
			}
			x := web.NewExchange(web.Options{Base: base, InsecureHTTP: true}, new(web.Jar))
			defer x.Close()
			p := new(lent)
			err = new(spnego).Login(t.Context(), x, p)
			quiet(t, name, err)
			if code := api.CodeOf(err); code != c.code || sent.Load() != c.sent || p.taken != (c.sent > 0) || p.accepted {
				t.Errorf("%v, %d passwords sent, taken %v, accepted %v; want %q, %d", err, sent.Load(), p.taken, p.accepted, c.code, c.sent)
			}
		})
	}
	t.Run("a name with a colon", func(t *testing.T) {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", asks)
			w.WriteHeader(http.StatusUnauthorized)
		}))
		defer server.Close()
		base, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		x := web.NewExchange(web.Options{Base: base, InsecureHTTP: true}, new(web.Jar))
		defer x.Close()
		p := new(colon)
		if err := new(spnego).Login(t.Context(), x, p); api.CodeOf(err) != api.ConfigInvalid || p.taken {
			t.Errorf("%v, taken %v", err, p.taken)
		}
	})
}
