package client

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// Query names a session: by site, by URL, or by both.
type Query struct {
	// Site is the site's name in the agent's configuration. Empty: the site is
	// found by URL, among those this process may use.
	Site string
	// URL is the absolute URL that the session is for; it decides which cookies
	// there are. Empty: the site's own URL.
	URL string
	// Method is the HTTP method of the requests to come. Empty: any.
	Method string
	// MinValidity is how long the session should still live. One that is known
	// to end sooner is made anew first, unless the site's sessions never live
	// that long. Only for Client.Session: what a Source holds, the agent renews.
	MinValidity time.Duration
}

// Session is a session of a user at a site, proven by the agent before it was
// first served. It never changes and may be shared.
//
// Its secrets are only in what Header returns and Apply sets: a Session that is
// printed, logged with slog or encoded as JSON shows none.
type Session struct {
	// Site is the site's name.
	Site string
	// User is whose session it is, as the site names the user.
	User string
	// Generation is an opaque label of the session, to be compared for equality
	// only.
	Generation string
	// URL is the absolute URL, and Method the HTTP method or "" for any, of the
	// requests that the session was computed for.
	URL, Method string
	// LoginTime is when the login that made the session ended.
	LoginTime time.Time
	// ProveTime is when the site last proved the session alive.
	ProveTime time.Time
	// ExpireTime is when the first of the cookies for the site's own URL ends;
	// zero if none says.
	ExpireTime time.Time
	// Stale: the site could not be reached for a fresh proof; the session still
	// lives as far as the agent knows.
	Stale bool
	// NotDurable: the session will not survive a restart of the agent.
	NotDurable bool
	// IdentityUnproven: the site cannot say whose session it is.
	IdentityUnproven bool

	origin origin // that of URL; zero: there is none
	// dress sets the session's headers. A function, so that whatever prints
	// structures field by field, unexported ones and by any verb, shows an address.
	dress func(http.Header)
}

// Session returns a proven session; the agent logs in first when there is none.
// An agent that restarts is waited for up to five seconds, if its socket stays:
// systemd's, or that of an agent that died. The codes of failures are those of
// package api; to tell what to do about one:
//
//	switch code := api.CodeOf(err); {
//	case code.Temporary(): // try again later
//	case code.Exit() == api.ExitPerson: // a person must act; api.AsError(err).Remedy says how
//	}
func (c *Client) Session(ctx context.Context, q Query) (*Session, error) {
	s, err := c.Sessions()
	if err != nil {
		return nil, err
	}
	r := &pb.GetSessionRequest{Site: q.Site, Url: q.URL, Method: q.Method}
	if q.MinValidity != 0 {
		r.MinValidity = durationpb.New(q.MinValidity)
	}
	resp, err := s.GetSession(ctx, r)
	if err != nil {
		return nil, err
	}
	return newSession(resp.GetSession(), q.Method)
}

// Refresh reports that the site refused a session, and returns the one that is
// good now. The agent asks the site before it believes the report: if the
// session lives, it is returned again, with the same Generation; if it is dead,
// there is one login, however many report it. If another session has taken its
// place already, that is the answer.
//
// A report is made once: it is not repeated while the agent restarts.
func (c *Client) Refresh(ctx context.Context, dead *Session) (*Session, error) {
	if dead == nil {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "no session is reported dead", Remedy: "ask for one with Client.Session"}
	}
	s, err := c.Sessions()
	if err != nil {
		return nil, err
	}
	resp, err := s.RefreshSession(ctx, &pb.RefreshSessionRequest{Site: dead.Site, Url: dead.URL, Method: dead.Method, Generation: dead.Generation})
	if err != nil {
		return nil, err
	}
	return newSession(resp.GetSession(), dead.Method)
}

func newSession(m *pb.Session, method string) (*Session, error) {
	header, secrets := http.Header{}, 0
	for _, h := range m.GetHeaders() {
		header.Add(h.GetName(), string(h.GetValue()))
		if h.GetSecret() {
			secrets++
		}
	}
	if secrets == 0 {
		// It would be used, and make anonymous requests.
		return nil, &api.Error{Code: api.NoSessionCookie, Detail: "the agent's answer has no cookie or other secret for that URL",
			Remedy: "ask for a URL below the cookies' path, or correct the site's url"}
	}
	// Sessions are made now and then, and applied to every request.
	var own origin
	if u, err := url.Parse(m.GetUrl()); err == nil && u.Host != "" {
		own = originOf(u)
	}
	return &Session{
		Site: m.GetSite(), User: m.GetUser(), Generation: m.GetGeneration(), URL: m.GetUrl(), Method: method,
		LoginTime: moment(m.GetLoginTime()), ProveTime: moment(m.GetProveTime()), ExpireTime: moment(m.GetExpireTime()),
		Stale: m.GetStale(), NotDurable: m.GetNotDurable(), IdentityUnproven: m.GetIdentityUnproven(),
		origin: own, dress: dresser(header),
	}, nil
}

// dresser returns a function that sets these headers among others. Each time it
// sets values of their own, which may be changed.
func dresser(header http.Header) func(http.Header) {
	type field struct {
		name     string
		from, to int // among all values
	}
	var fields []field
	var all []string
	for name, values := range header {
		all = append(all, values...)
		fields = append(fields, field{name, len(all) - len(values), len(all)})
	}
	return func(h http.Header) {
		own := slices.Clone(all)
		for _, f := range fields {
			h[f.name] = own[f.from:f.to:f.to]
		}
	}
}

func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// Header returns what a request to URL must carry: the Cookie header, and where
// the site needs them others, such as User-Agent and X-Atlassian-Token. It holds
// secrets. The caller may change it.
//
// The Cookie header is as the site wants it, byte for byte. There is no
// []*http.Cookie: net/http drops or quotes bytes that sites do use. Who needs
// the cookies' attributes calls GetSession of Client.Sessions.
func (s *Session) Header() http.Header {
	h := http.Header{}
	if s.dress != nil {
		s.dress(h)
	}
	return h
}

// Apply sets the session's headers on a request, in place of the request's own
// of the same names. Cookie and Authorization are removed in any case: a site
// may refuse good credentials that come beside others.
//
// A request to another origin than that of URL is left as it is, and the error
// has the code api.InvalidRequest. So it is if the request's URL is opaque, with
// which it may be for another host than it says. The cookies are those for the
// path of URL.
func (s *Session) Apply(r *http.Request) error {
	if s.origin == (origin{}) {
		return &api.Error{Code: api.InvalidRequest, Detail: "the session is for no absolute URL", Remedy: "take it from the agent"}
	}
	if r.URL.Opaque != "" { // a proxy is asked for just that
		return &api.Error{Code: api.InvalidRequest, Detail: "the request's URL is opaque", Remedy: "make one with host and path"}
	}
	to := originOf(r.URL)
	if to == s.origin && r.Host != "" && r.Host != r.URL.Host { // as whose the server there takes it
		to = originOf(&url.URL{Scheme: r.URL.Scheme, Host: r.Host})
	}
	if to != s.origin {
		return &api.Error{Code: api.InvalidRequest, Detail: "the session is for " + s.origin.String() + ", the request goes to " + to.String(),
			Remedy: "ask for a session of that site"}
	}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	// atlassian.com, "REST and os_authType": an invalid cookie is refused
	// although the Authorization header beside it is good.
	delete(r.Header, "Cookie")
	delete(r.Header, "Authorization")
	s.dress(r.Header)
	return nil
}

// origin is scheme, host and port (RFC 6454).
type origin struct{ scheme, host, port string }

// originOf returns the origin of a URL.
func originOf(u *url.URL) origin {
	o := origin{strings.ToLower(u.Scheme), strings.TrimSuffix(strings.ToLower(sentName(u)), "."), u.Port()}
	if o.port == "" {
		switch o.scheme {
		case "http":
			o.port = "80"
		case "https":
			o.port = "443"
		}
	}
	return o
}

// sentName returns the name of a URL's host as net/http sends it to the server and
// to proxies. Letters that are not ASCII's are encoded there as they are; the
// agent, and whoever dials, first makes wide ones narrow, and more (UTS 46).
func sentName(u *url.URL) string {
	name := u.Hostname()
	if strings.ContainsFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) {
		if a, err := idna.ToASCII(name); err == nil {
			return a
		}
	}
	return name
}

func (o origin) String() string { return o.scheme + "://" + net.JoinHostPort(o.host, o.port) }

// String names the session without its secrets.
func (s Session) String() string {
	return fmt.Sprintf("session %s of %s at %s", s.Generation, s.User, s.Site)
}

// GoString is String: %#v shows no secrets either.
func (s Session) GoString() string { return s.String() }

// LogValue implements slog.LogValuer.
func (s Session) LogValue() slog.Value {
	return slog.GroupValue(slog.String("site", s.Site), slog.String("user", s.User), slog.String("generation", s.Generation), slog.Bool("stale", s.Stale))
}
