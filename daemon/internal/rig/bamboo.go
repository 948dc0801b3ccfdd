package rig

import (
	"encoding/xml"
	"net/http"
	"strings"
	"time"
)

// bamboo is Bamboo Data Center.
var bamboo = product{
	name: "Bamboo", typeID: "bamboo", version: "9.6.4", twoStep: "10.2.14",
	idle: 30 * time.Minute, maxFailures: 3, // Atlassian's knowledge base, article 848977292, and documentation, page 1402421279
	sessionCookie: "JSESSIONID", rememberCookie: "seraph.bamboo", xsrfCookie: "atl.xsrf.token",
	// Its login framework is Seraph; whether it has X-AUSERNAME too is not known.
	seraph: true,
	login:  "/userlogin!doDefault.action", home: "/start.action",
	status: "/rest/api/latest/status", // the toolkit; the JSON as BAM-18326 asks for it
	// The toolkit's; where it leads is a guess.
	logout: "/userLogout.action", loggedOut: "/userlogin!doDefault.action",
	private: []string{"/start.action", "/allPlans.action", "/allProjects.action", "/browse/", "/admin/"},
	admin:   []string{"/admin/"},
	// The form's address is in Bamboo's documentation; the page's is a guess.
	webSudo: webSudo{page: "/admin/webSudo.action", action: "/admin/webSudoSubmit.action", password: "password", destination: "webSudoDestination"},
	form: atlassianForm{
		action: "/userlogin.action", user: "os_username", password: "os_password", remember: "os_cookie", destination: "os_destination", picture: "captcha",
		html: `<form id="loginForm" name="loginForm" action="ACTION" method="post">
<input id="loginForm_os_username" name="os_username" type="text">
<input id="loginForm_os_password" name="os_password" type="password">
<input id="loginForm_os_cookie" name="os_cookie" type="checkbox" value="true">
<input name="checkBoxFields" type="hidden" value="os_cookie">
PICTURE
<input name="os_destination" type="hidden" value="DESTINATION">
<input name="atl_token" type="hidden" value="TOKEN">
<input id="loginForm_save" name="save" type="submit" value="Log in">
</form>`,
		token: true, // the toolkit sends it; that it has to be right is a guess
	},
	welcome: `<p>Logged in as <a id="userInfo">USER</a>. <a id="logout" href="CONTEXT/userLogout.action">Log out</a></p>`,
	rest:    (*Atlassian).bambooREST,
	refused: basicRefused,
	// The status is in the mocks of two public projects, the body a guess.
	unauthorized: func(_ *Atlassian, c *atlassianCall) {
		c.jsonOrXML(http.StatusUnauthorized, bambooTrouble{Message: "Client must be authenticated to access this resource.", Status: http.StatusUnauthorized})
	},
	forbidden: func(_ *Atlassian, c *atlassianCall) {
		c.header.Set(seraphReason, seraphForbidden)
		c.jsonOrXML(http.StatusForbidden, bambooTrouble{Message: "You do not have the permission to use Bamboo.", Status: http.StatusForbidden})
	},
}

// StartBamboo starts a Bamboo that has a plan and no user yet.
func StartBamboo(o AtlassianOptions) (*Atlassian, error) {
	a, err := startAtlassian(&bamboo, o)
	if err != nil {
		return nil, err
	}
	return a, a.Start()
}

// What Bamboo's REST API says, in JSON and XML (its documentation, "Using the
// Bamboo REST APIs").
type (
	bambooTrouble struct {
		XMLName xml.Name `xml:"status" json:"-"`
		Message string   `xml:"message" json:"message"`
		Status  int      `xml:"status-code" json:"status-code"`
	}
	bambooUser struct {
		XMLName  xml.Name `xml:"user" json:"-"`
		Name     string   `xml:"name" json:"name"`
		FullName string   `xml:"fullName" json:"fullName"`
		Email    string   `xml:"email" json:"email"`
	}
	bambooServer struct {
		XMLName xml.Name `xml:"server" json:"-"`
		State   string   `xml:"state" json:"state"`
		Reindex bool     `xml:"reindexInProgress" json:"reindexInProgress"`
	}
	bambooPlan struct {
		XMLName xml.Name `xml:"plan" json:"-"`
		Key     string   `xml:"key,attr" json:"key"`
		Name    string   `xml:"name,attr" json:"name"`
		Enabled bool     `xml:"enabled,attr" json:"enabled"`
	}
)

// bambooREST answers what is under /rest.
func (a *Atlassian) bambooREST(c *atlassianCall) {
	path, json := strings.CutSuffix(c.path, ".json")
	if json {
		c.Header.Set("Accept", "application/json")
	}
	switch {
	case c.Method != http.MethodGet:
		c.page(http.StatusMethodNotAllowed, "Method Not Allowed (405)")
	case !strings.HasPrefix(path, "/rest/api/latest/"):
		c.page(http.StatusNotFound, "Not Found (404)")
	case c.user == "":
		a.product.unauthorized(a, c)
	case path == "/rest/api/latest/currentUser":
		c.jsonOrXML(http.StatusOK, bambooUser{Name: c.user, FullName: c.user, Email: c.user + "@corp.example"})
	case path == "/rest/api/latest/server":
		c.jsonOrXML(http.StatusOK, bambooServer{State: "RUNNING"})
	case path == "/rest/api/latest/plan/"+projectKey+"-PLAN":
		c.jsonOrXML(http.StatusOK, bambooPlan{Key: projectKey + "-PLAN", Name: "A plan for users", Enabled: true})
	default:
		c.jsonOrXML(http.StatusNotFound, bambooTrouble{Message: "There is nothing here.", Status: http.StatusNotFound})
	}
}
