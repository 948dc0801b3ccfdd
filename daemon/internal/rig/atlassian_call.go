package rig

import (
	"cmp"
	"encoding/json"
	"encoding/xml"
	"html"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// atlassianCall is a request and what is known of it, and its answer.
type atlassianCall struct {
	*http.Request
	path    string // below the context path
	body    []byte
	node    int
	session *atlassianSession // nil: none that lives
	stale   bool              // the session cookie is of no living session
	user    string            // "" for nobody
	token   string            // of Crowd, that a login brought

	status     int
	header     http.Header
	reply      []byte
	cookieless bool // the answer begins no session
}

func (c *atlassianCall) setCookie(line string) { c.header.Add("Set-Cookie", line) }

func (c *atlassianCall) redirect(to string) {
	c.status = http.StatusFound
	c.header.Set("Location", to)
}

// html answers with a page that has nothing of the product in its head.
func (c *atlassianCall) html(status int, title, body string) { c.document(status, title, "", body) }

func (c *atlassianCall) document(status int, title, head, body string) {
	c.status = status
	c.header.Set("Content-Type", "text/html;charset=UTF-8")
	c.reply = []byte("<!DOCTYPE html>\n<html><head><title>" + title + "</title>" + head + "</head><body><h1>" + title + "</h1>\n" + body + "\n</body></html>\n")
}

func (c *atlassianCall) page(status int, title string) { c.html(status, title, "") }

func (c *atlassianCall) json(status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	c.content(status, "application/json;charset=UTF-8", b)
}

func (c *atlassianCall) content(status int, contentType string, b []byte) {
	c.status = status
	c.header.Set("Content-Type", contentType)
	c.reply = b
}

// jsonOrXML answers as the request's Accept wants it: in XML, unless it names
// JSON.
func (c *atlassianCall) jsonOrXML(status int, v any) {
	if strings.Contains(c.Header.Get("Accept"), "application/json") {
		c.json(status, v)
		return
	}
	b, err := xml.Marshal(v)
	if err != nil {
		panic(err)
	}
	c.content(status, "application/xml;charset=UTF-8", append([]byte(xml.Header), b...))
}

// mediaType returns the request's media type in lower case, "" for none.
func (c *atlassianCall) mediaType() string {
	t, _, err := mime.ParseMediaType(c.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// form returns the fields of a form that was sent; false: it has been answered.
func (c *atlassianCall) form() (url.Values, bool) {
	form, err := url.ParseQuery(string(c.body))
	if err != nil {
		c.page(http.StatusBadRequest, "Bad Request (400)")
		return nil, false
	}
	return form, true
}

// show answers with a page of the product, which tells scripts version and context
// path in its head (saved pages of Jira 7.2.7, 8.0.2 and 9.11.6 and of Confluence
// 5.9.5 in public repositories).
func (a *Atlassian) show(c *atlassianCall, title, body string) {
	head := ""
	if a.product.metas {
		for _, m := range a.metas(c) {
			head += "\n" + `<meta name="` + m[0] + `" content="` + html.EscapeString(m[1]) + `">`
		}
	}
	c.document(http.StatusOK, title, head, body)
}

func (a *Atlassian) metas(c *atlassianCall) [][2]string {
	return [][2]string{
		{"ajs-context-path", a.context}, {"ajs-version-number", a.version}, {"ajs-build-number", strconv.Itoa(a.buildNumber())}, {"ajs-remote-user", c.user},
	}
}

// welcome is a user's page.
func (a *Atlassian) welcome(c *atlassianCall) {
	a.show(c, "Dashboard", strings.NewReplacer("USER", html.EscapeString(c.user), "CONTEXT", a.context).Replace(a.product.welcome))
}

// name adds who asks: in Jira and Confluence percent-encoded as go-jira/jira#8 and
// others have it.
func (a *Atlassian) name(c *atlassianCall) {
	if name := cmp.Or(c.user, a.product.nobody); a.product.ausername && name != "" {
		c.header.Set("X-AUSERNAME", url.QueryEscape(name))
	}
}

// buildNumber makes a number of the version: FishEye 2.7.15 is 2007015, Stash 4.4.1
// is 4004001 (imitations of their manifests in public tests). Jira 7.2.7 is 72009,
// and other products count in other ways, which nobody reads.
func (a *Atlassian) buildNumber() int {
	n := 0
	for _, v := range a.versionNumbers() {
		n = 1000*n + v
	}
	return n
}

// versionNumbers is the version in three parts.
func (a *Atlassian) versionNumbers() []int {
	parts := make([]int, 3)
	for i, s := range strings.SplitN(a.version, ".", 3) {
		parts[i], _ = strconv.Atoi(s) // what is no number counts as 0
	}
	return parts
}
