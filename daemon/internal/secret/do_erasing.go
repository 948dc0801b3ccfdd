//go:build goexperiment.runtimesecret

package secret

import runtimesecret "runtime/secret"

// Erasing says whether Do erases anything in this build.
const Erasing = true

// Do calls f, which handles secrets. What f has left on its stack, in registers and in
// memory that it has allocated is erased when nothing refers to it any more (Go's
// package runtime/secret); goroutines that f starts are on their own.
func Do(f func()) { runtimesecret.Do(f) }
