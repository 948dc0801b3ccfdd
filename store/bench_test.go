package store

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
)

var benchRecord = bytes.Repeat([]byte{'x'}, 2000)

// BenchmarkSwap is one durable write by one writer.
func BenchmarkSwap(b *testing.B) {
	bucket := mustOpen(b, newPath(b)).Bucket("sessions")
	revision := mustSwap(b, bucket, "a", 0, benchRecord)
	for b.Loop() {
		revision = mustSwap(b, bucket, "a", revision, benchRecord)
	}
}

// BenchmarkSwap64 is one durable write of each of 64 writers at once.
func BenchmarkSwap64(b *testing.B) {
	bucket := mustOpen(b, newPath(b)).Bucket("sessions")
	var revisions [64]uint64
	for b.Loop() {
		var wg sync.WaitGroup
		for i := range revisions {
			wg.Go(func() {
				var err error
				if revisions[i], err = bucket.Swap(b.Context(), fmt.Sprint(i), revisions[i], benchRecord); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

func BenchmarkLoad(b *testing.B) {
	bucket := mustOpen(b, newPath(b)).Bucket("sessions")
	mustSwap(b, bucket, "a", 0, benchRecord)
	for b.Loop() {
		if _, _, err := bucket.Load("a"); err != nil {
			b.Fatal(err)
		}
	}
}
