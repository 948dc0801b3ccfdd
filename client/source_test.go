package client

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// call is a WatchSession call as its server would see it.
type call struct {
	ctx      context.Context
	sessions chan *pb.Session
	end      chan error
	made     time.Time
}

func (c *call) Recv() (*pb.WatchSessionResponse, error) {
	select {
	case s := <-c.sessions:
		return &pb.WatchSessionResponse{Session: s}, nil
	case err := <-c.end:
		return nil, err
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
}

// watched is the other side of a Source: every call it makes waits to be taken.
type watched chan *call

func (w watched) watch(ctx context.Context) (receiver, error) {
	c := &call{ctx: ctx, sessions: make(chan *pb.Session), end: make(chan error), made: time.Now()}
	select {
	case w <- c:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func sent(generation string, end time.Time) *pb.Session {
	s := &pb.Session{Site: "jira", Generation: generation, Headers: []*pb.Header{{Name: "Cookie", Value: []byte("CANARY-" + generation), Secret: true}}}
	if !end.IsZero() {
		s.ExpireTime = timestamppb.New(end)
	}
	return s
}

func fault(code api.Code) error { return &api.Error{Code: code, Detail: "detail of it"} }

// source returns one that has its first session, and the call it came by.
func source(t *testing.T, w watched, first *pb.Session) (*Source, *call) {
	t.Helper()
	taken := make(chan *call)
	go func() {
		c := <-w
		c.sessions <- first
		taken <- c
	}()
	s, err := newSource(t.Context(), "", w.watch)
	if err != nil {
		t.Fatal(err)
	}
	return s, <-taken
}

// holds checks what a Source returns: a generation, or a code.
func holds(t *testing.T, s *Source, generation string, code api.Code) {
	t.Helper()
	synctest.Wait()
	session, err := s.Session()
	if api.CodeOf(err) != code || (session == nil) != (err != nil) || session != nil && session.Generation != generation {
		t.Errorf("holds %v, %v; want %q, code %q", session, err, generation, code)
	}
}

func TestSourceFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := make(watched)
		s, c := source(t, w, sent("g1", time.Time{}))
		holds(t, s, "g1", "")
		changed := s.Changed()
		select {
		case <-changed:
			t.Error("changed before there is a change")
		default:
		}
		// The agent is the judge: while it is there, a cookie's end is its affair.
		c.sessions <- sent("g2", time.Now().Add(time.Minute))
		<-changed
		holds(t, s, "g2", "")
		time.AfterFunc(2*time.Minute, func() { c.sessions <- sent("g3", time.Time{}) })
		changed = s.Changed()
		<-changed
		holds(t, s, "g3", "")
		s.Close()
		if c.ctx.Err() == nil {
			t.Error("the call goes on after Close")
		}
		holds(t, s, "", api.InvalidRequest)
		s.Close()
	})
}

// TestSourceAway: an agent that is not there says nothing about the session.
func TestSourceAway(t *testing.T) {
	for _, code := range []api.Code{api.NoAgent, api.UntrustedSocket, api.VersionSkew, api.Quota, api.Deadline, "EOF"} {
		for name, c := range map[string]struct{ end, good time.Duration }{
			"no end":                   {0, time.Hour},
			"the end is known":         {10 * time.Minute, 10 * time.Minute},
			"the end is far":           {100 * time.Hour, time.Hour},
			"over when the agent left": {time.Second, 0},
		} {
			t.Run(string(code)+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := make(watched)
					var end time.Time
					if c.end > 0 {
						end = time.Now().Add(c.end)
					}
					s, first := source(t, w, sent("g1", end))
					defer s.Close()
					<-time.After(5 * time.Second)
					failure := fault(code)
					if code == "EOF" {
						failure = io.EOF
					}
					first.end <- failure
					left := time.Now()
					want := code
					if code == "EOF" {
						want = api.NoAgent
					}
					good := c.good
					if c.end > 0 && good == c.end {
						good -= 5 * time.Second
					}
					last := left
					for time.Since(left) < 2*time.Hour {
						again := <-w
						if since := again.made.Sub(last); since > lastRetry || since < firstRetry/2 {
							t.Fatalf("asked again after %v", since)
						}
						last = again.made
						if time.Since(left) < good {
							holds(t, s, "g1", "")
						} else {
							holds(t, s, "", want)
						}
						again.end <- failure
					}
					again := <-w
					again.sessions <- sent("g2", time.Time{})
					holds(t, s, "g2", "")
				})
			})
		}
	}
}

// TestSourceJudged: the agent's word that there is no session is final, also
// when the agent is gone afterwards.
func TestSourceJudged(t *testing.T) {
	for _, code := range []api.Code{api.Latched, api.BadCredentials, api.Captcha, api.KDCUnreachable, api.Server5xx, api.Expired, api.UnknownSite, api.Denied, api.NoSessionCookie, api.Unknown, "a_code_of_the_future"} {
		synctest.Test(t, func(t *testing.T) {
			w := make(watched)
			s, c := source(t, w, sent("g1", time.Time{}))
			defer s.Close()
			c.end <- fault(code)
			holds(t, s, "", code)
			c = <-w
			c.end <- fault(api.NoAgent)
			holds(t, s, "", api.NoAgent)
			c = <-w
			c.sessions <- sent("g2", time.Time{})
			holds(t, s, "g2", "")
		})
	}
}

// TestSourceNoCookie: an answer without any secret is no session.
func TestSourceNoCookie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := make(watched)
		s, c := source(t, w, sent("g1", time.Time{}))
		defer s.Close()
		c.sessions <- &pb.Session{Site: "jira", Generation: "g2", Headers: []*pb.Header{{Name: "User-Agent", Value: []byte("x")}}}
		holds(t, s, "", api.NoSessionCookie)
		if c.ctx.Err() == nil {
			t.Error("the call goes on")
		}
	})
}

// TestSourceRetries: a call that lasted is asked again soon, one that fails
// again and again less and less often, though each brings a session.
func TestSourceRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := make(watched)
		s, c := source(t, w, sent("g1", time.Time{}))
		defer s.Close()
		began, calls := time.Now(), 0
		pauses := map[time.Duration]bool{}
		for ; time.Since(began) < time.Hour; calls++ {
			c.end <- fault(api.NoAgent)
			ended := time.Now()
			c = <-w
			pauses[c.made.Sub(ended)] = true
			c.sessions <- sent("g1", time.Time{})
		}
		if calls < 100 || calls > 260 {
			t.Errorf("%d calls in an hour", calls)
		}
		if len(pauses) < calls/2 {
			t.Errorf("only %d different pauses among %d: services come back in step", len(pauses), calls)
		}
		<-time.After(lastRetry)
		c.end <- fault(api.NoAgent)
		ended := time.Now()
		c = <-w
		if since := c.made.Sub(ended); since > firstRetry {
			t.Errorf("asked again after %v", since)
		}
		c.end <- fault(api.NoAgent)
		ended = time.Now()
		if c = <-w; c.made.Sub(ended) > 2*firstRetry {
			t.Errorf("asked again after %v", c.made.Sub(ended))
		}
	})
}

// TestSourceFirst: what passes is waited out, what does not is returned.
func TestSourceFirst(t *testing.T) {
	open := func(t *testing.T, ctx context.Context, failures ...error) (*Source, error) {
		w := make(watched)
		go func() {
			for _, err := range failures {
				c := <-w
				if err == nil {
					c.sessions <- sent("g1", time.Time{})
					return
				}
				c.end <- err
			}
		}()
		return newSource(ctx, "", w.watch)
	}
	synctest.Test(t, func(t *testing.T) {
		s, err := open(t, t.Context(), fault(api.NoAgent), fault(api.KDCUnreachable), fault(api.Maintenance), nil)
		if err != nil {
			t.Fatal(err)
		}
		holds(t, s, "g1", "")
		s.Close()
	})
	for _, code := range []api.Code{api.Latched, api.UnknownSite, api.Denied, api.UntrustedSocket, api.InvalidRequest, api.Unknown} {
		synctest.Test(t, func(t *testing.T) {
			if s, err := open(t, t.Context(), fault(api.NoAgent), fault(code)); s != nil || api.CodeOf(err) != code {
				t.Errorf("%v, %v, want %s", s, err, code)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := open(t, ctx, fault(api.NoAgent), fault(api.KDCUnreachable)); api.CodeOf(err) != api.KDCUnreachable {
			t.Errorf("%v, want what stood in the way", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		_, err := open(t, ctx) // never answered
		if api.CodeOf(err) != api.Deadline || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// TestSourceOutlivesContext: ctx is for the wait.
func TestSourceOutlivesContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := make(watched)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { (<-w).sessions <- sent("g1", time.Time{}) }()
		s, err := newSource(ctx, "", w.watch)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		<-time.After(time.Minute)
		holds(t, s, "g1", "")
		s.Close()
	})
}

// TestSourceClose: whatever it is doing, Close ends it at once; synctest sees to
// it that nothing is left.
func TestSourceClose(t *testing.T) {
	for name, until := range map[string]func(w watched, c *call){
		"reading":    func(watched, *call) {},
		"pausing":    func(_ watched, c *call) { c.end <- fault(api.NoAgent) },
		"connecting": func(_ watched, c *call) { c.end <- fault(api.NoAgent); <-time.After(time.Second) }, // nobody takes the call
		"reading the second call": func(w watched, c *call) {
			c.end <- fault(api.NoAgent)
			<-w
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := make(watched)
				s, c := source(t, w, sent("g1", time.Time{}))
				until(w, c)
				synctest.Wait()
				began, changed := time.Now(), s.Changed()
				s.Close()
				if now, err := s.Session(); now != nil || err == nil {
					t.Errorf("after Close: %v, %v", now, err)
				}
				<-changed
				if d := time.Since(began); d != 0 {
					t.Errorf("took %v", d)
				}
				holds(t, s, "", api.InvalidRequest)
			})
		})
	}
}
