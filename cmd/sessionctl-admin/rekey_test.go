package main

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// rekeyed is an agent that answers Rekey.
type rekeyed struct {
	pb.UnimplementedAgentServiceServer
	store *pb.StoreStatus
	err   *status.Status
}

func (r rekeyed) Rekey(context.Context, *pb.RekeyRequest) (*pb.RekeyResponse, error) {
	return &pb.RekeyResponse{Store: r.store}, r.err.Err()
}

// TestRekey: what the new store is like is said.
func TestRekey(t *testing.T) {
	for name, c := range map[string]struct {
		agent     rekeyed
		out, errs string
		exit      int
	}{
		"good":  {rekeyed{store: &pb.StoreStatus{Path: "/s/store.db\x1b", Records: 3, SizeBytes: 65 << 10}}, "ok: /s/store.db? was written anew: 3 records, 65 KiB\n", "", 0},
		"older": {rekeyed{err: status.New(codes.Unimplemented, "unknown method")}, "", "sessionctl: the agent does not know this call (version_skew)\n  next: restart the agent: it is older than this program\n", api.ExitOther},
	} {
		l, socket := listen(t)
		serveOn(t, l, func(g *grpc.Server) { pb.RegisterAgentServiceServer(g, c.agent) })
		if out, errs, exit := call("rekey", "--socket", socket); out != c.out || errs != c.errs || exit != c.exit {
			t.Errorf("%s: %d %q %q", name, exit, out, errs)
		}
	}
}
