package main

import (
	"fmt"
	"slices"
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
			Short:              v.About,
			GroupID:            "serve",
			DisableFlagParsing: true, // the shim has its own grammar
			ValidArgsFunction:  a.complete(v),
			RunE: func(_ *cobra.Command, args []string) error {
				return execSibling(append([]string{"sessionctl", v.Name}, args...))
			},
		}
		c.SetHelpFunc(func(*cobra.Command, []string) { fmt.Fprint(a.stdout, shim.Usage(v.Name)) })
		all = append(all, c)
	}
	return all
}

// complete completes the arguments of a hot verb, by the shim's grammar.
func (a *app) complete(v shim.Verb) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, last string) ([]string, cobra.ShellCompDirective) {
		var operands []string
		value := "" // what the flag before wants
		for _, arg := range args {
			if v.Rest && len(operands) > 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			name, given, ok := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
			i := slices.IndexFunc(v.Flags, func(f shim.Flag) bool { return f.Name == name })
			switch {
			case value != "":
				if value == "PATH" {
					a.client.Socket = arg
				}
				value = ""
			case strings.HasPrefix(arg, "--") && i >= 0 && ok:
				if v.Flags[i].Value == "PATH" {
					a.client.Socket = given
				}
			case strings.HasPrefix(arg, "--") && i >= 0:
				value = v.Flags[i].Value
			case !strings.HasPrefix(arg, "-"):
				operands = append(operands, arg)
			}
		}
		switch {
		case value == "PATH":
			return nil, cobra.ShellCompDirectiveDefault
		case value != "":
			return nil, cobra.ShellCompDirectiveNoFileComp
		case strings.HasPrefix(last, "-"):
			var flags []string
			for _, f := range v.Flags {
				if c.Flag(f.Name) == nil && strings.HasPrefix("--"+f.Name, last) { // the others are cobra's to offer
					flags = append(flags, cobra.CompletionWithDesc("--"+f.Name, f.About))
				}
			}
			return flags, cobra.ShellCompDirectiveNoFileComp
		case v.Name == "credential" && len(operands) == 0:
			return strings.Split(v.Operand, "|"), cobra.ShellCompDirectiveNoFileComp
		}
		return a.sites(c, operands, last)
	}
}
