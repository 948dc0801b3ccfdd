package rig_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestServersDieWithTheTest kills a test process, which is this test again as a
// child, and waits until the servers that it started are gone.
func TestServersDieWithTheTest(t *testing.T) {
	const child = "RIG_TEST_CHILD"
	if os.Getenv(child) != "" {
		a, k := startApache(t, 0)
		fmt.Println("ADDRESSES", k.Addr(), strings.TrimPrefix(a.URL(), "http://"))
		_, _ = io.Copy(io.Discard, os.Stdin) // until killed
		return
	}
	a, _ := startApache(t, 0) // must survive; and lets Apache pass through the temporary directory
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestServersDieWithTheTest$")
	cmd.Env = append(os.Environ(), child+"=1", "TMPDIR="+t.TempDir())
	hold, err := cmd.StdinPipe()
	must(t, err)
	defer hold.Close()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var addresses []string
	for lines := bufio.NewScanner(out); len(addresses) == 0 && lines.Scan(); {
		if list, ok := strings.CutPrefix(lines.Text(), "ADDRESSES "); ok {
			addresses = strings.Fields(list)
		}
	}
	for _, address := range addresses {
		conn, err := net.Dial("tcp", address)
		must(t, err)
		conn.Close()
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // always says that it was killed
	if len(addresses) != 2 {
		t.Fatal("the child did not start its servers")
	}

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for _, address := range addresses {
		for {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				break
			}
			conn.Close()
			select {
			case <-poll.C:
			case <-ctx.Done():
				t.Fatalf("the server on %s has outlived the test", address)
			}
		}
	}
	if res := get(t, a.URL()+"/plain/", nil); res.StatusCode != 200 {
		t.Errorf("the other server: %s", res.Status)
	}
}
