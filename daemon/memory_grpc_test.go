package daemon

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// fill fills every field of bytes in a message, and returns what it has put there.
func fill(m protoreflect.Message) (filled [][]byte) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.Kind() == protoreflect.BytesKind && !f.IsList():
			b := []byte("CANARY-field")
			m.Set(f, protoreflect.ValueOfBytes(b))
			filled = append(filled, b)
		case f.Kind() == protoreflect.MessageKind && f.IsList():
			filled = append(filled, fill(m.Mutable(f).List().AppendMutable().Message())...)
		case f.Kind() == protoreflect.MessageKind && !f.IsMap():
			filled = append(filled, fill(m.Mutable(f).Message())...)
		}
	}
	return filled
}

// TestCodec: every answer arrives whole, and no secret of it stays where it was; a
// buffer that was given back is empty.
func TestCodec(t *testing.T) {
	c := newCodec()
	defer c.stop()
	secrets := 0
	for _, file := range []protoreflect.FileDescriptor{pb.File_sessionctl_v1_session_proto, pb.File_sessionctl_v1_ticket_proto, pb.File_sessionctl_v1_agent_proto} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				answer, err := protoregistry.GlobalTypes.FindMessageByName(methods.Get(j).Output().FullName())
				if err != nil {
					t.Fatal(err)
				}
				m := answer.New().Interface()
				filled := fill(m.ProtoReflect())
				want := proto.Clone(m)
				data, err := c.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				got := answer.New().Interface()
				if err := c.Unmarshal(data, got); err != nil || !proto.Equal(got, want) {
					t.Errorf("%s: %v", methods.Get(j).FullName(), err)
				}
				secrets += len(filled)
				if bytes.Contains(bytes.Join(filled, nil), []byte("CANARY")) {
					t.Errorf("%s: a secret is left in its answer", methods.Get(j).FullName())
				}
				buf := data[0].ReadOnlyData()
				if data.Free(); bytes.Contains(buf, []byte("CANARY")) {
					t.Errorf("%s: its buffer is not cleared", methods.Get(j).FullName())
				}
			}
		}
	}
	if secrets == 0 {
		t.Error("no answer has a secret")
	}
}
