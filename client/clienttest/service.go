package clienttest

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// service answers the agent's API.
type service struct {
	pb.UnimplementedSessionServiceServer
	agent *Agent
}

func (a *Agent) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	a.count(info.FullMethod)
	resp, err := handle(ctx, req)
	if err != nil {
		return nil, toStatus(err)
	}
	return resp, nil
}

func (a *Agent) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	a.count(info.FullMethod)
	if err := handle(srv, s); err != nil {
		return toStatus(err)
	}
	return nil
}

// toStatus puts a failure in the form that the API documents.
func toStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	e := api.AsError(err)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		// As of the agent, whether its clock or the caller's is first.
		e = &api.Error{Code: api.Deadline, Detail: "the caller's time is over", Remedy: "try again"}
	}
	st := status.New(codes.Code(e.Code.GRPC()), e.Detail)
	info := &errdetails.ErrorInfo{Domain: api.ErrorDomain, Reason: e.Code.Reason()}
	if e.Remedy != "" {
		info.Metadata = map[string]string{"remedy": e.Remedy}
	}
	if with, err := st.WithDetails(info); err == nil {
		st = with
	}
	return st.Err()
}

// GetSession implements SessionService.
func (s *service) GetSession(ctx context.Context, r *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	site, u, err := s.agent.find(r.GetSite(), r.GetUrl())
	if err != nil {
		return nil, err
	}
	if c, _, _ := site.look(); c == nil && r.GetCachedOnly() {
		return nil, &api.Error{Code: api.NotCached, Detail: "no session is at hand", Remedy: "ask without the limit to what is cached"}
	}
	c, err := site.get(ctx, func(c *current, _ bool) bool {
		end := c.ExpireTime
		return !r.GetCachedOnly() && !end.IsZero() && end.Before(time.Now().Add(r.GetMinValidity().AsDuration()))
	})
	if err != nil {
		return nil, err
	}
	return &pb.GetSessionResponse{Session: c.message(site, u)}, nil
}

// ListSessions implements SessionService.
func (s *service) ListSessions(context.Context, *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	resp := &pb.ListSessionsResponse{}
	for _, site := range s.agent.all() {
		m := &pb.SessionSummary{Site: site.Name, Url: site.URL, State: pb.SessionState_SESSION_STATE_NONE}
		c, _, err := site.look()
		if c != nil {
			m.State, m.User, m.Generation = pb.SessionState_SESSION_STATE_LIVE, c.User, c.generation
			m.LoginTime, m.ProveTime, m.ExpireTime = stamp(c.time), stamp(c.time), stamp(c.ExpireTime)
			m.NotDurable, m.IdentityUnproven = c.NotDurable, c.IdentityUnproven
			if c.Stale {
				m.State = pb.SessionState_SESSION_STATE_STALE
			}
		}
		if err != nil {
			e := api.AsError(err)
			m.Code, m.Detail, m.Remedy = string(e.Code), e.Detail, e.Remedy
			if e.Code == api.Latched || e.Code.Refusal() {
				m.State = pb.SessionState_SESSION_STATE_LATCHED
			}
		}
		resp.Sessions = append(resp.Sessions, m)
	}
	return resp, nil
}

// WatchSession implements SessionService.
func (s *service) WatchSession(r *pb.WatchSessionRequest, stream grpc.ServerStreamingServer[pb.WatchSessionResponse]) error {
	site, u, err := s.agent.find(r.GetSite(), r.GetUrl())
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		c, changed, err := site.look()
		switch {
		case c == nil && err != nil && !first:
			return err
		case c == nil:
			if _, err := site.get(stream.Context(), keep); err != nil {
				return err
			}
			continue
		}
		if err := stream.Send(&pb.WatchSessionResponse{Session: c.message(site, u)}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// RefreshSession implements SessionService.
func (s *service) RefreshSession(ctx context.Context, r *pb.RefreshSessionRequest) (*pb.RefreshSessionResponse, error) {
	site, u, err := s.agent.find(r.GetSite(), r.GetUrl())
	if err != nil {
		return nil, err
	}
	c, err := site.get(ctx, func(c *current, dead bool) bool {
		about := r.GetGeneration() == "" || r.GetGeneration() == c.generation
		return about && (dead || r.GetForce())
	})
	if err != nil {
		return nil, err
	}
	return &pb.RefreshSessionResponse{Session: c.message(site, u)}, nil
}

// DeleteSession implements SessionService.
func (s *service) DeleteSession(ctx context.Context, r *pb.DeleteSessionRequest) (*pb.DeleteSessionResponse, error) {
	site, _, err := s.agent.find(r.GetSite(), "")
	if err != nil {
		return nil, err
	}
	had, err := site.drop(ctx)
	return &pb.DeleteSessionResponse{HadSession: had, Ended: had}, err
}

// Login implements SessionService. It looks neither at a password nor at a
// cookie: what a login brings is up to the test.
func (s *service) Login(ctx context.Context, r *pb.LoginRequest) (*pb.LoginResponse, error) {
	site, u, err := s.agent.find(r.GetSite(), "")
	if err != nil {
		return nil, err
	}
	c, err := site.get(ctx, func(*current, bool) bool { return true })
	if err != nil {
		return nil, err
	}
	return &pb.LoginResponse{Session: c.message(site, u)}, nil
}

// keep is for site.get: whatever session there is will do.
func keep(*current, bool) bool { return false }

// message is the session as it is sent, for a URL.
func (c *current) message(s *site, u *url.URL) *pb.Session {
	m := &pb.Session{
		Site: s.Name, User: c.User, Generation: c.generation, Url: u.String(),
		LoginTime: stamp(c.time), ProveTime: stamp(c.time), ExpireTime: stamp(c.ExpireTime),
		Stale: c.Stale, NotDurable: c.NotDurable, IdentityUnproven: c.IdentityUnproven,
	}
	for name, values := range c.Header {
		for _, v := range values {
			m.Headers = append(m.Headers, &pb.Header{Name: name, Value: []byte(v), Secret: secret(name)})
		}
	}
	return m
}

// secret reports whether a header's value is one.
func secret(name string) bool {
	return slices.Contains([]string{"Cookie", "Authorization"}, http.CanonicalHeaderKey(name))
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
