package krb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/sessionctl/sessionctl/api"
)

const (
	// hedge is how long the agent waits for one KDC before it asks the next
	// as well.
	hedge = 150 * time.Millisecond
	// maxReply is the largest answer of a KDC or a service that is decoded, in
	// bytes: nothing proves yet who sent it.
	maxReply = 64 << 10
)

// reply is a KDC's answer: exactly one field is set.
type reply struct {
	refusal *messages.KRBError
	as      *messages.ASRep
	tgs     *messages.TGSRep
}

// parseReply reads an answer of a KDC (RFC 4120, 5.4.2 and 5.9.1).
func parseReply(b []byte) (r reply, err error) {
	if len(b) == 0 {
		return reply{}, errors.New("empty answer")
	}
	err = safely(func() error {
		switch application := int(b[0]) - 0x60; application {
		case asnAppTag.KRBError:
			r.refusal = new(messages.KRBError)
			return r.refusal.Unmarshal(b)
		case asnAppTag.ASREP:
			r.as = new(messages.ASRep)
			return r.as.Unmarshal(b)
		case asnAppTag.TGSREP:
			r.tgs = new(messages.TGSRep)
			return r.tgs.Unmarshal(b)
		}
		return errors.New("no Kerberos message")
	})
	if err != nil {
		return reply{}, errors.New("its answer is no Kerberos message")
	}
	return r, nil
}

// realmKDCs sends messages to the KDCs of one realm, over TCP (RFC 4120,
// 7.2.2).
type realmKDCs struct {
	realm string
	addrs []string // in the order of krb5.conf
	dial  func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex
	good int // index of the KDC that answered last
}

// answer is what came of asking one KDC.
type answer struct {
	kdc       int
	reply     reply
	delivered bool // the KDC may have acted on the message
	err       error
}

// exchange sends a message and returns the first answer. It begins with the
// KDC that answered last and asks the next one when a KDC fails, or when it
// has been silent for the time of hedge.
//
// An attempt carries pre-authentication, of which a realm counts the failures:
// it goes to one KDC after the other, and to no other once one may have it.
//
// The error is an *api.Error of code KDCUnreachable that names each KDC.
func (k *realmKDCs) exchange(ctx context.Context, message []byte, attempt bool) (reply, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k.mu.Lock()
	first := k.good
	k.mu.Unlock()

	answers := make(chan answer, len(k.addrs))
	failures := make([]error, len(k.addrs))
	asked, pending := 0, 0
	ask := func() {
		i := (first + asked) % len(k.addrs)
		asked++
		pending++
		failures[i] = errors.New("no answer in time")
		go func() {
			r, delivered, err := k.ask(ctx, k.addrs[i], message, attempt)
			answers <- answer{i, r, delivered, err}
		}()
	}
	ask()
	next := time.NewTicker(hedge)
	defer next.Stop()
	for pending > 0 {
		select {
		case a := <-answers:
			pending--
			if a.err == nil {
				k.mu.Lock()
				k.good = a.kdc
				k.mu.Unlock()
				return a.reply, nil
			}
			failures[a.kdc] = a.err
			if attempt && a.delivered {
				return reply{}, k.unreachable(first, asked, failures, errDelivered)
			}
			if asked < len(k.addrs) {
				ask()
				next.Reset(hedge)
			}
		case <-next.C:
			if asked < len(k.addrs) && !attempt {
				ask()
			}
		case <-ctx.Done():
			var cause error
			for ; pending > 0; pending-- { // they end with the context
				if a := <-answers; attempt && a.delivered {
					cause = errDelivered
				}
			}
			return reply{}, k.unreachable(first, asked, failures, cause)
		}
	}
	return reply{}, k.unreachable(first, asked, failures, nil)
}

// errDelivered says that a KDC may have acted on a message it did not answer.
var errDelivered = errors.New("a KDC may have got the message")

func (k *realmKDCs) unreachable(first, asked int, failures []error, cause error) error {
	// The next exchange begins elsewhere.
	k.mu.Lock()
	if k.good == first {
		k.good = (first + 1) % len(k.addrs)
	}
	k.mu.Unlock()
	var each []string
	for n := range asked {
		i := (first + n) % len(k.addrs)
		each = append(each, k.addrs[i]+": "+failures[i].Error())
	}
	return &api.Error{Code: api.KDCUnreachable, Err: cause,
		Detail: "no KDC of " + k.realm + " answers: " + strings.Join(each, "; "),
		Remedy: "check the network and the kdc lines of " + k.realm + " in krb5.conf"}
}

// dialTime is how long an attempt, which goes to one KDC after the other, waits
// for a connection.
const dialTime = 2 * time.Second

// ask sends the message to one KDC. delivered tells whether the KDC may have
// got it.
func (k *realmKDCs) ask(ctx context.Context, addr string, message []byte, attempt bool) (r reply, delivered bool, err error) {
	dialing := ctx
	if attempt {
		var cancel context.CancelFunc
		dialing, cancel = context.WithTimeout(ctx, dialTime)
		defer cancel()
	}
	conn, err := k.dial(dialing, "tcp", addr)
	if err != nil {
		// The address stands before this text already.
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err
		}
		return reply{}, false, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	framed := binary.BigEndian.AppendUint32(nil, uint32(len(message)))
	if _, err := conn.Write(append(framed, message...)); err != nil {
		return reply{}, true, errors.New("the connection broke before an answer")
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return reply{}, true, errors.New("the connection broke before an answer")
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxReply {
		return reply{}, true, fmt.Errorf("announces an answer of %d bytes, more than %d", n, maxReply)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(conn, b); err != nil {
		return reply{}, true, errors.New("the connection broke inside its answer")
	}
	r, err = parseReply(b)
	if err == nil && r.refusal != nil && r.refusal.ErrorCode == errorcode.KDC_ERR_SVC_UNAVAILABLE {
		return reply{}, false, errors.New("it says that its service is unavailable")
	}
	return r, true, err
}
