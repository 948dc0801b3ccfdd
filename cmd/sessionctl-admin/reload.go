package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

func (a *app) reload() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Apply a changed configuration",
		Long: `Let the agent read its configuration and krb5.conf again and apply them. It says
which sites, and which identity providers ("idp NAME"), are new, are set up in
another way, or are gone.

Sessions survive unless the site's url, kind, credential, identity provider,
identity, login_hosts or options have changed; those of sites that are gone are
forgotten. Who may no longer use a site gets no more of it.

A configuration that is wrong changes nothing. The environment of the agent, and
what systemd hands over to it, are as they were at its start.`,
		GroupID: "agent",
		Args:    noOperand,
		RunE: func(c *cobra.Command, _ []string) error {
			agent, err := a.client.Agent()
			if err != nil {
				return err
			}
			var resp *pb.ReloadResponse
			err = a.call(c, "the agent reads its configuration", func(ctx context.Context) error {
				resp, err = agent.Reload(ctx, &pb.ReloadRequest{})
				return err
			})
			if e := api.AsError(err); e != nil && e.Code.Exit() == api.ExitPerson { // what it read is wrong
				return &api.Error{Code: e.Code, Detail: e.Detail + "; the old configuration stays in use", Remedy: e.Remedy, Err: err}
			}
			if err != nil {
				return err
			}
			var text strings.Builder
			for _, change := range []struct {
				what  string
				names []string
			}{{"added", resp.GetAdded()}, {"changed", resp.GetChanged()}, {"removed", resp.GetRemoved()}, {"warning", resp.GetWarnings()}} {
				for _, name := range change.names {
					text.WriteString(change.what + ": " + api.Clean(name) + "\n")
				}
			}
			_, err = fmt.Fprint(a.stdout, text.String()+"ok: the configuration is in use\n")
			return err
		},
	}
}
