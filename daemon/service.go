package daemon

import (
	"cmp"
	"context"
	"log/slog"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/internal/keeper"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
	"github.com/sessionctl/sessionctl/store"
)

// maxDeadline bounds a call whose caller set no deadline.
const maxDeadline = 2 * time.Minute

// service answers the gRPC API. It decides who may do what, and converts;
// everything else is the keeper's.
type service struct {
	pb.UnimplementedSessionServiceServer
	pb.UnimplementedTicketServiceServer
	pb.UnimplementedAgentServiceServer

	config  *Config
	keeper  *keeper.Keeper
	secrets *secrets
	store   *store.Store
	socket  string
	// warnings of the start, for a person to look at
	warnings []string
	started  time.Time
	self     uint32 // the agent's own uid
	log      *slog.Logger
	// ending is closed when the agent is about to stop.
	ending chan struct{}
}

// operator reports whether the caller may run the agent: its own user, and
// root, who could anyhow.
func (s *service) operator(c peer.Caller) bool { return c.UID == s.self || c.UID == 0 }

// intercept gives every call a deadline, keeps a panic from taking the agent
// down, and turns errors into statuses.
func (s *service) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer s.caught(info.FullMethod, &err)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, maxDeadline)
		defer cancel()
	}
	if resp, err = handle(ctx, req); err != nil {
		// The answer is final: a client's retry policy is for a lost agent, not
		// for a lost KDC (gRPC proposal A6, server pushback).
		// It fails when the caller has left, who then needs no word.
		_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", "-1"))
		return nil, toStatus(err)
	}
	return resp, nil
}

// interceptStream is intercept for streams, which may last.
func (s *service) interceptStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer s.caught(info.FullMethod, &err)
	if err = handle(srv, stream); err != nil {
		return toStatus(err)
	}
	return nil
}

// caught turns a panic of a call into its error. It is to be deferred.
func (s *service) caught(method string, err *error) {
	if r := recover(); r != nil {
		s.log.Error("panic in a call", "method", method, "panic", r, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "the agent failed inside; its log has more")
	}
}

// toStatus is the one place where a code becomes a gRPC status.
func toStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	e := api.AsError(err)
	st := status.New(codes.Code(e.Code.GRPC()), bounded(e.Detail, maxDetail))
	info := &errdetails.ErrorInfo{Domain: api.ErrorDomain, Reason: e.Code.Reason()}
	if e.Remedy != "" {
		info.Metadata = map[string]string{"remedy": bounded(e.Remedy, maxRemedy)}
	}
	if with, err := st.WithDetails(info); err == nil {
		st = with
	}
	return st.Err()
}

// What errors say ends up in a header block, whose size clients bound, and in
// the list of all sites; and some of it others have chosen.
const (
	maxDetail = 2 << 10 // bytes
	maxRemedy = 1 << 10
)

// bounded makes UTF-8 of at most limit bytes of a text.
func bounded(text string, limit int) string {
	const cut = "…"
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= limit {
		return text
	}
	end := limit - len(cut)
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + cut
}

// caller returns who calls; nobody the kernel cannot name gets further.
func caller(ctx context.Context) (peer.Caller, error) {
	c, ok := peer.Of(ctx)
	if !ok {
		return c, &api.Error{Code: api.Denied, Detail: "the kernel does not say who is calling", Remedy: "call as a user that has a name outside of its namespace too"}
	}
	return c, nil
}

// unknownSite is the answer for a site that is not there and for one the
// caller may not use: the same words, so that names cannot be guessed.
func unknownSite(what string) error {
	return &api.Error{Code: api.UnknownSite, Detail: "no site " + what + " for this user", Remedy: "check the name with sessionctl list, and who may use the site: its allow in the configuration"}
}

// find returns the site that a request names, among those a test lets through.
// The URL that counts for cookies is the one given, else the site's own.
func (s *service) find(name, rawURL string, may func(*Site) bool) (*Site, *url.URL, error) {
	var u *url.URL
	if rawURL != "" {
		var err error
		u, err = url.Parse(rawURL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, nil, &api.Error{Code: api.InvalidRequest, Detail: "that is not an absolute web address", Remedy: "sessionctl help"}
		}
	}
	switch {
	case name != "":
		for _, site := range s.config.Sites {
			if site.Name != name || !may(site) {
				continue
			}
			if u == nil {
				u = site.URL
			}
			if web.OriginOf(u) != web.OriginOf(site.URL) {
				return nil, nil, &api.Error{Code: api.InvalidRequest, Detail: "that URL is not at " + web.OriginOf(site.URL).String(), Remedy: "name the site of that URL, or only the URL"}
			}
			return site, u, nil
		}
		return nil, nil, unknownSite(name)
	case u == nil:
		return nil, nil, &api.Error{Code: api.InvalidRequest, Detail: "neither a site nor a URL is named", Remedy: "sessionctl help"}
	}
	var best []*Site
	for _, site := range s.config.Sites {
		if !may(site) || web.OriginOf(site.URL) != web.OriginOf(u) || !below(u, site.URL) {
			continue
		}
		switch {
		case len(best) == 0 || len(segments(site.URL)) > len(segments(best[0].URL)):
			best = []*Site{site}
		case len(segments(site.URL)) == len(segments(best[0].URL)):
			best = append(best, site)
		}
	}
	switch len(best) {
	case 0:
		return nil, nil, unknownSite("at " + web.OriginOf(u).String())
	case 1:
		return best[0], u, nil
	}
	var names []string
	for _, site := range best {
		names = append(names, site.Name)
	}
	return nil, nil, &api.Error{Code: api.AmbiguousSite, Detail: "the URL fits the sites " + strings.Join(names, ", "), Remedy: "name the site"}
}

func segments(u *url.URL) string { return strings.TrimRight(u.EscapedPath(), "/") }

// below reports whether u's path is base's or continues it at a segment.
func below(u, base *url.URL) bool {
	rest, ok := strings.CutPrefix(u.EscapedPath(), segments(base))
	return ok && (rest == "" || rest[0] == '/')
}

// allowed is the find test for handing out a session.
func allowed(c peer.Caller) func(*Site) bool {
	return func(s *Site) bool { return peer.Allowed(s.allow, c) }
}

// operate finds a site for a verb that only the operator may use. Somebody
// who may use the site learns that the verb is denied; others learn nothing.
func (s *service) operate(ctx context.Context, name string) (*Site, error) {
	c, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	may := allowed(c)
	if s.operator(c) {
		may = func(*Site) bool { return true }
	}
	site, _, err := s.find(name, "", may)
	if err != nil {
		return nil, err
	}
	if !s.operator(c) {
		return nil, &api.Error{Code: api.Denied, Detail: "only the agent's own user and root may do that", Remedy: "ask whoever runs the agent"}
	}
	return site, nil
}

// request is what GetSession, WatchSession and RefreshSession have in common.
type request interface {
	GetSite() string
	GetUrl() string
	GetMethod() string
}

// wanted returns the site that a request for a session names, and the URL and
// method that the session is for.
func (s *service) wanted(ctx context.Context, r request) (*Site, target, error) {
	c, err := caller(ctx)
	if err != nil {
		return nil, target{}, err
	}
	site, u, err := s.find(r.GetSite(), r.GetUrl(), allowed(c))
	if err != nil {
		return nil, target{}, err
	}
	if m := r.GetMethod(); m != "" && !httpguts.ValidHeaderFieldName(m) { // both are tokens
		return nil, target{}, &api.Error{Code: api.InvalidRequest, Detail: "method is not an HTTP method", Remedy: "sessionctl help"}
	}
	return site, target{u, r.GetMethod()}, nil
}

// target is a request that a session is for.
type target struct {
	url    *url.URL
	method string // "": any
}

// GetSession implements SessionService.
func (s *service) GetSession(ctx context.Context, r *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	site, to, err := s.wanted(ctx, r)
	if err != nil {
		return nil, err
	}
	if d := r.GetMinValidity(); d != nil && (d.CheckValid() != nil || d.AsDuration() < 0) {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "min_validity is not a duration", Remedy: "sessionctl help"}
	}
	served, err := s.keeper.Get(ctx, site.Name, keeper.GetOptions{MinValidity: r.GetMinValidity().AsDuration(), CachedOnly: r.GetCachedOnly()})
	if err != nil {
		return nil, err
	}
	m, err := site.message(served, to)
	if err != nil {
		return nil, err
	}
	return &pb.GetSessionResponse{Session: m}, nil
}

// WatchSession implements SessionService.
func (s *service) WatchSession(r *pb.WatchSessionRequest, stream grpc.ServerStreamingServer[pb.WatchSessionResponse]) error {
	site, to, err := s.wanted(stream.Context(), r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-s.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	var last *pb.Session
	err = s.keeper.Watch(ctx, site.Name, func(served keeper.Served) error {
		m, err := site.message(served, to)
		if err != nil || last != nil && unchanged(m, last) {
			return err
		}
		last = m
		return stream.Send(&pb.WatchSessionResponse{Session: m})
	})
	select {
	case <-s.ending:
		// Not a failure of the session: the watcher is to come back.
		return status.Error(codes.Unavailable, "the agent is stopping")
	default:
		return err
	}
}

// unchanged reports whether a client could see nothing new in a session but
// another proof.
func unchanged(a, b *pb.Session) bool {
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	a.ProveTime, b.ProveTime = nil, nil
	return proto.Equal(a, b)
}

// RefreshSession implements SessionService.
func (s *service) RefreshSession(ctx context.Context, r *pb.RefreshSessionRequest) (*pb.RefreshSessionResponse, error) {
	site, to, err := s.wanted(ctx, r)
	if err != nil {
		return nil, err
	}
	// To force a login is for a person who may; from others it is a report, or
	// any caller could make any number of logins.
	c, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	served, err := s.keeper.Refresh(ctx, site.Name, r.GetGeneration(), r.GetForce() && s.operator(c))
	if err != nil {
		return nil, err
	}
	m, err := site.message(served, to)
	if err != nil {
		return nil, err
	}
	return &pb.RefreshSessionResponse{Session: m}, nil
}

// Login implements SessionService.
func (s *service) Login(ctx context.Context, r *pb.LoginRequest) (*pb.LoginResponse, error) {
	site, err := s.operate(ctx, r.GetSite())
	if err != nil {
		return nil, err
	}
	o := keeper.LoginOptions{Retry: r.GetRetry(), Password: r.GetPassword()}
	if r.GetCookie() != nil {
		if o.Password != nil || o.Retry {
			return nil, &api.Error{Code: api.InvalidRequest, Detail: "a cookie is adopted without a login", Remedy: "give either a cookie or a password"}
		}
		if o.Adopt, err = web.Adopt(site.URL, r.GetCookie(), time.Now()); err != nil {
			return nil, err
		}
	}
	served, err := s.keeper.Login(ctx, site.Name, o)
	if err != nil {
		return nil, err
	}
	m := site.describe(served, target{url: site.URL})
	if c, err := caller(ctx); err != nil || !peer.Allowed(site.allow, c) {
		m.Headers, m.Cookies = nil, nil // the operator may log in; being served is another right
	}
	return &pb.LoginResponse{Session: m}, nil
}

// LoginProxy implements SessionService.
func (s *service) LoginProxy(ctx context.Context, r *pb.LoginProxyRequest) (*pb.LoginProxyResponse, error) {
	site, err := s.operate(ctx, r.GetSite())
	if err != nil {
		return nil, err
	}
	if err := s.secrets.bringToProxy(ctx, site, r.GetPassword(), r.GetRetry()); err != nil {
		return nil, err
	}
	for _, other := range s.config.Sites {
		if other.proxy != nil && other.proxy.credential == site.proxy.credential {
			s.keeper.Resume(other.Name)
		}
	}
	return &pb.LoginProxyResponse{}, nil
}

// DeleteSession implements SessionService.
func (s *service) DeleteSession(ctx context.Context, r *pb.DeleteSessionRequest) (*pb.DeleteSessionResponse, error) {
	site, err := s.operate(ctx, r.GetSite())
	if err != nil {
		return nil, err
	}
	d, err := s.keeper.Delete(ctx, site.Name, keeper.DeleteOptions{})
	if err != nil {
		return nil, err
	}
	resp := &pb.DeleteSessionResponse{HadSession: d.Had, Ended: d.Ended}
	if d.Refusal != nil {
		resp.Code, resp.Detail = string(d.Refusal.Code), bounded(d.Refusal.Detail, maxDetail)
	}
	return resp, nil
}

// ListSessions implements SessionService.
func (s *service) ListSessions(ctx context.Context, _ *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	c, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.ListSessionsResponse{}
	for i, sum := range s.keeper.List() {
		if s.operator(c) || peer.Allowed(s.config.Sites[i].allow, c) {
			resp.Sessions = append(resp.Sessions, summary(sum))
		}
	}
	return resp, nil
}

// ListTickets implements TicketService.
func (s *service) ListTickets(ctx context.Context, _ *pb.ListTicketsRequest) (*pb.ListTicketsResponse, error) {
	c, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if !s.operator(c) {
		return nil, &api.Error{Code: api.Denied, Detail: "only the agent's own user and root may list tickets", Remedy: "ask whoever runs the agent"}
	}
	resp := &pb.ListTicketsResponse{}
	if s.secrets.engine == nil {
		return resp, nil
	}
	for _, t := range s.secrets.engine.Tickets() {
		resp.Tickets = append(resp.Tickets, &pb.Ticket{
			Client: t.Client, Server: t.Server, Enctype: t.Enctype,
			AuthTime: stamp(t.AuthTime), EndTime: stamp(t.EndTime), RenewTime: stamp(t.RenewTime),
		})
	}
	return resp, nil
}

// ExportCache implements TicketService.
func (s *service) ExportCache(ctx context.Context, r *pb.ExportCacheRequest) (*pb.ExportCacheResponse, error) {
	c, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	// The same words for a principal that is not there, so that names cannot be
	// guessed.
	denied := &api.Error{Code: api.Denied, Detail: "no tickets of that principal are exported to this user",
		Remedy: "ask whoever runs the agent to name this user in the export list of its credential"}
	if s.secrets.engine == nil {
		return nil, denied
	}
	p, err := s.config.kerberos.Principal(r.GetPrincipal())
	if err != nil {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: api.AsError(err).Detail, Remedy: api.AsError(err).Remedy}
	}
	cred := s.exported(p, c)
	if cred == nil {
		return nil, denied
	}
	x, err := s.secrets.engine.Export(ctx, s.secrets.ticket(cred))
	if e := api.AsError(err); err != nil && e.Code == api.NoSecret && e.Remedy == "" {
		missing := *e
		missing.Remedy = s.bringBy(cred, c)
		return nil, &missing
	}
	if err != nil {
		return nil, err
	}
	name := cred.Principal.String()
	s.log.Info("a TGT is handed over", "principal", name, "uid", c.UID, "pid", c.PID, "end", x.EndTime)
	return &pb.ExportCacheResponse{Cache: x.Cache, Principal: name, EndTime: stamp(x.EndTime), RefreshTime: stamp(x.RefreshTime)}, nil
}

// exported returns the credential whose TGT a caller may have as the principal's,
// or nil: the one of that very name, else of the only name that fits it but for
// the case of letters. What the caller may not have plays no part.
func (s *service) exported(p krb.Principal, c peer.Caller) *Credential {
	var alike *Credential
	ambiguous := false
	for _, cred := range s.config.credentials {
		switch {
		case cred.Username != "" || !cred.Principal.EqualFold(p) || !peer.Allowed(cred.export, c):
		case cred.Principal.String() == p.String():
			return cred
		case alike == nil:
			alike = cred
		case cred.Principal.String() != alike.Principal.String():
			ambiguous = true
		}
	}
	if ambiguous {
		return nil
	}
	return alike
}

// bringBy says how a credential gets the password that it lacks: by a login, which
// takes a site. Its name is only for who may log in there.
func (s *service) bringBy(cred *Credential, c peer.Caller) string {
	if !s.operator(c) {
		return "ask whoever runs the agent to bring it: sessionctl login SITE --password-stdin"
	}
	for _, site := range s.config.Sites {
		switch {
		case site.Credential == cred:
			return "sessionctl login " + site.Name + " --password-stdin"
		case site.proxy != nil && site.proxy.credential == cred:
			return "sessionctl login " + site.Name + " --proxy --password-stdin"
		}
	}
	return "it comes by a login, so set up a site with credential = \"" + cred.Name + "\", then: sessionctl login SITE --password-stdin"
}

// GetStatus implements AgentService.
func (s *service) GetStatus(ctx context.Context, _ *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	c, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.GetStatusResponse{Version: api.Version, StartTime: stamp(s.started)}
	if !s.operator(c) {
		return resp, nil
	}
	st := s.store.Status()
	resp.Pid, resp.Socket, resp.ConfigFiles = int32(os.Getpid()), s.socket, s.config.Files
	resp.Store = &pb.StoreStatus{Path: st.Path, KeySource: st.KeySource, Format: int32(st.Format), SizeBytes: st.SizeBytes, Records: int64(st.Records)}
	resp.Warnings = slices.Concat(s.warnings, s.config.Warnings)
	if st.Err != nil {
		resp.Warnings = append(resp.Warnings, "the store cannot be read: "+st.Err.Error())
	}
	resp.Sites = int32(len(s.config.Sites))
	for _, sum := range s.keeper.List() {
		if sum.Session != nil {
			resp.Sessions++
		}
	}
	resp.Logins, resp.LoginFailures = s.keeper.Counts()
	return resp, nil
}

// message is a session as a caller gets it, for a request. An answer without a
// cookie would be used, and be an anonymous request, so there is none.
func (site *Site) message(served keeper.Served, to target) (*pb.Session, error) {
	m := site.describe(served, to)
	if len(m.GetCookies()) == 0 {
		return nil, &api.Error{Code: api.NoSessionCookie, Detail: "the session has no cookie for " + web.OriginOf(to.url).String() + to.url.EscapedPath(),
			Remedy: "ask for a URL below the cookies' path, or correct the site's url"}
	}
	return m, nil
}

// describe is message for whoever may get none.
func (site *Site) describe(served keeper.Served, to target) *pb.Session {
	m := &pb.Session{
		Site: site.Name, User: served.Identity, Generation: served.Generation, Url: to.url.String(),
		LoginTime: stamp(served.LoginTime), ProveTime: stamp(served.ProveTime), ExpireTime: stamp(served.ExpireTime),
		Stale: served.Stale, NotDurable: served.NotDurable, IdentityUnproven: served.Unproven,
	}
	cookies := served.Cookies(to.url, time.Now())
	for _, c := range cookies {
		m.Cookies = append(m.Cookies, &pb.Cookie{
			Name: []byte(c.Name), Value: []byte(c.Value.Reveal()), Domain: c.Domain, Path: c.Path,
			Secure: c.Secure, HttpOnly: c.HTTPOnly, HostOnly: c.HostOnly, ExpireTime: stamp(c.Expires),
		})
	}
	if len(cookies) > 0 {
		m.Headers = append(m.Headers, &pb.Header{Name: "Cookie", Value: []byte(web.CookieHeader(cookies)), Secret: true})
	}
	if c, ok := site.driver.(login.Companion); ok {
		for _, h := range c.Headers(to.method) {
			m.Headers = append(m.Headers, &pb.Header{Name: h.Name, Value: []byte(h.Value)})
		}
	}
	if site.userAgent != "" {
		m.Headers = append(m.Headers, &pb.Header{Name: "User-Agent", Value: []byte(site.userAgent)})
	}
	return m
}

var states = map[keeper.State]pb.SessionState{
	keeper.None:      pb.SessionState_SESSION_STATE_NONE,
	keeper.Live:      pb.SessionState_SESSION_STATE_LIVE,
	keeper.Stale:     pb.SessionState_SESSION_STATE_STALE,
	keeper.LoggingIn: pb.SessionState_SESSION_STATE_LOGGING_IN,
	keeper.Latched:   pb.SessionState_SESSION_STATE_LATCHED,
}

func summary(s keeper.Summary) *pb.SessionSummary {
	m := &pb.SessionSummary{
		Site: s.Site.Name, Kind: s.Site.Kind, Url: s.Site.URL.String(), User: s.Site.Account,
		State: states[s.State], RetryTime: stamp(s.RetryTime), NotDurable: s.NotDurable,
	}
	if s.Session != nil {
		m.User, m.Generation, m.IdentityUnproven = cmp.Or(s.Session.Identity, m.User), s.Session.Generation, s.Session.Unproven
		m.LoginTime, m.ProveTime, m.ExpireTime = stamp(s.Session.LoginTime), stamp(s.Session.ProveTime), stamp(s.Session.ExpireTime)
	}
	if s.Failure != nil {
		m.Code, m.Detail, m.Remedy = string(s.Failure.Code), bounded(s.Failure.Detail, maxDetail), bounded(s.Failure.Remedy, maxRemedy)
	}
	return m
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
