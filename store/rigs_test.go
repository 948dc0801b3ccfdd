package store_test

import (
	"testing"

	"github.com/sessionctl/sessionctl/daemon/daemontest"
	"github.com/sessionctl/sessionctl/store"
)

// The rigs link the store, so its own tests cannot import them.
func init() {
	store.Require = func(t *testing.T, names ...string) {
		t.Helper()
		daemontest.Require(t, names...)
	}
}
