package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client/shim"
)

const (
	// bazelTimeout is less than the 10 seconds after which Bazel ends a helper.
	bazelTimeout = 9 * time.Second
	// bazelLife is for how long an answer counts. Nobody tells a helper that what it
	// gave was refused, so the tool has to come back soon.
	bazelLife = 5 * time.Minute
	// maxBazelRequest and maxBazelAnswer are the longest of each, in bytes. Bazel
	// reads nothing before the helper has ended, so an answer has to fit into a pipe
	// (pipe(7)).
	maxBazelRequest = 64 << 10
	maxBazelAnswer  = 64 << 10
)

// bazelRemedy is for requests that are not understood.
const bazelRemedy = "sessionctl bazel --help"

func (a *app) bazel() *cobra.Command {
	return &cobra.Command{
		Use:   "bazel get",
		Short: "Answer Bazel and other tools as a credential helper",
		Long: `Answer a tool that takes credential helpers of EngFlow's specification, as Bazel
does: {"uri":"https://…"} on standard input, the headers on standard output, with
the time after which the tool has to ask again. The site is found by the URI,
grpcs:// being https://. For a URI of no site it fails, as the specification wants
it: name the hosts in Bazel's --credential_helper.`,
		GroupID: "serve",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] != "get" {
				return usage("get is the only command of a credential helper here")
			}
			return nil
		},
		ValidArgs: []cobra.Completion{"get"},
		RunE: func(c *cobra.Command, _ []string) error {
			a.timeout = min(a.timeout, bazelTimeout)
			return a.call(c, "waiting for a session", a.bazelGet)
		},
	}
}

func (a *app) bazelGet(ctx context.Context) error {
	request, err := readAll(ctx, a.stdin, maxBazelRequest)
	if err != nil {
		return err
	}
	url, err := bazelURL(request)
	if err != nil {
		return err
	}
	sessions, err := a.client.Sessions()
	if err != nil {
		return err
	}
	resp, err := sessions.GetSession(ctx, &pb.GetSessionRequest{Url: url, MinValidity: durationpb.New(bazelLife)})
	if err != nil {
		return err
	}
	a.flags(resp.GetSession())
	answer, err := bazelAnswer(resp.GetSession(), time.Now())
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(answer)
	return err
}

// readAll reads all that there is, at most limit bytes, until the time is over.
func readAll(ctx context.Context, r io.Reader, limit int64) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1) // so that it ends although nobody waits for it
	go func() {
		b, err := io.ReadAll(io.LimitReader(r, limit+1))
		done <- result{b, err}
	}()
	select {
	case r := <-done:
		switch {
		case r.err != nil:
			return nil, &api.Error{Code: api.InvalidRequest, Detail: "standard input cannot be read", Remedy: bazelRemedy, Err: r.err}
		case int64(len(r.b)) > limit:
			return nil, &api.Error{Code: api.InvalidRequest, Detail: "the request is too long", Remedy: bazelRemedy}
		}
		return r.b, nil
	case <-ctx.Done():
		return nil, &api.Error{Code: api.Deadline, Detail: "standard input did not end in the time allowed", Remedy: bazelRemedy}
	}
}

// bazelURL returns the URL that a GetCredentialsRequest is about
// (https://github.com/EngFlow/credential-helper-spec). What else the request holds
// does not matter.
func bazelURL(request []byte) (string, error) {
	url, ok := uriOf(request)
	if !ok {
		return "", &api.Error{Code: api.InvalidRequest, Detail: `the request is not JSON like {"uri":"https://host/path"}`, Remedy: bazelRemedy}
	}
	if scheme, rest, ok := strings.Cut(url, "://"); ok && strings.EqualFold(scheme, "grpcs") {
		url = "https://" + rest // gRPC over the TLS of the same origin
	}
	if api.ValidSite(url) || shim.CheckTarget(url) != nil {
		return "", &api.Error{Code: api.InvalidRequest, Detail: "the request's uri is no https, http or grpcs URL without a user", Remedy: bazelRemedy}
	}
	return url, nil
}

// uriOf returns the member uri of a JSON object. Unmarshal would take URI for it, and the
// last of two: who has looked at the request before may have seen another one.
func uriOf(request []byte) (uri string, ok bool) {
	if !json.Valid(request) {
		return "", false
	}
	d := json.NewDecoder(bytes.NewReader(request))
	if begin, err := d.Token(); err != nil || begin != json.Delim('{') {
		return "", false
	}
	for d.More() {
		name, err := d.Token()
		if err != nil || name == "uri" && ok {
			return "", false
		}
		var value any = &uri
		if name != "uri" {
			value = new(json.RawMessage)
		}
		if err := d.Decode(value); err != nil {
			return "", false
		}
		ok = ok || name == "uri"
	}
	return uri, ok
}

// bazelAnswer returns the GetCredentialsResponse for a session.
func bazelAnswer(s *pb.Session, now time.Time) ([]byte, error) {
	response := struct {
		Headers map[string][]string `json:"headers"`
		Expires string              `json:"expires"`
	}{Headers: map[string][]string{}}
	if _, err := cookieHeader(s); err != nil && !authorized(s) {
		return nil, err
	}
	for _, h := range s.GetHeaders() {
		name, value := h.GetName(), string(h.GetValue())
		if !utf8.ValidString(value) || strings.ContainsFunc(name+value, unicode.IsControl) {
			return nil, &api.Error{Code: api.Unprintable, Detail: "a header has a byte that cannot be handed over safely", Remedy: "take another form: sessionctl get " + s.GetSite() + " -o curl"}
		}
		response.Headers[name] = append(response.Headers[name], value)
	}
	expires := now.Add(bazelLife)
	if end := s.GetExpireTime(); end != nil && end.AsTime().Before(expires) {
		expires = end.AsTime()
	}
	// RFC 3339 without fractions of a second, which Bazel does not read.
	response.Expires = expires.UTC().Truncate(time.Second).Format(time.RFC3339)
	b, err := json.Marshal(response)
	if err != nil {
		return nil, err
	}
	if b = append(b, '\n'); len(b) > maxBazelAnswer {
		return nil, &api.Error{Code: api.Unprintable, Detail: "the headers are longer than Bazel can read from a pipe", Remedy: "take another form: sessionctl header " + s.GetSite()}
	}
	return b, nil
}
