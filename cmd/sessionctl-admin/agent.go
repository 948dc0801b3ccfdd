package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// ticketFields documents jsonTicket.
const ticketFields = `-o json prints an array of objects:

  client, server            whose ticket it is, and what for
  enctype                   the session key's encryption type
  auth_time                 when the client proved itself to the KDC
  end_time                  when the ticket ends
  renew_time                until when it can be renewed; left out if it cannot

` + timesAre

type jsonTicket struct {
	Client    string `json:"client"`
	Server    string `json:"server"`
	Enctype   string `json:"enctype"`
	AuthTime  string `json:"auth_time"`
	EndTime   string `json:"end_time"`
	RenewTime string `json:"renew_time,omitempty"`
}

func (a *app) tickets() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:     "tickets",
		Short:   "List the agent's Kerberos tickets",
		Long:    "List the agent's Kerberos tickets.\n\n" + ticketFields,
		GroupID: "session",
		Args:    noOperand,
		RunE: func(c *cobra.Command, _ []string) error {
			t, err := a.client.Tickets()
			if err != nil {
				return err
			}
			return a.call(c, "asking the agent", func(ctx context.Context) error {
				resp, err := t.ListTickets(ctx, &pb.ListTicketsRequest{})
				if err != nil {
					return err
				}
				all := []jsonTicket{}
				for _, t := range resp.GetTickets() {
					all = append(all, jsonTicket{t.GetClient(), t.GetServer(), t.GetEnctype(), rfc3339(t.GetAuthTime()), rfc3339(t.GetEndTime()), rfc3339(t.GetRenewTime())})
				}
				return show(a.stdout, format, all, func(w io.Writer) {
					row(w, "CLIENT", "SERVER", "ENDS", "ENCTYPE")
					for _, t := range resp.GetTickets() {
						row(w, t.GetClient(), t.GetServer(), in(t.GetEndTime()), t.GetEnctype())
					}
				})
			})
		},
	}
	output(c, &format)
	return c
}

func (a *app) checkConfig() *cobra.Command {
	return &cobra.Command{
		Use:   "check-config [FILE]",
		Short: "Check a configuration, krb5.conf, keytabs and ticket caches, without an agent",
		Long: `Check a configuration with the conf.d/*.toml beside it, the Kerberos
configuration, the keytabs and the ticket caches, by running sessiond --check.
Nothing is asked of the network, and a running agent is left alone. The proxies
in the environment of this command are noted; the agent's may have others.`,
		GroupID: "agent",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("at most one FILE can be checked")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			argv := []string{"sessiond", "--check"}
			if len(args) == 1 {
				argv = append(argv, "--config", args[0])
			}
			return execSibling(argv)
		},
	}
}

// execSibling becomes another program of this installation: the one beside
// this program's own file, never one that PATH finds.
func execSibling(argv []string) error {
	self, err := os.Executable()
	if err == nil {
		path := filepath.Join(filepath.Dir(self), argv[0])
		err = unix.Exec(path, argv, os.Environ())
	}
	return &api.Error{Code: api.Unknown, Detail: argv[0] + " cannot be run from beside sessionctl: " + err.Error(),
		Remedy: "install " + argv[0] + " in the same directory", Err: err}
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the versions of sessionctl and of the agent",
		GroupID: "agent",
		Args:    noOperand,
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintln(a.stdout, "sessionctl", api.Version)
			agent, err := a.client.Agent()
			if api.CodeOf(err) == api.NoAgent {
				fmt.Fprintln(a.stdout, "agent      not running")
				return nil
			}
			if err != nil {
				return err
			}
			return a.call(c, "asking the agent", func(ctx context.Context) error {
				st, err := agent.GetStatus(ctx, &pb.GetStatusRequest{})
				if api.CodeOf(err) == api.NoAgent {
					fmt.Fprintln(a.stdout, "agent      not running")
					return nil
				}
				if err != nil {
					return err
				}
				fmt.Fprintln(a.stdout, "agent     ", api.Clean(st.GetVersion()))
				if st.GetVersion() != api.Version {
					return &api.Error{Code: api.VersionSkew, Detail: "sessionctl and the agent are of different versions", Remedy: "restart the agent, or install both from one release"}
				}
				return nil
			})
		},
	}
}
