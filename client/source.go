package client

import (
	"context"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// Source holds the current session of a site for a service: the agent sends it
// every new one, and reading it costs nothing and never waits. It is safe for
// concurrent use.
//
// While the agent does not answer, the last session goes on being returned, as
// it is still good at the site, but no longer than an hour, and not beyond its
// ExpireTime. Once the agent says that there is no session to be had, because
// it is dead and the login refused or impossible, or no longer for this
// process, that failure is returned at once, until there is a session again.
// Meanwhile the Source asks again and again, less and less often, at least
// every 30 seconds.
//
// A request that the site refuses is to be reported with Client.Refresh, whose
// answer may be used right away; the Source follows.
type Source struct {
	state  atomic.Pointer[state]
	cancel context.CancelFunc
	done   chan struct{}
}

// state is what a Source returns.
type state struct {
	session *Session
	// err is returned when there is no session, and after until.
	err error
	// until is when the session is no longer returned; zero: as long as the
	// agent says nothing else.
	until time.Time
	// replaced is closed when the state has been replaced.
	replaced chan struct{}
}

// A Source asks again after pauses that double, from first to last.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
	// grace is how long a session is good that no agent looks after. Sites end
	// idle sessions after 30 minutes to 5 hours; a session in use lives longer.
	grace = time.Hour
)

// A receiver is a WatchSession call.
type receiver interface {
	Recv() (*pb.WatchSessionResponse, error)
}

// Watch returns a Source after its first session has come. ctx is for this
// wait alone; the Source works until Close.
//
// Failures that may pass by themselves (api.Code.Temporary) are waited out; if one
// lasts until ctx ends, it is the error. Others, such as api.Latched, are
// returned at once.
//
// A Source is one of the 64 calls that a Client can make at a time; for many
// sites take more Clients.
func (c *Client) Watch(ctx context.Context, q Query) (*Source, error) {
	if q.MinValidity != 0 {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "a watched session has no min validity", Remedy: "leave it out: the agent renews what is watched"}
	}
	return newSource(ctx, q.Method, func(ctx context.Context) (receiver, error) {
		s, err := c.Sessions()
		if err != nil {
			return nil, err
		}
		return s.WatchSession(ctx, &pb.WatchSessionRequest{Site: q.Site, Url: q.URL, Method: q.Method})
	})
}

func newSource(ctx context.Context, method string, watch func(context.Context) (receiver, error)) (*Source, error) {
	s := &Source{done: make(chan struct{})}
	s.state.Store(&state{replaced: make(chan struct{})})
	var life context.Context
	life, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go s.run(life, method, watch)
	for {
		now := s.state.Load()
		code := api.CodeOf(now.err)
		switch {
		case now.session != nil:
			return s, nil
		case code != "" && !code.Temporary():
			s.Close()
			return nil, now.err
		}
		select {
		case <-now.replaced:
		case <-ctx.Done():
			s.Close()
			if now.err != nil {
				return nil, now.err
			}
			return nil, &api.Error{Code: api.Deadline, Detail: "the caller's time is over before the first session came; a login goes on in the agent",
				Remedy: "ask again, or allow more time", Err: ctx.Err()}
		}
	}
}

// Session returns the current session, or the failure that stands, an
// *api.Error. It never waits. The session may be Stale.
func (s *Source) Session() (*Session, error) {
	now := s.state.Load()
	if now.session == nil || !now.until.IsZero() && !time.Now().Before(now.until) {
		return nil, now.err
	}
	return now.session, nil
}

// Changed returns a channel that is closed when the session or the failure has
// been replaced. To miss no change, call Changed before Session.
func (s *Source) Changed() <-chan struct{} { return s.state.Load().replaced }

// Close ends the Source and waits for its work to end. Afterwards Session
// returns an error. The error of Close is nil.
func (s *Source) Close() error {
	s.cancel()
	<-s.done
	return nil
}

// run keeps watching until ctx ends.
func (s *Source) run(ctx context.Context, method string, watch func(context.Context) (receiver, error)) {
	defer close(s.done)
	defer s.replace(&state{err: &api.Error{Code: api.InvalidRequest, Detail: "the source is closed"}})
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		first, err := s.follow(ctx, method, watch)
		if ctx.Err() != nil {
			return
		}
		s.fail(err)
		if !first.IsZero() && time.Since(first) >= lastRetry {
			pause = firstRetry // not one that fails again and again
		}
		// Many services lose their agent at the same moment.
		t := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// follow makes one call and takes its sessions until it ends. It returns when
// the first came, and why the call ended.
func (s *Source) follow(ctx context.Context, method string, watch func(context.Context) (receiver, error)) (first time.Time, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // nothing else ends a call of which not all is read
	r, err := watch(ctx)
	if err != nil {
		return first, err
	}
	for {
		m, err := r.Recv()
		if err == io.EOF {
			return first, &api.Error{Code: api.NoAgent, Detail: "the agent ended the call", Remedy: api.StartHint, Err: err}
		}
		if err != nil {
			return first, err
		}
		session, err := newSession(m.GetSession(), method)
		if err != nil {
			return first, err
		}
		if first.IsZero() {
			first = time.Now()
		}
		s.replace(&state{session: session})
	}
}

// fail takes notice that a call has ended.
func (s *Source) fail(err error) {
	last := s.state.Load()
	next := &state{err: err}
	if last.session != nil && !judges(api.CodeOf(err)) {
		next.session, next.until = last.session, last.until
		if next.until.IsZero() { // the first failure since the agent was heard
			// By the wall clock: a machine that sleeps does not count otherwise.
			next.until = time.Now().Round(0).Add(grace)
			if end := last.session.ExpireTime; !end.IsZero() && end.Before(next.until) {
				next.until = end
			}
		}
	}
	s.replace(next)
}

// judges reports whether a failure is the agent's word on the session, not a
// failure to ask it.
func judges(c api.Code) bool {
	switch c {
	case api.NoAgent, api.UntrustedSocket, api.VersionSkew, api.Quota, api.Deadline:
		return false
	}
	return true
}

// replace is called only from run, or from what it calls.
func (s *Source) replace(next *state) {
	next.replaced = make(chan struct{})
	close(s.state.Swap(next).replaced)
}

var _ io.Closer = (*Source)(nil)
