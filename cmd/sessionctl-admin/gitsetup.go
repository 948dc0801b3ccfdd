package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
		default:
			file = os.Getenv("GIT_CONFIG_GLOBAL") // git-config(1)
		}
		if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
			// git would wait at a pipe for ever, and replace a device by a file.
			return usage("%s is no ordinary file", file)
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
	if !properURL(url) {
		return &api.Error{Code: api.Unknown, Detail: "the agent answered without the site's URL", Remedy: "see that it and sessionctl are of one release: sessionctl version"}
	}
	if err := helperThere(); err != nil {
		return err
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

// helperThere fails where git would not find its helper.
func helperThere() error {
	_, err := exec.LookPath("git-credential-" + gitHelper)
	if err == nil {
		return nil
	}
	failed := &api.Error{Code: api.Unknown, Err: err, Detail: "git would not find its helper: git-credential-" + gitHelper + " is not in PATH", Remedy: "make install puts it beside sessionctl: a link to it by that name"}
	if self, err := os.Executable(); err == nil {
		failed.Remedy = helperRemedy(filepath.Dir(self))
	}
	return failed
}

// helperRemedy is how git comes to find its helper, which belongs into the directory of
// sessionctl.
func helperRemedy(dir string) string {
	quoted := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	link := filepath.Join(dir, "git-credential-"+gitHelper)
	if _, err := exec.LookPath(link); err != nil {
		return "ln -s sessionctl " + quoted(link)
	}
	return "export PATH=" + quoted(dir) + ":\"$PATH\", and in the file that your shell reads at its start, too"
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
		if !properURL(url) { // git-setup has not written that
			a.warn(site, "sessionctl."+site+".url is no URL in one place, which stays")
			continue
		}
		lines := gitLines(site, url)
		files, err := g.values(ctx, "http."+url+".cookieFile")
		if err != nil {
			return err
		}
		// Where the file was when the lines were written, not where it would be now.
		if i := slices.IndexFunc(files, func(f string) bool { return ownJar(site, f) }); i >= 0 {
			lines = append(lines, jarLines(url, files[i])...)
		}
		slices.Reverse(lines) // what finds the others goes last
		for _, l := range lines {
			there, err := g.values(ctx, l.key)
			if err != nil {
				return err
			}
			for _, value := range l.values {
				switch i := slices.Index(there, value); {
				case i < 0:
					continue
				case value == "" && slices.Contains(there[i+1:], ""):
					// One is for a helper of somebody's own, and all would be removed.
					a.warn(site, l.key+" is empty more than once, and stays so")
					continue
				}
				// With --fixed-value git crashes at a variable that has no value at all.
				if _, err := g.run(ctx, "--unset-all", l.key, "^"+regexp.QuoteMeta(value)+"$"); err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "removed %s = %s\n", l.key, value)
			}
		}
	}
	return nil
}

// properURL tells whether git-setup may have written it.
func properURL(url string) bool { return shim.CheckTarget(url) == nil && !api.ValidSite(url) }

// ownJar tells whether git-setup may have written that cookie file for a site, here or in
// another session of the user's.
func ownJar(site, file string) bool { return strings.HasSuffix(file, "/sessionctl/jars/"+site+".txt") }

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
	again := "sessionctl git-setup " + site + " --undo, with the same options, and then this again"
	for i, l := range lines {
		there, err := g.values(ctx, l.key)
		if err != nil {
			return nil, err
		}
		ours := len(there) <= len(l.values) && slices.Equal(there, l.values[:len(there)])
		switch {
		case i == 0 && !ours:
			return nil, &api.Error{Code: api.Unknown, Detail: "git is set up for this site with another URL", Remedy: again}
		case !ours && len(missing) == 0 && strings.HasSuffix(l.key, ".cookieFile") && len(there) == 1 && ownJar(site, there[0]):
			return nil, &api.Error{Code: api.Unknown, Detail: "git is set up for this site with another cookie file: " + there[0], Remedy: again}
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
		if errors.Is(err, exec.ErrNotFound) {
			return "", &api.Error{Code: api.Unknown, Detail: "git is not in PATH", Remedy: "install git", Err: err}
		}
		what := strings.TrimSpace(errs.String())
		if what == "" {
			what = err.Error()
		}
		return "", &api.Error{Code: api.Unknown, Detail: "git config: " + what, Remedy: "git config " + strings.Join(g.scope, " ") + " --list", Err: err}
	}
	return out.String(), nil
}
