// Package arrows holds the tests that keep the shape of the project: which
// package may import which and why, what each binary links, one package comment
// each, and words that no file may hold. There is no other code here.
package arrows
