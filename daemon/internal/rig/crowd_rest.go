package rig

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"html"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Reasons in the errors of Crowd's REST API, as the tests and stubs of its
// clients have them (python-crowd, jda/go-crowd).
const (
	crowdWrongPassword = "INVALID_USER_AUTHENTICATION"
	crowdNoUser        = "USER_NOT_FOUND"
	crowdNoToken       = "INVALID_SSO_TOKEN"
)

// What the REST API reads and writes. Its JSON differs between sources, so that
// bodies are XML alone. Names and order are those that Crowd's module for Apache
// reads, and of an answer in the tests of RIPE NCC's db-web-ui.
type (
	crowdContextXML struct {
		XMLName  xml.Name        `xml:"authentication-context"`
		Username string          `xml:"username"`
		Password string          `xml:"password"`
		Factors  crowdFactorsXML `xml:"validation-factors"`
	}
	crowdFactorsXML struct {
		XMLName xml.Name `xml:"validation-factors"`
		Factors []struct {
			Name  string `xml:"name"`
			Value string `xml:"value"`
		} `xml:"validation-factor"`
	}
	crowdPasswordXML struct {
		XMLName xml.Name `xml:"password"`
		Value   string   `xml:"value"`
	}
	crowdSessionXML struct {
		XMLName xml.Name     `xml:"session"`
		Expand  string       `xml:"expand,attr"`
		Token   string       `xml:"token"`
		User    crowdUserXML `xml:"user"`
		Link    crowdLinkXML `xml:"link"`
		Created string       `xml:"created-date"`
		Expiry  string       `xml:"expiry-date"`
	}
	crowdUserXML struct {
		XMLName xml.Name     `xml:"user"`
		Name    string       `xml:"name,attr"`
		Link    crowdLinkXML `xml:"link"`
		Active  bool         `xml:"active"`
	}
	crowdLinkXML struct {
		Href string `xml:"href,attr"`
		Rel  string `xml:"rel,attr"`
	}
	crowdCookieXML struct {
		XMLName xml.Name `xml:"cookie-config" json:"-"`
		// In XML a missing domain is left out, which the module expects; in JSON it
		// is empty (Atlassian's crowd-rest-test).
		Domain string `xml:"domain,omitempty" json:"domain"`
		Secure bool   `xml:"secure" json:"secure"`
		Name   string `xml:"name" json:"name"`
	}
	crowdErrorXML struct {
		XMLName xml.Name `xml:"error"`
		Reason  string   `xml:"reason"`
		Message string   `xml:"message"`
	}
)

// rest answers applications: each request brings the name and password of one
// (Crowd's REST API; python-crowd#33 for where it comes from).
func (c *Crowd) rest(w http.ResponseWriter, r *http.Request, resource string, body []byte) {
	name, password, _ := r.BasicAuth()
	a := c.applications[name]
	if a == nil || a.password == "" || a.password != password {
		w.Header().Set("WWW-Authenticate", `Basic realm="Crowd REST Service"`)
		crowdPage(w, http.StatusUnauthorized, "Application failed to authenticate")
		return
	}
	if from := factorsOf(r).RemoteAddress; len(a.addresses) > 0 && !slices.Contains(a.addresses, from) {
		// As quoted in a mock of the Catalyst store for Crowd.
		crowdPage(w, http.StatusForbidden, fmt.Sprintf("Client with address %q is forbidden from making requests to the application, %s.", from, name))
		return
	}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); r.Method == http.MethodPost && kind != "application/xml" && kind != "text/xml" {
		crowdPage(w, http.StatusUnsupportedMediaType, "Unsupported Media Type")
		return
	}
	token, one := strings.CutPrefix(resource, "session/")
	switch {
	case resource == "session" && r.Method == http.MethodPost:
		c.restLogin(w, r, a, body)
	case resource == "session" && r.Method == http.MethodDelete:
		// All of a user's (api-group-token).
		q := r.URL.Query()
		c.kill(q.Get("username"), q.Get("exclude"))
		w.WriteHeader(http.StatusNoContent)
	case one && r.Method == http.MethodPost:
		c.restValidate(w, a, token, body)
	case one && r.Method == http.MethodGet:
		// A look without factors; whether it makes the token live on is not
		// documented, and here it does not.
		c.bury()
		t := c.tokens[token]
		if t == nil {
			crowdError(w, http.StatusNotFound, crowdNoToken, "Token does not validate.")
			return
		}
		c.restSession(w, http.StatusOK, token, t)
	case one && r.Method == http.MethodDelete:
		c.logout(a, token)
		w.WriteHeader(http.StatusNoContent)
	case resource == "authentication" && r.Method == http.MethodPost:
		c.restPassword(w, r, a, body)
	case resource == "config/cookie" && r.Method == http.MethodGet:
		c.restCookie(w, r)
	case one || slices.Contains([]string{"session", "authentication", "config/cookie"}, resource):
		crowdPage(w, http.StatusMethodNotAllowed, "Method Not Allowed")
	default:
		crowdPage(w, http.StatusNotFound, "Not Found")
	}
}

// restLogin gives out a token, without a look at the password if the application
// says so (api-group-token, validate-password).
func (c *Crowd) restLogin(w http.ResponseWriter, r *http.Request, a *crowdApplication, body []byte) {
	var in crowdContextXML
	if err := xml.Unmarshal(body, &in); err != nil {
		crowdPage(w, http.StatusBadRequest, "Bad Request")
		return
	}
	f := in.Factors.factors()
	token := ""
	if r.URL.Query().Get("validate-password") == "false" {
		token = c.mint(a, in.Username, f)
	} else {
		token, _ = c.login(a, in.Username, in.Password, f)
	}
	if token == "" {
		c.restRefused(w, in.Username)
		return
	}
	w.Header().Set("Location", c.sessionURL(token))
	c.restSession(w, http.StatusCreated, token, c.tokens[token])
}

// restPassword checks a password and gives out nothing.
func (c *Crowd) restPassword(w http.ResponseWriter, r *http.Request, a *crowdApplication, body []byte) {
	var in crowdPasswordXML
	if err := xml.Unmarshal(body, &in); err != nil {
		crowdPage(w, http.StatusBadRequest, "Bad Request")
		return
	}
	user := r.URL.Query().Get("username")
	if !c.right(a, user, in.Value) {
		c.restRefused(w, user)
		return
	}
	crowdXML(w, http.StatusOK, c.userXML(user))
}

// restRefused says why a login was refused. Crowd's module for Apache takes 403
// for the same.
func (c *Crowd) restRefused(w http.ResponseWriter, user string) {
	if _, known := c.users[user]; !known {
		crowdError(w, http.StatusBadRequest, crowdNoUser, "User <"+user+"> does not exist")
		return
	}
	crowdError(w, http.StatusBadRequest, crowdWrongPassword, "Failed to authenticate principal, password was invalid")
}

// restValidate says whether a token is good. Crowd's module for Apache takes both
// 404 and 400 for a no; that the second is for a living token with other factors
// is a guess.
func (c *Crowd) restValidate(w http.ResponseWriter, a *crowdApplication, token string, body []byte) {
	var in crowdFactorsXML
	if err := xml.Unmarshal(body, &in); err != nil {
		crowdPage(w, http.StatusBadRequest, "Bad Request")
		return
	}
	t := c.validate(a, token, in.factors())
	switch {
	case t != nil:
		c.restSession(w, http.StatusOK, token, t)
	case c.tokens[token] != nil:
		crowdError(w, http.StatusBadRequest, crowdNoToken, "Token does not validate.")
	default:
		crowdError(w, http.StatusNotFound, crowdNoToken, "Token does not validate.")
	}
}

func (c *Crowd) restSession(w http.ResponseWriter, status int, token string, t *crowdToken) {
	const format = "2006-01-02T15:04:05.000-07:00"
	crowdXML(w, status, crowdSessionXML{
		Expand:  "user",
		Token:   token,
		User:    c.userXML(t.user),
		Link:    crowdLinkXML{c.sessionURL(token), "self"},
		Created: t.created.Format(format),
		Expiry:  t.used.Add(c.timeout).Format(format),
	})
}

// restCookie says how to set the cookie of a token.
func (c *Crowd) restCookie(w http.ResponseWriter, r *http.Request) {
	answer := crowdCookieXML{Domain: c.domain, Name: crowdCookie}
	if !strings.Contains(r.Header.Get("Accept"), "application/json") {
		crowdXML(w, http.StatusOK, answer)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer)
}

func (c *Crowd) sessionURL(token string) string {
	return c.URL() + "/rest/usermanagement/1/session/" + url.PathEscape(token)
}

func (c *Crowd) userXML(name string) crowdUserXML {
	return crowdUserXML{Name: name, Active: true,
		Link: crowdLinkXML{c.URL() + "/rest/usermanagement/1/user?username=" + url.QueryEscape(name), "self"}}
}

// factors are those that count.
func (x crowdFactorsXML) factors() (f Factors) {
	for _, one := range x.Factors {
		switch one.Name {
		case "remote_address":
			f.RemoteAddress = one.Value
		case "X-Forwarded-For":
			f.ForwardedFor = one.Value
		}
	}
	return f
}

func crowdXML(w http.ResponseWriter, status int, v any) {
	b, err := xml.Marshal(v)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	w.Write([]byte(`<?xml version="1.0" encoding="UTF-8" standalone="yes"?>`))
	w.Write(b)
}

func crowdError(w http.ResponseWriter, status int, reason, message string) {
	crowdXML(w, status, crowdErrorXML{Reason: reason, Message: message})
}

// crowdPage is an error page of Tomcat.
func crowdPage(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/html;charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<html><head><title>Error report</title></head><body><h1>HTTP Status %d - %s</h1></body></html>\n", status, html.EscapeString(text))
}
