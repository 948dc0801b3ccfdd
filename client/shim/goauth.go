package shim

import (
	"bufio"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// Go's GOAUTH protocol, of Go 1.24 and newer (go help goauth). A credential set is
// lines of URLs, an empty line, lines of headers, an empty line. Output that is not
// exactly that, or an exit status, and go does without all of it.

// goFirst is how long the go command is held up before its first request, for all
// sites together: it may never ask any of them.
const goFirst = 50 * time.Millisecond

// runGoauth answers the go command. It calls before its first request, and with a
// request's URL after each answer with status 4xx, which is on standard input.
func runGoauth(p *process, o *options) error {
	sites, url := o.operands, ""
	if last := len(sites) - 1; !api.ValidSite(sites[last]) {
		sites, url = sites[:last], sites[last]
	}
	notSite := func(s string) bool { return !api.ValidSite(s) }
	if len(sites) == 0 || slices.ContainsFunc(sites, notSite) {
		return usageError("at least one SITE is needed, and no URL but the one that go appends", "sessionctl goauth --help")
	}
	if url == "" {
		return p.goBegins(o, sites)
	}
	return p.goRefused(o, sites, url)
}

// goBegins prints the sets of the sites whose sessions are at hand. Of sites at one
// origin the first counts; for go the last would.
func (p *process) goBegins(o *options, sites []string) error {
	soon := *o
	if end := time.Now().Add(goFirst); end.Before(soon.deadline) {
		soon.deadline = end
	}
	var printed []string
	var failed error
	for _, site := range sites {
		s, err := p.request(&soon, methodGetSession, getSession{site: site, cachedOnly: true}.encode())
		var origin, set string
		if err == nil {
			origin, err = goOrigin(s.url)
		}
		if err == nil {
			set, err = s.goSet(origin)
		}
		switch {
		case api.CodeOf(err) == api.NotCached, err == nil && slices.Contains(printed, origin):
		case err == nil:
			if err := p.answer(s, o, set); err != nil {
				return err
			}
			printed = append(printed, origin)
		case failed == nil:
			o.operand, failed = site, err
		}
	}
	if failed != nil && len(printed) > 0 {
		// The others are good.
		p.warn(o.operand, api.Clean(failed.Error()))
		return nil
	}
	return failed
}

// goRefused prints the set for a URL that was refused, if it is at one of the
// sites. What go has kept of an earlier set it sends again unless it gets another.
func (p *process) goRefused(o *options, sites []string, url string) error {
	origin, err := goOrigin(url)
	if err != nil {
		return err
	}
	dead, err := speaksAgainst(p.input(o, "call it as go does: go help goauth"))
	if err != nil {
		return err
	}
	var failed error
	for _, site := range sites {
		s, had, err := p.goAnew(o, site, url, dead)
		var set string
		if err == nil {
			set, err = s.goSet(origin)
		}
		switch {
		case err == nil:
			return p.answer(s, o, set)
		case api.CodeOf(err) == api.InvalidRequest: // the URL is not at this site
		case had && api.CodeOf(err).Exit() == api.ExitPerson:
			// The session is dead and there is no other: a set without headers
			// takes it back.
			p.warn(site, api.Clean(err.Error()))
			return p.print(origin + "\n\n\n")
		case api.CodeOf(err) != api.UnknownSite:
			o.operand = site
			return err
		case failed == nil:
			o.operand, failed = site, err
		}
	}
	return failed
}

// goAnew returns a site's session for a URL. If the one at hand is said to be dead,
// the agent is told, which asks the site; had reports whether there was one.
func (p *process) goAnew(o *options, site, url string, dead bool) (s *session, had bool, err error) {
	wanted := getSession{site: site, url: url, cachedOnly: dead}
	s, err = p.request(o, methodGetSession, wanted.encode())
	if !dead || err != nil && api.CodeOf(err) != api.NotCached {
		return s, false, err
	}
	report := appendStringField(nil, 1, site)
	if had = err == nil; had {
		report = append(report, refreshSession{url, s.generation}.encode()...)
	} else {
		report = append(report, refreshSession{url: url}.encode()...)
	}
	s, err = p.request(o, methodRefreshSession, report)
	return s, had, err
}

// goSet returns a session's credential set for an origin.
func (s *session) goSet(origin string) (string, error) {
	if name := s.strays(); name != "" {
		return "", &api.Error{Code: api.PerRequestOnly, Detail: "go would send the session's " + name + " header to every host that it is led to",
			Remedy: "fetch what it needs with another program: sessionctl header SITE"}
	}
	lines, err := s.lines("")
	return origin + "\n\n" + lines + "\n", err
}

// goOrigin returns the origin of a URL, spelled as there. A prefix with a path would
// not do: go looks a URL up with its query, which stands where "/" has to.
func goOrigin(url string) (string, error) {
	scheme, rest, _ := strings.Cut(url, "://")
	if !validURL(url) || !strings.EqualFold(scheme, "https") {
		return "", usageError("go takes credentials for https only", "name a site whose url begins with https")
	}
	return "https://" + hostOf(rest), nil
}

// maxResponseLine is how much of a line of the response is looked at, in bytes.
const maxResponseLine = 64 << 10

// speaksAgainst reports whether the response that go hands over says that the
// session of its request is none any more: with status 401, or by a header of its
// own. Any other 4xx, such as 404 for a version that is not there, says nothing.
func speaksAgainst(r io.Reader) (bool, error) {
	in := bufio.NewReaderSize(r, maxResponseLine)
	status := ""
	for first, whole := true, true; ; first = false {
		raw, err := in.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return false, err
		}
		line := strings.TrimRight(string(raw), "\r\n")
		switch name, value, ok := strings.Cut(line, ":"); {
		case first:
			_, rest, _ := strings.Cut(line, " ") // RFC 9112, section 4
			if status, _, _ = strings.Cut(rest, " "); status == "401" {
				return true, nil
			}
		case whole && line == "" || len(raw) == 0:
			return false, nil
		case whole && ok && status != "429" && againstSession(name, strings.TrimSpace(value), status):
			return true, nil
		}
		whole = err == nil
	}
}

// againstSession reports whether a header says that nobody was logged in: a
// challenge (RFC 9110, section 11.6.1) that comes with a 403, or what Atlassian's
// products say of the session, as in package client. go joins a header's values by
// commas.
func againstSession(name, value, status string) bool {
	switch {
	case strings.EqualFold(name, "WWW-Authenticate"):
		return status == "403"
	case strings.EqualFold(name, "X-AUSERNAME"):
		return value == "anonymous"
	case strings.EqualFold(name, "X-Seraph-LoginReason"):
		for reason := range strings.SplitSeq(value, ",") {
			switch strings.ToUpper(strings.TrimSpace(reason)) {
			case "AUTHENTICATED_FAILED", "OUT":
				return true
			}
		}
	}
	return false
}
