//go:build !race

package client

// raceDetector says whether the tests have it.
const raceDetector = false
