package shim

import (
	"errors"
	"io"
	"strconv"
)

// Frame types (RFC 9113, section 6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameRSTStream    = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9
)

// Frame flags.
const (
	flagAck        = 0x1 // SETTINGS, PING
	flagEndStream  = 0x1 // DATA, HEADERS
	flagEndHeaders = 0x4 // HEADERS, CONTINUATION
	flagPadded     = 0x8 // DATA, HEADERS
	flagPriority   = 0x20
)

// Settings (RFC 9113, section 6.5.2).
const (
	settingHeaderTableSize   = 0x1
	settingEnablePush        = 0x2
	settingInitialWindowSize = 0x4
)

const (
	frameHeader = 9
	// maxFrame is the default SETTINGS_MAX_FRAME_SIZE, in both directions.
	maxFrame = 1 << 14
	// defaultWindow is what a connection's flow control starts with.
	defaultWindow = 1<<16 - 1
	// window is what the shim lets the agent send, once and for all: more
	// than the largest answer with any reasonable padding, so that no credit
	// has to be given later.
	window = 2 * maxAnswer
	// maxAnswer bounds a gRPC message.
	maxAnswer = 4 << 20
	// maxHeaderBlock bounds HEADERS with its CONTINUATIONs.
	maxHeaderBlock = 64 << 10
	// callStream is the only stream: the first one a client may open.
	callStream = 1
)

// HTTP/2 error codes (RFC 9113, section 7) that mean something to a caller.
const (
	refusedStream = 0x7
	cancelStream  = 0x8
)

// malformedError is an answer that breaks the protocol. Asking again would not
// help.
type malformedError string

func (e malformedError) Error() string { return "malformed answer: " + string(e) }

// lostError is a connection that ended without an answer. Asking again may
// help: the agent is restarting.
type lostError string

func (e lostError) Error() string { return string(e) }

// answer is what came back for the call.
type answer struct {
	message []byte
	status  grpcStatus
}

// grpcStatus is how the call ended, from the trailers
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
type grpcStatus struct {
	code    int
	message string // percent-decoded
	details string // grpc-status-details-bin, still base64
}

// appendFrame appends one frame.
func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	b = appendUint32(b, stream)
	return append(b, payload...)
}

func appendUint32(b []byte, v uint32) []byte {
	return append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func uint32At(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// appendCall appends all that a client sends for a unary call: the connection
// preface, SETTINGS, the connection's window, HEADERS and DATA.
func appendCall(b []byte, header, message []byte) []byte {
	b = append(b, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"...)
	var settings []byte
	for _, s := range [...]struct {
		id    byte
		value uint32
	}{
		{settingHeaderTableSize, 0},
		{settingEnablePush, 0},
		{settingInitialWindowSize, window},
	} {
		settings = appendUint32(append(settings, 0, s.id), s.value)
	}
	b = appendFrame(b, frameSettings, 0, 0, settings)
	b = appendFrame(b, frameWindowUpdate, 0, 0, appendUint32(nil, window-defaultWindow))
	b = appendFrame(b, frameHeaders, flagEndHeaders, callStream, header)
	data := appendUint32([]byte{0}, uint32(len(message)))
	return appendFrame(b, frameData, flagEndStream, callStream, append(data, message...))
}

// reader reads the frames of one connection.
type reader struct {
	from io.Reader
	buf  []byte // read, not yet consumed: buf[at:]
	at   int
}

// next returns the next n bytes; they are valid until the following call.
func (r *reader) next(n int) ([]byte, error) {
	for len(r.buf)-r.at < n {
		if r.buf == nil {
			r.buf = make([]byte, 0, 2*(frameHeader+maxFrame))
		}
		if cap(r.buf)-r.at < n {
			r.buf = r.buf[:copy(r.buf, r.buf[r.at:])]
			r.at = 0
		}
		m, err := r.from.Read(r.buf[len(r.buf):cap(r.buf)])
		r.buf = r.buf[:len(r.buf)+m]
		if err != nil && m == 0 {
			if errors.Is(err, io.EOF) {
				return nil, lostError("the agent closed the connection")
			}
			return nil, err
		}
	}
	r.at += n
	return r.buf[r.at-n : r.at : r.at], nil
}

type frame struct {
	kind, flags byte
	stream      uint32
	payload     []byte
}

func (r *reader) frame() (frame, error) {
	h, err := r.next(frameHeader)
	if err != nil {
		return frame{}, err
	}
	n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	f := frame{kind: h[3], flags: h[4], stream: uint32At(h[5:]) &^ (1 << 31)}
	if n > maxFrame {
		return f, malformedError("a frame of " + strconv.Itoa(n) + " bytes")
	}
	f.payload, err = r.next(n)
	return f, err
}

// unpad strips the padding of a DATA or HEADERS frame (RFC 9113, section 6.1).
func (f *frame) unpad() error {
	if f.flags&flagPadded == 0 {
		return nil
	}
	if len(f.payload) == 0 || int(f.payload[0]) >= len(f.payload) {
		return malformedError("padding longer than its frame")
	}
	f.payload = f.payload[1 : len(f.payload)-int(f.payload[0])]
	return nil
}

// receive reads the answer to the call. It acknowledges what must be
// acknowledged on the way; a connection that takes no acknowledgement may
// still hold the answer, so only reading decides.
func receive(conn io.ReadWriter) (answer, error) {
	r := &reader{from: conn}
	var a answer
	var headers, ended bool
	var body []byte
	received := 0
	for first := true; !ended; first = false {
		f, err := r.frame()
		if err != nil {
			return a, err
		}
		if first && (f.kind != frameSettings || f.flags&flagAck != 0) {
			return a, malformedError("no HTTP/2 server")
		}
		switch f.kind {
		case frameSettings:
			switch {
			case f.stream != 0 || len(f.payload)%6 != 0:
				return a, malformedError("a bad SETTINGS frame")
			case f.flags&flagAck == 0:
				conn.Write(appendFrame(nil, frameSettings, flagAck, 0, nil))
			}
		case framePing:
			switch {
			case f.stream != 0 || len(f.payload) != 8:
				return a, malformedError("a bad PING frame")
			case f.flags&flagAck == 0:
				conn.Write(appendFrame(nil, framePing, flagAck, 0, f.payload))
			}
		case frameWindowUpdate:
			if len(f.payload) != 4 {
				return a, malformedError("a bad WINDOW_UPDATE frame")
			}
		case frameGoAway:
			if f.stream != 0 || len(f.payload) < 8 {
				return a, malformedError("a bad GOAWAY frame")
			}
			// A call below the last stream is still answered.
			if last := uint32At(f.payload) &^ (1 << 31); last < callStream {
				return a, lostError("the agent is going away")
			}
		case frameRSTStream:
			if f.stream != callStream || len(f.payload) != 4 {
				return a, malformedError("a bad RST_STREAM frame")
			}
			switch code := uint32At(f.payload); code {
			case refusedStream:
				return a, lostError("the agent refused the call")
			case cancelStream:
				// What a server does when the call's time is over.
				a.status.code = grpcDeadlineExceeded
				return a, nil
			default:
				return a, malformedError("the call was reset, HTTP/2 error " + strconv.Itoa(int(code)))
			}
		case frameHeaders:
			block, err := r.headerBlock(f)
			if err != nil {
				return a, err
			}
			ended = f.flags&flagEndStream != 0
			if headers && !ended {
				return a, malformedError("HEADERS in the middle of the answer")
			}
			if err := a.status.read(block, !headers, ended); err != nil {
				return a, err
			}
			headers = true
		case frameData:
			if f.stream != callStream || !headers {
				return a, malformedError("DATA out of place")
			}
			if received += len(f.payload); received > window {
				return a, malformedError("more DATA than the window allows")
			}
			if err := f.unpad(); err != nil {
				return a, err
			}
			if len(body)+len(f.payload) > 5+maxAnswer {
				return a, malformedError("an answer longer than " + strconv.Itoa(maxAnswer) + " bytes")
			}
			body = append(body, f.payload...)
			if f.flags&flagEndStream != 0 {
				return a, malformedError("no trailers")
			}
		case frameContinuation, framePushPromise:
			return a, malformedError("frame type " + strconv.Itoa(int(f.kind)) + " out of place")
		case framePriority:
		default:
			// Unknown types are ignored (RFC 9113, section 4.1).
		}
	}
	if a.status.code != 0 {
		return a, nil
	}
	if len(body) < 5 || body[0] != 0 || uint64(uint32At(body[1:])) != uint64(len(body)-5) {
		return a, malformedError("not one uncompressed gRPC message")
	}
	a.message = body[5:]
	return a, nil
}

// headerBlock returns the header block that starts with f, joined with its
// CONTINUATION frames.
func (r *reader) headerBlock(f frame) ([]byte, error) {
	if f.stream != callStream {
		return nil, malformedError("HEADERS of another stream")
	}
	if err := f.unpad(); err != nil {
		return nil, err
	}
	if f.flags&flagPriority != 0 {
		if len(f.payload) < 5 {
			return nil, malformedError("a bad HEADERS frame")
		}
		f.payload = f.payload[5:]
	}
	block := append([]byte(nil), f.payload...)
	for f.flags&flagEndHeaders == 0 {
		var err error
		if f, err = r.frame(); err != nil {
			return nil, err
		}
		if f.kind != frameContinuation || f.stream != callStream {
			return nil, malformedError("a header block that is not continued")
		}
		if block = append(block, f.payload...); len(block) > maxHeaderBlock {
			return nil, malformedError("a header block longer than " + strconv.Itoa(maxHeaderBlock) + " bytes")
		}
	}
	return block, nil
}

// read takes in a header block: the response headers if first, the trailers
// if last, both at once in an answer without a message.
func (s *grpcStatus) read(block []byte, first, last bool) error {
	var http, content, code string
	err := decodeHeaders(block, func(name, value string) {
		switch name {
		case ":status":
			http = value
		case "content-type":
			content = value
		case "grpc-status":
			code = value
		case "grpc-message":
			s.message = percentDecode(value)
		case "grpc-status-details-bin":
			s.details = value
		}
	})
	if err != nil {
		return err
	}
	if first && (http != "200" || !isGRPC(content)) {
		return malformedError("not gRPC: HTTP status " + strconv.Quote(http) + ", content type " + strconv.Quote(content))
	}
	if last {
		n, err := strconv.ParseUint(code, 10, 16)
		if err != nil {
			return malformedError("no grpc-status")
		}
		s.code = int(n)
	}
	return nil
}

func isGRPC(content string) bool {
	const grpc = "application/grpc"
	return len(content) >= len(grpc) && content[:len(grpc)] == grpc &&
		(len(content) == len(grpc) || content[len(grpc)] == '+' || content[len(grpc)] == ';')
}

// percentDecode decodes grpc-message. What is no escape stays as it is.
func percentDecode(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(n))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}
