package main

import (
	"context"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

func (s agentState) Reload(context.Context, *pb.ReloadRequest) (*pb.ReloadResponse, error) {
	return s.reload, s.err.Err()
}

// TestReload: what has changed is said; a wrong configuration is a failure, and
// that the old one stays.
func TestReload(t *testing.T) {
	refused := func(code api.Code, detail, remedy string) *status.Status {
		st, err := status.New(codes.Code(code.GRPC()), detail).WithDetails(&errdetails.ErrorInfo{
			Domain: api.ErrorDomain, Reason: code.Reason(), Metadata: map[string]string{"remedy": remedy}})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	const ok = "ok: the configuration is in use\n"
	for name, c := range map[string]struct {
		agent     agentState
		out, errs string
		exit      int
	}{
		"nothing new": {agentState{reload: &pb.ReloadResponse{}}, ok, "", 0},
		"all": {agentState{reload: &pb.ReloadResponse{Added: []string{"a", "b"}, Changed: []string{"c"}, Removed: []string{"d"}, Warnings: []string{"credential e: rc4 is broken"}}},
			"added: a\nadded: b\nchanged: c\nremoved: d\nwarning: credential e: rc4 is broken\n" + ok, "", 0},
		"wrong": {agentState{err: refused(api.ConfigInvalid, "/a.toml:3: unknown key", "mend it")},
			"", "sessionctl: /a.toml:3: unknown key; the old configuration stays in use (config_invalid)\n  next: mend it\n", api.ExitPerson},
		"krb5.conf": {agentState{err: refused(api.Krb5ConfInvalid, "/etc/krb5.conf:1: no section", "")},
			"", "sessionctl: /etc/krb5.conf:1: no section; the old configuration stays in use (krb5conf_invalid)\n", api.ExitPerson},
		"not ours": {agentState{err: refused(api.Denied, "only for the agent's own user and root", "ask it")},
			"", "sessionctl: only for the agent's own user and root (denied)\n  next: ask it\n", api.ExitDenied},
		"older agent": {agentState{err: status.New(codes.Unimplemented, "unknown method")},
			"", "sessionctl: the agent does not know this call (version_skew)\n  next: restart the agent: it is older than this program\n", api.ExitOther},
	} {
		t.Run(name, func(t *testing.T) {
			l, socket := listen(t)
			serveOn(t, l, func(g *grpc.Server) { pb.RegisterAgentServiceServer(g, c.agent) })
			if out, errs, exit := call("reload", "--socket", socket); out != c.out || errs != c.errs || exit != c.exit {
				t.Errorf("%d %q %q", exit, out, errs)
			}
		})
	}
	if out, _, exit := call("reload", "--socket", "/nonexistent/agent.sock"); out != "" || exit != api.ExitNoAgent {
		t.Errorf("without an agent: %d %q", exit, out)
	}
}
