// Package client is the Go library for the sessionctl agent: it finds the
// agent's socket, makes sure that the agent is the one to trust, and turns the
// agent's failures into *api.Error.
//
// Nothing of the agent's inside (packages daemon and store) belongs here.
package client
