package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client/shim"
)

func (a *app) list() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the sites you may use and how their sessions are",
		GroupID: "session",
		Args:    noOperand,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.client.Sessions()
			if err != nil {
				return err
			}
			return a.call(c, "asking the agent", func(ctx context.Context) error {
				resp, err := s.ListSessions(ctx, &pb.ListSessionsRequest{})
				if err != nil {
					return err
				}
				return a.print(format, summaries(resp.GetSessions()), func(w io.Writer) { sessionTable(w, resp.GetSessions()) })
			})
		},
	}
	output(c, &format)
	return c
}

// output adds -o to a verb that prints a table or JSON.
func output(c *cobra.Command, format *string) { choice(c, format, "text", "json") }

// choice adds -o with the formats given, of which the first is the default.
func choice(c *cobra.Command, format *string, formats ...string) {
	*format = formats[0]
	c.Flags().VarP(word{format, "FORMAT", formats}, "output", "o", strings.Join(formats, ", "))
	must(c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)))
}

func (a *app) print(format string, value any, table func(io.Writer)) error {
	if format == "json" {
		return encode(a.stdout, value)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// row writes a line of a table. What is in the cells may be of a server's.
func row(w io.Writer, cells ...string) {
	for i, c := range cells {
		cells[i] = api.Clean(c)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

type jsonSummary struct {
	Site       string `json:"site"`
	Kind       string `json:"kind"`
	URL        string `json:"url"`
	User       string `json:"user"`
	State      string `json:"state"`
	Generation string `json:"generation,omitempty"`
	LoginTime  string `json:"login_time,omitempty"`
	ProveTime  string `json:"prove_time,omitempty"`
	ExpireTime string `json:"expire_time,omitempty"`
	Code       string `json:"code,omitempty"`
	Detail     string `json:"detail,omitempty"`
	Remedy     string `json:"remedy,omitempty"`
	RetryTime  string `json:"retry_time,omitempty"`
	NotDurable bool   `json:"not_durable,omitempty"`

	IdentityUnproven bool `json:"identity_unproven,omitempty"`
}

func summaries(in []*pb.SessionSummary) []jsonSummary {
	out := []jsonSummary{}
	for _, s := range in {
		out = append(out, jsonSummary{
			Site: s.GetSite(), Kind: s.GetKind(), URL: s.GetUrl(), User: s.GetUser(), State: state(s), Generation: s.GetGeneration(),
			LoginTime: rfc3339(s.GetLoginTime()), ProveTime: rfc3339(s.GetProveTime()), ExpireTime: rfc3339(s.GetExpireTime()),
			Code: s.GetCode(), Detail: s.GetDetail(), Remedy: s.GetRemedy(), RetryTime: rfc3339(s.GetRetryTime()), NotDurable: s.GetNotDurable(),
			IdentityUnproven: s.GetIdentityUnproven(),
		})
	}
	return out
}

func state(s *pb.SessionSummary) string {
	return strings.ToLower(strings.TrimPrefix(s.GetState().String(), "SESSION_STATE_"))
}

func sessionTable(w io.Writer, sessions []*pb.SessionSummary) {
	row(w, "SITE", "KIND", "USER", "STATE", "PROVED", "EXPIRES", "NOTE")
	for _, s := range sessions {
		var notes []string
		if s.GetCode() != "" {
			notes = append(notes, s.GetCode())
		}
		if s.GetNotDurable() {
			notes = append(notes, "not_durable")
		}
		if s.GetIdentityUnproven() {
			notes = append(notes, "identity_unproven")
		}
		row(w, s.GetSite(), s.GetKind(), s.GetUser(), state(s), ago(s.GetProveTime()), in(s.GetExpireTime()), strings.Join(notes, ", "))
	}
	for _, s := range sessions {
		if s.GetCode() != "" {
			row(w, s.GetSite()+": "+s.GetDetail()+" ("+s.GetCode()+")")
			if s.GetRemedy() != "" {
				row(w, "  next: "+s.GetRemedy())
			}
		}
	}
}

func ago(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return time.Since(t.AsTime()).Round(time.Second).String() + " ago"
}

func in(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return "in " + time.Until(t.AsTime()).Round(time.Second).String()
}

// siteVerb is a verb that does something about a site, and says what it did.
func (a *app) siteVerb(name, short, long, doing string, do func(context.Context, pb.SessionServiceClient, string) (string, error)) *cobra.Command {
	c := a.siteCommand(name, short, long)
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := a.client.Sessions()
		if err != nil {
			return err
		}
		return a.call(c, args[0]+": "+doing, func(ctx context.Context) error {
			said, err := do(ctx, s, args[0])
			if err == nil {
				a.warn(args[0], said)
			}
			return err
		})
	}
	return c
}

// siteCommand is a verb with a site for its operand.
func (a *app) siteCommand(name, short, long string) *cobra.Command {
	return &cobra.Command{
		Use:               name + " SITE",
		Short:             short,
		Long:              long,
		GroupID:           "session",
		Args:              operand(shim.CheckSite),
		ValidArgsFunction: a.sites,
	}
}

func (a *app) refresh() *cobra.Command {
	return a.siteVerb("refresh", "Replace a site's session by a new one", `Replace a site's session by a new one.

Of callers other than the agent's own user and root this is taken as a report
that the session is dead: the agent asks the site, and keeps a session that
lives.`, "logging in",
		func(ctx context.Context, s pb.SessionServiceClient, site string) (string, error) {
			resp, err := s.RefreshSession(ctx, &pb.RefreshSessionRequest{Site: site, Force: true})
			a.flags(resp.GetSession())
			return "the session of " + resp.GetSession().GetUser() + " was made " + ago(resp.GetSession().GetLoginTime()), err
		})
}

func (a *app) reject() *cobra.Command {
	return a.siteVerb("reject", "Report a session dead, after a request was refused", `Report a site's session dead, after a request with it was refused.

The agent asks the site before it believes: a session that lives stays, a dead
one is replaced by one login, however many callers report it.`, "asking the site",
		func(ctx context.Context, s pb.SessionServiceClient, site string) (string, error) {
			resp, err := s.RefreshSession(ctx, &pb.RefreshSessionRequest{Site: site})
			a.flags(resp.GetSession())
			return "the session of " + resp.GetSession().GetUser() + " lives; it was made " + ago(resp.GetSession().GetLoginTime()), err
		})
}

func (a *app) logout() *cobra.Command {
	return a.siteVerb("logout", "End a site's session, there and here", `End a site's session at the site, where its kind can, and forget it here.`, "logging out",
		func(ctx context.Context, s pb.SessionServiceClient, site string) (string, error) {
			resp, err := s.DeleteSession(ctx, &pb.DeleteSessionRequest{Site: site})
			switch {
			case !resp.GetHadSession():
				return "there was no session", err
			case resp.GetEnded():
				return "logged out: the site has ended the session", err
			case resp.GetCode() != "":
				return "the agent has forgotten the session, but the site has not ended it: " + resp.GetDetail() + " (" + resp.GetCode() + ")", err
			}
			return "the agent has forgotten the session; the site itself may honour it until it expires there", err
		})
}
