package login

import (
	"bytes"
	"encoding/json"
	"net/http"
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

// Exceptions that Bitbucket's errors name, without their packages (Bitbucket REST
// API, "Errors"; the 401s are told apart by nothing else).
const (
	captchaRequired   = "CaptchaRequiredAuthenticationException"
	incorrectPassword = "IncorrectPasswordAuthenticationException"
	noAccess          = "NoAccessAuthenticationException" // no licence
	authorisation     = "AuthorisationException"          // no permission, or nobody
)

// heard is what an answer of Atlassian's products says of a login: the headers of
// their login framework, Seraph, and what their errors have in common.
type heard struct {
	status  int
	reasons []string
	denied  string // X-Authentication-Denied-Reason
	user    string // "" for nobody
	// users: more than one is named.
	users bool
	// anonymous: it is said that nobody asks, and not only not said who.
	anonymous bool
	// own: the answer is of the product itself, not of something in front.
	own bool
	errorBody
	text []byte // of a refusal
}

func hear(r *web.Response) heard {
	h := heard{status: r.Status}
	// The field may hold several values, and come several times.
	for _, v := range r.Header.Values("X-Seraph-LoginReason") {
		for reason := range strings.SplitSeq(v, ",") {
			h.reasons = append(h.reasons, strings.ToUpper(strings.TrimSpace(reason)))
		}
	}
	h.denied = r.Header.Get("X-Authentication-Denied-Reason")
	named := r.Header.Values("X-AUSERNAME")
	h.users = slices.ContainsFunc(named, func(name string) bool { return name != named[0] })
	if h.user = r.Header.Get("X-AUSERNAME"); h.user == "anonymous" {
		h.user, h.anonymous = "", true
	}
	// On every answer of a product's (captured in Jit#12 and others).
	h.own = h.reasons != nil || h.user != "" || h.anonymous || r.Header.Get("X-AREQUESTID") != ""
	if r.Status >= 400 && r.Status < 500 {
		h.text, h.errorBody = r.Body, readErrorBody(r.Body)
	}
	return h
}

func (h heard) says(reason string) bool { return slices.Contains(h.reasons, reason) }

// refusal reports whether a refusal's text gives that reason, as it does for Basic
// (markdown-confluence#621, jira-node#314).
func (h heard) refusal(reason string) bool {
	return (h.status == http.StatusUnauthorized || h.status == http.StatusForbidden) && bytes.Contains(h.text, []byte("Reason : "+reason))
}

// captcha reports whether a person has to solve a picture first.
func (h heard) captcha() bool {
	return h.says(authenticationDenied) || strings.HasPrefix(h.denied, "CAPTCHA_CHALLENGE") ||
		h.throws(captchaRequired) || h.captchaRequired || h.refusal(authenticationDenied)
}

// wrong reports whether the password was looked at, and is wrong.
func (h heard) wrong() bool {
	return h.says(authenticatedFailed) || h.throws(incorrectPassword) || h.refusal(authenticatedFailed)
}

// basicDisabled reports whether no password is looked at
// (atlassian/data-center-helm-charts#1101).
func (h heard) basicDisabled() bool {
	return h.status == http.StatusForbidden && bytes.Contains(h.text, []byte("Basic Authentication has been disabled"))
}

// forged reports whether the request is taken for a forged one. It has to be
// asked before noRight: such an answer names the user, too.
func (h heard) forged() bool {
	return h.status == http.StatusForbidden && bytes.Contains(h.text, []byte("XSRF check failed"))
}

// noRight reports whether the user is known, but may not use the product.
func (h heard) noRight() bool {
	return h.says(authorisationFailed) || h.status == http.StatusForbidden && h.user != "" ||
		h.throws(noAccess) || h.throws(authorisation) && h.user != ""
}

// stranger reports whether it is the product's own 401: by its headers, or, where a
// front keeps those to itself, by the form of its errors. A gate's 401 is another.
func (h heard) stranger() bool {
	return h.status == http.StatusUnauthorized && (h.own || h.familiar)
}

// errorBody is what the body of a refusal says.
type errorBody struct {
	// familiar: it has the form of the family's errors.
	familiar        bool
	exceptions      []string // without their packages
	captchaRequired bool
	step            string // of a login that wants another one
	elevation       bool   // more rights are asked for
}

// readErrorBody reads a refusal: Jira's collection of errors (Jira REST API, "Error
// responses"), Bitbucket's (Bitbucket REST API, "Errors and validation"), the status
// of Atlassian's REST framework ("status-code"), and what the two-step login says
// (Bitbucket Data Center's OpenAPI description, tsv).
func readErrorBody(body []byte) errorBody {
	var b struct {
		ErrorMessages    json.RawMessage `json:"errorMessages"` // as it is: there may be many
		Errors           json.RawMessage `json:"errors"`
		StatusCode       json.RawMessage `json:"status-code"`
		CaptchaRequired  json.RawMessage `json:"captchaRequired"`
		NextLoginStep    json.RawMessage `json:"nextLoginStep"`
		ElevationMethods json.RawMessage `json:"elevationMethods"`
	}
	if json.Unmarshal(body, &b) != nil {
		return errorBody{}
	}
	list := func(m json.RawMessage) bool { return bytes.HasPrefix(m, []byte("[")) }
	e := errorBody{captchaRequired: string(b.CaptchaRequired) == "true", elevation: list(b.ElevationMethods)}
	var errors []struct{ ExceptionName string }
	if list(b.Errors) && json.Unmarshal(b.Errors, &errors) == nil {
		for _, err := range errors {
			if name, ok := strings.CutPrefix(err.ExceptionName, "com.atlassian."); ok {
				e.exceptions = append(e.exceptions, name[strings.LastIndexByte(name, '.')+1:])
			}
		}
	}
	if json.Unmarshal(b.NextLoginStep, &e.step) != nil {
		e.step = ""
	}
	e.familiar = list(b.ErrorMessages) || e.exceptions != nil || b.StatusCode != nil || e.elevation ||
		e.captchaRequired || string(b.CaptchaRequired) == "false"
	return e
}

// throws reports whether the errors name an exception.
func (e errorBody) throws(exception string) bool { return slices.Contains(e.exceptions, exception) }
