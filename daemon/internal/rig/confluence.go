package rig

import (
	"encoding/json"
	"html"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// confluence is Confluence Data Center.
var confluence = product{
	name: "Confluence", typeID: "confluence", version: "8.5.8", twoStep: "9.2.13", metas: true,
	idle: 60 * time.Minute, // confluence/WEB-INF/web.xml (Atlassian's knowledge base, article 126910597)
	// That Confluence has the change of JRASERVER-31322 is said by Atlassian's blog,
	// "Getting rid of unwanted HTTP sessions".
	probation: true, maxFailures: 3,
	sessionCookie: "JSESSIONID", rememberCookie: "seraph.confluence", xsrfCookie: "atlassian.xsrf.token",
	// X-AUSERNAME is in a capture of a good answer (community.atlassian.com, question
	// 2094301); that there is none for nobody is a guess.
	seraph: true, ausername: true,
	login: "/login.action", home: "/index.action", status: "/status",
	// The toolkit logs out of Confluence 10 by a GET without a token; where that
	// leads is a guess.
	logout: "/logout.action", loggedOut: "/login.action?logout=true",
	private:     []string{"/index.action", "/dashboard.action", "/display/", "/pages/", "/admin/"},
	admin:       []string{"/admin/"},
	webSudo:     webSudo{page: "/authenticate.action", action: "/doauthenticate.action", password: "password", destination: "destination"},
	tokenAlways: true, // one public test suite that runs against Confluence 9
	form: atlassianForm{
		action: "/dologin.action", user: "os_username", password: "os_password", remember: "os_cookie", destination: "os_destination", picture: "os_captcha",
		html: `<form name="loginform" action="ACTION" method="post">
<input id="os_username" name="os_username" type="text">
<input id="os_password" name="os_password" type="password">
<input id="os_cookie" name="os_cookie" type="checkbox" value="true">
PICTURE
<input name="os_destination" type="hidden" value="DESTINATION">
<input id="loginButton" name="login" type="submit" value="Log in">
</form>`,
	},
	// What the toolkit looks for, and two public scripts.
	welcome: `<a id="user-menu-link" data-username="USER">USER</a> <a id="logout-link" href="logout.action">Log Out</a>`,
	rest:    (*Atlassian).confluenceREST,
	// One status for both, and another reason (confluence.atlassian.com/confkb,
	// article 966681459; markdown-confluence#621).
	refused: func(a *Atlassian, c *atlassianCall, reason string) {
		if reason == seraphForbidden {
			a.product.forbidden(a, c)
			return
		}
		a.challenge(c)
		c.page(http.StatusUnauthorized, basicFailure+reason)
	},
	unauthorized: func(a *Atlassian, c *atlassianCall) {
		a.challenge(c)
		c.trouble(http.StatusUnauthorized, "Authentication required")
	},
	// The text is Cloud's (kovetskiy/mark#493); that Data Center says the same is a
	// guess.
	forbidden: func(_ *Atlassian, c *atlassianCall) {
		c.header.Set(seraphReason, seraphForbidden)
		c.trouble(http.StatusForbidden, "Current user not permitted to use Confluence")
	},
}

// confluencePage is a page.
type confluencePage struct {
	title, body string
	public      bool // whether everybody may read it
}

// StartConfluence starts a Confluence that has a few pages and no user yet.
func StartConfluence(o AtlassianOptions) (*Atlassian, error) {
	a, err := startAtlassian(&confluence, o)
	if err != nil {
		return nil, err
	}
	a.pages = []confluencePage{{title: "A page that everybody may read", public: true}, {title: "A page for users"}}
	return a, a.Start()
}

// trouble answers with an error as Confluence's REST API writes it.
func (c *atlassianCall) trouble(status int, message string) {
	c.json(status, map[string]any{"statusCode": status, "message": message})
}

// confluenceREST answers what is under /rest (Confluence's REST API
// documentation).
func (a *Atlassian) confluenceREST(c *atlassianCall) {
	id, one := strings.CutPrefix(c.path, "/rest/api/content/")
	switch {
	case a.modes.NoAnonymous && c.user == "":
		// dapplo/Dapplo.Confluence#35; the status is a guess.
		c.trouble(http.StatusForbidden, "Not permitted to use confluence : null")
	case c.path == "/rest/api/content" && c.Method == http.MethodPost:
		a.createPage(c)
	case c.Method != http.MethodGet:
		c.page(http.StatusMethodNotAllowed, "Method Not Allowed (405)")
	case c.path == "/rest/api/user/current":
		a.currentUser(c)
	case c.path == "/rest/api/content" || c.path == "/rest/api/content/search":
		found := []any{}
		for i, p := range a.pages {
			if p.public || c.user != "" {
				found = append(found, a.content(i))
			}
		}
		c.json(http.StatusOK, map[string]any{"results": found, "start": 0, "limit": 25, "size": len(found)})
	case one:
		n, err := strconv.Atoi(id)
		if n -= firstPage; err != nil || n < 0 || n >= len(a.pages) || c.user == "" && !a.pages[n].public {
			c.trouble(http.StatusNotFound, "No content found with id: ContentId{id="+html.EscapeString(id)+"}")
			return
		}
		c.json(http.StatusOK, a.content(n))
	default:
		c.page(http.StatusNotFound, "Not Found (404)")
	}
}

// firstPage is the id of the first page.
const firstPage = 65537

// currentUser says who asks: also to nobody (atlassian-python-api and others).
func (a *Atlassian) currentUser(c *atlassianCall) {
	who := map[string]any{"type": "anonymous", "displayName": "Anonymous"}
	if c.user != "" {
		who = map[string]any{"type": "known", "username": c.user, "userKey": "key-of-" + c.user, "displayName": c.user}
	}
	c.json(http.StatusOK, who)
}

func (a *Atlassian) content(n int) map[string]any {
	p := a.pages[n]
	return map[string]any{"id": strconv.Itoa(firstPage + n), "type": "page", "status": "current", "title": p.title,
		"space": map[string]any{"key": projectKey}, "body": map[string]any{"storage": map[string]any{"value": p.body, "representation": "storage"}}}
}

func (a *Atlassian) createPage(c *atlassianCall) {
	if !a.takes(c, "application/json") {
		return
	}
	if c.user == "" {
		a.product.unauthorized(a, c)
		return
	}
	var in struct {
		Title string
		Body  struct{ Storage struct{ Value string } }
	}
	if err := json.Unmarshal(c.body, &in); err != nil || in.Title == "" {
		c.trouble(http.StatusBadRequest, "A page needs a title.")
		return
	}
	a.pages = append(a.pages, confluencePage{title: in.Title, body: in.Body.Storage.Value})
	a.counts.Created++
	c.json(http.StatusOK, a.content(len(a.pages)-1))
}
