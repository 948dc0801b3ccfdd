package daemon

import "golang.org/x/sys/unix"

// CloseMemory keeps the memory of this process to itself: no debugger of its own user
// gets at it (prctl(2), PR_SET_DUMPABLE), and no core file holds it, nor one of a
// program that it starts (setrlimit(2), RLIMIT_CORE, which those inherit). It is to be
// called before anything secret is read; after an error nothing may be. MemoryWarnings
// says what came of it.
func CloseMemory() error {
	// The limit is a second wall: a sandbox that forbids to set it has set it.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// MemoryWarnings asks the kernel in which ways the memory of this process is open.
func MemoryWarnings() (warnings []string) {
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 0 {
		warnings = append(warnings, "the agent's memory is open to every process of its user: the kernel did not let it be closed (prctl(2), PR_SET_DUMPABLE)")
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || core != (unix.Rlimit{}) {
		warnings = append(warnings, "programs that the agent starts may leave core files, with passwords in them: set LimitCORE=0 in its unit, or start it after: ulimit -c 0")
	}
	return warnings
}
