package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

// stepTime bounds one step of the demonstration.
const stepTime = time.Minute

// demonstration shows the main job of sessionctl with real shells, and checks
// each step.
type demonstration struct {
	lab *daemontest.Lab
	bin string
	get string // the command that gets a URL, with header lines on its input
	out io.Writer
}

// step is what is shown, and what has to come of it.
type step struct {
	about  string
	before func()
	script string // for sh
	logins int    // at Jira, by this step
	want   string // a regular expression that finds something in the output
	times  int    // so often
}

func (d *demonstration) run(ctx context.Context) error {
	jira := d.lab.Jira
	rest := jira.URL() + "/rest/api/2"
	name := `"name":"` + daemontest.Account + `"`
	script := fmt.Sprintf("eval $(sessionctl cookie jira)\nprintf 'Cookie: %%s\\n' \"$JIRA_COOKIE\" | %s %s/myself", d.get, rest)
	twenty := "script() {\n" + indent(script) + "\n}\n" + `i=0; while [ $i -lt 20 ]; do script & i=$((i+1)); done; wait`
	for i, s := range []step{
		{
			about:  "An agent holds a keytab of " + daemontest.Account + ". Nobody has logged in at Jira yet.",
			script: "sessionctl list", want: `(?m)^jira .* none `, times: 1,
		},
		{
			about:  "A script asks for the cookie. The agent logs in with Kerberos, makes sure whose session it is, and hands it over.",
			script: script, logins: 1, want: name, times: 1,
		},
		{
			about:  "The next scripts share that session.",
			script: script, want: name, times: 1,
		},
		{
			about:  "Now the server drops all sessions, as after a restart. The next call heals, by one login: the lab's agent asks Jira before\n   each answer (recheck = \"0s\"). By default it does so every five minutes, or after: sessionctl reject jira.",
			before: jira.DropSessions,
			script: script, logins: 1, want: name, times: 1,
		},
		{
			about:  "Dropped again, and 20 scripts come at once: still one login.",
			before: jira.DropSessions,
			script: twenty, logins: 1, want: name, times: 20,
		},
		{
			about:  "What the agent knows by now.",
			script: "sessionctl list", want: `(?m)^jira .* live `, times: 1,
		},
	} {
		switch err := d.show(ctx, i+1, s); {
		case ctx.Err() != nil:
			return errors.New("interrupted")
		case err != nil:
			return fmt.Errorf("step %d of the demonstration: %w", i+1, err)
		}
	}
	return nil
}

// show runs a step before the reader's eyes.
func (d *demonstration) show(ctx context.Context, n int, s step) error {
	if _, err := fmt.Fprintf(d.out, "\n%d. %s\n\n%s\n\n", n, s.about, indent("$ "+strings.ReplaceAll(s.script, "\n", "\n  "))); err != nil {
		return err // nobody reads it any more
	}
	if s.before != nil {
		s.before()
	}
	was := d.logins()
	output, err := d.shell(ctx, s.script)
	fmt.Fprintln(d.out, indent(shorten(output)))
	switch made := d.logins() - was; {
	case err != nil:
		return err
	case len(regexp.MustCompile(s.want).FindAllString(output, -1)) != s.times:
		return fmt.Errorf("%s should stand there %d times", s.want, s.times)
	case made != s.logins:
		return fmt.Errorf("%d logins at Jira instead of %d", made, s.logins)
	}
	fmt.Fprintf(d.out, "\n  → logins at Jira in this step: %d\n", s.logins)
	return nil
}

func (d *demonstration) logins() int {
	c := d.lab.Jira.Counts()
	return c.KerberosLogins + c.Logins
}

// shell runs a script with nothing of the caller's environment but the programs.
func (d *demonstration) shell(ctx context.Context, script string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Env = []string{"PATH=" + d.bin + string(filepath.ListSeparator) + os.Getenv("PATH"), "SESSIONCTL_SOCKET=" + d.lab.Socket}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	return strings.TrimRight(output.String(), "\n"), err
}

// shorten keeps what fits on a screen, of a list that is the table of all sites.
func shorten(output string) string {
	const width, height = 110, 11
	lines := strings.Split(strings.ReplaceAll(output, "}{", "}\n{"), "\n")
	if more := len(lines) - height; more > 0 {
		lines = append(lines[:height], fmt.Sprintf("… and %d lines more", more))
	}
	for i, l := range lines {
		if r := []rune(l); len(r) > width {
			lines[i] = string(r[:width]) + "…"
		}
	}
	return strings.Join(lines, "\n")
}

func indent(s string) string { return "  " + strings.ReplaceAll(s, "\n", "\n  ") }

// quote makes a path one word for a shell.
func quote(path string) string {
	if !strings.ContainsFunc(path, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-", r)
	}) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
