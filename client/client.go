package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// Client talks to an agent. The zero value works: it finds the agent as
// sessionctl does and connects at the first call. Fields must not be changed
// afterwards. It is safe for concurrent use. Errors of all calls are
// *api.Error; one of code api.Deadline wraps the context's error.
type Client struct {
	// Socket is the path of the agent's socket. Empty: api.FindSocket decides.
	Socket string

	mu   sync.Mutex
	conn *grpc.ClientConn
	// refusal is why the socket, or the process behind it, was not connected to
	// when that was last tried. nil: it was, or nobody listened.
	refusal atomic.Pointer[api.Error]
	// pause waits before a call is repeated. nil: for so long.
	pause func(context.Context, time.Duration)
}

// Sessions returns the agent's SessionService. It may be used as long as the
// Client, also after Close.
func (c *Client) Sessions() (pb.SessionServiceClient, error) {
	if _, err := c.connection(); err != nil {
		return nil, err
	}
	return pb.NewSessionServiceClient(channel{c}), nil
}

// Tickets returns the agent's TicketService, as Sessions does.
func (c *Client) Tickets() (pb.TicketServiceClient, error) {
	if _, err := c.connection(); err != nil {
		return nil, err
	}
	return pb.NewTicketServiceClient(channel{c}), nil
}

// Agent returns the agent's AgentService, as Sessions does.
func (c *Client) Agent() (pb.AgentServiceClient, error) {
	if _, err := c.connection(); err != nil {
		return nil, err
	}
	return pb.NewAgentServiceClient(channel{c}), nil
}

// Close ends the connection. The next call makes a new one, and so does a call
// under way, if it is one that may be repeated.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

func (c *Client) connection() (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		if c.conn.GetState() != connectivity.TransientFailure {
			return c.conn, nil
		}
		// It would refuse calls until its own next try.
		c.conn.Close()
		c.conn = nil
	}
	path := api.FindSocket(c.Socket)
	if _, err := api.CheckSocket(path); err != nil {
		return nil, err // no need to wait for what is not there
	}
	conn, err := grpc.NewClient("passthrough:///"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(c.dial),
		grpc.WithAuthority("localhost"),
		grpc.WithUserAgent("sessionctl/"+api.Version),
		grpc.WithDisableServiceConfig(),
		// An agent that hangs is noticed by those who wait for a stream, too. It
		// takes pings every 10 s and more.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxPause},
			MinConnectTimeout: 2 * time.Second,
		}),
	)
	if err != nil {
		return nil, &api.Error{Code: api.Unknown, Detail: err.Error(), Err: err}
	}
	c.conn = conn
	return conn, nil
}

// dial connects to the socket if it can be trusted, and makes sure that the
// process behind it may be there.
func (c *Client) dial(ctx context.Context, path string) (net.Conn, error) {
	conn, err := dialTrusted(ctx, path)
	var refusal *api.Error
	errors.As(err, &refusal)
	c.refusal.Store(refusal)
	return conn, err
}

func dialTrusted(ctx context.Context, path string) (net.Conn, error) {
	servers, err := api.CheckSocket(path)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.EACCES) {
		return nil, api.NoSocket(path, syscall.EACCES)
	}
	if err != nil {
		return nil, err
	}
	uid, err := serverUID(conn.(*net.UnixConn))
	if err == nil && !slices.Contains(servers, uid) {
		err = &api.Error{Code: api.UntrustedSocket, Detail: fmt.Sprintf("a process of uid %d answers at %s", uid, path),
			Remedy: "name the right socket with --socket or " + api.SocketVariable}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func serverUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if inner != nil {
		return 0, inner
	}
	return cred.Uid, nil
}

// channel makes the calls of a Client, over whichever connection it has.
type channel struct{ *Client }

// repeatable are the calls that change nothing when they are made twice. A
// second Login would be a second login, a second DeleteSession the end of a
// session made in between, and RefreshSession may be an order for a new one.
var repeatable = map[string]bool{
	pb.SessionService_GetSession_FullMethodName:   true,
	pb.SessionService_ListSessions_FullMethodName: true,
	pb.TicketService_ListTickets_FullMethodName:   true,
	pb.TicketService_ExportCache_FullMethodName:   true,
	pb.AgentService_GetStatus_FullMethodName:      true,
}

// A restarting agent is waited for as sessionctl does.
const (
	firstPause = 20 * time.Millisecond
	maxPause   = 500 * time.Millisecond
	retryFor   = 5 * time.Second
)

// Invoke makes a call. One that may be repeated is repeated, with growing
// pauses, while the agent restarts. Every error is an *api.Error.
func (c channel) Invoke(ctx context.Context, method string, request, reply any, opts ...grpc.CallOption) error {
	waited := time.Duration(0)
	for pause := firstPause; ; pause = min(pause*8/5, maxPause) {
		conn, err := c.connection()
		if err == nil {
			err = c.fromStatus(ctx, conn.Invoke(ctx, method, request, reply, opts...))
		}
		if err == nil {
			return nil
		}
		if conn != nil {
			// A call learns that connecting failed before the state does.
			conn.WaitForStateChange(ctx, connectivity.Connecting)
		}
		// What is not there at the first look is not waited for.
		lost := errors.Is(err, errLost) || waited > 0 && api.CodeOf(err) == api.NoAgent
		waited += pause
		if end, ok := ctx.Deadline(); ok && time.Until(end) < pause {
			lost = false
		}
		if !lost || !repeatable[method] || waited > retryFor {
			return err
		}
		c.wait(ctx, pause)
	}
}

// NewStream begins a streaming call. Those are never repeated.
func (c channel) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn, err := c.connection()
	if err != nil {
		return nil, err
	}
	s, err := conn.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, c.fromStatus(ctx, err)
	}
	return stream{s, c.Client}, nil
}

// stream is a streaming call whose errors are *api.Error, too, all but io.EOF.
type stream struct {
	grpc.ClientStream
	client *Client
}

func (s stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == io.EOF {
		return err
	}
	return s.client.fromStatus(s.Context(), err)
}

func (c *Client) wait(ctx context.Context, d time.Duration) {
	if c.pause != nil {
		c.pause(ctx, d)
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// errLost is the cause of errors by which an agent may be restarting: nobody
// listens, or the connection broke.
var errLost = errors.New("the agent is not there")

// fromStatus is the inverse of the agent's mapping of codes to statuses.
func (c *Client) fromStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return api.AsError(err)
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == api.ErrorDomain {
			return &api.Error{Code: api.CodeOfReason(info.GetReason()), Detail: st.Message(), Remedy: info.GetMetadata()["remedy"], Err: err}
		}
	}
	code := st.Code()
	if code == codes.Canceled && ctx.Err() == nil {
		code = codes.Unavailable // the connection was closed, or given up, under the call
	}
	switch code {
	case codes.DeadlineExceeded:
		return &api.Error{Code: api.Deadline, Detail: "the caller's time is over; what was begun goes on in the agent",
			Remedy: "ask again, or allow more time", Err: fmt.Errorf("%w: %w", context.DeadlineExceeded, err)}
	case codes.Canceled:
		return &api.Error{Code: api.Deadline, Detail: "cancelled by the caller", Remedy: "ask again", Err: fmt.Errorf("%w: %w", context.Canceled, err)}
	case codes.Unavailable:
		if e := c.refusal.Load(); e != nil {
			return e
		}
		return &api.Error{Code: api.NoAgent, Detail: "no agent answers at " + api.FindSocket(c.Socket), Remedy: api.StartHint, Err: fmt.Errorf("%w: %w", errLost, err)}
	case codes.Unimplemented:
		return &api.Error{Code: api.VersionSkew, Detail: "the agent does not know this call", Remedy: "restart the agent: it is older than this program", Err: err}
	}
	return &api.Error{Code: api.Unknown, Detail: "the agent answered with gRPC status " + code.String() + ": " + st.Message(), Remedy: api.LogHint, Err: err}
}
