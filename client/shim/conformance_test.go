package shim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sessionctl/sessionctl/api"
	sessionctlv1 "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// answerOf makes an answer whose message is of exactly so many bytes.
func answerOf(t *testing.T, size int) *sessionctlv1.GetSessionResponse {
	t.Helper()
	cookie := "CANARY-"
	for range 4 { // the lengths have lengths
		s := sessionOf("jira", cookie)
		missing := size - proto.Size(s)
		if missing == 0 {
			return s
		}
		cookie = "CANARY-" + strings.Repeat("x", len(cookie)-len("CANARY-")+missing)
	}
	t.Fatalf("no answer has %d bytes", size)
	return nil
}

// Answers around the limits of a frame, of HTTP/2's default windows, and of what the
// shim takes: grpc-go needs no credit beyond what it was given at once.
func TestAnswerSizes(t *testing.T) {
	socket := socketPath(t)
	var answer *sessionctlv1.GetSessionResponse
	serve(t, listen(t, socket), &agent{get: func(context.Context, *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		return answer, nil
	}})
	for _, limit := range []int{maxFrame, 2 * maxFrame, defaultWindow, maxAnswer} {
		for _, size := range []int{limit - 6, limit - 5, limit - 4, limit - 1, limit, limit + 1} {
			answer = answerOf(t, size)
			out, errs, exit := run("", "raw", "jira", "--socket", socket)
			if size > maxAnswer {
				if out != "" || exit != api.ExitOther || !strings.Contains(errs, "longer than 4194304 bytes") {
					t.Errorf("%d bytes: printed %d, %q, %d", size, len(out), errs, exit)
				}
				continue
			}
			if out != string(answer.Session.Headers[0].Value)+"\n" || errs != "" || exit != 0 {
				t.Errorf("%d bytes: printed %d, %q, %d", size, len(out), errs, exit)
			}
		}
	}
}

// Response headers and trailers as grpc-go writes them: with Huffman where that is
// shorter, of more than one frame, and with metadata the shim does not know.
func TestLongTrailers(t *testing.T) {
	socket := socketPath(t)
	var fail error
	serve(t, listen(t, socket), &agent{get: func(ctx context.Context, _ *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		if err := grpc.SetHeader(ctx, metadata.Pairs("x-odd", strings.Repeat("h", maxFrame), "x-odd-bin", "\x00\xff\x7f")); err != nil {
			return nil, err
		}
		if err := grpc.SetTrailer(ctx, metadata.Pairs("x-odd", strings.Repeat("~", maxFrame))); err != nil {
			return nil, err
		}
		if fail == nil {
			return sessionOf("jira", "CANARY-1"), nil
		}
		return nil, fail
	}})
	if out, errs, exit := run("", "raw", "jira", "--socket", socket); out != "CANARY-1\n" || errs != "" || exit != 0 {
		t.Errorf("%q, %q, %d", out, errs, exit)
	}
	for _, size := range []int{1, 100, maxFrame} {
		for name, text := range map[string]string{"short codes": "e", "long codes": "~", "escapes": "é", "two": "0\""} {
			detail := strings.Repeat(text, max(1, size/len(text)/6)) // escaped it is three times as long
			s, err := status.New(codes.FailedPrecondition, detail).WithDetails(&errdetails.ErrorInfo{
				Reason: api.Latched.Reason(), Domain: api.ErrorDomain, Metadata: map[string]string{"remedy": detail}})
			if err != nil {
				t.Fatal(err)
			}
			fail = s.Err()
			_, err = callerAt(socket, time.Minute, new(clock)).call(methodGetSession, nil)
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.Latched || e.Detail != detail || e.Remedy != detail {
				t.Errorf("%s, %d bytes: %.200v", name, size, err)
			}
		}
	}
	fail = status.Error(codes.Internal, strings.Repeat("\x01", maxHeaderBlock))
	if _, err := callerAt(socket, time.Minute, new(clock)).call(methodGetSession, nil); api.CodeOf(err) != api.Unknown || !strings.Contains(err.Error(), "a header block longer than") {
		t.Errorf("too long: %.200v", err)
	}
}

// slowListener's connections take and give a byte at a time.
type slowListener struct{ net.Listener }

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return slowConn{c}, err
}

type slowConn struct{ net.Conn }

func (c slowConn) Read(b []byte) (int, error) { return c.Conn.Read(b[:min(len(b), 1)]) }

func (c slowConn) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		_, err = c.Conn.Write(b[n : n+1])
		n++
	}
	return n, err
}

// A dialogue with grpc-go of which every byte comes alone.
func TestByteByByte(t *testing.T) {
	socket := socketPath(t)
	serve(t, slowListener{listen(t, socket)}, &agent{get: func(_ context.Context, r *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		if r.GetSite() != "jira" {
			return nil, status.Error(codes.NotFound, "no "+r.GetSite())
		}
		return sessionOf("jira", "CANARY-"+strings.Repeat("x", 1000)), nil
	}})
	if out, errs, exit := run("", "raw", "jira", "--socket", socket); out != "CANARY-"+strings.Repeat("x", 1000)+"\n" || exit != 0 {
		t.Errorf("%q, %q, %d", out, errs, exit)
	}
	if out, errs, exit := run("", "raw", "wiki", "--socket", socket); out != "" || !strings.Contains(errs, "gRPC status 5: no wiki") || exit != api.ExitOther {
		t.Errorf("%q, %q, %d", out, errs, exit)
	}
}

// A status that gRPC does not know is a failure, too.
func TestUnknownStatus(t *testing.T) {
	for code, want := range map[string]string{"17": "gRPC status 17: x", "65535": "gRPC status 65535: x", "65536": "no grpc-status", "+1": "no grpc-status", "": "no grpc-status"} {
		end := frames(func(f *http2.Framer) {
			f.WriteHeaders(endHeaders(block("grpc-status", code, "grpc-message", "x"), true))
		})
		if message, err := exchange(t, cat(settings, headers, data, end), 1<<20); message != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("status %q: %q, %v", code, message, err)
		}
	}
}

// Peers that never come to an end are left when the time is over, whatever they send
// and whether they read or not.
func TestEndless(t *testing.T) {
	ping := frames(func(f *http2.Framer) { f.WritePing(false, [8]byte{}) })
	for _, c := range []struct {
		name         string
		begin, again []byte
		reads        bool
	}{
		{"PING", settings, ping, true},
		{"PING, and nothing is read", settings, ping, false},
		{"SETTINGS", nil, settings, true},
		{"unknown frames", settings, frames(func(f *http2.Framer) { f.WriteRawFrame(0xbe, 0, 0, make([]byte, maxFrame)) }), true},
		{"window updates", settings, frames(func(f *http2.Framer) { f.WriteWindowUpdate(0, 1) }), true},
		{"DATA of nothing", cat(settings, headers), dataFrame(nil), true},
		{"CONTINUATION of nothing", cat(settings, frames(func(f *http2.Framer) { f.WriteRawFrame(http2.FrameHeaders, 0, 1, nil) })),
			frames(func(f *http2.Framer) { f.WriteContinuation(1, false, nil) }), true},
		{"GOAWAY that lets the call end", settings, frames(func(f *http2.Framer) { f.WriteGoAway(1, http2.ErrCodeNo, nil) }), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			socket := socketPath(t)
			l := listen(t, socket)
			done := make(chan struct{})
			go func() {
				defer close(done)
				peer, err := l.Accept()
				if err != nil {
					return
				}
				defer peer.Close()
				read := make(chan struct{})
				go func() {
					defer close(read)
					if c.reads {
						io.Copy(io.Discard, peer)
					}
				}()
				_, err = peer.Write(c.begin)
				for err == nil { // until the shim has left
					_, err = peer.Write(bytes.Repeat(c.again, 1+maxFrame/len(c.again)))
				}
				<-read
			}()
			defer func() {
				l.Close()
				<-done
			}()
			out, errs, exit := run("", "raw", "jira", "--socket", socket, "--timeout", "50ms")
			if out != "" || exit != api.ExitLater || !strings.Contains(errs, "(deadline)") {
				t.Errorf("%q, %q, %d", out, errs, exit)
			}
		})
	}
}

// FuzzFrames holds the reader of frames against another one.
func FuzzFrames(f *testing.F) {
	f.Add(cat(settings, headers, data, trailers), uint16(1))
	f.Add(frames(func(f *http2.Framer) { f.WriteRawFrame(0xbe, 0xff, 1<<31-1, make([]byte, maxFrame)) }), uint16(100))
	f.Add([]byte("\x00\x40\x01\x00\x00\x00\x00\x00\x00"), uint16(9))
	f.Add([]byte("\x00\x00\x00\x00\x00\xff\xff\xff\xff\x00"), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		own := &reader{from: &pieces{b, int(size)}}
		other := bytes.NewReader(b)
		for {
			got, err := own.frame()
			want, wantErr := http2.ReadFrameHeader(other)
			if wantErr == nil && want.Length > maxFrame {
				if !errors.As(err, new(malformedError)) {
					t.Errorf("%v: %v", want, err)
				}
				return
			}
			payload := make([]byte, want.Length)
			if wantErr == nil {
				_, wantErr = io.ReadFull(other, payload)
			}
			if wantErr != nil {
				if !errors.As(err, new(lostError)) {
					t.Errorf("cut short: %v", err)
				}
				return
			}
			if err != nil || got.kind != byte(want.Type) || got.flags != byte(want.Flags) || got.stream != want.StreamID || !bytes.Equal(got.payload, payload) {
				t.Fatalf("%+v, %v, want %v", got, err, want)
			}
		}
	})
}

// pieces is a reader that gives so many bytes at a time.
type pieces struct {
	rest []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), max(1, p.size))], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// FuzzDialogue lets a peer say anything, in pieces of any size: the size changes
// nothing, the acknowledgements are frames, and only what is safe to print becomes an
// answer.
func FuzzDialogue(f *testing.F) {
	message := marshal(f, aSession())
	whole := cat(settings, headers, dataFrame(append([]byte{0, 0, 0, byte(len(message) >> 8), byte(len(message))}, message...)), trailers)
	f.Add(whole, uint16(1))
	f.Add(whole, uint16(1<<15))
	f.Add(bytes.Replace(whole, []byte("CANARY-1"), []byte("CANARY\n1"), -1), uint16(7))
	f.Add(cat(settings, frames(func(f *http2.Framer) { f.WritePing(false, [8]byte{1}) }), whole[len(settings):]), uint16(11))
	f.Add(cat(settings, frames(func(f *http2.Framer) {
		f.WriteHeaders(endHeaders(block(":status", "200", "content-type", "application/grpc", "grpc-status", "9", "grpc-message", "%0a%1b", "grpc-status-details-bin", "CAk"), true))
	})), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		var acks bytes.Buffer
		a, err := receive(struct {
			io.Reader
			io.Writer
		}{&pieces{b, int(size)}, &acks})
		again, againErr := receive(pipe{bytes.NewReader(b)})
		if !bytes.Equal(a.message, again.message) || a.status != again.status || err != againErr {
			t.Errorf("in pieces of %d: %+v, %v; at once %+v, %v", size, a, err, again, againErr)
		}
		for said := (&reader{from: &acks}); ; {
			ack, ackErr := said.frame()
			if ackErr != nil {
				if said.at != len(said.buf) {
					t.Errorf("no frame was written: %v", ackErr)
				}
				break
			}
			if ack.flags != flagAck || ack.stream != 0 || ack.kind != frameSettings && ack.kind != framePing {
				t.Errorf("wrote %+v", ack)
			}
		}
		if err == nil {
			err = a.status.err()
		}
		if err != nil {
			text := (&caller{socket: "agent.sock"}).explain(err).Error()
			if hasControl(text) {
				t.Errorf("an error of %q", text)
			}
			return
		}
		s, err := decodeSession(a.message)
		if err != nil {
			return
		}
		if value, err := s.cookie(); err == nil && (value == "" || printable("Cookie", value) != nil) {
			t.Errorf("a cookie of %q", value)
		}
		if lines, err := s.lines(""); err == nil && strings.Count(lines, "\n") != len(s.headers) {
			t.Errorf("%d headers became %q", len(s.headers), lines)
		}
	})
}
