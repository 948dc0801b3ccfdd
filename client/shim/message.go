package shim

import (
	"encoding/base64"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// The messages of proto/sessionctl/v1/session.proto that the shim needs, with
// the fields it needs. Unknown fields are skipped.

// getSession is a GetSessionRequest.
type getSession struct {
	site, url   string
	minValidity time.Duration
	cachedOnly  bool
}

func (r getSession) encode() []byte {
	b := appendStringField(nil, 1, r.site)
	b = appendStringField(b, 2, r.url)
	if r.minValidity > 0 {
		d := appendVarintField(nil, 1, uint64(r.minValidity/time.Second))
		d = appendVarintField(d, 2, uint64(r.minValidity%time.Second))
		b = appendStringField(b, 4, string(d))
	}
	if r.cachedOnly {
		b = appendVarintField(b, 5, 1)
	}
	return b
}

// refreshSession is a RefreshSessionRequest. force stays false: the agent
// probes before it believes.
type refreshSession struct{ url, generation string }

func (r refreshSession) encode() []byte {
	return appendStringField(appendStringField(nil, 2, r.url), 3, r.generation)
}

// session is a Session.
type session struct {
	site, user        string
	generation, url   string
	headers           []sessionHeader
	expires           time.Time // zero: unknown
	stale, notDurable bool
}

type header struct{ name, value string }

// sessionHeader is a header of the requests to come.
type sessionHeader struct {
	header
	secret bool
}

// decodeSession decodes a GetSessionResponse.
func decodeSession(b []byte) (*session, error) {
	s := new(session)
	err := eachField(b, func(f protoField) error {
		if f.number != 1 || f.kind != protoBytes {
			return nil
		}
		return eachField(f.bytes, s.field)
	})
	return s, err
}

func (s *session) field(f protoField) error {
	switch {
	case f.kind == protoBytes && f.number == 1:
		s.site = string(f.bytes)
	case f.kind == protoBytes && f.number == 2:
		s.user = string(f.bytes)
	case f.kind == protoBytes && f.number == 3:
		s.generation = string(f.bytes)
	case f.kind == protoBytes && f.number == 4:
		s.url = string(f.bytes)
	case f.kind == protoBytes && f.number == 5:
		var h sessionHeader
		err := eachField(f.bytes, func(f protoField) error {
			switch {
			case f.kind == protoBytes && f.number == 1:
				h.name = string(f.bytes)
			case f.kind == protoBytes && f.number == 2:
				h.value = string(f.bytes)
			case f.kind == protoVarint && f.number == 3:
				h.secret = f.varint != 0
			}
			return nil
		})
		s.headers = append(s.headers, h)
		return err
	case f.kind == protoBytes && f.number == 9: // google.protobuf.Timestamp
		var seconds, nanos uint64
		err := eachField(f.bytes, func(f protoField) error {
			switch {
			case f.kind == protoVarint && f.number == 1:
				seconds = f.varint
			case f.kind == protoVarint && f.number == 2:
				nanos = f.varint
			}
			return nil
		})
		s.expires = time.Unix(int64(seconds), int64(nanos))
		return err
	case f.kind == protoVarint && f.number == 10:
		s.stale = f.varint != 0
	case f.kind == protoVarint && f.number == 11:
		s.notDurable = f.varint != 0
	}
	return nil
}

// errorInfo is a google.rpc.ErrorInfo.
type errorInfo struct{ reason, domain, remedy string }

// decodeErrorInfo finds the agent's ErrorInfo in the value of
// grpc-status-details-bin: base64, with or without padding, of a
// google.rpc.Status. nil if there is none.
func decodeErrorInfo(details string) *errorInfo {
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(details, "="))
	if err != nil {
		return nil
	}
	var found *errorInfo
	err = eachField(raw, func(f protoField) error {
		if f.number != 3 || f.kind != protoBytes { // repeated google.protobuf.Any details
			return nil
		}
		var url string
		var value []byte
		err := eachField(f.bytes, func(f protoField) error {
			switch {
			case f.kind == protoBytes && f.number == 1:
				url = string(f.bytes)
			case f.kind == protoBytes && f.number == 2:
				value = f.bytes
			}
			return nil
		})
		if err != nil || !strings.HasSuffix(url, "/google.rpc.ErrorInfo") {
			return err
		}
		var info errorInfo
		if err := eachField(value, info.field); err != nil {
			return err
		}
		if found == nil && info.domain == api.ErrorDomain {
			found = &info
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return found
}

func (e *errorInfo) field(f protoField) error {
	if f.kind != protoBytes {
		return nil
	}
	switch f.number {
	case 1:
		e.reason = string(f.bytes)
	case 2:
		e.domain = string(f.bytes)
	case 3: // map<string, string> metadata
		var key, value string
		err := eachField(f.bytes, func(f protoField) error {
			switch {
			case f.kind == protoBytes && f.number == 1:
				key = string(f.bytes)
			case f.kind == protoBytes && f.number == 2:
				value = string(f.bytes)
			}
			return nil
		})
		if key == "remedy" {
			e.remedy = value
		}
		return err
	}
	return nil
}

// Wire types (https://protobuf.dev/programming-guides/encoding/).
const (
	protoVarint = 0
	proto64     = 1
	protoBytes  = 2
	proto32     = 5
)

type protoField struct {
	number uint64
	kind   byte
	varint uint64
	bytes  []byte
}

const errMessage = malformedError("a bad protobuf message")

// eachField calls visit for each field of a message.
func eachField(b []byte, visit func(protoField) error) error {
	for len(b) > 0 {
		tag, n := varint(b)
		if n == 0 || tag>>3 == 0 || tag>>3 > 1<<29-1 {
			return errMessage
		}
		b = b[n:]
		f := protoField{number: tag >> 3, kind: byte(tag & 7)}
		size := uint64(0)
		switch f.kind {
		case protoVarint:
			if f.varint, n = varint(b); n == 0 {
				return errMessage
			}
			b = b[n:]
		case protoBytes:
			if size, n = varint(b); n == 0 {
				return errMessage
			}
			b = b[n:]
		case proto64:
			size = 8
		case proto32:
			size = 4
		default: // groups; none of the agent's messages has any
			return errMessage
		}
		if size > uint64(len(b)) {
			return errMessage
		}
		f.bytes, b = b[:size], b[size:]
		if err := visit(f); err != nil {
			return err
		}
	}
	return nil
}

// varint reads a varint and returns how many bytes it took, 0 if it is bad.
func varint(b []byte) (v uint64, n int) {
	for i, c := range b[:min(len(b), 10)] {
		if i == 9 && c > 1 {
			return 0, 0
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}

func appendVarint(b []byte, v uint64) []byte {
	for ; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

// appendVarintField appends a number; 0 is what an absent field means.
func appendVarintField(b []byte, number byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return appendVarint(append(b, number<<3|protoVarint), v)
}

// appendStringField appends a string; "" is what an absent field means.
func appendStringField(b []byte, number byte, s string) []byte {
	if s == "" {
		return b
	}
	return append(appendVarint(append(b, number<<3|protoBytes), uint64(len(s))), s...)
}
