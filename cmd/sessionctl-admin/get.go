package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client/shim"
)

func (a *app) get() *cobra.Command {
	var format, url string
	var valid time.Duration
	c := &cobra.Command{
		Use:   "get SITE|URL",
		Short: "Print a session in the dialect of a tool",
		Long: `Print a session: json, or netscape (a cookie file for curl, wget, git and
Python), curl (for curl -K -), env (for eval "$(…)", quoted), httpie (a session
file for HTTPie's --session-read-only), playwright (a storage state). All are
secrets: redirect them to a file that only you can read. json names the header
fields that are secret.`,
		GroupID:           "serve",
		Args:              operand(shim.CheckTarget),
		ValidArgsFunction: a.sites,
		RunE: func(c *cobra.Command, args []string) error {
			req := &pb.GetSessionRequest{Site: args[0], Url: url, MinValidity: durationpb.New(valid)}
			if !api.ValidSite(args[0]) {
				req.Site, req.Url = "", cmp.Or(url, args[0])
			}
			s, err := a.client.Sessions()
			if err != nil {
				return err
			}
			var resp *pb.GetSessionResponse
			if err := a.call(c, shim.Subject(args[0])+": waiting for a session", func(ctx context.Context) error {
				resp, err = s.GetSession(ctx, req)
				return err
			}); err != nil {
				return err
			}
			a.flags(resp.GetSession())
			if end := resp.GetSession().GetExpireTime(); valid > 0 && end != nil && time.Until(end.AsTime()) < valid {
				a.warn(resp.GetSession().GetSite(), shim.EndsSooner(end.AsTime()))
			}
			var out bytes.Buffer // all or nothing
			if err := formats[format](&out, resp.GetSession()); err != nil {
				return err
			}
			_, err = a.stdout.Write(out.Bytes())
			return err
		},
	}
	choice(c, &format, "json", "netscape", "curl", "env", "httpie", "playwright")
	c.Flags().Var(target{&url}, "url", "the URL that the session is for (default: the site's)")
	c.Flags().Var(duration{&valid, false}, "min-validity", "how long the session must still live")
	return c
}

// target is the value of --url.
type target struct{ s *string }

func (t target) Set(s string) error {
	if api.ValidSite(s) || shim.CheckTarget(s) != nil {
		return errors.New("needs an http(s) URL without a user")
	}
	*t.s = s
	return nil
}

func (t target) String() string { return *t.s }
func (t target) Type() string   { return "URL" }

// warn says something about a site on stderr.
func (a *app) warn(site, text string) {
	fmt.Fprintf(a.stderr, "sessionctl: %s: %s\n", api.Clean(site), api.Clean(text))
}

// flags says on stderr what a reader of the session should know.
func (a *app) flags(s *pb.Session) {
	if s.GetStale() {
		a.warn(s.GetSite(), "served stale: the site gave no fresh proof; see sessionctl list")
	}
	if s.GetNotDurable() {
		a.warn(s.GetSite(), "the session could not be written to the agent's store")
	}
}

// formats are the dialects of `get -o`.
var formats = map[string]func(io.Writer, *pb.Session) error{
	"json": writeJSON, "netscape": writeNetscape, "curl": writeCurl, "env": writeEnv, "httpie": writeHTTPie, "playwright": writePlaywright,
}

// cookieHeader returns the value of the Cookie header. Only JSON can say that there
// is none; of the others, an answer without a cookie would pass for a session.
func cookieHeader(s *pb.Session) (string, error) {
	for _, h := range s.GetHeaders() {
		if strings.EqualFold(h.GetName(), "Cookie") && len(h.GetValue()) > 0 {
			return string(h.GetValue()), nil
		}
	}
	if authorized(s) {
		return "", &api.Error{Code: api.PerRequestOnly, Detail: "the site takes a token or password with each request, and no cookie",
			Remedy: "ask for its headers: sessionctl header " + s.GetSite() + ", or sessionctl get " + s.GetSite() + " with -o curl or json"}
	}
	return "", &api.Error{Code: api.NoSessionCookie, Detail: "the session has no cookie for this URL",
		Remedy: "ask for a URL below the site's own, or for all there is: sessionctl get " + s.GetSite() + " -o json"}
}

// authorized reports whether the session has a token in place of cookies.
func authorized(s *pb.Session) bool {
	return slices.ContainsFunc(s.GetHeaders(), func(h *pb.Header) bool { return strings.EqualFold(h.GetName(), "Authorization") })
}

type jsonSession struct {
	Site             string            `json:"site"`
	User             string            `json:"user"`
	URL              string            `json:"url"`
	Generation       string            `json:"generation"`
	Headers          map[string]string `json:"headers"`
	SecretHeaders    []string          `json:"secret_headers"`
	Cookies          []jsonCookie      `json:"cookies"`
	LoginTime        string            `json:"login_time,omitempty"`
	ProveTime        string            `json:"prove_time,omitempty"`
	ExpireTime       string            `json:"expire_time,omitempty"`
	Stale            bool              `json:"stale,omitempty"`
	NotDurable       bool              `json:"not_durable,omitempty"`
	IdentityUnproven bool              `json:"identity_unproven,omitempty"`
}

type jsonCookie struct {
	Name       string `json:"name"`
	Value      string `json:"value"`
	Domain     string `json:"domain"`
	HostOnly   bool   `json:"host_only"`
	Path       string `json:"path"`
	Secure     bool   `json:"secure"`
	HTTPOnly   bool   `json:"http_only"`
	ExpireTime string `json:"expire_time,omitempty"`
}

func writeJSON(w io.Writer, s *pb.Session) error {
	j := jsonSession{
		Site: s.GetSite(), User: s.GetUser(), URL: s.GetUrl(), Generation: s.GetGeneration(), Headers: map[string]string{}, SecretHeaders: []string{}, Cookies: []jsonCookie{},
		LoginTime: rfc3339(s.GetLoginTime()), ProveTime: rfc3339(s.GetProveTime()), ExpireTime: rfc3339(s.GetExpireTime()),
		Stale: s.GetStale(), NotDurable: s.GetNotDurable(), IdentityUnproven: s.GetIdentityUnproven(),
	}
	for _, h := range s.GetHeaders() {
		if err := text(h.GetValue()); err != nil {
			return err
		}
		j.Headers[h.GetName()] = string(h.GetValue())
		if h.GetSecret() {
			j.SecretHeaders = append(j.SecretHeaders, h.GetName())
		}
	}
	for _, c := range s.GetCookies() {
		if err := text(c.GetName(), c.GetValue()); err != nil {
			return err
		}
		j.Cookies = append(j.Cookies, jsonCookie{
			Name: string(c.GetName()), Value: string(c.GetValue()), Domain: c.GetDomain(), HostOnly: c.GetHostOnly(), Path: c.GetPath(),
			Secure: c.GetSecure(), HTTPOnly: c.GetHttpOnly(), ExpireTime: rfc3339(c.GetExpireTime()),
		})
	}
	return encode(w, j)
}

func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func rfc3339(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// writeNetscape writes a cookie file, as jar does.
func writeNetscape(w io.Writer, s *pb.Session) error {
	return writeJar(w, s, time.Now().Add(softLife), false, "")
}

// writeCurl writes a configuration for curl -K (curl(1)).
func writeCurl(w io.Writer, s *pb.Session) error {
	if _, err := cookieHeader(s); err != nil && !authorized(s) {
		return err
	}
	for _, h := range s.GetHeaders() {
		v := h.GetName() + ": " + string(h.GetValue())
		if err := plain(v); err != nil {
			return err
		}
		fmt.Fprintf(w, "header = \"%s\"\n", strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v))
	}
	return nil
}

// writeEnv writes an assignment for eval "$(…)": inside the double quotes no
// shell looks at it before it is code.
func writeEnv(w io.Writer, s *pb.Session) error {
	value, err := cookieHeader(s)
	if err != nil {
		return err
	}
	if err := plain(value); err != nil {
		return err
	}
	name := api.CookieVariable(s.GetSite())
	if name == "" {
		return &api.Error{Code: api.InvalidRequest, Detail: s.GetSite() + " does not make a variable name",
			Remedy: "sessionctl cookie " + s.GetSite() + " --var NAME"}
	}
	fmt.Fprintf(w, "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
	return nil
}

// envFailure is the code of a failure: it removes the variable, if it is known
// for which site, and fails.
func envFailure(site string) string {
	if name := api.CookieVariable(site); api.ValidSite(site) && name != "" {
		return "unset " + name + "&&false"
	}
	return "false"
}

// writeHTTPie writes a session file for `http --session-read-only=FILE`
// (HTTPie 3).
func writeHTTPie(w io.Writer, s *pb.Session) error {
	type cookie struct {
		Name    string `json:"name"`
		Value   string `json:"value"`
		Domain  string `json:"domain"`
		Path    string `json:"path"`
		Secure  bool   `json:"secure"`
		Expires *int64 `json:"expires"`
	}
	if _, err := cookieHeader(s); err != nil {
		return err
	}
	host, secure, err := onlyHost(s)
	if err != nil {
		return err
	}
	type header struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	session := struct {
		Meta    map[string]string `json:"__meta__"`
		Auth    map[string]any    `json:"auth"`
		Cookies []cookie          `json:"cookies"`
		Headers []header          `json:"headers"`
	}{map[string]string{"about": "HTTPie session file", "httpie": "3.2.1"}, map[string]any{"type": nil, "username": nil, "password": nil}, []cookie{}, []header{}}
	for _, h := range s.GetHeaders() {
		if strings.EqualFold(h.GetName(), "Cookie") {
			continue
		}
		if err := text(h.GetValue()); err != nil {
			return err
		}
		session.Headers = append(session.Headers, header{h.GetName(), string(h.GetValue())})
	}
	for _, c := range s.GetCookies() {
		if err := text(c.GetName(), c.GetValue()); err != nil {
			return err
		}
		k := cookie{Name: string(c.GetName()), Value: string(c.GetValue()), Domain: host, Path: c.GetPath(), Secure: secure || c.GetSecure()}
		if t := c.GetExpireTime(); t != nil {
			unix := t.AsTime().Unix()
			k.Expires = &unix
		}
		session.Cookies = append(session.Cookies, k)
	}
	return encode(w, session)
}

// writePlaywright writes a storage state, which Playwright's browsers begin with:
// browser.newContext({storageState: FILE}). A cookie's expiry is in seconds, -1 for
// one that ends with the session. The agent does not keep SameSite: Lax is what
// browsers take for none. Of the session's other headers a storage state has none.
func writePlaywright(w io.Writer, s *pb.Session) error {
	type cookie struct {
		Name     string `json:"name"`
		Value    string `json:"value"`
		Domain   string `json:"domain"`
		Path     string `json:"path"`
		Expires  int64  `json:"expires"`
		HTTPOnly bool   `json:"httpOnly"`
		Secure   bool   `json:"secure"`
		SameSite string `json:"sameSite"`
	}
	if _, err := cookieHeader(s); err != nil {
		return err
	}
	_, secure, err := onlyHost(s)
	if err != nil {
		return err
	}
	state := struct {
		Cookies []cookie   `json:"cookies"`
		Origins []struct{} `json:"origins"`
	}{[]cookie{}, []struct{}{}}
	for _, c := range s.GetCookies() {
		if err := text(c.GetName(), c.GetValue()); err != nil {
			return err
		}
		k := cookie{Name: string(c.GetName()), Value: string(c.GetValue()), Domain: c.GetDomain(), Path: c.GetPath(), Expires: -1,
			HTTPOnly: c.GetHttpOnly(), Secure: secure || c.GetSecure(), SameSite: "Lax"}
		if !c.GetHostOnly() {
			k.Domain = "." + k.Domain
		}
		if t := c.GetExpireTime(); t != nil {
			k.Expires = t.AsTime().Unix()
		}
		state.Cookies = append(state.Cookies, k)
	}
	return encode(w, state)
}

// plain refuses what would end a line early.
func plain(v string) error {
	if i := strings.IndexFunc(v, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }); i >= 0 {
		return &api.Error{Code: api.Unprintable, Detail: "a cookie holds a character that this format cannot carry", Remedy: "take another format: -o json"}
	}
	return nil
}

// text refuses what JSON cannot hold: encoding/json would replace it.
func text(values ...[]byte) error {
	for _, v := range values {
		if !utf8.Valid(v) {
			return &api.Error{Code: api.Unprintable, Detail: "a cookie holds bytes that JSON cannot carry", Remedy: "take another format: -o curl or -o netscape"}
		}
	}
	return nil
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
