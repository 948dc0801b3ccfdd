// Package sessionctlv1 holds the messages and services of the agent's API,
// generated from proto/sessionctl/v1; nothing is written by hand here.
package sessionctlv1
