// Package shim is what the tiny sessionctl command consists of: the grammar of
// the hot verbs as one table, and unary gRPC calls to the agent over its Unix
// socket, mostly one. `curl`, `exec` and the verbs that are not hot end in
// another program, by exec(2).
//
// It speaks gRPC's wire protocol (HTTP/2, RFC 9113; HPACK, RFC 7541; protocol
// buffers) itself, because starting a program that links a gRPC library costs
// more than the whole call. For the same reason it imports only the light part
// of the standard library and package api: never net, net/http, crypto, fmt,
// encoding/json, os/exec, flag or log. It logs nothing, keeps nothing, and
// starts no goroutine. What is not needed on the hot path belongs to
// sessionctl-admin.
//
// There is no context.Context here: the process is the operation, a signal
// ends it, and every system call that can wait is bounded by a deadline.
package shim
