package client

import (
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// still is a WatchSession call that brings one session and then nothing.
type still struct {
	ctx  context.Context
	sent bool
}

func (c *still) Recv() (*pb.WatchSessionResponse, error) {
	if c.sent {
		<-c.ctx.Done()
		return nil, c.ctx.Err()
	}
	c.sent = true
	return &pb.WatchSessionResponse{Session: &pb.Session{
		Site: "jira", User: "svc-build", Generation: "g1", Url: "https://jira.corp.example/jira",
		Headers: []*pb.Header{
			{Name: "Cookie", Value: []byte("JSESSIONID=CANARY-0123456789ABCDEF0123456789ABCDEF; atlassian.xsrf.token=CANARY-BX4P_lout; ROUTE=1"), Secret: true},
			{Name: "User-Agent", Value: []byte("sessionctl/1")}, {Name: "X-Atlassian-Token", Value: []byte("no-check")},
		},
	}}, nil
}

// answers is a RoundTripper that does nothing else.
type answers struct{ resp http.Response }

func (a *answers) RoundTrip(*http.Request) (*http.Response, error) { return &a.resp, nil }

// dressed makes each request with the session of a Source.
type dressed struct {
	source *Source
	base   http.RoundTripper
}

func (d dressed) RoundTrip(r *http.Request) (*http.Response, error) {
	s, err := d.source.Session()
	if err != nil {
		return nil, err
	}
	if err := s.Apply(r); err != nil {
		return nil, err
	}
	return d.base.RoundTrip(r)
}

// besides returns a bare RoundTripper, one that a Source adds the session's
// headers for, a function that makes the same request for either, and the number
// of calls to the agent.
func besides(t testing.TB) (bare, with http.RoundTripper, request func() *http.Request, calls *atomic.Int32) {
	t.Helper()
	calls = new(atomic.Int32)
	source, err := newSource(t.Context(), http.MethodGet, func(ctx context.Context) (receiver, error) {
		calls.Add(1)
		return &still{ctx: ctx}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	base := &answers{}
	return base, dressed{source, base}, func() *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://jira.corp.example/jira/rest/api/2/myself", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", "application/json")
		return r
	}, calls
}

func BenchmarkSource(b *testing.B) {
	bare, with, request, calls := besides(b)
	for _, c := range []struct {
		name string
		http.RoundTripper
	}{{"bare", bare}, {"with a session", with}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			r := request()
			for b.Loop() {
				if _, err := c.RoundTrip(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	if n := calls.Load(); n != 1 {
		b.Errorf("%d calls to the agent", n)
	}
}

// TestSourceSpeed: a Source adds a session's headers to a request within 600 ns,
// and does not ask the agent for that. Each request is a new one, without room in
// its header. Rounds are so short that the machine's other work falls between
// them, and take turns, so that it falls on both alike.
func TestSourceSpeed(t *testing.T) {
	const (
		rounds, requests = 2001, 100
		limit            = 600 * time.Nanosecond
	)
	bare, with, request, calls := besides(t)
	round := func(rt http.RoundTripper) time.Duration {
		made := make([]*http.Request, requests)
		for i := range made {
			made[i] = request()
		}
		start := time.Now()
		for _, r := range made {
			if _, err := rt.RoundTrip(r); err != nil {
				t.Fatal(err)
			}
		}
		return time.Since(start)
	}
	var times [2][]time.Duration
	for range rounds {
		times[0] = append(times[0], round(bare))
		times[1] = append(times[1], round(with))
	}
	median := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)/2] / requests
	}
	before, after := median(times[0]), median(times[1])
	t.Logf("a request: %v bare, %v with a session", before, after)
	if raceDetector {
		t.Log("the race detector takes its time: that is not judged")
	} else if after-before > limit {
		t.Errorf("a Source takes %v for a request, more than %v", after-before, limit)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d calls to the agent for %d requests", n, rounds*requests)
	}
}
