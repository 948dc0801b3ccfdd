package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// statusFields documents jsonStatus.
const statusFields = `-o json prints an object, in which what is not known, or not so, is left out:

  version, pid, start_time  the agent
  socket                    where it was found
  config_files, load_time   the configuration in use, and when it was read
  reload_code, reload_detail
                            why the last reload has changed nothing
  store                     its path, key_source, format, size_bytes, records, and
                            rewrite_time, when it was written anew last
  sites, session_count      how many sites there are, and how many sessions
  logins, login_failures    since the start
  warnings                  what a person should look at
  sessions, idps            arrays of objects as those of list: sites, and
                            identity providers, whose sessions nobody is given

To others than the agent's own user and root it says no more than its version,
start_time, and their sessions. ` + timesAre

type jsonStatus struct {
	Version       string        `json:"version"`
	PID           int32         `json:"pid,omitempty"`
	StartTime     string        `json:"start_time"`
	Socket        string        `json:"socket"`
	ConfigFiles   []string      `json:"config_files,omitempty"`
	LoadTime      string        `json:"load_time,omitempty"`
	ReloadCode    string        `json:"reload_code,omitempty"`
	ReloadDetail  string        `json:"reload_detail,omitempty"`
	Store         *jsonStore    `json:"store,omitempty"`
	Sites         int32         `json:"sites"`
	SessionCount  int32         `json:"session_count"`
	Logins        int64         `json:"logins"`
	LoginFailures int64         `json:"login_failures"`
	Warnings      []string      `json:"warnings,omitempty"`
	Sessions      []jsonSummary `json:"sessions"`
	IdPs          []jsonSummary `json:"idps,omitempty"`
}

type jsonStore struct {
	Path      string `json:"path"`
	KeySource string `json:"key_source"`
	Format    int32  `json:"format"`
	SizeBytes int64  `json:"size_bytes"`
	Records   int64  `json:"records"`
	// RewriteTime is when it was written anew last.
	RewriteTime string `json:"rewrite_time,omitempty"`
}

func (a *app) status() *cobra.Command {
	var format string
	var follow bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how the agent is set up and how it fares",
		Long: `Show how the agent is set up and how it fares.

--watch stays and shows it anew every two seconds: in the same place on a
terminal, else one below the other. --timeout is for each of them. What fails
after the first is said once and tried again until you end it, by Ctrl-C or
SIGTERM: with status 0.

` + statusFields,
		GroupID: "agent",
		Args:    noOperand,
	}
	output(c, &format)
	c.Flags().BoolVar(&follow, "watch", false, "stay, and show it anew every two seconds")
	c.RunE = func(c *cobra.Command, _ []string) error {
		look := func() ([]byte, error) {
			var text bytes.Buffer // all or nothing
			err := a.call(c, "asking the agent", func(ctx context.Context) error { return a.look(ctx, &text, format) })
			return text.Bytes(), err
		}
		if follow {
			return a.watch(c.Context(), look)
		}
		text, err := look()
		if err == nil {
			_, err = a.stdout.Write(text)
		}
		return err
	}
	return c
}

// look asks the agent how it fares and writes that.
func (a *app) look(ctx context.Context, to io.Writer, format string) error {
	agent, err := a.client.Agent()
	if err != nil {
		return err
	}
	sessions, err := a.client.Sessions()
	if err != nil {
		return err
	}
	st, err := agent.GetStatus(ctx, &pb.GetStatusRequest{})
	if err != nil {
		return err
	}
	ls, err := sessions.ListSessions(ctx, &pb.ListSessionsRequest{})
	if err != nil {
		return err
	}
	j := jsonStatus{
		Version: st.GetVersion(), PID: st.GetPid(), StartTime: rfc3339(st.GetStartTime()), Socket: api.FindSocket(a.client.Socket),
		ConfigFiles: st.GetConfigFiles(), LoadTime: rfc3339(st.GetLoadTime()), ReloadCode: st.GetReloadCode(), ReloadDetail: st.GetReloadDetail(),
		Sites: st.GetSites(), SessionCount: st.GetSessions(), Logins: st.GetLogins(), LoginFailures: st.GetLoginFailures(), Warnings: st.GetWarnings(),
		Sessions: summaries(ls.GetSessions()), IdPs: summaries(ls.GetIdps()),
	}
	if s := st.GetStore(); s != nil {
		j.Store = &jsonStore{s.GetPath(), s.GetKeySource(), s.GetFormat(), s.GetSizeBytes(), s.GetRecords(), rfc3339(s.GetRewriteTime())}
	}
	return show(to, format, j, func(w io.Writer) {
		statusTable(w, &j, st)
		fmt.Fprintln(w)
		sessionTable(w, "SITE", ls.GetSessions())
		if len(ls.GetIdps()) > 0 {
			fmt.Fprintln(w)
			sessionTable(w, "IDP", ls.GetIdps())
		}
	})
}

func statusTable(w io.Writer, j *jsonStatus, st *pb.GetStatusResponse) {
	pid := ""
	if j.PID != 0 { // it is told to the agent's own user and root
		pid = fmt.Sprintf(", pid %d", j.PID)
	}
	row(w, "agent", fmt.Sprintf("version %s%s, up %s", j.Version, pid, time.Since(st.GetStartTime().AsTime()).Round(time.Second)))
	row(w, "socket", j.Socket)
	for _, f := range j.ConfigFiles {
		row(w, "config", f)
	}
	if st.GetLoadTime() != nil {
		row(w, "read", ago(st.GetLoadTime()))
	}
	if s := j.Store; s != nil {
		rewritten := ""
		if t := st.GetStore().GetRewriteTime(); t != nil {
			rewritten = ", written anew " + ago(t)
		}
		row(w, "store", fmt.Sprintf("%s, %d records, %d KiB, format %d%s", s.Path, s.Records, s.SizeBytes>>10, s.Format, rewritten))
		row(w, "key", s.KeySource)
		row(w, "sites", fmt.Sprintf("%d, %d with a session; %d logins, %d failed", j.Sites, j.SessionCount, j.Logins, j.LoginFailures))
	}
	if j.ReloadCode != "" {
		row(w, "warning", "the last reload failed, and the configuration from before is in use: "+j.ReloadDetail+" ("+j.ReloadCode+"); mend that, then: sessionctl reload")
	}
	for _, m := range j.Warnings {
		row(w, "warning", m)
	}
	if j.Version != api.Version {
		row(w, "warning", "this is sessionctl "+api.Version+": restart the agent or install one release")
	}
}

// watchPause is how long watch waits between two looks.
const watchPause = 2 * time.Second

// wipe empties a terminal (ECMA-48: CUP, ED).
const wipe = "\x1b[H\x1b[J"

// watch prints what look sees, again and again until ctx ends: on a terminal in
// the place of what was there, else below it. A failure of the first look ends
// it; what fails later is said once, since the agent may come back.
func (a *app) watch(ctx context.Context, look func() ([]byte, error)) error {
	before, between := "", "\n"
	if onTerminal(a.stdout) {
		before, between = wipe, wipe
	}
	var said api.Code
	for first := true; ; first = false {
		text, err := look()
		switch code := api.CodeOf(err); {
		case ctx.Err() != nil:
			return nil // the way to end it
		case err == nil:
			// In one go, so that nothing flickers.
			if _, err := a.stdout.Write(append([]byte(before), text...)); err != nil {
				return err
			}
			before, said = between, ""
		case first:
			return err
		case code != said:
			said = code
			fail(a.stderr, "", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPause):
		}
	}
}
