package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sessionctl/sessionctl/client/shim"
)

// hot returns the verbs of the tiny sessionctl, so that help and completion
// know all verbs. Called here, they are handed back to it.
func (a *app) hot() []*cobra.Command {
	var all []*cobra.Command
	for _, v := range shim.Verbs() {
		c := &cobra.Command{
			Use:                v.Name + " " + v.Operand,
			Short:              strings.ToUpper(v.About[:1]) + v.About[1:],
			GroupID:            "serve",
			DisableFlagParsing: true, // the shim has its own grammar
			ValidArgsFunction:  a.sites,
			RunE: func(_ *cobra.Command, args []string) error {
				return execSibling(append([]string{"sessionctl", v.Name}, args...))
			},
		}
		if v.Name == "credential" {
			c.ValidArgsFunction = cobra.FixedCompletions([]string{"get", "store", "erase"}, cobra.ShellCompDirectiveNoFileComp)
		}
		c.SetHelpFunc(func(*cobra.Command, []string) { fmt.Fprint(a.stdout, shim.Usage(v.Name)) })
		all = append(all, c)
	}
	return all
}
