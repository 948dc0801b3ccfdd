// Package clienttest is a fake agent, for tests of programs that use package
// client or the agent's API: the SessionService on a Unix socket in a directory
// of its own, with sites and logins that are the test's. It does what the real
// agent does as far as a client sees it: one login for all callers, reports
// that are compared by generation and verified, watchers that are told.
//
// Like net/http/httptest it can be used outside of tests. It makes no request to
// any site: what a site does is up to the test.
package clienttest
