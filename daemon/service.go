package daemon

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/internal/keeper"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
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

	keeper  *keeper.Keeper
	secrets *secrets
	store   *store.Store
	socket  string
	now     func() time.Time // the agent's time
	// warnings of the start, for a person to look at
	warnings []string
	started  time.Time
	self     uint32 // the agent's own uid
	log      *slog.Logger
	// ending is closed when the agent is about to stop.
	ending chan struct{}

	load func() (*Config, error) // nil: it cannot be loaded again
	turn chan struct{}           // one reload at a time
	// mu is held while a configuration is applied, so that whoever has seen the
	// same one before and after a question to the keeper knows that the answer is of
	// that one.
	mu       sync.RWMutex
	config   *Config
	replaced chan struct{} // closed when config is replaced
	refused  *api.Error    // why the last reload has changed nothing; nil: it went well
}

// current returns the configuration in use.
func (s *service) current() *Config {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.config
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
	return &api.Error{Code: api.UnknownSite, Detail: "no site " + what + " for this user", Remedy: "check the name with sessionctl list, and who may use the site: its allow in the configuration; a new site counts after: sessionctl reload"}
}

// find returns the site that a request names, among those a test lets through.
// The URL that counts for cookies is the one given, else the site's own.
func (config *Config) find(name, rawURL string, may func(*Site) bool) (*Site, *url.URL, error) {
	var u *url.URL
	if rawURL != "" {
		var err error
		u, err = url.Parse(rawURL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, nil, &api.Error{Code: api.InvalidRequest, Detail: "that is not an absolute web address", Remedy: "sessionctl help"}
		}
		u = withoutDots(u)
	}
	switch {
	case name != "":
		for _, site := range config.Sites {
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
	for _, site := range config.Sites {
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

// withoutDots returns an absolute URL without the segments "." and ".." in its path
// (RFC 3986, section 5.2.4), which its site would not see: whoever makes the request
// leaves them out. In that, "%2e" is a dot (section 2.3).
func withoutDots(u *url.URL) *url.URL {
	plain := *u
	plain.RawPath = strings.NewReplacer("%2e", ".", "%2E", ".").Replace(u.EscapedPath())
	return plain.ResolveReference(&plain)
}

// canonical returns a URL whose host is spelled as the agent compares it: whoever
// gives it to another HTTP library asks no other host.
func canonical(u *url.URL) string {
	c := *u
	c.Scheme, c.Host, _ = strings.Cut(web.OriginOf(u).String(), "://")
	return c.String()
}

func segments(u *url.URL) string { return strings.TrimRight(u.EscapedPath(), "/") }

// below reports whether u's path is base's or continues it at a segment.
func below(u, base *url.URL) bool {
	rest, ok := strings.CutPrefix(u.EscapedPath(), segments(base))
	return ok && (rest == "" || rest[0] == '/')
}

// question is a call about one session, by one configuration.
type question struct {
	config *Config
	caller peer.Caller
	site   *Site
	user   *user
	to     target
}

// target is a request that a session is for.
type target struct {
	url    *url.URL
	method string // "": any
}

// request is what GetSession, WatchSession and RefreshSession have in common.
type request interface {
	GetSite() string
	GetUrl() string
	GetMethod() string
}

// wanted returns the session that a request names, which is the caller's.
func (s *service) wanted(ctx context.Context, r request) (q question, err error) {
	q.config = s.current()
	if q.caller, err = caller(ctx); err != nil {
		return q, err
	}
	if err := q.find(r, func(site *Site) bool { return site.serves(q.caller) != nil }); err != nil {
		return q, err
	}
	q.user = q.site.serves(q.caller)
	return q, nil
}

// find finds the site of a request, among those a test lets through.
func (q *question) find(r request, may func(*Site) bool) (err error) {
	q.to.method = r.GetMethod()
	if q.site, q.to.url, err = q.config.find(r.GetSite(), r.GetUrl(), may); err != nil {
		return err
	}
	if m := q.to.method; m != "" && !httpguts.ValidHeaderFieldName(m) { // both are tokens
		return &api.Error{Code: api.InvalidRequest, Detail: "method is not an HTTP method", Remedy: "sessionctl help"}
	}
	return nil
}

// operated returns the site that a request for a verb names which only the operator
// may use. Somebody who may use the site learns that the verb is denied; others
// learn nothing.
func (s *service) operated(ctx context.Context, r request) (q question, err error) {
	q.config = s.current()
	if q.caller, err = caller(ctx); err != nil {
		return q, err
	}
	if err := q.find(r, func(site *Site) bool { return s.operator(q.caller) || site.serves(q.caller) != nil }); err != nil {
		return q, err
	}
	if !s.operator(q.caller) {
		return q, &api.Error{Code: api.Denied, Detail: "only the agent's own user and root may do that", Remedy: "ask whoever runs the agent"}
	}
	return q, nil
}

// operate is operated with the session of a credential.
func (s *service) operate(ctx context.Context, r request, credential string) (question, error) {
	q, err := s.operated(ctx, r)
	if err == nil {
		q.user, err = q.site.meant(q.caller, credential)
	}
	return q, err
}

// named is a request that names a site and nothing else.
func named(site string) request { return &pb.GetSessionRequest{Site: site} }

// meant returns the user whom an operator means: that of a credential, else the
// one who serves the caller, else the only one.
func (s *Site) meant(c peer.Caller, credential string) (*user, error) {
	var names []string
	for _, u := range s.users {
		if u.credential.Name == credential {
			return u, nil
		}
		names = append(names, u.credential.Name)
	}
	all := strings.Join(names, ", ")
	if credential != "" {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: fmt.Sprintf("no user of the site %s has the credential %s: it has %s", s.Name, printable(credential), all), Remedy: "name one of those: --credential NAME"}
	}
	if u := s.serves(c); u != nil {
		return u, nil
	}
	if len(s.users) == 1 {
		return s.users[0], nil
	}
	return nil, &api.Error{Code: api.InvalidRequest, Detail: fmt.Sprintf("the site %s has several users, of the credentials %s", s.Name, all), Remedy: "say which one is meant: --credential NAME"}
}

// serve answers a request for a session by what the keeper has. An answer counts
// only if it and the caller's right to it are of one configuration.
func (s *service) serve(find func() (question, error), ask func(id string) (keeper.Served, error)) (question, keeper.Served, error) {
	for {
		q, err := find()
		if err != nil {
			return q, keeper.Served{}, err
		}
		served, err := ask(q.user.id)
		if s.current() == q.config {
			return q, served, err
		}
	}
}

// GetSession implements SessionService.
func (s *service) GetSession(ctx context.Context, r *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	find := func() (question, error) {
		q, err := s.wanted(ctx, r)
		if d := r.GetMinValidity(); err == nil && d != nil && (d.CheckValid() != nil || d.AsDuration() < 0) {
			err = &api.Error{Code: api.InvalidRequest, Detail: "min_validity is not a duration", Remedy: "sessionctl help"}
		}
		return q, err
	}
	q, served, err := s.serve(find, func(id string) (keeper.Served, error) {
		return s.keeper.Get(ctx, id, keeper.GetOptions{MinValidity: r.GetMinValidity().AsDuration(), CachedOnly: r.GetCachedOnly()})
	})
	if err != nil {
		return nil, err
	}
	m, err := q.message(served, s.now())
	if err != nil {
		return nil, err
	}
	return &pb.GetSessionResponse{Session: m}, nil
}

// WatchSession implements SessionService.
func (s *service) WatchSession(r *pb.WatchSessionRequest, stream grpc.ServerStreamingServer[pb.WatchSessionResponse]) error {
	q, err := s.wanted(stream.Context(), r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	// The watcher is to come back, to what is another session by now.
	moved := status.Error(codes.Unavailable, "the site is set up in another way now")
	again := func() (question, error) {
		now, err := s.wanted(ctx, r)
		if err == nil && (now.user.id != q.user.id || now.user.fingerprint != q.user.fingerprint) {
			err = moved
		}
		return now, err
	}
	go func() {
		for {
			s.mu.RLock()
			replaced := s.replaced
			s.mu.RUnlock()
			if _, err := again(); err != nil { // whoever was allowed may not be any more
				cancel(err)
				return
			}
			select {
			case <-replaced:
			case <-s.ending:
				// Not a failure of the session: the watcher is to come back.
				cancel(errStopping)
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	var last *pb.Session
	err = s.keeper.Watch(ctx, q.user.id, func(served keeper.Served) error {
		now, err := again() // what is served is of the configuration in use
		if err != nil {
			return err
		}
		m, err := now.message(served, s.now())
		if err != nil || last != nil && unchanged(m, last) {
			return err
		}
		last = m
		return stream.Send(&pb.WatchSessionResponse{Session: proto.CloneOf(m)}) // which loses its secrets
	})
	if ctx.Err() != nil && stream.Context().Err() == nil {
		return context.Cause(ctx)
	}
	if _, changed := again(); changed != nil { // the keeper was faster to say that it is gone
		return changed
	}
	if api.CodeOf(err) == api.UnknownSite {
		return moved // it was gone, and is back
	}
	return err
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
	c, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	// To force a login is for a person who may; from others it is a report, or
	// any caller could make any number of logins.
	force := r.GetForce() && s.operator(c)
	operates := force || r.GetCredential() != ""
	find := func() (question, error) {
		if operates {
			return s.operate(ctx, r, r.GetCredential())
		}
		return s.wanted(ctx, r)
	}
	q, served, err := s.serve(find, func(id string) (keeper.Served, error) {
		forced := force
		force = false // once is enough, also if a reload has come between
		return s.keeper.Refresh(ctx, id, r.GetGeneration(), forced)
	})
	if err != nil {
		return nil, err
	}
	if operates && !q.site.lets(c, q.user) {
		return &pb.RefreshSessionResponse{Session: q.withheld(served, s.now())}, nil
	}
	m, err := q.message(served, s.now())
	if err != nil {
		return nil, err
	}
	return &pb.RefreshSessionResponse{Session: m}, nil
}

// Login implements SessionService.
func (s *service) Login(ctx context.Context, r *pb.LoginRequest) (*pb.LoginResponse, error) {
	q, err := s.operate(ctx, named(r.GetSite()), r.GetCredential())
	if err != nil {
		return nil, err
	}
	o := keeper.LoginOptions{Setup: q.user.setup, Retry: r.GetRetry(), Password: r.GetPassword()}
	if r.GetCookie() != nil {
		if o.Password != nil || o.Retry {
			return nil, &api.Error{Code: api.InvalidRequest, Detail: "a cookie is adopted without a login", Remedy: "give either a cookie or a password"}
		}
		if _, ok := q.user.driver.(login.Authorizer); ok {
			return nil, &api.Error{Code: api.InvalidRequest, Detail: "the site takes a token, and no cookie", Remedy: q.site.bringBy(q.user)}
		}
		if o.Adopt, err = web.Adopt(q.site.URL, r.GetCookie(), s.now()); err != nil {
			return nil, err
		}
	}
	served, err := s.keeper.Login(ctx, q.user.id, o)
	if err != nil {
		return nil, usual(err, q)
	}
	if s.current() == q.config && q.site.lets(q.caller, q.user) {
		return &pb.LoginResponse{Session: q.at(served).describe(served, s.now())}, nil
	}
	return &pb.LoginResponse{Session: q.withheld(served, s.now())}, nil
}

// usual gives the words to the keeper's error about a site that a reload has just
// taken away.
func usual(err error, q question) error {
	if api.CodeOf(err) == api.UnknownSite {
		return unknownSite(q.site.Name)
	}
	return err
}

// LoginProxy implements SessionService.
func (s *service) LoginProxy(ctx context.Context, r *pb.LoginProxyRequest) (*pb.LoginProxyResponse, error) {
	q, err := s.operated(ctx, named(r.GetSite()))
	if err != nil {
		return nil, err
	}
	at := q.site.asksProxy()
	if err := s.secrets.bringToProxy(ctx, at, q.site.Name, r.GetPassword(), r.GetRetry()); err != nil {
		return nil, err
	}
	for _, other := range slices.Concat(q.config.Sites, q.config.idps) {
		if other.proxy != nil && other.proxy.credential == at.proxy.credential {
			for _, u := range other.users {
				s.keeper.Resume(u.id)
			}
		}
	}
	return &pb.LoginProxyResponse{}, nil
}

// asksProxy returns the site, or its identity provider if only that has to prove to
// a proxy who it is.
func (site *Site) asksProxy() *Site {
	if site.idp != nil && (site.proxy == nil || site.proxy.credential == nil) {
		return site.idp
	}
	return site
}

// DeleteSession implements SessionService.
func (s *service) DeleteSession(ctx context.Context, r *pb.DeleteSessionRequest) (*pb.DeleteSessionResponse, error) {
	q, err := s.operate(ctx, named(r.GetSite()), r.GetCredential())
	if err != nil {
		return nil, err
	}
	if r.GetIdp() && q.site.idp == nil {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "the site " + q.site.Name + " has no identity provider", Remedy: "leave out --idp"}
	}
	d, err := s.keeper.Delete(ctx, q.user.id, keeper.DeleteOptions{IdP: r.GetIdp()})
	if err != nil {
		return nil, usual(err, q)
	}
	resp := &pb.DeleteSessionResponse{HadSession: d.Had, Ended: d.Ended, Idp: d.IdP}
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
	for {
		config, resp := s.current(), &pb.ListSessionsResponse{}
		sites, idps := byID(s.keeper.List()), byID(s.keeper.IdPs())
		if s.current() != config {
			continue // as in serve
		}
		for _, site := range config.Sites {
			for _, u := range site.users {
				if s.operator(c) || site.serves(c) == u {
					resp.Sessions = append(resp.Sessions, site.summary(sites[u.id]))
				}
			}
		}
		for _, idp := range config.idps {
			if s.operator(c) {
				resp.Idps = append(resp.Idps, idp.summary(idps[idp.users[0].id]))
			}
		}
		return resp, nil
	}
}

// byID finds summaries by the names of their sessions.
func byID(all []keeper.Summary) map[string]keeper.Summary {
	found := make(map[string]keeper.Summary, len(all))
	for _, s := range all {
		found[s.Site.ID] = s
	}
	return found
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
	engine := s.secrets.kerberos()
	if engine == nil {
		return resp, nil
	}
	for _, t := range engine.Tickets() {
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
	config, engine := s.current(), s.secrets.kerberos()
	if config.kerberos == nil {
		return nil, denied
	}
	p, err := config.kerberos.Principal(r.GetPrincipal())
	if err != nil {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: api.AsError(err).Detail, Remedy: api.AsError(err).Remedy}
	}
	cred := config.exported(p, c)
	if cred == nil {
		return nil, denied
	}
	x, err := engine.Export(ctx, s.secrets.ticket(cred))
	if e := api.AsError(err); err != nil && e.Code == api.NoSecret && e.Remedy == "" {
		missing := *e
		if missing.Remedy = "ask whoever runs the agent to bring it: sessionctl login SITE --password-stdin"; s.operator(c) {
			missing.Remedy = config.bringBy(cred)
		}
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
func (config *Config) exported(p krb.Principal, c peer.Caller) *Credential {
	var alike *Credential
	ambiguous := false
	for _, cred := range config.credentials {
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
func (config *Config) bringBy(cred *Credential) string {
	for _, site := range config.Sites {
		for _, u := range site.users {
			if u.credential == cred {
				return site.bringBy(u)
			}
		}
		if p := site.asksProxy().proxy; p != nil && p.credential == cred {
			return "sessionctl login " + site.Name + " --proxy --password-stdin"
		}
	}
	return "it comes by a login, so set up a site with credential = \"" + cred.Name + "\", then: sessionctl login SITE --password-stdin"
}

// bringBy says how a user of the site gets a password.
func (site *Site) bringBy(u *user) string {
	if len(site.users) > 1 {
		return "sessionctl login " + site.Name + " --credential " + u.credential.Name + " --password-stdin"
	}
	return "sessionctl login " + site.Name + " --password-stdin"
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
	s.mu.RLock()
	config, refused := s.config, s.refused
	s.mu.RUnlock()
	st := s.store.Status()
	resp.Pid, resp.Socket, resp.ConfigFiles, resp.LoadTime = int32(os.Getpid()), s.socket, config.Files, stamp(config.loaded)
	if refused != nil {
		resp.ReloadCode, resp.ReloadDetail = string(refused.Code), bounded(refused.Detail, maxDetail)
	}
	resp.Store = storeStatus(st)
	resp.Warnings = slices.Concat(s.warnings, config.Warnings)
	for _, w := range []struct {
		what string
		err  error
	}{{"the store is not in order: ", st.Err}, {"the last write to the store has failed: ", st.Trouble}} {
		if w.err == nil {
			continue
		}
		e := api.AsError(w.err)
		warning := w.what + e.Error()
		if e.Remedy != "" {
			warning += "; next: " + e.Remedy
		}
		resp.Warnings = append(resp.Warnings, warning)
	}
	if st.Warning != "" {
		resp.Warnings = append(resp.Warnings, strings.Split(st.Warning, "\n")...)
	}
	resp.Sites = int32(len(config.Sites))
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
func (q question) message(served keeper.Served, now time.Time) (*pb.Session, error) {
	q = q.at(served)
	m := q.describe(served, now)
	if len(m.GetCookies()) == 0 && served.Authorization().Empty() {
		return nil, &api.Error{Code: api.NoSessionCookie, Detail: "the session has no cookie for " + web.OriginOf(q.to.url).String() + q.to.url.EscapedPath(),
			Remedy: "ask for a URL below the cookies' path, or correct the site's url"}
	}
	return m, nil
}

// withheld is a session for an operator who may log in; being served is another
// right.
func (q question) withheld(served keeper.Served, now time.Time) *pb.Session {
	m := q.at(served).describe(served, now)
	m.Headers, m.Cookies = nil, nil
	return m
}

// at is the question as it is meant by who asks for a site by its name: about where
// the product is there.
func (q question) at(served keeper.Served) question {
	if q.to.url == q.site.URL {
		q.to.url = served.Home()
	}
	return q
}

// describe is message for whoever may get none.
func (q question) describe(served keeper.Served, now time.Time) (m *pb.Session) {
	secret.Do(func() { m = q.revealed(served, now) })
	return m
}

// revealed is describe, which leaves copies of the secrets behind.
func (q question) revealed(served keeper.Served, now time.Time) *pb.Session {
	m := &pb.Session{
		Site: q.site.Name, User: served.Identity, Generation: served.Generation, Url: canonical(q.to.url),
		LoginTime: stamp(served.LoginTime), ProveTime: stamp(served.ProveTime), ExpireTime: stamp(served.ExpireTime),
		Stale: served.Stale, NotDurable: served.NotDurable, IdentityUnproven: served.Unproven,
	}
	cookies := served.Cookies(q.to.url, now)
	for _, c := range cookies {
		m.Cookies = append(m.Cookies, &pb.Cookie{
			Name: []byte(c.Name), Value: []byte(c.Value.Reveal()), Domain: c.Domain, Path: c.Path,
			Secure: c.Secure, HttpOnly: c.HTTPOnly, HostOnly: c.HostOnly, ExpireTime: stamp(c.Expires),
		})
	}
	if len(cookies) > 0 {
		m.Headers = append(m.Headers, &pb.Header{Name: "Cookie", Value: web.CookieField(cookies), Secret: true})
	}
	if a := served.Authorization(); !a.Empty() && web.OriginOf(q.to.url) == web.OriginOf(q.site.URL) {
		m.Headers = append(m.Headers, &pb.Header{Name: "Authorization", Value: []byte(a.Reveal()), Secret: true})
	}
	if c, ok := q.user.driver.(login.Companion); ok {
		for _, h := range c.Headers(login.Asked{Method: q.to.method, URL: q.to.url, UserAgent: q.site.userAgent, Cookies: cookies}) {
			m.Headers = append(m.Headers, &pb.Header{Name: h.Name, Value: []byte(h.Value), Secret: h.Secret})
		}
	}
	if q.site.forwardedFor != "" {
		m.Headers = append(m.Headers, &pb.Header{Name: "X-Forwarded-For", Value: []byte(q.site.forwardedFor)})
	}
	if q.site.userAgent != "" {
		m.Headers = append(m.Headers, &pb.Header{Name: "User-Agent", Value: []byte(q.site.userAgent)})
	}
	return m
}

// Rekey implements AgentService.
func (s *service) Rekey(ctx context.Context, _ *pb.RekeyRequest) (*pb.RekeyResponse, error) {
	c, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if !s.operator(c) {
		return nil, &api.Error{Code: api.Denied, Detail: "only the agent's own user and root may write its store anew", Remedy: "ask whoever runs the agent"}
	}
	if err := s.store.Rekey(ctx); err != nil {
		return nil, err
	}
	return &pb.RekeyResponse{Store: storeStatus(s.store.Status())}, nil
}

func storeStatus(st store.Status) *pb.StoreStatus {
	return &pb.StoreStatus{Path: st.Path, KeySource: st.KeySource, Format: int32(st.Format), SizeBytes: st.SizeBytes, Records: int64(st.Records), RewriteTime: stamp(st.RewriteTime)}
}

var states = map[keeper.State]pb.SessionState{
	keeper.None:      pb.SessionState_SESSION_STATE_NONE,
	keeper.Live:      pb.SessionState_SESSION_STATE_LIVE,
	keeper.Stale:     pb.SessionState_SESSION_STATE_STALE,
	keeper.LoggingIn: pb.SessionState_SESSION_STATE_LOGGING_IN,
	keeper.Latched:   pb.SessionState_SESSION_STATE_LATCHED,
}

// summary is the state of a session of the site.
func (site *Site) summary(s keeper.Summary) *pb.SessionSummary {
	lender := cmp.Or(site.idp, site) // whose login it is
	m := &pb.SessionSummary{
		Site: site.Name, Kind: site.Kind, Url: site.URL.String(), User: cmp.Or(lender.users[0].impersonates(), s.Site.Account), Credential: s.Site.Credential,
		State: states[s.State], RetryTime: stamp(s.RetryTime), CheckTime: stamp(s.CheckTime), NotDurable: s.NotDurable,
		LifeLearned: s.LifeLearned, IdleLearned: s.IdleLearned,
		Product: s.Found.Product, Version: s.Found.Version, Path: s.Found.Path, PasswordLogin: s.Found.Login, Gate: s.Found.Gate,
	}
	if site.idp != nil {
		m.Idp = site.idp.Name
	}
	if s.Life > 0 {
		m.Life = durationpb.New(s.Life)
	}
	if s.Idle > 0 {
		m.Idle = durationpb.New(s.Idle)
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
