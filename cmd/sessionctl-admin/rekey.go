package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

func (a *app) rekey() *cobra.Command {
	return &cobra.Command{
		Use:   "rekey",
		Short: "Write the store anew under other keys",
		Long: `Let the agent write its store anew, under other data keys. What was removed or
overwritten is gone from the new file. Callers are served meanwhile.

The agent does that by itself after a logout. The master key stays: whoever has
that can read what the disk, or a copy, still holds of the old file.`,
		GroupID: "agent",
		Args:    noOperand,
		RunE: func(c *cobra.Command, _ []string) error {
			agent, err := a.client.Agent()
			if err != nil {
				return err
			}
			var resp *pb.RekeyResponse
			err = a.call(c, "the agent writes its store anew", func(ctx context.Context) error {
				resp, err = agent.Rekey(ctx, &pb.RekeyRequest{})
				return err
			})
			if err != nil {
				return err
			}
			s := resp.GetStore()
			_, err = fmt.Fprintf(a.stdout, "ok: %s was written anew: %d records, %d KiB\n", api.Clean(s.GetPath()), s.GetRecords(), s.GetSizeBytes()>>10)
			return err
		},
	}
}
