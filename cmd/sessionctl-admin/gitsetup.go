package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client/shim"
)

// gitHelper is what git calls git-credential-sessionctl.
const gitHelper = "sessionctl"

func (a *app) gitSetup() *cobra.Command {
	var undo, local, global bool
	var file string
	c := &cobra.Command{
		Use:   "git-setup SITE",
		Short: "Let git use a site's session",
		Long: `Let git use a site's session, for repositories below the site's URL. It writes these
lines of git's configuration by git config, and prints them:

  sessionctl.SITE.url           the URL, by which --undo finds the others
  http.URL.cookieFile           the cookie file, as sessionctl jar SITE writes it
  http.URL.saveCookies          false: git does not write into that file
  credential.URL.helper         an empty one, so that no other helper keeps what the
                                agent gives, and sessionctl
  credential.URL.useHttpPath    true: the helper is told which repository

A site that takes a token or password with each request has no cookie file: git gets
that from the helper. A line that is there already stays; where one says something
else, nothing is written. Called again it writes a new cookie file; what keeps that
fresh is sessionctl jar SITE --keep.

--undo removes these lines, and no other; it needs no agent.`,
		Example:           "  sessionctl git-setup bitbucket\n  sessionctl git-setup bitbucket --undo",
		GroupID:           "serve",
		Args:              operand(shim.CheckSite),
		ValidArgsFunction: a.sites,
	}
	c.Flags().BoolVar(&undo, "undo", false, "remove what git-setup wrote")
	c.Flags().BoolVar(&global, "global", false, "in your own configuration (default)")
	c.Flags().BoolVar(&local, "local", false, "in that of the repository here")
	c.Flags().Var(word{&file, "FILE", nil}, "file", "in this file")
	c.MarkFlagsMutuallyExclusive("global", "local", "file")
	c.RunE = func(c *cobra.Command, args []string) error {
		g := gitConfig{scope: []string{"--global"}}
		switch {
		case local:
			g.scope = []string{"--local"}
		case file != "":
			g.scope = []string{"--file", file}
		}
		if undo {
			return a.gitUndo(c.Context(), g, args[0])
		}
		return a.gitDo(c, g, args[0])
	}
	return c
}

// gitDo writes what git needs to use the session of a site.
func (a *app) gitDo(c *cobra.Command, g gitConfig, site string) error {
	if _, err := exec.LookPath("git-credential-" + gitHelper); err != nil {
		return &api.Error{Code: api.Unknown, Err: err, Detail: "git would not find its helper: git-credential-" + gitHelper + " is not in PATH",
			Remedy: "make install puts it beside sessionctl: a link to it by that name"}
	}
	s, err := a.client.Sessions()
	if err != nil {
		return err
	}
	var resp *pb.GetSessionResponse
	if err := a.call(c, site+": waiting for a session", func(ctx context.Context) error {
		resp, err = s.GetSession(ctx, &pb.GetSessionRequest{Site: site})
		return err
	}); err != nil {
		return err
	}
	a.flags(resp.GetSession())
	url := resp.GetSession().GetUrl()
	if err := shim.CheckTarget(url); err != nil || api.ValidSite(url) {
		return &api.Error{Code: api.Unknown, Detail: "the agent answered without the site's URL", Remedy: "see that it and sessionctl are of one release: sessionctl version"}
	}
	lines := gitLines(site, url)
	var jar *jarKeeper
	switch _, err := cookieHeader(resp.GetSession()); {
	case err == nil:
		jar = &jarKeeper{site: site, life: softLife, stderr: a.stderr}
		if jar.file, jar.own, err = jarFile([]string{site}); err != nil {
			return err
		}
		lines = append(lines, jarLines(url, jar.file)...)
	case !authorized(resp.GetSession()):
		return err
	}
	missing, err := g.missing(c.Context(), site, lines)
	if err != nil {
		return err
	}
	if jar != nil {
		if err := jar.take(resp.GetSession()); err != nil {
			return err
		}
	}
	for _, l := range missing {
		for _, value := range l.values {
			if _, err := g.run(c.Context(), "--add", l.key, value); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s = %s\n", l.key, value)
		}
	}
	if len(missing) == 0 {
		a.warn(site, "git is set up already")
	}
	if strings.HasPrefix(url, "http://") {
		a.warn(site, "the site is not https: whoever is on the way can read the session")
	}
	if jar != nil {
		fmt.Fprintf(a.stderr, "  next: have the cookie file kept fresh: systemctl --user enable --now sessionctl-jar@%s.service, or: sessionctl jar %[1]s --keep\n", site)
	}
	return nil
}

// gitUndo removes what gitDo wrote.
func (a *app) gitUndo(ctx context.Context, g gitConfig, site string) error {
	urls, err := g.values(ctx, "sessionctl."+site+".url")
	if err != nil {
		return err
	}
	if len(urls) == 0 {
		a.warn(site, "there is nothing to undo in this configuration")
	}
	for _, url := range urls {
		lines := gitLines(site, url)
		files, err := g.values(ctx, "http."+url+".cookieFile")
		if err != nil {
			return err
		}
		// Where the file was when the lines were written, not where it would be now.
		if i := slices.IndexFunc(files, func(f string) bool { return strings.HasSuffix(f, "/sessionctl/jars/"+site+".txt") }); i >= 0 {
			lines = append(lines, jarLines(url, files[i])...)
		}
		slices.Reverse(lines) // what finds the others goes last
		for _, l := range lines {
			there, err := g.values(ctx, l.key)
			if err != nil {
				return err
			}
			for _, value := range l.values {
				if !slices.Contains(there, value) {
					continue
				}
				if _, err := g.run(ctx, "--fixed-value", "--unset-all", l.key, value); err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "removed %s = %s\n", l.key, value)
			}
		}
	}
	return nil
}

// gitLine is a variable of git's configuration and its values.
type gitLine struct {
	key    string
	values []string
}

// gitLines returns what every site needs; the first line is the one that finds the
// others.
func gitLines(site, url string) []gitLine {
	return []gitLine{
		{"sessionctl." + site + ".url", []string{url}},
		{"credential." + url + ".helper", []string{"", gitHelper}},
		{"credential." + url + ".useHttpPath", []string{"true"}},
	}
}

// jarLines returns what a site with cookies needs besides.
func jarLines(url, file string) []gitLine {
	return []gitLine{{"http." + url + ".cookieFile", []string{file}}, {"http." + url + ".saveCookies", []string{"false"}}}
}

// gitConfig is one of git's configuration files, as git config is told which.
type gitConfig struct{ scope []string }

// missing returns what of the lines is not there. What is there without having been
// written for the site, or says something else, is the error: a second value would be
// a second opinion, and an undo would remove somebody's own.
func (g gitConfig) missing(ctx context.Context, site string, lines []gitLine) ([]gitLine, error) {
	var missing []gitLine
	for i, l := range lines {
		there, err := g.values(ctx, l.key)
		if err != nil {
			return nil, err
		}
		ours := len(there) <= len(l.values) && slices.Equal(there, l.values[:len(there)])
		switch {
		case i == 0 && !ours:
			return nil, &api.Error{Code: api.Unknown, Detail: "git is set up for this site with another URL", Remedy: "sessionctl git-setup " + site + " --undo, with the same options, and then this again"}
		case !ours, i > 0 && len(there) > 0 && len(missing) > 0 && missing[0].key == lines[0].key:
			return nil, &api.Error{Code: api.Unknown, Detail: "git's configuration has " + l.key + " already, which is not of git-setup",
				Remedy: "remove it, or do without git-setup; it is shown by: git config " + strings.Join(g.scope, " ") + " --get-all " + l.key}
		case len(there) < len(l.values):
			missing = append(missing, gitLine{l.key, l.values[len(there):]})
		}
	}
	return missing, nil
}

// values returns the values of a variable, none if it is not there.
func (g gitConfig) values(ctx context.Context, key string) ([]string, error) {
	out, err := g.run(ctx, "--null", "--get-all", key)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 { // git-config(1)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := strings.Split(out, "\x00")
	return all[:len(all)-1], nil
}

// run calls git config on the file.
func (g gitConfig) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", slices.Concat([]string{"config"}, g.scope, args)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		what := strings.TrimSpace(errs.String())
		if what == "" {
			what = err.Error()
		}
		return "", &api.Error{Code: api.Unknown, Detail: "git config: " + what, Remedy: "git config " + strings.Join(g.scope, " ") + " --list", Err: err}
	}
	return out.String(), nil
}
