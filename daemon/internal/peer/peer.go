// Package peer says who is on the other end of the socket, as the kernel names
// it, and who may use which site. Nothing that a caller sends counts here.
package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
)

// overflow is the uid and gid that the kernel shows for ids which have no name
// in this user namespace. It may be anybody, so it is nobody.
const overflow = 65534

// Caller is the process that opened a connection, as it was at that moment
// (unix(7), SO_PEERCRED and SO_PEERGROUPS).
type Caller struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
	PID      int32    // for logs only: it may be another process by now
	Unit     string   // for which systemd asks; "" for all other callers
}

// Of returns the caller behind a gRPC request.
func Of(ctx context.Context) (Caller, bool) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return Caller{}, false
	}
	a, ok := p.AuthInfo.(authInfo)
	return a.Caller, ok && a.UID != overflow
}

// Credentials returns transport credentials for a server on a Unix socket:
// the handshake is a question to the kernel. They cannot be used by clients.
func Credentials() credentials.TransportCredentials { return transport{} }

type authInfo struct {
	credentials.CommonAuthInfo
	Caller
}

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "peercred" }

type transport struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (transport) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	caller, err := of(c)
	if err != nil {
		return nil, nil, err
	}
	return c, authInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, caller}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for servers")
}

// Info implements credentials.TransportCredentials.
func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone implements credentials.TransportCredentials.
func (transport) Clone() credentials.TransportCredentials { return transport{} }

// OverrideServerName implements credentials.TransportCredentials.
func (transport) OverrideServerName(string) error { return nil }

func of(c net.Conn) (Caller, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Caller{}, fmt.Errorf("a %T has no peer credentials", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Caller{}, err
	}
	var caller Caller
	var inner error
	if err := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); inner != nil {
			return
		}
		caller = Caller{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}
		caller.Groups, inner = peerGroups(int(fd))
	}); err != nil {
		return Caller{}, err
	}
	return caller, inner
}

// Rule allows one user, one group, or one systemd unit.
type Rule struct {
	text  string
	group bool
	id    uint32
	unit  string // "": it is for users
}

// ParseRule reads an element of a site's allow list: user:NAME, group:NAME,
// uid:NUMBER, gid:NUMBER or unit:NAME.service. Names of users and groups are looked
// up now.
func ParseRule(s string) (Rule, error) {
	kind, name, _ := strings.Cut(s, ":")
	r := Rule{text: s, group: kind == "group" || kind == "gid"}
	number := name
	switch kind {
	case "user":
		u, err := user.Lookup(name)
		if err != nil {
			return Rule{}, fmt.Errorf("%q: there is no user %q on this machine; if it comes from a directory service, write uid:NUMBER", s, name)
		}
		number = u.Uid
	case "group":
		g, err := user.LookupGroup(name)
		if err != nil {
			return Rule{}, fmt.Errorf("%q: there is no group %q on this machine; if it comes from a directory service, write gid:NUMBER", s, name)
		}
		number = g.Gid
	case "uid", "gid":
	case "unit":
		if !isService(name) {
			return Rule{}, fmt.Errorf("%q: %q is not the full name of a service, as systemctl status prints it: app.service, or app@instance.service", s, name)
		}
		return Rule{text: s, unit: name}, nil
	default:
		return Rule{}, fmt.Errorf("%q is not user:NAME, group:NAME, uid:NUMBER, gid:NUMBER or unit:NAME.service", s)
	}
	id, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return Rule{}, fmt.Errorf("%q: %q is not a number", s, number)
	}
	if id == overflow {
		return Rule{}, fmt.Errorf("%q: id %d stands for everybody the kernel cannot name, and is never allowed", s, overflow)
	}
	r.id = uint32(id)
	return r, nil
}

// User returns the rule for one uid.
func User(uid uint32) Rule { return Rule{text: "uid:" + strconv.Itoa(int(uid)), id: uid} }

// String returns the rule as it was written.
func (r Rule) String() string { return r.text }

// ForUnit reports whether the rule is for a unit.
func (r Rule) ForUnit() bool { return r.unit != "" }

// Allowed reports whether one of the rules is for the caller. No rules: no. When
// systemd asks for a unit, what root may do counts for nothing.
func Allowed(rules []Rule, c Caller) bool {
	if c.UID == overflow {
		return false
	}
	return slices.ContainsFunc(rules, func(r Rule) bool {
		if r.ForUnit() || c.Unit != "" {
			return r.unit == c.Unit
		}
		if r.group {
			return r.id != overflow && (c.GID == r.id || slices.Contains(c.Groups, r.id))
		}
		return c.UID == r.id
	})
}
