// Command sessionctl prints cookie headers of live web sessions, for shells
// and for tools. It is the tiny part: what it does is in package shim, and
// nothing else may be linked here. The verbs that are not hot belong to
// sessionctl-admin.
package main

import (
	"os"

	"github.com/sessionctl/sessionctl/client/shim"
)

func main() { os.Exit(shim.Run(os.Args, os.Stdin, os.Stdout, os.Stderr)) }
