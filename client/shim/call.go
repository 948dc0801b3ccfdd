package shim

import (
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// The calls that the shim makes. Both are safe to repeat.
const (
	methodGetSession     = "/sessionctl.v1.SessionService/GetSession"
	methodRefreshSession = "/sessionctl.v1.SessionService/RefreshSession"
)

const (
	firstPause = 20 * time.Millisecond
	maxPause   = 500 * time.Millisecond
	// retryFor is how long a restarting agent is waited for.
	retryFor = 5 * time.Second
)

// The canonical gRPC status codes that decide something here.
const (
	grpcDeadlineExceeded = 4
	grpcUnavailable      = 14
)

// caller makes calls to the agent that listens at socket, until deadline.
type caller struct {
	socket   string
	deadline time.Time
	now      func() time.Time
	sleep    func(time.Duration)
	// slow, if set, is called once when there is no answer at slowAt.
	slow   func()
	slowAt time.Time
}

// slowAfter is how long a person at a terminal waits without a word.
const slowAfter = time.Second

func newCaller(socket string, deadline time.Time, slow func()) *caller {
	return &caller{socket: api.FindSocket(socket), deadline: deadline, now: time.Now, sleep: time.Sleep, slow: slow, slowAt: time.Now().Add(slowAfter)}
}

// call makes one unary call. While the agent restarts it asks again, with
// growing pauses. Every error is an *api.Error.
func (c *caller) call(method string, request []byte) ([]byte, error) {
	var trouble time.Time // when the agent was first found absent
	for pause := firstPause; ; pause = min(pause*8/5, maxPause) {
		message, err := c.attempt(method, request)
		if err == nil {
			return message, nil
		}
		now := c.now()
		if !errors.As(err, new(lostError)) && (trouble.IsZero() || api.CodeOf(err) != api.NoAgent) {
			return nil, c.explain(err)
		}
		if trouble.IsZero() {
			trouble = now
		}
		if end := now.Add(pause); end.Sub(trouble) > retryFor || end.After(c.deadline) {
			return nil, c.explain(err)
		}
		c.sleep(pause)
	}
}

var errOwnTime = &api.Error{
	Code:   api.Deadline,
	Detail: "no answer in the time allowed; a login under way goes on in the agent",
	Remedy: "ask again, or allow more time with --timeout",
}

// explain turns what an attempt ended with into the error for the user.
func (c *caller) explain(err error) error {
	var known *api.Error
	if errors.As(err, &known) {
		return known
	}
	if errors.As(err, new(lostError)) {
		return &api.Error{Code: api.NoAgent, Detail: "no agent: " + c.socket + ": " + err.Error(), Remedy: api.StartHint, Err: err}
	}
	return &api.Error{Code: api.Unknown, Detail: c.socket + ": " + err.Error(), Remedy: api.LogHint, Err: err}
}

// attempt makes the call over a connection of its own.
func (c *caller) attempt(method string, request []byte) ([]byte, error) {
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	defer conn.close()
	left := c.deadline.Sub(c.now())
	if left <= 0 {
		return nil, errOwnTime
	}
	var h []byte
	for _, f := range [...]header{
		{":method", "POST"},
		{":scheme", "http"},
		{":path", method},
		{":authority", "localhost"},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
		{"grpc-timeout", grpcTimeout(left)},
		{"user-agent", "sessionctl/" + api.Version},
	} {
		h = appendHeader(h, f.name, f.value)
	}
	if len(h) > maxFrame || 5+len(request) > maxFrame {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "the request is longer than " + strconv.Itoa(maxFrame) + " bytes", Remedy: "name the site instead of a URL"}
	}
	if _, err := conn.Write(appendCall(make([]byte, 0, 1024), h, request)); err != nil {
		return nil, err
	}
	a, err := receive(conn)
	if err != nil {
		return nil, err
	}
	return a.message, a.status.err()
}

// grpcTimeout is the value of grpc-timeout, in milliseconds. It may have eight
// digits; maxDuration is below that.
func grpcTimeout(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Millisecond-1)/time.Millisecond), 10) + "m"
}

// err is the failure that the status stands for, nil for OK. A status without
// the agent's ErrorInfo is gRPC's own.
func (s *grpcStatus) err() error {
	if s.code == 0 {
		return nil
	}
	if info := decodeErrorInfo(s.details); info != nil {
		e := &api.Error{Code: api.CodeOfReason(info.reason), Detail: api.Clean(s.message), Remedy: api.Clean(info.remedy)}
		if !validCode(e.Code) {
			e.Code = api.Unknown
		}
		return e
	}
	switch s.code {
	case grpcUnavailable:
		return lostError("the agent is not available: " + api.Clean(s.message))
	case grpcDeadlineExceeded:
		return errOwnTime
	}
	return &api.Error{Code: api.Unknown, Detail: "the agent answered with gRPC status " + strconv.Itoa(s.code) + ": " + api.Clean(s.message), Remedy: api.LogHint}
}

// validCode reports whether a code, perhaps of a newer agent, looks like one.
func validCode(c api.Code) bool {
	return c != "" && len(c) <= 64 && strings.Trim(string(c), "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// conn is a connection to the agent. No operation outlasts the deadline.
type conn struct {
	fd int
	*caller
}

// connect connects, and makes sure of who listens.
func (c *caller) connect() (*conn, error) {
	servers, err := api.CheckSocket(c.socket)
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	conn := &conn{fd, c}
	if err := conn.dial(c.socket); err != nil {
		conn.close()
		return nil, err
	}
	peer, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		conn.close()
		return nil, err
	}
	if !slices.Contains(servers, peer.Uid) {
		conn.close()
		return nil, &api.Error{Code: api.UntrustedSocket, Detail: c.socket + " is served by uid " + strconv.Itoa(int(peer.Uid)),
			Remedy: "name the right socket with --socket or " + api.SocketVariable}
	}
	return conn, nil
}

func (c *conn) dial(path string) error {
	for {
		if err := c.allow(syscall.SO_SNDTIMEO); err != nil {
			return err
		}
		switch err := syscall.Connect(c.fd, &syscall.SockaddrUnix{Name: path}); err {
		case nil:
			return nil
		case syscall.EINTR, syscall.EAGAIN: // EAGAIN: the time is over
		case syscall.ECONNREFUSED, syscall.ENOENT:
			return lostError(err.Error())
		case syscall.EACCES:
			return api.NoSocket(path, err)
		default:
			return err
		}
	}
}

// allow bounds the next system call by what is left of the time.
func (c *conn) allow(option int) error {
	now := c.now()
	left := c.deadline.Sub(now)
	if left <= 0 {
		return errOwnTime
	}
	if c.slow != nil {
		if until := c.slowAt.Sub(now); until > 0 {
			left = min(left, until)
		} else {
			c.slow()
			c.slow = nil
		}
	}
	// A time-out of 0 would mean none at all.
	t := syscall.NsecToTimeval(int64(max(left, time.Microsecond)))
	return syscall.SetsockoptTimeval(c.fd, syscall.SOL_SOCKET, option, &t)
}

func (c *conn) Read(p []byte) (int, error) {
	for {
		if err := c.allow(syscall.SO_RCVTIMEO); err != nil {
			return 0, err
		}
		switch n, err := syscall.Read(c.fd, p); {
		case err == syscall.EINTR || err == syscall.EAGAIN:
		case err == syscall.ECONNRESET:
			return 0, lostError(err.Error())
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (c *conn) Write(p []byte) (int, error) {
	for done := 0; ; {
		if err := c.allow(syscall.SO_SNDTIMEO); err != nil {
			return done, err
		}
		n, err := syscall.Write(c.fd, p[done:])
		done += max(n, 0)
		switch {
		case err == syscall.EINTR || err == syscall.EAGAIN:
		case err == syscall.EPIPE || err == syscall.ECONNRESET:
			return done, lostError(err.Error())
		case err != nil:
			return done, err
		case done == len(p):
			return done, nil
		}
	}
}

func (c *conn) close() { syscall.Close(c.fd) }
