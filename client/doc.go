// Package client is the Go library for the sessionctl agent: it finds the
// agent's socket, makes sure that the agent is the one to trust, and turns the
// agent's failures into *api.Error.
//
// There are three ways to a session. Take the first that fits:
//
//   - [Transport] for requests through net/http. It is an http.RoundTripper that
//     adds what the site wants. When the session has died it logs in anew, and
//     repeats the request if that can do no harm.
//   - [Source], made by [Client.Watch], for a service that makes its requests in
//     another way, such as a WebSocket library or a program that it starts. It
//     always holds the current session, at no cost, also while the agent is away.
//   - [Client.Session] for one request now and then, and for all else. Report a
//     session that the site refuses with [Client.Refresh].
//
// The agent's whole API is behind [Client.Sessions], [Client.Tickets] and
// [Client.Agent]. Package clienttest has an agent for tests.
//
// Nothing of the agent's inside (packages daemon and store) belongs here.
package client
