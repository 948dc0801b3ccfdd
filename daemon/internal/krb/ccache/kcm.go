package ccache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// kcmSocket is where KCM daemons listen: sssd-kcm and Heimdal's.
const kcmSocket = "/var/run/.heim_org.h5l.kcm-socket"

// The KCM protocol, version 2.0, as MIT's src/include/kcm.h describes it. A
// request is its length, the version, an operation and arguments. A reply is its
// length, a status of the transport, then one of the operation and the result.
// Numbers are big-endian and, but for the operation, 4 bytes long; names end in
// NUL; UUIDs are 16 bytes; principals and credentials are those of version 4 of
// the FILE format.
const (
	kcmGetPrincipal    = 8  // name → principal
	kcmGetCredentials  = 9  // name → UUIDs
	kcmGetCredential   = 10 // name, UUID → credential
	kcmGetCaches       = 18 // → UUIDs
	kcmGetCache        = 19 // UUID → name
	kcmGetDefaultCache = 20 // → name
	kcmGetKDCOffset    = 22 // name → seconds
	uuidSize           = 16
	krb5FCCNoFile      = -1765328189
	kcmVersionMajor    = 2
	kcmVersionMinor    = 0
)

// daemon asks the KCM daemon, which knows the caller by its uid.
func (s *search) daemon(ctx context.Context, socket, name string) (*Cache, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, elsewhere("no KCM daemon answers: " + err.Error())
	}
	defer conn.Close()
	// An error means that the connection is closed already.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	return (&kcm{conn: conn, left: maxSize}).load(s, name)
}

// kcm is a connection to the daemon.
type kcm struct {
	conn io.ReadWriter
	left int // bytes that replies may still have
}

// kcmStatus is the daemon's own error, a number of com_err(3).
type kcmStatus int32

func (s kcmStatus) Error() string {
	if s == krb5FCCNoFile {
		return "the KCM daemon has no such cache"
	}
	return fmt.Sprintf("the KCM daemon answers with error %d", int32(s))
}

var errKCM = errors.New("the KCM daemon's answer is malformed")

// call sends one request and returns the result.
func (k *kcm) call(op uint16, arguments ...[]byte) ([]byte, error) {
	request := []byte{0, 0, 0, 0, kcmVersionMajor, kcmVersionMinor, byte(op >> 8), byte(op)}
	for _, a := range arguments {
		request = append(request, a...)
	}
	binary.BigEndian.PutUint32(request, uint32(len(request)-4))
	if _, err := k.conn.Write(request); err != nil {
		return nil, fmt.Errorf("ask the KCM daemon: %w", err)
	}
	var head [8]byte
	if _, err := io.ReadFull(k.conn, head[:]); err != nil {
		return nil, fmt.Errorf("wait for the KCM daemon's answer: %w", err)
	}
	if status := kcmStatus(binary.BigEndian.Uint32(head[4:])); status != 0 {
		return nil, status
	}
	size := binary.BigEndian.Uint32(head[:])
	if uint64(size) > uint64(k.left) {
		return nil, fmt.Errorf("the KCM daemon's caches are larger than %d KiB", maxSize>>10)
	}
	k.left -= int(size)
	reply := make([]byte, size)
	if _, err := io.ReadFull(k.conn, reply); err != nil {
		return nil, fmt.Errorf("wait for the KCM daemon's answer: %w", err)
	}
	r := newReader(reply)
	status := kcmStatus(r.u32())
	switch {
	case r.short:
		return nil, errKCM
	case status != 0:
		return nil, status
	}
	return r.b, nil
}

// terminated is a name as an argument or a result.
func terminated(name string) []byte { return append([]byte(name), 0) }

func (k *kcm) name(op uint16, arguments ...[]byte) (string, error) {
	b, err := k.call(op, arguments...)
	if err != nil {
		return "", err
	}
	name, _, found := bytes.Cut(b, []byte{0})
	if !found {
		return "", errKCM
	}
	return string(name), nil
}

func (k *kcm) uuids(op uint16, arguments ...[]byte) ([][]byte, error) {
	b, err := k.call(op, arguments...)
	if err != nil {
		return nil, err
	}
	if len(b)%uuidSize != 0 {
		return nil, errKCM
	}
	return slices.Collect(slices.Chunk(b, uuidSize)), nil
}

// refused reports whether err is the daemon's own: others may delete what we
// are about to ask for.
func refused(err error) bool {
	var status kcmStatus
	return errors.As(err, &status)
}

// load returns the cache of this name, or the first that matches if there is
// none.
func (k *kcm) load(s *search, name string) (*Cache, error) {
	if name != "" {
		return k.cache(s, name)
	}
	first, err := k.name(kcmGetDefaultCache)
	if err != nil {
		return nil, err
	}
	if c, err := k.cache(s, first); c != nil || err != nil && !refused(err) {
		return c, err
	}
	ids, err := k.uuids(kcmGetCaches)
	if err != nil && !refused(err) {
		return nil, err
	}
	for _, id := range ids {
		name, err := k.name(kcmGetCache, id)
		var c *Cache
		if err == nil && name != first {
			c, err = k.cache(s, name)
		}
		if c != nil || err != nil && !refused(err) {
			return c, err
		}
	}
	return nil, nil
}

// cache returns one cache, nil if it is another principal's.
func (k *kcm) cache(s *search, name string) (*Cache, error) {
	arg := terminated(name)
	b, err := k.call(kcmGetPrincipal, arg)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 { // Heimdal's way to say so
		return nil, kcmStatus(krb5FCCNoFile)
	}
	r := newReader(b)
	c := &Cache{Principal: r.principal()}
	if r.short {
		return nil, errKCM
	}
	if !s.match(c.Principal) {
		return nil, nil
	}
	switch b, err := k.call(kcmGetKDCOffset, arg); {
	case err != nil && !refused(err):
		return nil, err
	case err == nil:
		// sssd has a number that stands for none, and Heimdal 7.8 answers with
		// memory that nobody has set: neither is a clock that works otherwise.
		if offset := time.Duration(int32(newReader(b).u32())) * time.Second; offset.Abs() < 24*time.Hour {
			c.Offset = offset
		}
	}
	ids, err := k.uuids(kcmGetCredentials, arg)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		b, err := k.call(kcmGetCredential, arg, id)
		if refused(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r := newReader(b)
		cred, ok := r.credential()
		clear(b)
		if r.short {
			return nil, errKCM
		}
		if ok {
			c.Credentials = append(c.Credentials, cred)
		}
	}
	return c, nil
}
