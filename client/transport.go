package client

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// Transport is an http.RoundTripper that makes requests with the session of a
// site, and heals itself when the session has died:
//
//	h := &http.Client{Transport: &client.Transport{Site: "jira"}}
//
// Only requests to the site's origin (scheme, host and port) get the session's
// headers; they replace Cookie and Authorization headers of the request. Others,
// such as those that a redirect leads elsewhere, are sent as they are. The
// caller's request is not changed, and the session's headers are not in the
// response's Request either.
//
// If the answer looks like that to a dead session, the session is reported to
// the agent. The signs are status 401; a redirect to a known login page; that
// Atlassian's products say who asked (X-Seraph-LoginReason, X-AUSERNAME); and an
// HTML page with a login form. For this up to 64 KiB of a page are read before
// the answer is returned, in up to two seconds; one that comes more slowly is
// taken for an answer to the session. The agent asks the site before it
// believes. Then
//
//   - if the session lives after all, the answer is returned as it came;
//   - if there is a new one, the request is sent once more, never a third time,
//     and the second answer is returned, whatever it is. A request with a body
//     needs its GetBody, as http.NewRequest makes it. One whose method is not
//     safe (RFC 9110, 9.2.1) is sent again only after a 401, which says that
//     nothing was done (15.5.2): a request that ends the session may well lead
//     to the login page when it has done its work. What cannot be sent again
//     gets the answer as it came;
//   - if there is none to be had, or the agent cannot be asked, the error says
//     why, and the answer, a login page or what the site shows to anybody, is
//     dropped. Only an answer to a request that may have been carried out is
//     returned: to one with an unsafe method, other than a 401.
//
// Errors of its own are *api.Error, which http.Client wraps in *url.Error:
// api.CodeOf finds the code. There is no session, and so an error, for a URL
// at the site's origin that none of its cookies is for, and for an opaque one.
//
// It is safe for concurrent use. Fields must not be changed after the first
// request.
type Transport struct {
	// Site is the site's name in the agent's configuration.
	Site string
	// Base makes the requests. nil: http.DefaultTransport. The context of a
	// request ends when its answer's body is closed, which must end a Read that
	// is under way, as it does with net/http.
	Base http.RoundTripper
	// Client talks to the agent. nil: the Transport has a zero Client of its own.
	Client *Client

	own Client
	// busy is held for reading while own is in use.
	busy sync.RWMutex
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	session, err := t.session(r)
	if err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	if session == nil {
		return t.base().RoundTrip(r)
	}
	resp, err := t.send(r, r.Body, session)
	if err != nil {
		return nil, err
	}
	seen := judge(resp)
	if seen == accepted {
		return resp, nil
	}
	fresh, err := t.refresh(r.Context(), session)
	switch {
	case seen != refused && !safe(r.Method):
		return resp, nil // the report is made; more could do harm
	case err != nil:
		resp.Body.Close()
		return nil, err
	case fresh.Generation == session.Generation:
		return resp, nil
	}
	body := r.Body
	if body != nil && body != http.NoBody {
		if r.GetBody == nil {
			return resp, nil
		}
		if body, err = r.GetBody(); err != nil {
			return resp, nil
		}
	}
	// Unread: what is still to come may never come. A connection is worth less.
	resp.Body.Close()
	return t.send(r, body, fresh)
}

// session returns the session for a request, nil for one that goes to another
// origin than the site's.
func (t *Transport) session(r *http.Request) (*Session, error) {
	switch {
	case t.Site == "":
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "the transport has no site", Remedy: "set its Site to a name from sessionctl list"}
	case r.URL == nil:
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "the request has no URL", Remedy: "make it with http.NewRequest"}
	}
	c, done := t.client()
	defer done()
	// The agent has no need of the rest, which may hold secrets.
	host := strings.Replace(r.URL.Host, r.URL.Hostname(), sentName(r.URL), 1)
	u := &url.URL{Scheme: r.URL.Scheme, Host: host, Path: r.URL.Path, RawPath: r.URL.RawPath}
	s, err := c.Session(r.Context(), Query{Site: t.Site, URL: u.String(), Method: cmp.Or(r.Method, http.MethodGet)})
	if api.CodeOf(err) != api.InvalidRequest {
		return s, err
	}
	// The agent takes no URL of another origin. It is the one to ask which the
	// site's is, each time: its configuration may change.
	sessions, e := c.Sessions()
	if e != nil {
		return nil, e
	}
	list, e := sessions.ListSessions(r.Context(), &pb.ListSessionsRequest{})
	if e != nil {
		return nil, e
	}
	for _, site := range list.GetSessions() {
		if own, e := url.Parse(site.GetUrl()); e == nil && site.GetSite() == t.Site && originOf(own) != originOf(u) {
			return nil, nil
		}
	}
	return nil, err
}

func (t *Transport) refresh(ctx context.Context, dead *Session) (*Session, error) {
	c, done := t.client()
	defer done()
	return c.Refresh(ctx, dead)
}

// send makes the request with that body and session. The answer's Request is
// the caller's, without the session. Its body ends the request when it is
// closed, even while it is being read.
func (t *Transport) send(r *http.Request, body io.ReadCloser, s *Session) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	clone := r.Clone(ctx)
	clone.Body = body
	if err := s.Apply(clone); err != nil {
		cancel()
		if body != nil {
			body.Close()
		}
		return nil, err
	}
	resp, err := t.base().RoundTrip(clone)
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Request = r
	if resp.Body == nil || resp.Body == http.NoBody {
		cancel()
		return resp, nil
	}
	w, writable := resp.Body.(io.Writer) // after 101, see http.Response
	resp.Body = ending{resp.Body, cancel}
	if writable {
		resp.Body = struct {
			io.ReadCloser
			io.Writer
		}{resp.Body, w}
	}
	return resp, nil
}

// ending is a body that cancels the context of its request at its end. Close of
// the body alone would not always do: net/http's waits for a Read that reads the
// header of a compressed body.
type ending struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (e ending) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	if err != nil {
		e.cancel()
	}
	return n, err
}

func (e ending) Close() error {
	e.cancel()
	return e.ReadCloser.Close()
}

// CloseIdleConnections closes those of Base, if it can, and the connection to
// the agent if that is the Transport's own and no call is under way.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base().(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
	if t.busy.TryLock() {
		t.own.Close()
		t.busy.Unlock()
	}
}

func (t *Transport) base() http.RoundTripper { return cmp.Or(t.Base, http.DefaultTransport) }

// client returns what asks the agent, until done is called.
func (t *Transport) client() (c *Client, done func()) {
	if t.Client != nil {
		return t.Client, func() {}
	}
	t.busy.RLock()
	return &t.own, t.busy.RUnlock
}

// safe reports whether a method asks for nothing to be done (RFC 9110, 9.2.1).
// "" is GET, as in net/http.
func safe(method string) bool {
	return slices.Contains([]string{"", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace}, method)
}
