package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
)

// OfUnit returns the unit for which systemd asks on a connection, and the name of
// the credential that it wants (systemd.exec(5), LoadCredential= with the path of a
// socket). The name of the other end says so, as anybody may name his: what counts is
// that the kernel calls it root's.
func OfUnit(c net.Conn) (caller Caller, credential string, err error) {
	caller, err = of(c)
	if err != nil {
		return Caller{}, "", err
	}
	return ofUnit(caller, c.RemoteAddr().String())
}

// ofUnit is OfUnit for a caller at an address.
func ofUnit(caller Caller, address string) (_ Caller, credential string, err error) {
	if caller.UID != 0 {
		return Caller{}, "", fmt.Errorf("uid %d is not root: credentials are for the system's systemd", caller.UID)
	}
	unit, credential, ok := parseUnitName(address)
	if !ok {
		return Caller{}, "", errors.New("root has called, but not as systemd does for a unit's LoadCredential=")
	}
	caller.Unit = unit
	return caller, credential, nil
}

// parseUnitName reads the abstract address of systemd's end, as Go writes it:
// @RANDOM/unit/UNIT/CREDENTIAL. Neither of the two names has a slash.
func parseUnitName(name string) (unit, credential string, ok bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || len(parts[0]) < 2 || parts[0][0] != '@' || parts[1] != "unit" || !isService(parts[2]) || parts[3] == "" {
		return "", "", false
	}
	return parts[2], parts[3], true
}

// isService reports whether s is the full name of a service that can run
// (systemd.unit(5)): a template without an instance cannot.
func isService(s string) bool {
	const longest = 255
	prefix, ok := strings.CutSuffix(s, ".service")
	if !ok || len(s) > longest || prefix == "" || prefix[0] == '@' || strings.HasSuffix(prefix, "@") {
		return false
	}
	for i := range len(prefix) {
		switch c := prefix[i]; {
		case '0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z':
		case strings.IndexByte(`:-_.\@`, c) >= 0:
		default:
			return false
		}
	}
	return true
}

// With returns a context in which a caller stands as one behind a gRPC request does.
func With(ctx context.Context, c Caller) context.Context {
	info := authInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, c}
	return grpcpeer.NewContext(ctx, &grpcpeer.Peer{AuthInfo: info})
}
