package client

import (
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A verdict is what an answer says about the session of its request. It is a
// suspicion: the agent asks the site before it believes.
type verdict int

const (
	// accepted: nothing speaks against the session.
	accepted verdict = iota
	// anonymous: the site answered as to nobody, or wants a login next. It may
	// have done what the request asked, which may have ended the session.
	anonymous
	// refused: the site says that it has not done what the request asked.
	refused
)

// judge looks for the signs of a session that is none any more. Of the body it
// reads at most maxPage bytes, for at most maxWait, and puts them back.
func judge(r *http.Response) verdict {
	switch {
	case r.StatusCode == http.StatusUnauthorized: // RFC 9110, 15.5.2
		return refused
	case r.StatusCode == http.StatusTooManyRequests, r.StatusCode >= 500:
		return accepted // an outage says nothing about who asked
	case isRedirect(r.StatusCode):
		if to, err := r.Location(); err == nil && isLoginPage(to) {
			return anonymous
		}
	}
	// com.atlassian.seraph.auth.LoginReason in Jira's Java API: the session is
	// none, or has been logged out. The field may hold several values.
	for _, reasons := range r.Header.Values("X-Seraph-LoginReason") {
		for reason := range strings.SplitSeq(reasons, ",") {
			switch strings.ToUpper(strings.TrimSpace(reason)) {
			case "AUTHENTICATED_FAILED", "OUT":
				return anonymous
			}
		}
	}
	// Atlassian's products name the user in every answer
	// (community.developer.atlassian.com/t/24422).
	switch r.Header.Get("X-AUSERNAME") {
	case "anonymous":
		return anonymous
	case "":
	default:
		return accepted
	}
	if r.StatusCode == http.StatusOK && isPage(r.Header) && hasLoginForm(peek(r)) {
		return anonymous
	}
	return accepted
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// loginPages are the last segments of paths of login pages, in lower case.
var loginPages = []string{
	"login.jsp",                  // Jira
	"login.action",               // Confluence
	"dologin.action",             // Confluence, the form's target
	"userlogin.action",           // Bamboo
	"userlogin!dodefault.action", // Bamboo
	"userlogin!default.action",   // Bamboo
	"login",                      // Bitbucket, Crucible; CAS protocol 3.0, 2.1
	"external-login",             // Atlassian's SSO app, as a second login
}

// isLoginPage reports whether a URL looks like a login page's, on any host: the
// login may be elsewhere.
func isLoginPage(u *url.URL) bool {
	// A servlet container may add the session to the path
	// (Jakarta Servlet 6.0, 7.1.3).
	last, _, _ := strings.Cut(strings.ToLower(path.Base(u.Path)), ";")
	return slices.Contains(loginPages, last)
}

// isPage reports whether a body is HTML that can be read as it comes.
func isPage(h http.Header) bool {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && (kind == "text/html" || kind == "application/xhtml+xml") && h.Get("Content-Encoding") == ""
}

// A page is searched for a login form
const (
	maxPage = 64 << 10        // in so many bytes from its beginning, and
	maxWait = 2 * time.Second // not at all if these take longer.
)

// peek returns the first maxPage bytes of a body, or nothing if they do not come
// within maxWait. The body still gives them all, as they come.
func peek(r *http.Response) []byte {
	p := &page{ReadCloser: r.Body}
	r.Body = p
	late := time.After(maxWait)
	for len(p.begin) < maxPage && p.err == nil {
		p.reading = read(p.ReadCloser, min(4<<10, maxPage-len(p.begin)))
		select {
		case got := <-p.reading:
			p.add(got)
		case <-late:
			return nil
		}
	}
	return p.begin
}

// page is a body that has been read in part. A Read may be under way, which
// Close ends.
type page struct {
	io.ReadCloser
	begin   []byte      // read, and not given yet
	reading <-chan part // gives what follows; nil if no Read is under way
	err     error       // follows, unless nil
}

// part is what a Read has returned.
type part struct {
	bytes []byte
	err   error
}

// read starts a Read of at most so many bytes.
func read(from io.Reader, n int) <-chan part {
	done := make(chan part, 1) // so that it ends although nobody waits for it
	go func() {
		b := make([]byte, n)
		n, err := from.Read(b)
		done <- part{b[:n], err}
	}()
	return done
}

func (p *page) add(got part) {
	p.begin, p.err, p.reading = append(p.begin, got.bytes...), got.err, nil
}

func (p *page) Read(b []byte) (int, error) {
	if len(p.begin) == 0 && p.reading != nil {
		p.add(<-p.reading)
	}
	switch {
	case len(p.begin) > 0:
		n := copy(b, p.begin)
		p.begin = p.begin[n:]
		return n, nil
	case p.err != nil:
		return 0, p.err
	}
	return p.ReadCloser.Read(b)
}

// Fields of the login forms of Atlassian's products (os_, j_) and of the Java
// servlet containers (j_; Jakarta Servlet 6.0, 13.6.3).
var (
	userField     = regexp.MustCompile(`(?i)<input\b[^>]*\bname\s*=\s*["']?(?:os|j)_username\b`)
	passwordField = regexp.MustCompile(`(?i)<input\b[^>]*\bname\s*=\s*["']?(?:os|j)_password\b`)
)

// hasLoginForm reports whether a page asks for user and password. A page that
// shows the text of such a form, escaped, does not.
func hasLoginForm(page []byte) bool {
	return userField.Match(page) && passwordField.Match(page)
}
