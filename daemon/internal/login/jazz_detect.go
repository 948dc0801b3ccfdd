package login

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// How Jazz wants a login, beside byForm. byOAuth stands before the way at the server
// that it delegates to.
const (
	byOAuth       = "oauth+"
	byJAS         = "jas"     // OpenID Connect at the Jazz Authorization Server
	byAppPassword = "jas-app" // the same, where that leaves passwords to another provider
	byBasic       = "basic"
	byNegotiate   = "" // which is no password
)

// jazzChallenge is what a protected page says to a stranger.
type jazzChallenge struct {
	by   string   // the way
	next *url.URL // where that goes on: by OAuth, by JAS
	app  *url.URL // what takes application passwords; nil: nothing
	// gate: Negotiate is asked for.
	gate bool
	page *web.Response
}

// challenged reads an answer to a stranger. Its error is for what leads to no login.
func (j *jazz) challenged(x *web.Exchange, r *web.Response) (c jazzChallenge, err error) {
	c.page = r
	if err := web.StatusError(r); err != nil {
		return c, err
	}
	switch m := authMessage(r); {
	case m != "":
		c.by = byForm
		return c, nil
	case r.Status == http.StatusOK && strings.HasSuffix(r.URL.Path, "/oauth-authorize"):
		return c, consentRequired(r, base(x))
	case r.Status == http.StatusForbidden && r.Negotiated && x.Jar().Named(j.SSOCookie).Len() > 0:
		return c, noRole(r)
	case r.Status == http.StatusForbidden && r.Negotiated:
		return c, ticketRefused(r)
	case r.Status < 400:
		return c, &api.Error{Code: api.NoChallenge, Detail: fmt.Sprintf("%s answers %d without asking for a login (User-Agent %q)", r.Shown(), r.Status, x.UserAgent()), Remedy: checkContext}
	case r.Status != http.StatusUnauthorized:
		return c, unexpectedJazz(r)
	}
	has := func(scheme string) bool { return web.FindChallenge(r.Challenges, scheme) != nil }
	c.gate = has("negotiate")
	step := func(field string) (*url.URL, error) {
		v := r.Header.Get(field)
		if v == "" {
			return nil, nil
		}
		to, err := r.URL.Parse(v)
		if err != nil {
			return nil, &api.Error{Code: api.UnexpectedStatus, Detail: r.Shown() + " names no web address in " + field, Remedy: checkContext} // err would quote it
		}
		return to, x.Permit(r.URL, to)
	}
	if c.next, err = step("X-Jazz-Web-Oauth-Url"); err != nil || c.next != nil {
		c.by = byOAuth
		return c, err
	}
	if has("bearer") {
		if c.next, err = step("X-Jsa-Authorization-Redirect"); err != nil {
			return c, err
		}
		if c.app, err = step("X-Jsa-App-Password-Redirect"); err != nil {
			return c, err
		}
		if c.next == nil {
			return c, unsupported(r, "asks for a token of OpenID Connect without saying where to log in")
		}
		c.by = byJAS
		return c, nil
	}
	switch {
	case c.gate:
		c.by = byNegotiate
	case has("basic"):
		c.by = byBasic
	case has("jauth"):
		return c, unsupported(r, "asks for JAuth")
	default:
		return c, unsupported(r, "answers 401 and asks for nothing that is spoken here")
	}
	return c, nil
}

// consentRequired is for a page that asks whether an application may act for the user.
func consentRequired(r *web.Response, home *url.URL) error {
	return &api.Error{Code: api.ConsentRequired, Detail: r.Shown() + " asks a person to let one application act at another",
		Remedy: "log in at " + web.Shown(home) + " with a browser as the same user, and allow it once; an administrator can trust the application for all (OAuth consumers)"}
}

// ticketRefused is for a server that answers 403 to a ticket (Open Liberty's SPNEGO
// authenticator, DenyReply).
func ticketRefused(r *web.Response) error {
	return &api.Error{Code: api.NegotiateRejected, Detail: r.Shown() + " answers 403 to the ticket",
		Remedy: "compare the service's key, and the clocks; see the server's log; or the user has no role there"}
}

func unsupported(r *web.Response, what string) error {
	var schemes []string
	for _, c := range r.Challenges {
		schemes = append(schemes, c.Scheme)
	}
	return &api.Error{Code: api.ChallengeUnsupported, Detail: fmt.Sprintf("%s %s (WWW-Authenticate: %s)", r.Shown(), what, api.Clean(strings.Join(schemes, ", "))),
		Remedy: "ask the server's administrator how native clients log in"}
}

// Detect implements Detector. Redirects aside it makes at most four requests: for the
// root services, which are public, for the page that names the user, and for what this
// leads to.
func (j *jazz) Detect(ctx context.Context, x *web.Exchange) (Findings, error) {
	j.present(x)
	var f Findings
	u, err := x.URL("rootservices")
	if err != nil {
		return f, err
	}
	r, err := x.Get(ctx, u)
	switch api.CodeOf(err) {
	case "", api.SSORedirect, api.InsecureRedirect, api.RedirectLoop: // what is asked next says it better
	default:
		return f, err
	}
	if err == nil && r.Status == http.StatusOK {
		if s, ok := readRootServices(r.Body); ok {
			f.Product, f.Version = "jazz", s.version
			f.Probe, f.Users = s.pages(base(x))
		}
	}
	d := j.As(f).(*jazz)
	if u, err = x.URL(d.protected()); err != nil {
		return f, err
	}
	if r, err = x.Get(ctx, u); err != nil {
		return f, err
	}
	c, err := j.challenged(x, r)
	for hops := 0; err == nil && hops < 2 && (c.by == byOAuth || c.by == byJAS); hops++ {
		f.Login += c.by
		if c.app != nil && j.AppPassword {
			f.Login = strings.TrimSuffix(f.Login, byJAS) + byAppPassword
			return f, nil
		}
		if r, err = x.Get(ctx, c.next); err != nil {
			return f, j.leftJAS(x, c, err)
		}
		if c.by == byJAS {
			if r.Status == http.StatusUnauthorized && web.FindChallenge(r.Challenges, "negotiate") != nil {
				f.Gate = gateForAll
			}
			if err := j.external(x, c, r); err != nil {
				return f, err
			}
			return f, web.StatusError(r)
		}
		c, err = j.challenged(x, r)
	}
	if err != nil {
		return f, err
	}
	f.Login += c.by
	if c.gate {
		f.Gate = gateForAll
	}
	return f, nil
}

// present has the exchange announce itself as a client with an application password,
// as servers want it (ELM-Python-Client; teamconcert-plugin).
func (j *jazz) present(x *web.Exchange) {
	if j.AppPassword {
		x.Present("app-password-enabled")
	}
}

// rootServices is what an application says of itself to anybody.
type rootServices struct{ version, currentUser, projectAreas string }

// pages returns where a session at the application whose context root is home is
// proven, and where the user is named, if that is at another application, as
// Requirements Management has it: "" for both if it is not, or not at the same origin.
func (s rootServices) pages(home *url.URL) (probe, users string) {
	page := func(ref string) string {
		u, err := home.Parse(ref)
		if ref == "" || err != nil || web.OriginOf(u) != web.OriginOf(home) || !pagePath.MatchString(u.EscapedPath()) {
			return ""
		}
		return u.EscapedPath()
	}
	probe, users = page(s.projectAreas), page(s.currentUser)
	if users == "" || within(users, home.EscapedPath()) || probe == "" || !within(probe, home.EscapedPath()) {
		return "", ""
	}
	return probe, users
}

// pagePath is what a page's path may be made of that is remembered.
var pagePath = regexp.MustCompile(`^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,63}){1,8}$`)

// maxRootServices is how much of it is read, in tokens of XML.
const maxRootServices = 2000

// readRootServices reads the root services document (RDF/XML) of an application: one
// that has elements of Jazz's own namespaces which say who the users are.
func readRootServices(body []byte) (s rootServices, ok bool) {
	d := xml.NewDecoder(bytes.NewReader(body))
	d.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil } // names are ASCII
	var text *string
	for range maxRootServices {
		t, err := d.Token()
		if err != nil {
			return s, ok
		}
		switch t := t.(type) {
		case xml.StartElement:
			text = nil
			if !strings.Contains(t.Name.Space, "//jazz.net/") && !strings.Contains(t.Name.Space, "//open-services.net/") {
				continue
			}
			switch t.Name.Local {
			case "version":
				text = &s.version
			case "currentUser":
				ok, s.currentUser = true, rdfResource(t)
			case "projectAreas":
				s.projectAreas = rdfResource(t)
			case "users", "jsaSsoEnabled":
				ok = true
			}
		case xml.CharData:
			if v := strings.TrimSpace(string(t)); text != nil && *text == "" && versionText.MatchString(v) {
				*text = v
			}
		case xml.EndElement:
			text = nil
		}
	}
	return s, ok
}

// rdfResource returns what an element names (RDF/XML, rdf:resource).
func rdfResource(e xml.StartElement) string {
	for _, a := range e.Attr {
		if a.Name.Local == "resource" {
			return a.Value
		}
	}
	return ""
}
