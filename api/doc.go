// Package api holds what every part of sessionctl agrees on: the stable codes
// of failures with their exit statuses, the error type that carries them, the
// name rules of sites, and where the agent's socket is found and when it may
// be trusted.
//
// It imports only the light part of the standard library, because the tiny
// sessionctl command links it: no net, fmt or encoding/json. The generated
// gRPC messages are in api/sessionctl/v1.
package api

// Version is the release, set by the linker
// (-X github.com/sessionctl/sessionctl/api.Version=…).
// All binaries of one installation carry the same.
var Version = "devel"
