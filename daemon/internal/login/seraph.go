package login

import (
	"slices"
	"strings"

	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// Values of X-Seraph-LoginReason (com.atlassian.seraph.auth.LoginReason, in
// Jira's Java API documentation).
const (
	authenticatedFailed  = "AUTHENTICATED_FAILED"  // the password is wrong
	authenticationDenied = "AUTHENTICATION_DENIED" // it was not looked at: CAPTCHA
	authorisationFailed  = "AUTHORISATION_FAILED"  // a known user without the right
	loggedOut            = "OUT"
)

// seraphHeaders is what the login framework of Atlassian's products says in an
// answer.
type seraphHeaders struct {
	reasons []string
	denied  string // X-Authentication-Denied-Reason
	user    string // "" for nobody
	// anonymous: it is said that nobody asks, and not only not said who.
	anonymous bool
	// jira: the answer is of Jira itself, not of something in front.
	jira bool
}

func seraph(r *web.Response) seraphHeaders {
	var s seraphHeaders
	// The field may hold several values, and come several times.
	for _, v := range r.Header.Values("X-Seraph-LoginReason") {
		for reason := range strings.SplitSeq(v, ",") {
			s.reasons = append(s.reasons, strings.ToUpper(strings.TrimSpace(reason)))
		}
	}
	s.denied = r.Header.Get("X-Authentication-Denied-Reason")
	if s.user = r.Header.Get("X-AUSERNAME"); s.user == "anonymous" {
		s.user, s.anonymous = "", true
	}
	// On every answer of Jira's (captured in Jit#12 and others).
	s.jira = s.reasons != nil || s.user != "" || s.anonymous || r.Header.Get("X-AREQUESTID") != ""
	return s
}

func (s seraphHeaders) says(reason string) bool { return slices.Contains(s.reasons, reason) }

// captcha reports whether a person has to solve a picture first.
func (s seraphHeaders) captcha() bool {
	return s.says(authenticationDenied) || strings.HasPrefix(s.denied, "CAPTCHA_CHALLENGE")
}
