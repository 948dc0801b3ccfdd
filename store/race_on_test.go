//go:build race

package store

// raceDetector says whether the race detector watches, which makes everything slower.
const raceDetector = true
