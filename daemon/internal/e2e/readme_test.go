package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
)

// TestReadme: what the README shows works, and what it names is there.
func TestReadme(t *testing.T) {
	b, err := os.ReadFile("../../../README.md")
	must(t, err)
	readme := string(b)
	w := inProcess(t)
	h := newHome(t, w)

	t.Run("configuration", func(t *testing.T) {
		_, example, ok := strings.Cut(readme, "```toml\n")
		example, _, _ = strings.Cut(example, "```")
		if !ok {
			t.Fatal("no example")
		}
		example = regexp.MustCompile(`(?m)^   `).ReplaceAllString(example, "")
		h := newHome(t, w)
		write(t, h.config, strings.NewReplacer("/home/build/build.keytab", w.keytab, "svc-build@", "build@").Replace(example))
		if out := h.ok(t, "check-config", h.config); !strings.Contains(out, "ok: 1 sites") {
			t.Error(out)
		}
		// The same with every option of the tables.
		all := ""
		for _, m := range regexp.MustCompile("(?m)^\\| (`[a-z_]+`(?: · `[a-z_]+`)*) \\|").FindAllStringSubmatch(readme, -1) {
			for _, o := range strings.Split(m[1], " · ") {
				all += " " + strings.Trim(o, "`")
			}
		}
		if len(strings.Fields(all)) < 15 {
			t.Errorf("only the options%s were found", all)
		}
		unknown := func(table, option string) bool {
			r := h.sessionctl(t, "check-config", write(t, filepath.Join(t.TempDir(), "x.toml"), table+option+" = {}\n"))
			return strings.Contains(r.stderr, "unknown key")
		}
		for _, option := range strings.Fields(all) {
			if unknown("[site.app]\nkind = \"spnego\"\n", option) && unknown("[credential.x]\n", option) {
				t.Errorf("there is no option %s", option)
			}
		}
	})

	t.Run("verbs", func(t *testing.T) {
		help := h.ok(t, "help") + h.run(t, "", filepath.Join(bin, "sessionctl-admin"), "help").stdout
		seen := 0
		for _, m := range regexp.MustCompile("sessionctl ([a-z-]+)").FindAllStringSubmatch(readme, -1) {
			if seen++; !strings.Contains(help, "  "+m[1]+" ") {
				t.Errorf("there is no verb %s", m[1])
			}
		}
		if seen < 10 {
			t.Errorf("only %d verbs found", seen)
		}
	})

	t.Run("exit statuses", func(t *testing.T) {
		for text, status := range map[string]int{"ok": api.ExitOK, "other": api.ExitOther, "usage": api.ExitUsage, "no agent": api.ExitNoAgent,
			"unknown site": api.ExitUnknown, "a person must act": api.ExitPerson, "this verb is not allowed": api.ExitDenied, "try later": api.ExitLater} {
			if !strings.Contains(readme, fmt.Sprintf("%d %s", status, text)) {
				t.Errorf("%d %s", status, text)
			}
		}
	})

	t.Run("message", func(t *testing.T) {
		h := newHome(t, w, credential("wrong", "svc-build", w.addKeytab(t, "svc-build", false)), strings.Replace(w.site("x", "/spnego/", `credential = "wrong"`), "site.x", "site.wrong", 1))
		h.start(t)
		r := h.fails(t, 5, "bad_credentials", "raw", "wrong")
		said := regexp.MustCompile(`, "[A-Z_]+"`).ReplaceAllString(r.stderr, "") // the KDC's own words
		if said = strings.ReplaceAll(strings.ReplaceAll(said, "wrong", "app"), "\n", "\n    "); !strings.Contains(readme, strings.TrimSpace(said)) {
			t.Errorf("the README shows another message than:\n%s", r.stderr)
		}
	})

	t.Run("make targets", func(t *testing.T) {
		mk, err := os.ReadFile("../../../Makefile")
		must(t, err)
		for _, m := range regexp.MustCompile("(?:`|=require |    )make ([a-z]+)").FindAllStringSubmatch(readme, -1) {
			if !regexp.MustCompile(`(?m)^(\.PHONY: .*\b` + m[1] + `\b)`).Match(mk) {
				t.Errorf("there is no target %s", m[1])
			}
		}
	})
}
