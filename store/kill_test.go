package store

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// childLoad lets several goroutines write, and rekeys all the time, until the process is
// killed. Each write that returned is printed: writer, number, revision.
func childLoad(s *Store) error {
	b := s.Bucket("sessions")
	errs := make(chan error)
	for w := range loopWriters {
		go func() {
			name := loopName(w)
			record, revision, err := b.Load(name)
			n := 0
			if revision != 0 {
				n, err = loopNumber(w, record)
			}
			for err == nil {
				n++
				revision, err = b.Swap(context.Background(), name, revision, loopRecord(w, n))
				if err == nil {
					_, err = fmt.Fprintf(os.Stdout, "%d %d %d\n", w, n, revision)
				}
			}
			errs <- err
		}()
	}
	go func() {
		var err error
		for err == nil {
			err = s.Rekey(context.Background())
		}
		errs <- err
	}()
	return <-errs
}

const loopWriters = 4

func loopName(w int) string { return fmt.Sprintf("CANARY-writer-%d", w) }

func loopRecord(w, n int) []byte {
	return append(fmt.Appendf(nil, "CANARY %d %d ", w, n), bytes.Repeat([]byte{'x'}, 100+n%4000)...)
}

func loopNumber(w int, record []byte) (n int, err error) {
	var who int
	if _, err := fmt.Sscanf(string(record), "CANARY %d %d ", &who, &n); err != nil {
		return 0, err
	}
	if !bytes.Equal(record, loopRecord(w, n)) {
		return 0, fmt.Errorf("record %d of writer %d is not what was written", n, w)
	}
	return n, nil
}

// TestKillUnderLoad: a process that is killed at any instant, from its start on, while it
// writes and rekeys, leaves a store that opens and has all that was acknowledged.
func TestKillUnderLoad(t *testing.T) {
	const perStore = 10 // kills, before there is a new one
	rounds := 30
	if torture {
		rounds = 1000
	}
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	var path string
	var last []loopAck
	var acks, generations int
	for round := range rounds {
		if round%perStore == 0 {
			path, last = newPath(t), make([]loopAck, loopWriters)
		}
		// The first instants are those of the start.
		acks += killAfter(t, path, last, r.IntN(3)*r.IntN(60), time.Duration(r.IntN(20_000))*time.Microsecond)
		s := mustOpen(t, path)
		if st := s.Status(); st.Err != nil || st.Warning != "" {
			t.Fatalf("round %d: error %v, warning %q", round, st.Err, st.Warning)
		}
		for w := range last {
			if err := last[w].check(s, w); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if round%perStore == perStore-1 {
			generations += int(oldestGeneration(s))
		}
		mustClose(t, s)
		if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".store.db.*")); err != nil || left != nil {
			t.Fatalf("round %d: %v is left, %v", round, left, err)
		}
	}
	t.Logf("%d kills, %d acknowledged writes, %d rekeys", rounds, acks, generations)
	if acks < rounds || generations < rounds/2 {
		t.Error("the load was no load")
	}
}

// loopAck is the last write of a writer of childLoad that was acknowledged.
type loopAck struct {
	n        int
	revision uint64
}

// killAfter runs childLoad and kills it a while after so many writes. It takes note of
// what is acknowledged, and counts it.
func killAfter(t *testing.T, path string, last []loopAck, after int, while time.Duration) (acks int) {
	t.Helper()
	cmd := newChild(t, "load", path, "")
	_, stdout := startPiped(t, cmd)
	kill := func() { time.AfterFunc(while, func() { cmd.Process.Kill() }) }
	if after == 0 {
		kill()
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		var w int
		var a loopAck
		if _, err := fmt.Sscan(lines.Text(), &w, &a.n, &a.revision); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		last[w] = a
		if acks++; acks == after {
			kill()
		}
	}
	err := cmd.Wait()
	if acks < after || cmd.ProcessState.Exited() {
		t.Fatalf("the child ended by itself: %v", childErr(cmd, err))
	}
	return acks
}

// check wants what was acknowledged, or the write that was on its way then, and takes
// note of it.
func (a *loopAck) check(s *Store, w int) error {
	record, revision, err := s.Bucket("sessions").Load(loopName(w))
	if err != nil {
		return err
	}
	n := 0
	if revision != 0 {
		if n, err = loopNumber(w, record); err != nil {
			return err
		}
	}
	if n < a.n || n > a.n+1 || revision < a.revision {
		return fmt.Errorf("writer %d has %d at revision %d; acknowledged were %d at %d", w, n, revision, a.n, a.revision)
	}
	*a = loopAck{n, revision}
	return nil
}
