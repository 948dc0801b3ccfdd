package rig

import (
	"html"
	"net/http"
	"net/url"
	"strings"
)

const (
	jasEndpoint = "/oidc/endpoint/jazzop"
	jasScope    = "openid general profile email "
	jasCookie   = "jazzop_sso_cookie"
	// jasMessage is what JAS says of its login page (the blog post "ELM
	// Authentication" shows it).
	jasMessage = "X-com-ibm-team-integration-jazzop-auth-msg"
	// appPasswordAgent is in the User-Agent of who has an application password
	// (jenkinsci/teamconcert-plugin, IBM/ELM-Python-Client's httpops.py).
	appPasswordAgent = "app-password-enabled"
)

// jazzState is a login that an application has asked JAS for. It is good once.
type jazzState struct {
	context string
	back    string // where the login leads
	used    bool
}

// jazzCode is what JAS gives an application for a login. It is good once (RFC 6749,
// 4.1.2).
type jazzCode struct{ user, state string }

// jsaChallenge asks for a login at JAS, as OSLC/oslc4net#23 quotes EWM 7.0.2. The
// challenges are two fields.
func (j *Jazz) jsaChallenge(c *jazzCall) {
	c.w.Header().Add("WWW-Authenticate", `Basic realm="JSA"`)
	c.w.Header().Add("WWW-Authenticate", `Bearer realm="JSA"`)
	if j.o.Auth == "jas" {
		back := j.base() + c.URL.RequestURI()
		text := "security_token1=" + url.QueryEscape(secretID()) + "&security_token2=" + url.QueryEscape(secretID()) +
			"&return=" + url.QueryEscape(back) + "&scope=" + url.QueryEscape(jasScope) + "&impersonation=true"
		j.states[text] = &jazzState{context: c.context, back: back, used: j.modes.ReuseState}
		j.modes.ReuseState = false
		state := "&state=" + url.QueryEscape(text)
		c.set("X-JSA-AUTHORIZATION-URL", j.JASURL()+jasEndpoint)
		c.set("X-JSA-AUTHORIZATION-REDIRECT", j.JASURL()+jasEndpoint+"/authorize?client_id="+j.contextClient[c.context]+"&response_type=code"+
			state+"&scope="+url.QueryEscape(jasScope)+"&redirect_uri="+url.QueryEscape(j.URL(c.context)+"/jsa"))
		if j.o.JAS.External != "" && strings.Contains(c.UserAgent(), appPasswordAgent) {
			c.set("X-JSA-APP-PASSWORD-REDIRECT", j.URL(c.context)+"/jsa?appPassword=true"+state)
		}
	}
	c.page(http.StatusUnauthorized, "Error 401", "")
}

// jsa is where a login at JAS leads back to the application.
func (j *Jazz) jsa(c *jazzCall) {
	query := c.URL.Query()
	text := query.Get("state")
	s := j.states[text]
	app := query.Has("appPassword")
	switch {
	case s == nil || s.context != c.context:
		c.page(http.StatusBadRequest, "Error 400", "<p>No such state.</p>") // a guess
	case query.Get("error") != "":
		// jenkinsci/teamconcert-plugin and IBM/ELM-Python-Client look for the header.
		c.set("X-JSA-LOGIN-REQUIRED", "true")
		c.page(http.StatusOK, "Login required", "")
	case s.used:
		j.counts.StateReused++
		c.page(http.StatusBadRequest, "Error 400", "<p>The state was used before.</p>") // a guess
	case app && j.o.JAS.External == "":
		c.page(http.StatusBadRequest, "Error 400", "<p>There are no application passwords.</p>") // a guess
	case app:
		j.appPassword(c, s)
	default:
		code, ok := j.codes[query.Get("code")]
		delete(j.codes, query.Get("code"))
		if !ok || code.state != text {
			c.page(http.StatusBadRequest, "Error 400", "<p>No such code.</p>") // a guess
			return
		}
		j.admit(c, s, code.user)
	}
}

// appPassword is a login with an application password, by Basic.
func (j *Jazz) appPassword(c *jazzCall, s *jazzState) {
	name, password, basic := c.BasicAuth()
	user, known := j.appPasswords[password]
	switch {
	case known && name == user:
		j.counts.Logins++
		j.admit(c, s, user)
		return
	case basic:
		j.counts.Failures++
	}
	c.set("WWW-Authenticate", `Basic realm="JSA"`) // the realm is a guess
	c.page(http.StatusUnauthorized, "Error 401", "")
}

// admit begins a user's session and leads to where the login came from.
func (j *Jazz) admit(c *jazzCall, s *jazzState, user string) {
	s.used = true
	if j.find(c); c.session != nil {
		delete(j.sessions[c.context], c.session.id)
	}
	j.newSession(c, user)
	c.redirect(http.StatusFound, s.back)
}

// serveJAS is the Jazz Authorization Server, a Liberty with an OpenID Connect provider.
// Hosts whose name begins with idp. are what it delegates logins to.
func (j *Jazz) serveJAS(w http.ResponseWriter, r *http.Request) {
	j.jas.count(r)
	j.mu.Lock()
	defer j.mu.Unlock()
	c := j.arrive(w, r)
	if c == nil {
		return
	}
	switch {
	case strings.HasPrefix(r.Host, "idp."):
		c.page(http.StatusOK, "The company's login", "<form method=\"post\"><input name=\"username\"><input type=\"password\" name=\"password\"></form>")
	case r.URL.Path == jasEndpoint+"/authorize":
		j.authorize(c)
	case r.URL.Path == jasEndpoint+"/end_session": // OpenID Connect RP-Initiated Logout
		delete(j.sso, c.value(jasCookie))
		c.setCookie(jasCookie + deleted)
		c.page(http.StatusOK, "You are logged out", "")
	case r.URL.Path == jasLogin:
		c.set(jasMessage, "form-login")
		// A script makes the form.
		c.page(http.StatusOK, "Jazz Authorization Server", `<noscript>JavaScript is needed to log in.</noscript>`)
	case r.URL.Path == "/jazzop/j_security_check":
		j.jasSecurityCheck(c)
	case r.URL.Path == "/jazzop/":
		c.page(http.StatusOK, "Jazz Authorization Server", "")
	default:
		c.page(http.StatusNotFound, "Error 404", "")
	}
}

// jasLogin is the login page (JAS's appConfig.xml, customLoginURL).
const jasLogin = "/jazzop/form/login"

// authorize is the authorization endpoint, in the order of Open Liberty's
// UserAuthentication.java: who is known already, a password by Basic, a Negotiate
// token, and then the form. A wrong password is 401, but with prompt=none it is as
// if there were none.
func (j *Jazz) authorize(c *jazzCall) {
	query := c.URL.Query()
	back := query.Get("redirect_uri")
	context, known := j.clients[query.Get("client_id")]
	if !known || back != j.URL(context)+"/jsa" || query.Get("response_type") != "code" {
		c.page(http.StatusBadRequest, "Error 400", "<p>CWOAU0061E: the client or its redirect URI is not registered.</p>")
		return
	}
	silent := query.Get("prompt") == "none"
	if silent {
		j.counts.Silent++
	}
	name, password, basic := c.BasicAuth()
	if basic && silent {
		j.counts.Preemptive++
	}
	user := j.known(j.sso, c.value(jasCookie))
	if user == "" && j.o.JAS.External != "" {
		j.delegate(c)
		return
	}
	if user == "" && basic && !j.o.JAS.NoBasic {
		switch good := j.right(name, password); {
		case good:
			user = name
			j.sign(c, user)
		case !silent:
			c.set("WWW-Authenticate", `Basic realm="jazzop"`) // the realm is a guess
			c.page(http.StatusUnauthorized, "Error 401", "")
			return
		}
	}
	if user == "" && j.o.JAS.Kerberos && strings.Contains(c.UserAgent(), j.o.JAS.Agent) {
		by, ok := j.negotiate(c, j.jasAcceptor)
		if !ok {
			return
		}
		if by != "" {
			j.sign(c, by)
		}
		user = by
	}
	state := "&state=" + url.QueryEscape(query.Get("state"))
	switch {
	case user != "":
		code := secretID()
		j.codes[code] = jazzCode{user, query.Get("state")}
		// As ELMAndOAuth20 shows it, on jazz.net's Deployment wiki.
		c.setCookie("oidc_bsc=" + secretID() + "=; Path=/; HttpOnly")
		j.lead(c, http.StatusFound, back+"?session_state="+randomHex(16)+"&code="+code+state)
	case silent: // OpenID Connect Core 1.0, 3.1.2.6
		c.redirect(http.StatusFound, back+"?error=login_required"+state)
	default:
		c.setCookie(reqURLCookie + "=" + withoutHost(j.jas.origin()) + c.URL.RequestURI() + "; Path=/; HttpOnly")
		c.setCookie("WASReLoginURL=" + j.JASURL() + jasLogin + "; Path=/; HttpOnly")
		c.redirect(j.o.Redirect, j.JASURL()+jasLogin)
	}
}

// sign sets JAS's single sign-on cookie.
func (j *Jazz) sign(c *jazzCall, user string) {
	value := secretID() + "+/="
	j.sso[value] = jazzToken{user, j.o.Now()}
	c.setCookie(jasCookie + "=" + value + "; Path=/; HttpOnly")
}

// delegate leads to another identity provider, whatever the request wants. By the
// cookies and the form IBM/ELM-Python-Client's httpops.py tells it.
func (j *Jazz) delegate(c *jazzCall) {
	idp := strings.Replace(j.jas.origin(), "localhost", "idp.localhost", 1)
	if j.o.JAS.External == "saml" {
		c.page(http.StatusOK, "Single sign-on", `<form action="`+idp+`/saml" method="post"><input type="hidden" name="SAMLRequest" value="`+
			html.EscapeString(secretID())+`"><noscript><button>Go on</button></noscript></form>`)
		return
	}
	id := randomHex(8)
	c.setCookie("WASOidcState" + id + "=" + secretID() + "; Path=/; HttpOnly")
	c.setCookie("WASOidcNonce" + id + "=" + secretID() + "; Path=/; HttpOnly")
	c.redirect(http.StatusFound, idp+"/authorize?response_type=code&client_id=jas")
}

// jasSecurityCheck is where JAS's form goes. It needs no page before it, and leads to
// /jazzop/ then (ELMAndOAuth20).
func (j *Jazz) jasSecurityCheck(c *jazzCall) {
	to := j.JASURL() + "/jazzop/"
	if saved := c.value(reqURLCookie); saved != "" {
		var ok bool
		if to, ok = savedURL(saved, j.JASURL()); !ok {
			c.page(http.StatusInternalServerError, "Error 500", "<p>The URL of the original request is of another host.</p>")
			return
		}
	}
	name := c.Form.Get("j_username")
	if !j.right(name, c.Form.Get("j_password")) {
		// FormLoginExtensionProcessor.java adds the query. That it leads there without
		// the cookie too is a guess.
		c.redirect(http.StatusFound, j.JASURL()+jasLogin+"?error=error")
		return
	}
	j.sign(c, name)
	c.setCookie(reqURLCookie + deleted)
	j.lead(c, http.StatusFound, to)
}
