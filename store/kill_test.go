package store

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"
)

// childLoad is childLoop in a store that is rekeyed all the time.
func childLoad(s *Store) error {
	errs := make(chan error)
	go func() { errs <- childLoop(s) }()
	go func() {
		for {
			if err := s.Rekey(context.Background()); err != nil {
				errs <- err
				return
			}
		}
	}()
	return <-errs
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

// loopAck is the last write of a writer of childLoop that was acknowledged.
type loopAck struct {
	n        int
	revision uint64
}

// killAfter runs childLoad and kills it a while after so many writes. It takes note of
// what is acknowledged, and counts it.
func killAfter(t *testing.T, path string, last []loopAck, after int, while time.Duration) (acks int) {
	t.Helper()
	cmd := newChild(t, "load", path, "")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
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
	err = cmd.Wait()
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
