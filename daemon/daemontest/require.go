// Package daemontest is the door to the test rigs for tests outside the
// daemon's folder. The rigs themselves are in daemon/internal/rig; nothing here
// imports testing, so that programs may use it as well.
package daemontest

import "github.com/sessionctl/sessionctl/daemon/internal/rig"

// TB is what Require needs of a test (testing.TB has it).
type TB = rig.TB

// Require lets the test go on only if all the named programs and Apache modules
// are on this machine; "root" asks for that user. If one is missing, the test
// fails when $SESSIONCTL_RIGS is "require"; otherwise it is skipped, loudly.
func Require(tb TB, names ...string) {
	tb.Helper()
	rig.Require(tb, names...)
}
