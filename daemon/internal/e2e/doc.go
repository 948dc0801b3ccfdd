// Package e2e tests the programs as a user meets them: built, started and
// called, against servers in this process and, where they are installed,
// against MIT's KDC and Apache. It holds nothing but tests.
package e2e
