package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client/shim"
)

func (a *app) list() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the sites you may use and how their sessions are",
		Long: `List the sites you may use and how their sessions are. A site with several users
has a line for each that is yours. CHECK is when the agent looks after a session
by itself; one that nobody uses is left alone.

` + summaryFields,
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
				return show(a.stdout, format, summaries(resp.GetSessions()), func(w io.Writer) { sessionTable(w, "SITE", resp.GetSessions()) })
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

// show writes a value as JSON, or the table that says the same.
func show(to io.Writer, format string, value any, table func(io.Writer)) error {
	if format == "json" {
		return encode(to, value)
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
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

// summaryFields documents jsonSummary.
const summaryFields = `-o json prints an array of objects, in which what is not known, or not so, is
left out:

  site, kind, url           the site
  user                      whose session it is, or the account that logs in
  credential, idp           what logs in: the credential's name, and that of the
                            identity provider, if one does
  state                     none, live, stale, logging_in or latched
  generation                a label of the session; another one, another session
  login_time, prove_time    when it was made, and when the site last proved it
  check_time                when the agent looks after it by itself
  expire_time               when the first of its cookies ends
  life_seconds              how long sessions live there after their login
  idle_seconds              how long one lives that nobody uses
  life_learned, idle_learned
                            that was learned from sessions that have died; if
                            not, it is documented for the kind
  product, version, path    what the site was found to be, and where below url
  password_login            how it takes passwords: rest, tsv or form
  gate                      whom it asks for Negotiate
  code, detail, remedy      the failure that stands, and what to do about it
  retry_time                no attempt is made before
  not_durable               the session could not be written to the store
  identity_unproven         the site cannot say whose session it is

` + timesAre

const timesAre = "Times are of RFC 3339, in UTC."

type jsonSummary struct {
	Site             string `json:"site"`
	Kind             string `json:"kind"`
	URL              string `json:"url"`
	User             string `json:"user"`
	Credential       string `json:"credential,omitempty"`
	IdP              string `json:"idp,omitempty"`
	State            string `json:"state"`
	Generation       string `json:"generation,omitempty"`
	LoginTime        string `json:"login_time,omitempty"`
	ProveTime        string `json:"prove_time,omitempty"`
	CheckTime        string `json:"check_time,omitempty"`
	ExpireTime       string `json:"expire_time,omitempty"`
	LifeSeconds      int64  `json:"life_seconds,omitempty"`
	LifeLearned      bool   `json:"life_learned,omitempty"`
	IdleSeconds      int64  `json:"idle_seconds,omitempty"`
	IdleLearned      bool   `json:"idle_learned,omitempty"`
	Product          string `json:"product,omitempty"`
	Version          string `json:"version,omitempty"`
	Path             string `json:"path,omitempty"`
	PasswordLogin    string `json:"password_login,omitempty"`
	Gate             string `json:"gate,omitempty"`
	Code             string `json:"code,omitempty"`
	Detail           string `json:"detail,omitempty"`
	Remedy           string `json:"remedy,omitempty"`
	RetryTime        string `json:"retry_time,omitempty"`
	NotDurable       bool   `json:"not_durable,omitempty"`
	IdentityUnproven bool   `json:"identity_unproven,omitempty"`
}

func summaries(in []*pb.SessionSummary) []jsonSummary {
	out := []jsonSummary{}
	for _, s := range in {
		out = append(out, jsonSummary{
			Site: s.GetSite(), Kind: s.GetKind(), URL: s.GetUrl(), User: s.GetUser(), Credential: s.GetCredential(), IdP: s.GetIdp(),
			State: state(s), Generation: s.GetGeneration(),
			LoginTime: rfc3339(s.GetLoginTime()), ProveTime: rfc3339(s.GetProveTime()), CheckTime: rfc3339(s.GetCheckTime()), ExpireTime: rfc3339(s.GetExpireTime()),
			LifeSeconds: s.GetLife().GetSeconds(), LifeLearned: s.GetLifeLearned(), IdleSeconds: s.GetIdle().GetSeconds(), IdleLearned: s.GetIdleLearned(),
			Product: s.GetProduct(), Version: s.GetVersion(), Path: s.GetPath(), PasswordLogin: s.GetPasswordLogin(), Gate: s.GetGate(),
			Code: s.GetCode(), Detail: s.GetDetail(), Remedy: s.GetRemedy(), RetryTime: rfc3339(s.GetRetryTime()), NotDurable: s.GetNotDurable(),
			IdentityUnproven: s.GetIdentityUnproven(),
		})
	}
	return out
}

func state(s *pb.SessionSummary) string {
	return strings.ToLower(strings.TrimPrefix(s.GetState().String(), "SESSION_STATE_"))
}

// found says what the site was found to be.
func found(s *pb.SessionSummary) string {
	var what []string
	if s.GetVersion() != "" {
		what = append(what, s.GetProduct()+" "+s.GetVersion())
	}
	if s.GetPath() != "" {
		what = append(what, "at "+s.GetPath())
	}
	if s.GetPasswordLogin() != "" {
		what = append(what, "passwords by "+s.GetPasswordLogin())
	}
	if s.GetGate() != "" {
		what = append(what, s.GetGate())
	}
	return strings.Join(what, ", ")
}

// sessionTable prints sessions of sites or of identity providers, as the first
// column's title says, and below what is wrong with which.
func sessionTable(w io.Writer, title string, sessions []*pb.SessionSummary) {
	users := map[string]int{}
	for _, s := range sessions {
		users[s.GetSite()]++
	}
	row(w, title, "KIND", "USER", "STATE", "PROVED", "CHECK", "EXPIRES", "NOTE")
	for _, s := range sessions {
		var notes []string
		if users[s.GetSite()] > 1 {
			notes = append(notes, "credential "+s.GetCredential())
		}
		if s.GetIdp() != "" {
			notes = append(notes, "idp "+s.GetIdp())
		}
		if what := found(s); what != "" {
			notes = append(notes, what)
		}
		if s.GetCode() != "" {
			notes = append(notes, s.GetCode())
		}
		if s.GetNotDurable() {
			notes = append(notes, "not_durable")
		}
		if s.GetIdentityUnproven() {
			notes = append(notes, "identity_unproven")
		}
		if s.GetLife() != nil {
			notes = append(notes, "lives "+known(s.GetLife(), s.GetLifeLearned()))
		}
		if s.GetIdle() != nil {
			notes = append(notes, "idle limit "+known(s.GetIdle(), s.GetIdleLearned()))
		}
		row(w, s.GetSite(), s.GetKind(), s.GetUser(), state(s), ago(s.GetProveTime()), in(s.GetCheckTime()), in(s.GetExpireTime()), strings.Join(notes, ", "))
	}
	for _, s := range sessions {
		if s.GetCode() == "" {
			continue
		}
		about := s.GetSite()
		if users[about] > 1 {
			about += ", credential " + s.GetCredential()
		}
		text := about + ": " + s.GetDetail() + " (" + s.GetCode() + ")"
		if t := s.GetRetryTime(); t != nil && time.Until(t.AsTime()) > 0 {
			text += "; next attempt " + in(t) + " at the earliest"
		}
		row(w, text)
		if s.GetRemedy() != "" {
			row(w, "  next: "+s.GetRemedy())
		}
	}
}

// known is a life or an idle limit, in short.
func known(d *durationpb.Duration, learned bool) string {
	unit := time.Second
	if d.AsDuration() >= time.Hour {
		unit = time.Minute
	}
	text := d.AsDuration().Round(unit).String() // such as 8h0m0s
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	if learned {
		return "~" + text + " (learned)"
	}
	return text
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
	left := time.Until(t.AsTime()).Round(time.Second)
	if left < 0 {
		return ago(t)
	}
	return "in " + left.String()
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

// ofCredential adds --credential, which tells a site's users apart.
func (a *app) ofCredential(c *cobra.Command, name *string) {
	c.Flags().Var(word{name, "NAME", nil}, "credential", "of a site with several users, the one that this credential logs in")
	must(c.RegisterFlagCompletionFunc("credential", func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.offer(func(s *pb.SessionSummary) (name, about string) {
			if len(args) > 0 && s.GetSite() != args[0] {
				return "", ""
			}
			return s.GetCredential(), s.GetUser()
		})
	}))
}

// whose names the user of a session; if the site does not, the account that has
// logged in, as the list of sessions has it.
func whose(ctx context.Context, sessions pb.SessionServiceClient, s *pb.Session) string {
	if !s.GetIdentityUnproven() {
		return s.GetUser()
	}
	user := "somebody"
	if list, err := sessions.ListSessions(ctx, &pb.ListSessionsRequest{}); err == nil {
		for _, sum := range list.GetSessions() {
			if sum.GetSite() == s.GetSite() && sum.GetGeneration() == s.GetGeneration() {
				user = sum.GetUser()
			}
		}
	}
	return user + " (identity unproven)"
}

func (a *app) refresh() *cobra.Command {
	var credential string
	c := a.siteVerb("refresh", "Replace a site's session by a new one", `Replace a site's session by a new one.

Of callers other than the agent's own user and root this is taken as a report
that the session is dead: the agent asks the site, and keeps a session that
lives.`, "logging in",
		func(ctx context.Context, s pb.SessionServiceClient, site string) (string, error) {
			resp, err := s.RefreshSession(ctx, &pb.RefreshSessionRequest{Site: site, Force: true, Credential: credential})
			if err != nil {
				return "", err
			}
			a.flags(resp.GetSession())
			return "the session of " + whose(ctx, s, resp.GetSession()) + " was made " + ago(resp.GetSession().GetLoginTime()), nil
		})
	a.ofCredential(c, &credential)
	return c
}

func (a *app) reject() *cobra.Command {
	return a.siteVerb("reject", "Report a session dead, after a request was refused", `Report a site's session dead, after a request with it was refused.

The agent asks the site before it believes: a session that lives stays, a dead
one is replaced by one login, however many callers report it.`, "asking the site",
		func(ctx context.Context, s pb.SessionServiceClient, site string) (string, error) {
			resp, err := s.RefreshSession(ctx, &pb.RefreshSessionRequest{Site: site})
			if err != nil {
				return "", err
			}
			a.flags(resp.GetSession())
			return "the session of " + whose(ctx, s, resp.GetSession()) + " lives; it was made " + ago(resp.GetSession().GetLoginTime()), nil
		})
}

func (a *app) logout() *cobra.Command {
	var credential string
	var idp bool
	c := a.siteVerb("logout", "End a site's session, there and here", `End a site's session at the site, where its kind can, and forget it here.

Where an identity provider logs in, its session goes on, and would log in to the
site again without asking anybody. --idp ends that one instead, and forgets the
sessions of all sites that it has logged in to.`, "logging out",
		func(ctx context.Context, s pb.SessionServiceClient, site string) (string, error) {
			resp, err := s.DeleteSession(ctx, &pb.DeleteSessionRequest{Site: site, Credential: credential, Idp: idp})
			if idp {
				return loggedOut(resp, "the identity provider", "; the sessions of all its sites are forgotten"), err
			}
			said := loggedOut(resp, "the site", "")
			if resp.GetIdp() != "" {
				said += "; the session at the identity provider " + resp.GetIdp() + " goes on, and would log in here again: sessionctl logout " + site + " --idp ends it"
			}
			return said, err
		})
	a.ofCredential(c, &credential)
	c.Flags().BoolVar(&idp, "idp", false, "end the session at the site's identity provider, for all its sites")
	return c
}

// loggedOut says what became of the session at a site or an identity provider.
func loggedOut(r *pb.DeleteSessionResponse, where, more string) string {
	switch {
	case !r.GetHadSession():
		return "there was no session at " + where + more
	case r.GetEnded():
		return "logged out: " + where + " has ended the session" + more
	case r.GetCode() != "":
		return "the agent has forgotten the session, but " + where + " has not ended it: " + r.GetDetail() + " (" + r.GetCode() + ")" + more
	}
	return "the agent has forgotten the session; " + where + " itself may honour it until it expires there" + more
}
