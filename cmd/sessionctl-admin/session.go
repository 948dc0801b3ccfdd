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

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

func (a *app) list() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the sites you may use and how their sessions are",
		GroupID: "session",
		Args:    args(0),
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
func output(c *cobra.Command, format *string) {
	c.Flags().StringVarP(format, "output", "o", "text", "text or json")
	must(c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)))
}

func (a *app) print(format string, value any, table func(io.Writer)) error {
	switch format {
	case "json":
		return encode(a.stdout, value)
	case "text":
		w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
		table(w)
		return w.Flush()
	}
	return usageError{fmt.Errorf("-o %s: the formats are text, json", format)}
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
}

func summaries(in []*pb.SessionSummary) []jsonSummary {
	out := []jsonSummary{}
	for _, s := range in {
		out = append(out, jsonSummary{
			Site: s.GetSite(), Kind: s.GetKind(), URL: s.GetUrl(), User: s.GetUser(), State: state(s), Generation: s.GetGeneration(),
			LoginTime: rfc3339(s.GetLoginTime()), ProveTime: rfc3339(s.GetProveTime()), ExpireTime: rfc3339(s.GetExpireTime()),
			Code: s.GetCode(), Detail: s.GetDetail(), Remedy: s.GetRemedy(), RetryTime: rfc3339(s.GetRetryTime()), NotDurable: s.GetNotDurable(),
		})
	}
	return out
}

func state(s *pb.SessionSummary) string {
	return strings.ToLower(strings.TrimPrefix(s.GetState().String(), "SESSION_STATE_"))
}

func sessionTable(w io.Writer, sessions []*pb.SessionSummary) {
	fmt.Fprintln(w, "SITE\tKIND\tUSER\tSTATE\tPROVED\tEXPIRES\tNOTE")
	for _, s := range sessions {
		note := s.GetCode()
		if s.GetNotDurable() {
			note = strings.TrimPrefix(note+", not_durable", ", ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.GetSite(), s.GetKind(), clean(s.GetUser()), state(s), ago(s.GetProveTime()), in(s.GetExpireTime()), note)
	}
	for _, s := range sessions {
		if s.GetCode() != "" {
			fmt.Fprintf(w, "%s: %s (%s)\n", s.GetSite(), clean(s.GetDetail()), s.GetCode())
			if s.GetRemedy() != "" {
				fmt.Fprintf(w, "  next: %s\n", clean(s.GetRemedy()))
			}
		}
	}
}

// clean keeps what servers sent from moving the cursor.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
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

func (a *app) login() *cobra.Command {
	var retry bool
	c := &cobra.Command{
		Use:   "login SITE",
		Short: "Log in now; with --retry, even after a refusal",
		Long: `Log in at a site now, whether or not a session lives.

After a refusal the agent does not try the same secret again by itself, so that
no account is locked. --retry lifts that for one attempt.`,
		GroupID:           "session",
		Args:              args(1),
		ValidArgsFunction: a.sites,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.client.Sessions()
			if err != nil {
				return err
			}
			return a.call(c, "logging in at "+args[0], func(ctx context.Context) error {
				resp, err := s.Login(ctx, &pb.LoginRequest{Site: args[0], Retry: retry})
				if err != nil {
					return err
				}
				a.flags(resp.GetSession())
				fmt.Fprintf(a.stderr, "sessionctl: %s: logged in as %s\n", args[0], clean(resp.GetSession().GetUser()))
				return nil
			})
		},
	}
	c.Flags().BoolVar(&retry, "retry", false, "lift a latched refusal for one attempt")
	return c
}

func (a *app) refresh() *cobra.Command {
	return &cobra.Command{
		Use:               "refresh SITE",
		Short:             "Replace a site's session by a new one",
		GroupID:           "session",
		Args:              args(1),
		ValidArgsFunction: a.sites,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.client.Sessions()
			if err != nil {
				return err
			}
			return a.call(c, "logging in at "+args[0], func(ctx context.Context) error {
				resp, err := s.RefreshSession(ctx, &pb.RefreshSessionRequest{Site: args[0], Force: true})
				if err != nil {
					return err
				}
				a.flags(resp.GetSession())
				fmt.Fprintf(a.stderr, "sessionctl: %s: new session of %s\n", args[0], clean(resp.GetSession().GetUser()))
				return nil
			})
		},
	}
}

func (a *app) logout() *cobra.Command {
	return &cobra.Command{
		Use:               "logout SITE",
		Short:             "Forget a site's session",
		GroupID:           "session",
		Args:              args(1),
		ValidArgsFunction: a.sites,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.client.Sessions()
			if err != nil {
				return err
			}
			return a.call(c, "asking the agent", func(ctx context.Context) error {
				if _, err := s.DeleteSession(ctx, &pb.DeleteSessionRequest{Site: args[0]}); err != nil {
					return err
				}
				fmt.Fprintf(a.stderr, "sessionctl: %s: the agent has forgotten the session; the site itself may honour it until it expires there\n", args[0])
				return nil
			})
		},
	}
}
