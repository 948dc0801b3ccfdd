package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/store"
)

// ProbeVerb is the one argument of a sessiond that another one has started to look at
// its store: some damage ends the process that maps the file.
const ProbeVerb = "probe-store"

// What that may take. A good store takes a fraction of it, and damage can lead anywhere;
// time that others have taken from the process says nothing of the file.
const (
	probeCPU  = 1 // seconds
	probeTime = time.Minute
)

// Probe is that process. The store is its descriptor 3. It returns the exit status, and
// writes what it has found.
func Probe(stdout io.Writer) int {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) // the records would be in it
	_ = unix.Setrlimit(unix.RLIMIT_CPU, &unix.Rlimit{Cur: probeCPU, Max: probeCPU})
	if err := store.Probe(os.NewFile(3, "store")); err != nil {
		fmt.Fprintln(stdout, err)
		return 1
	}
	return 0
}

// ProbeBy returns Options.Probe: a process of the program of that path. Its error says
// what the process has seen, or how it has ended.
func ProbeBy(program string) func(*os.File) error {
	return func(f *os.File) error {
		ctx, cancel := context.WithTimeout(context.Background(), probeTime)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, ProbeVerb)
		cmd.Env, cmd.Dir, cmd.ExtraFiles, cmd.WaitDelay = []string{}, "/", []*os.File{f}, time.Second
		out, err := cmd.Output()
		exit, ended := errors.AsType[*exec.ExitError](err)
		switch {
		case !ended: // nobody can look, if it cannot be started
			return nil
		case exit.Exited() && len(out) > 0: // else it was Go's runtime that has ended it
			return fmt.Errorf("%.200s", out)
		}
		return fmt.Errorf("the process that looked at it has ended: %v", exit)
	}
}
