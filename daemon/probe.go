package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
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
	fmt.Fprintln(stdout, looking)
	if err := store.Probe(os.NewFile(3, "store")); err != nil {
		fmt.Fprintln(stdout, err)
		return 1
	}
	return 0
}

const (
	looking  = "looking"                        // is what the process says before it maps the file
	noThread = "failed to create new OS thread" // is of Go's runtime
)

// killed tells whether somebody has ended the process, or the kernel for want of memory,
// and not for what it has computed.
func killed(exit *exec.ExitError) bool {
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == unix.SIGKILL &&
		exit.UserTime()+exit.SystemTime() < probeCPU*time.Second/2
}

// ProbeBy returns Options.Probe: a process of the program of that path. Its error says
// what the process has seen, or how it has ended. If nobody can look, which says nothing
// of the file, it is nil.
func ProbeBy(program string) func(*os.File) error {
	return func(f *os.File) error {
		for range probeTries {
			if looked, err := probeOnce(program, f); looked {
				return err
			}
			<-time.After(probePause)
		}
		return nil
	}
}

// What is done about a process that could not look.
const (
	probeTries = 3
	probePause = 50 * time.Millisecond
)

func probeOnce(program string, f *os.File) (looked bool, damage error) {
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, ProbeVerb)
	cmd.Env, cmd.Dir, cmd.ExtraFiles, cmd.WaitDelay = []string{}, "/", []*os.File{f}, time.Second
	out, err := cmd.Output()
	exit, ended := errors.AsType[*exec.ExitError](err)
	said, began := strings.CutPrefix(string(out), looking+"\n")
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil, ended && killed(exit): // nor will it be different another time
		return true, nil
	case !ended, !began, strings.Contains(string(exit.Stderr), noThread):
		return false, nil
	case said != "": // else it was Go's runtime that has ended it
		return true, fmt.Errorf("%.200s", said)
	}
	return true, fmt.Errorf("the process that looked at it has ended: %v", exit)
}
