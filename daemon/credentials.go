package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
)

const (
	// credentialTime is how long systemd waits for a session, as `sessionctl raw` does.
	credentialTime = 30 * time.Second
	// sendTime is how long one who does not read a session is waited for, and a refusal
	// when the agent ends.
	sendTime = 5 * time.Second
	// maxCredentials bounds how many are asked for at a time; others wait.
	maxCredentials = 256
	// maxRefusals bounds how many are refused at a time, beside those that are asked for:
	// who does not read keeps his place.
	maxRefusals = 1024
	// acceptPause is how long after a failure the next connection is taken.
	acceptPause = 100 * time.Millisecond
)

// handOver answers systemd, which asks for the credentials of units (systemd.exec(5),
// LoadCredential= with the path of a socket), until the listener is closed, and returns
// when all have their answers. The end of the context makes them refusals, which are
// given up soon after it.
//
// The name of a credential is that of a site, and what it holds is the value of the
// Cookie header, as `sessionctl raw` prints it, without the newline. systemd only
// listens: it names unit and credential by the address that it calls from.
func (s *service) handOver(ctx context.Context, l net.Listener, wire codec) {
	var calls sync.WaitGroup
	defer calls.Wait()
	free, refusing := make(chan struct{}, maxCredentials), make(chan struct{}, maxRefusals)
	for {
		free <- struct{}{}
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-free
			s.log.Warn("systemd could not be answered", "err", err)
			select {
			case <-time.After(acceptPause):
				continue
			case <-ctx.Done():
				return
			}
		}
		calls.Go(func() {
			defer c.Close()
			served := s.answer(ctx, c, wire)
			if !served {
				refusing <- struct{}{}
				defer func() { <-refusing }()
			}
			<-free
			if !served {
				refuse(ctx, c)
			}
		})
	}
}

// answer answers on one connection, and reports whether there was something to say.
// If not, who calls has to be refused.
func (s *service) answer(ctx context.Context, c net.Conn, wire codec) (served bool) {
	caller, site, err := peer.OfUnit(c)
	if err != nil {
		s.log.Warn("nothing is handed over as a credential", "err", err) // nothing of what the other end says
		return false
	}
	session, err := s.unitSession(ctx, caller, site)
	if err == nil {
		defer wire.quiet.Reset(quiet)
		defer wire.clear(session)
		var value []byte
		if value, err = cookieValue(session.GetSession()); err == nil {
			err = send(c, value)
		}
	}
	if err != nil {
		e := api.AsError(err)
		next := e.Remedy
		if e.Code == api.UnknownSite {
			next = fmt.Sprintf("if it is meant to have it, add %q to the site's allow, then: sessionctl reload", "unit:"+caller.Unit)
		}
		s.log.Warn("a unit is refused its credential, and does not start", "unit", caller.Unit, "site", site, "code", e.Code, "detail", e.Detail, "next", next)
		return false
	}
	s.log.Info("a session is handed over to a unit", "unit", caller.Unit, "site", site, "user", session.GetSession().GetUser(), "stale", session.GetSession().GetStale())
	return true
}

// unitSession returns the session of a site for a unit.
func (s *service) unitSession(ctx context.Context, caller peer.Caller, site string) (session *pb.GetSessionResponse, err error) {
	defer s.caught("LoadCredential", &err)
	ctx, cancel := context.WithTimeout(peer.With(ctx, caller), credentialTime)
	defer cancel()
	return s.GetSession(ctx, &pb.GetSessionRequest{Site: site})
}

// cookieValue returns the value of a session's Cookie header, which is the session's
// own. What `sessionctl raw` does not print is refused.
func cookieValue(m *pb.Session) ([]byte, error) {
	token := false
	for _, h := range m.GetHeaders() {
		value := h.GetValue()
		switch {
		case strings.EqualFold(h.GetName(), "Authorization"):
			token = true
		case !strings.EqualFold(h.GetName(), "Cookie") || len(value) == 0:
		case !utf8.Valid(value) || bytes.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return nil, &api.Error{Code: api.Unprintable, Detail: "the Cookie header has a byte that cannot be handed over safely", Remedy: "have the service ask for the session itself, by gRPC"}
		default:
			return value, nil
		}
	}
	if token {
		return nil, &api.Error{Code: api.PerRequestOnly, Detail: "the site takes a token or password with each request, and no cookie", Remedy: "have the service ask for its headers itself: sessionctl header SITE"}
	}
	return nil, &api.Error{Code: api.NoSessionCookie, Detail: "the session has no cookie for this URL", Remedy: "correct the site's url"}
}

func send(c net.Conn, b []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	_, err := c.Write(b)
	return err
}

// refuse keeps the unit from starting. systemd knows no refusal: to it, the end of the
// connection is the end of a credential, be it an empty one. But it takes no more than
// 1 MiB for all of a unit's, and fails the unit, with the status 243/CREDENTIALS, as
// soon as there is more; then it hangs up. Nothing else gets it to: SO_LINGER does
// nothing to Unix sockets, and silence makes the unit wait for its TimeoutStartSec=.
//
// What ends before that is a credential of zeros. So one who does not read is waited
// for, until the context ends and sendTime longer.
func refuse(ctx context.Context, c net.Conn) {
	const enough = 16 << 20 // also for a systemd that takes more
	_ = c.SetWriteDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { _ = c.SetWriteDeadline(time.Now().Add(sendTime)) })()
	for sent := 0; sent < enough; sent += len(zeros) {
		if _, err := c.Write(zeros[:]); err != nil {
			return // systemd has hung up, as it does when it has had too much
		}
	}
}

var zeros [64 << 10]byte
