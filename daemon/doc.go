// Package daemon is the agent: its configuration, its socket, its gRPC
// services, and the wiring of everything below daemon/internal, top to bottom
// and by hand in Run.
//
// What a session, a ticket or a cookie is does not belong here, but in the
// packages keeper, krb and web.
package daemon
