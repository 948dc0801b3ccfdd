package shim

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sessionctl/sessionctl/api"
)

// block encodes a header block as another implementation does, with Huffman
// where that is shorter.
func block(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	e.SetMaxDynamicTableSize(0) // which begins the block with a size update
	for i := 0; i < len(fields); i += 2 {
		if err := e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// frames returns what write writes.
func frames(write func(f *http2.Framer)) []byte {
	var b bytes.Buffer
	f := http2.NewFramer(&b, nil)
	f.AllowIllegalWrites = true
	write(f)
	return b.Bytes()
}

var (
	settings = frames(func(f *http2.Framer) {
		f.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 16384})
	})
	headers  = frames(func(f *http2.Framer) { f.WriteHeaders(endHeaders(responseBlock, false)) })
	trailers = frames(func(f *http2.Framer) { f.WriteHeaders(endHeaders(trailerBlock, true)) })

	responseBlock = block(":status", "200", "content-type", "application/grpc")
	trailerBlock  = block("grpc-status", "0", "grpc-message", "")
	theMessage    = []byte("CANARY-message")
	theData       = append([]byte{0, 0, 0, 0, byte(len(theMessage))}, theMessage...)
	data          = dataFrame(theData)
)

func endHeaders(block []byte, end bool) http2.HeadersFrameParam {
	return http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndStream: end, EndHeaders: true}
}

func dataFrame(b []byte) []byte {
	return frames(func(f *http2.Framer) { f.WriteData(1, false, b) })
}

func cat(parts ...[]byte) []byte { return slices.Concat(parts...) }

// exchange lets the shim call a server that sends answer, in pieces of size
// bytes, and then keeps the connection open.
func exchange(t *testing.T, answer []byte, size int) ([]byte, error) {
	t.Helper()
	socket := socketPath(t)
	l := listen(t, socket)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for b := range slices.Chunk(answer, size) {
			if _, err := c.Write(b); err != nil {
				return // the client has seen enough
			}
		}
		io.Copy(io.Discard, c)
	}()
	defer func() {
		l.Close()
		<-done
	}()
	c := &caller{socket: socket, deadline: time.Now().Add(time.Minute), now: time.Now, sleep: func(time.Duration) {}}
	return c.attempt(methodGetSession, nil)
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer []byte
	}{
		{"plain", cat(settings, headers, data, trailers)},
		{"acknowledged settings, ping, window updates", cat(settings,
			frames(func(f *http2.Framer) {
				f.WriteSettingsAck()
				f.WriteWindowUpdate(0, 1000)
				f.WritePing(false, [8]byte{1})
				f.WritePing(true, [8]byte{1})
			}), headers, frames(func(f *http2.Framer) { f.WriteWindowUpdate(1, 1000) }), data, trailers)},
		{"unknown frame types", cat(settings, frames(func(f *http2.Framer) {
			f.WriteRawFrame(0xbe, 0xff, 1, []byte("greased"))
			f.WritePriority(1, http2.PriorityParam{StreamDep: 3})
		}), headers, data, frames(func(f *http2.Framer) { f.WriteRawFrame(0x0a, 0, 0, nil) }), trailers)},
		{"padding and priority", cat(settings, frames(func(f *http2.Framer) {
			h := endHeaders(responseBlock, false)
			h.PadLength, h.Priority = 7, http2.PriorityParam{StreamDep: 3, Weight: 9}
			f.WriteHeaders(h)
			f.WriteDataPadded(1, false, theData[:4], make([]byte, 255))
			f.WriteDataPadded(1, false, nil, make([]byte, 3))
			f.WriteDataPadded(1, false, theData[4:], nil)
		}), trailers)},
		{"CONTINUATION", cat(settings, frames(func(f *http2.Framer) {
			h := endHeaders(responseBlock[:1], false)
			h.EndHeaders = false
			f.WriteHeaders(h)
			f.WriteContinuation(1, false, responseBlock[1:3])
			f.WriteContinuation(1, false, nil)
			f.WriteContinuation(1, true, responseBlock[3:])
		}), data, trailers)},
		{"GOAWAY that lets the call end", cat(settings, frames(func(f *http2.Framer) {
			f.WriteGoAway(1<<31-1, http2.ErrCodeNo, []byte("graceful_stop"))
		}), headers, data, frames(func(f *http2.Framer) { f.WriteGoAway(1, http2.ErrCodeNo, nil) }), trailers)},
		{"message in many frames", cat(settings, headers, dataFrame(theData[:2]), dataFrame(nil), dataFrame(theData[2:7]), dataFrame(theData[7:]), trailers)},
		{"fields with incremental indexing, never indexed, indexed names", cat(settings, frames(func(f *http2.Framer) {
			f.WriteHeaders(endHeaders([]byte("\x20\x88\x5f\x10application/grpc\x40\x01a\x01b\x10\x01c\x01d"), false))
		}), data, trailers)},
		{"content type with a subtype", cat(settings, frames(func(f *http2.Framer) {
			f.WriteHeaders(endHeaders(block(":status", "200", "content-type", "application/grpc+proto"), false))
		}), data, trailers)},
	} {
		for _, size := range []int{1, 7, 1 << 20} {
			message, err := exchange(t, c.answer, size)
			if err != nil || !bytes.Equal(message, theMessage) {
				t.Errorf("%s, %d bytes at a time: %q, %v", c.name, size, message, err)
			}
		}
	}
}

func TestTrailersOnly(t *testing.T) {
	details := "CgIIBQ" // no ErrorInfo
	_, err := exchange(t, cat(settings, frames(func(f *http2.Framer) {
		f.WriteHeaders(endHeaders(block(":status", "200", "content-type", "application/grpc", "grpc-status", "12",
			"grpc-message", "no %zz m%C3%A9thod%", "grpc-status-details-bin", details), true))
	})), 1<<20)
	if api.CodeOf(err) != api.Unknown || !strings.Contains(err.Error(), "gRPC status 12: no %zz méthod%") {
		t.Errorf("%v", err)
	}
}

// Whatever breaks the protocol is an error at once, with the connection still
// open: nothing waits for a deadline.
func TestMalformed(t *testing.T) {
	raw := func(kind http2.FrameType, flags http2.Flags, stream uint32, payload []byte) []byte {
		return frames(func(f *http2.Framer) { f.WriteRawFrame(kind, flags, stream, payload) })
	}
	head := func(fields ...string) []byte {
		return frames(func(f *http2.Framer) { f.WriteHeaders(endHeaders(block(fields...), false)) })
	}
	end := func(fields ...string) []byte {
		return frames(func(f *http2.Framer) { f.WriteHeaders(endHeaders(block(fields...), true)) })
	}
	long := make([]byte, maxFrame)
	var flood []byte
	for range maxHeaderBlock/maxFrame + 1 {
		flood = cat(flood, raw(http2.FrameContinuation, 0, 1, long))
	}
	// Frames of nothing but padding: no message grows, but the window is used.
	nothing := raw(http2.FrameData, http2.FlagDataPadded, 1, append([]byte{255}, long[:255]...))
	padding := bytes.Repeat(nothing, window/256+1)
	for _, c := range []struct {
		name   string
		answer []byte
	}{
		{"HTTP/1", []byte("HTTP/1.1 400 Bad Request\r\n\r\n")},
		{"no SETTINGS first", cat(headers, data, trailers)},
		{"SETTINGS of an odd length", raw(http2.FrameSettings, 0, 0, []byte("12345"))},
		{"SETTINGS of a stream", raw(http2.FrameSettings, 0, 1, nil)},
		{"a frame too long", cat(settings, raw(0xbe, 0, 0, append(long, 0)))},
		{"PING of 7 bytes", cat(settings, raw(http2.FramePing, 0, 0, long[:7]))},
		{"PING of a stream", cat(settings, raw(http2.FramePing, 0, 1, long[:8]))},
		{"WINDOW_UPDATE of 3 bytes", cat(settings, raw(http2.FrameWindowUpdate, 0, 0, long[:3]))},
		{"GOAWAY of 7 bytes", cat(settings, raw(http2.FrameGoAway, 0, 0, long[:7]))},
		{"RST_STREAM of 3 bytes", cat(settings, raw(http2.FrameRSTStream, 0, 1, long[:3]))},
		{"RST_STREAM of another stream", cat(settings, raw(http2.FrameRSTStream, 0, 3, long[:4]))},
		{"RST_STREAM, internal error", cat(settings, raw(http2.FrameRSTStream, 0, 1, []byte{0, 0, 0, 2}))},
		{"PUSH_PROMISE", cat(settings, raw(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, []byte{0, 0, 0, 2}))},
		{"HEADERS of another stream", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 3, responseBlock))},
		{"HEADERS padded to nothing", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersPadded, 1, nil))},
		{"HEADERS with half a priority", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersPriority, 1, long[:4]))},
		{"HEADERS with more padding than frame", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersPadded, 1, []byte{3, 0, 0}))},
		{"HEADERS three times", cat(settings, headers, headers)},
		{"a header block interrupted", cat(settings, raw(http2.FrameHeaders, 0, 1, responseBlock), settings)},
		{"a header block continued elsewhere", cat(settings, raw(http2.FrameHeaders, 0, 1, nil), raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 3, responseBlock))},
		{"a header block without end", cat(settings, raw(http2.FrameHeaders, 0, 1, nil), flood)},
		{"CONTINUATION of nothing", cat(settings, raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, responseBlock))},
		{"a header table size", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, append([]byte{0x21}, responseBlock...)))},
		{"an index beyond the static table", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x80 | 62}))},
		{"index 0", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x80}))},
		{"a huge index", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, append([]byte{0xff}, bytes.Repeat([]byte{0xff}, 20)...)))},
		{"a string longer than the block", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x07}))},
		{"a header cut short", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0, 1, 'a'}))},
		{"Huffman padding of a byte", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0, 0x81, 0xff, 0}))},
		{"Huffman padding of zeroes", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0, 0x81, 0x18, 0}))},
		{"Huffman EOS", cat(settings, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0, 0x84, 0xff, 0xff, 0xff, 0xff, 0}))},
		{"HTTP status 404", cat(settings, head(":status", "404", "content-type", "application/grpc"))},
		{"not gRPC", cat(settings, head(":status", "200", "content-type", "application/grpcish"))},
		{"no grpc-status", cat(settings, headers, data, end("grpc-message", "x"))},
		{"a grpc-status that is none", cat(settings, headers, data, end("grpc-status", "-1"))},
		{"no message", cat(settings, headers, trailers)},
		{"half a message", cat(settings, headers, dataFrame(theData[:8]), trailers)},
		{"two messages", cat(settings, headers, data, data, trailers)},
		{"a compressed message", cat(settings, headers, dataFrame(append([]byte{1}, theData[1:]...)), trailers)},
		{"DATA first", cat(settings, data)},
		{"DATA of another stream", cat(settings, headers, raw(http2.FrameData, 0, 3, theData))},
		{"DATA with more padding than frame", cat(settings, headers, raw(http2.FrameData, http2.FlagDataPadded, 1, []byte{2, 0}))},
		{"DATA at the end", cat(settings, headers, raw(http2.FrameData, http2.FlagDataEndStream, 1, theData))},
		{"too much DATA", cat(settings, headers, bytes.Repeat(dataFrame(long), maxAnswer/maxFrame+1))},
		{"too much padding", cat(settings, headers, padding)},
	} {
		_, err := exchange(t, c.answer, 1<<20)
		if !errors.As(err, new(malformedError)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// What shows that the call was not served is tried again.
func TestLost(t *testing.T) {
	for name, answer := range map[string][]byte{
		"GOAWAY":         cat(settings, frames(func(f *http2.Framer) { f.WriteGoAway(0, http2.ErrCodeNo, nil) })),
		"REFUSED_STREAM": cat(settings, frames(func(f *http2.Framer) { f.WriteRSTStream(1, http2.ErrCodeRefusedStream) })),
	} {
		if _, err := exchange(t, answer, 1<<20); !errors.As(err, new(lostError)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := exchange(t, cat(settings, frames(func(f *http2.Framer) { f.WriteRSTStream(1, http2.ErrCodeCancel) })), 1<<20); api.CodeOf(err) != api.Deadline {
		t.Errorf("CANCEL: %v", err)
	}
	whole := cat(settings, headers, data, trailers)
	for n := range whole {
		if _, err := receive(pipe{bytes.NewReader(whole[:n])}); !errors.As(err, new(lostError)) {
			t.Errorf("closed after %d bytes: %v", n, err)
		}
	}
}

// pipe is a connection that takes everything.
type pipe struct{ io.Reader }

func (pipe) Write(p []byte) (int, error) { return len(p), nil }

// A server that accepts nothing, or says nothing, is not waited for longer
// than allowed.
func TestSilence(t *testing.T) {
	socket := socketPath(t)
	l := listen(t, socket)
	defer l.Close()
	out, errs, exit := run("", "raw", "jira", "--socket", socket, "--timeout", "30ms")
	if out != "" || exit != api.ExitLater || !strings.Contains(errs, "(deadline)") {
		t.Errorf("%q, %q, %d", out, errs, exit)
	}
}

// A server that closes every connection at once is an agent that is not there.
func TestImmediateClose(t *testing.T) {
	socket := socketPath(t)
	l := listen(t, socket)
	done := make(chan int)
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				done <- n
				return
			}
			c.Close()
		}
	}()
	var clock clock
	_, err := callerAt(socket, time.Minute, &clock).call(methodGetSession, nil)
	l.Close()
	if n := <-done; api.CodeOf(err) != api.NoAgent || n != len(clock.pauses)+1 || n < 10 {
		t.Errorf("%v after %d connections, %d pauses", err, n, len(clock.pauses))
	}
}

// What the shim sends, as another implementation reads it.
func TestRequest(t *testing.T) {
	socket := socketPath(t)
	l := listen(t, socket)
	type request struct {
		settings []http2.Setting
		window   uint32
		headers  []hpack.HeaderField
		data     []byte
		acks     []http2.FrameType
		err      error
	}
	got := make(chan request)
	go func() {
		var r request
		defer func() { got <- r }()
		c, err := l.Accept()
		if err != nil {
			r.err = err
			return
		}
		defer c.Close()
		preface := make([]byte, len(http2.ClientPreface))
		if _, r.err = io.ReadFull(c, preface); r.err != nil || string(preface) != http2.ClientPreface {
			return
		}
		f := http2.NewFramer(c, c)
		f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		for r.err == nil {
			var fr http2.Frame
			if fr, r.err = f.ReadFrame(); r.err != nil {
				return
			}
			switch fr := fr.(type) {
			case *http2.SettingsFrame:
				if fr.IsAck() {
					r.acks = append(r.acks, fr.Type)
				} else {
					fr.ForeachSetting(func(s http2.Setting) error { r.settings = append(r.settings, s); return nil })
				}
			case *http2.WindowUpdateFrame:
				r.window = fr.Increment
			case *http2.MetaHeadersFrame:
				r.headers = fr.Fields
			case *http2.DataFrame:
				r.data = append(r.data, fr.Data()...)
				if fr.StreamEnded() {
					f.WriteSettings()
					f.WritePing(false, [8]byte{1, 2, 3, 4, 5, 6, 7, 8})
				}
			case *http2.PingFrame:
				if fr.IsAck() && fr.Data == [8]byte{1, 2, 3, 4, 5, 6, 7, 8} {
					r.acks = append(r.acks, fr.Type)
					c.Write(cat(headers, data, trailers))
					return
				}
			}
		}
	}()
	c := &caller{socket: socket, deadline: time.Now().Add(time.Minute), now: time.Now, sleep: func(time.Duration) {}}
	message, err := c.attempt("/a.B/C", []byte("CANARY-request"))
	l.Close()
	r := <-got
	if err != nil || r.err != nil || !bytes.Equal(message, theMessage) {
		t.Fatalf("%q, %v, %v", message, err, r.err)
	}
	if want := []http2.Setting{{ID: http2.SettingHeaderTableSize}, {ID: http2.SettingEnablePush}, {ID: http2.SettingInitialWindowSize, Val: window}}; !slices.Equal(r.settings, want) {
		t.Errorf("settings %v", r.settings)
	}
	if r.window+defaultWindow != window || string(r.data) != "\x00\x00\x00\x00\x0eCANARY-request" || !slices.Equal(r.acks, []http2.FrameType{http2.FrameSettings, http2.FramePing}) {
		t.Errorf("window %d, data %q, acknowledged %v", r.window, r.data, r.acks)
	}
	want := map[string]string{":method": "POST", ":scheme": "http", ":path": "/a.B/C", ":authority": "localhost",
		"content-type": "application/grpc", "te": "trailers", "user-agent": "sessionctl/" + api.Version}
	for _, h := range r.headers {
		if h.Name == "grpc-timeout" {
			continue
		}
		if want[h.Name] != h.Value {
			t.Errorf("%s: %s", h.Name, h.Value)
		}
		delete(want, h.Name)
	}
	if len(want) != 0 {
		t.Errorf("not sent: %v", want)
	}
}

func TestLongRequest(t *testing.T) {
	socket := socketPath(t)
	l := listen(t, socket)
	defer l.Close()
	_, err := callerAt(socket, time.Minute, new(clock)).call(methodGetSession, make([]byte, maxFrame))
	if api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("%v", err)
	}
	if len(getSession{url: strings.Repeat("u", maxURL)}.encode()) > maxFrame-5 {
		t.Error("the longest URL does not fit")
	}
}

func FuzzReceive(f *testing.F) {
	f.Add(cat(settings, headers, data, trailers))
	f.Add(cat(settings, frames(func(f *http2.Framer) { f.WriteGoAway(0, http2.ErrCodeNo, nil) })))
	f.Add(cat(settings, frames(func(f *http2.Framer) {
		f.WriteHeaders(endHeaders(block(":status", "200", "content-type", "application/grpc", "grpc-status", "5", "grpc-status-details-bin", "AAAA"), true))
	})))
	f.Add(cat(settings, frames(func(f *http2.Framer) { f.WriteDataPadded(1, false, theData, make([]byte, 9)) })))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := receive(pipe{bytes.NewReader(b)})
		if err == nil && a.status.code == 0 && a.message == nil {
			t.Error("neither a message nor an error")
		}
		if err != nil && !errors.As(err, new(malformedError)) && !errors.As(err, new(lostError)) {
			t.Errorf("an error of no kind: %v", err)
		}
		a.status.err()
	})
}
