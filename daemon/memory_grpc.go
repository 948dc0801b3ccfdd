package daemon

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/store"
)

// quiet is for how long no secret was served when memory is collected.
const quiet = 200 * time.Millisecond

// bufferSize is what gRPC reads and writes at once, in bytes, and so also what a
// connection may keep of its last messages. Without a buffer it would keep none, and
// answer a third slower.
const bufferSize = 4 << 10

// clearing is a pool that keeps nothing of what was in its buffers.
type clearing struct{ mem.BufferPool }

// Get implements mem.BufferPool. The buffers are so large that gRPC returns each: the
// small ones it leaves to the garbage collector as they are.
func (p clearing) Get(length int) *[]byte {
	size := length
	for mem.IsBelowBufferPoolingThreshold(size) {
		size = 2*size + 1
	}
	b := p.BufferPool.Get(size)
	*b = (*b)[:length]
	return b
}

// Put implements mem.BufferPool.
func (p clearing) Put(b *[]byte) {
	clear((*b)[:cap(*b)])
	p.BufferPool.Put(b)
}

// codec is gRPC's own for protocol buffers, that leaves few copies of the secrets in
// answers: it marshals into cleared buffers, clears the answer, and has the garbage of
// the calls collected when these are over.
type codec struct {
	encoding.CodecV2
	pool  mem.BufferPool
	quiet *time.Timer
}

func newCodec() codec {
	timer := time.AfterFunc(quiet, func() {
		runtime.GC()         // moves what is in pools aside
		debug.FreeOSMemory() // collects it, and the kernel forgets what is free then
	})
	timer.Stop()
	return codec{encoding.GetCodecV2(encodingproto.Name), clearing{mem.DefaultBufferPool()}, timer}
}

// options make a server use the codec, and its pool for all that comes and goes.
func (c codec) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(c), experimental.BufferPool(c.pool), grpc.WriteBufferSize(bufferSize), grpc.ReadBufferSize(bufferSize),
	}
}

func (c codec) stop() { c.quiet.Stop() }

// Marshal implements encoding.CodecV2. The secrets in an answer are gone after it, so
// they have to be the answer's own.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("a %T is no message", v)
	}
	buf := c.pool.Get(proto.Size(m))
	var b []byte
	var err error
	secret.Do(func() {
		b, err = proto.MarshalOptions{UseCachedSize: true}.MarshalAppend((*buf)[:0], m)
		if c.clear(m) {
			c.quiet.Reset(quiet)
		}
	})
	if err != nil {
		c.pool.Put(buf)
		return nil, err
	}
	*buf = b
	return mem.BufferSlice{mem.NewBuffer(buf, c.pool)}, nil
}

// clear clears the secrets in an answer, and says whether it can hold any.
func (codec) clear(m proto.Message) bool {
	switch m := m.(type) {
	case interface{ GetSession() *pb.Session }:
		for _, c := range m.GetSession().GetCookies() {
			clear(c.GetName())
			clear(c.GetValue())
		}
		for _, h := range m.GetSession().GetHeaders() {
			clear(h.GetValue())
		}
		return true
	case *pb.ExportCacheResponse:
		clear(m.GetCache())
		return true
	case *pb.DeleteSessionResponse: // what it held is garbage now
		return true
	}
	return false
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("a %T is no message", v)
	}
	b := data.MaterializeToBuffer(c.pool)
	defer b.Free()
	return proto.Unmarshal(b.ReadOnlyData(), m)
}

// private is a bucket whose opened records leave no copies behind, where the build can
// erase them.
type private struct{ *store.Bucket }

// Load implements keeper.Records and krb.Records.
func (p private) Load(name string) (record []byte, revision uint64, err error) {
	secret.Do(func() { record, revision, err = p.Bucket.Load(name) })
	return record, revision, err
}
