package client

import (
	"context"
	"errors"
	"fmt"
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
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// Client talks to an agent. The zero value works: it finds the agent as
// sessionctl does and connects at the first call. Fields must not be changed
// afterwards. It is safe for concurrent use. Errors of all calls are
// *api.Error.
type Client struct {
	// Socket is the path of the agent's socket. Empty: api.FindSocket decides.
	Socket string

	mu   sync.Mutex
	conn *grpc.ClientConn
	// distrust is why a connection was given up, if the socket or the process
	// behind it was not to be trusted, and none has been made since.
	distrust atomic.Pointer[api.Error]
}

// Sessions returns the agent's SessionService.
func (c *Client) Sessions() (pb.SessionServiceClient, error) {
	conn, err := c.connection()
	return pb.NewSessionServiceClient(conn), err
}

// Tickets returns the agent's TicketService.
func (c *Client) Tickets() (pb.TicketServiceClient, error) {
	conn, err := c.connection()
	return pb.NewTicketServiceClient(conn), err
}

// Agent returns the agent's AgentService.
func (c *Client) Agent() (pb.AgentServiceClient, error) {
	conn, err := c.connection()
	return pb.NewAgentServiceClient(conn), err
}

// Close ends the connection. The next call makes a new one.
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

// serviceConfig tries a call again while an agent restarts. Every method of
// the API may be repeated.
const serviceConfig = `{"methodConfig": [{
	"name": [{}],
	"retryPolicy": {
		"maxAttempts": 5, "initialBackoff": "0.02s", "maxBackoff": "0.5s",
		"backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]
	}
}]}`

func (c *Client) connection() (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		return c.conn, nil
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
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithUnaryInterceptor(c.unary),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
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
	var e *api.Error
	switch {
	case err == nil:
		c.distrust.Store(nil)
	case errors.As(err, &e) && e.Code == api.UntrustedSocket:
		c.distrust.Store(e)
	}
	return conn, err
}

func dialTrusted(ctx context.Context, path string) (net.Conn, error) {
	servers, err := api.CheckSocket(path)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	uid, err := serverUID(conn.(*net.UnixConn))
	if err == nil && !slices.Contains(servers, uid) {
		err = &api.Error{Code: api.UntrustedSocket, Detail: fmt.Sprintf("a process of uid %d answers at %s", uid, path)}
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

// unary turns the status of every call into an *api.Error.
func (c *Client) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return c.fromStatus(invoke(ctx, method, req, reply, cc, opts...))
}

// fromStatus is the inverse of the agent's mapping of codes to statuses.
func (c *Client) fromStatus(err error) error {
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
	switch st.Code() {
	case codes.DeadlineExceeded:
		return &api.Error{Code: api.Deadline, Detail: "the caller's time is over; what was begun goes on in the agent", Err: err}
	case codes.Canceled:
		return &api.Error{Code: api.Deadline, Detail: "cancelled by the caller", Err: err}
	case codes.Unavailable:
		if e := c.distrust.Load(); e != nil {
			return e
		}
		return &api.Error{Code: api.NoAgent, Detail: "no agent answers at " + api.FindSocket(c.Socket), Remedy: api.StartHint, Err: err}
	case codes.Unimplemented:
		return &api.Error{Code: api.VersionSkew, Detail: "the agent does not know this call", Remedy: "restart the agent: it is older than this program", Err: err}
	}
	return &api.Error{Code: api.Unknown, Detail: st.Message(), Err: err}
}
