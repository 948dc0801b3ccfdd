package daemon

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain: what a developer's own environment says of proxies is not meant for
// the sites of tests.
func TestMain(m *testing.M) {
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		os.Unsetenv(name)
	}
	if role, ok := roles[os.Getenv(roleVariable)]; ok {
		if err := role(os.Args[1:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}
