package rig

import "net/http"

// webSudo is how a product asks for the password once more
// (atlassian/dc-app-performance-toolkit, atlassian-python-api). Paths are below
// the context path.
type webSudo struct {
	page, action string // "" where there is none
	// password and destination are the form's fields.
	password, destination string
}

func (a *Atlassian) isWebSudo(path string) bool {
	w := a.product.webSudo
	return w.page != "" && (path == w.page || path == w.action)
}

// wantsSudo reports whether a user has to give the password first.
func (a *Atlassian) wantsSudo(c *atlassianCall) bool {
	return c.user != "" && !c.session.elevated && a.product.webSudo.page != "" && (a.modes.WebSudo || hasPrefix(c.path, a.product.admin))
}

// toWebSudo asks for it: resources of two-step verification by 401 (Bitbucket's
// OpenAPI document), others by leading to a page.
func (a *Atlassian) toWebSudo(c *atlassianCall) {
	if isREST(c.path) && !a.legacy() {
		c.json(http.StatusUnauthorized, map[string]any{"elevationMethods": []string{"PASSWORD", "TOTP"}})
		return
	}
	c.redirect(a.context + a.product.webSudo.page)
}

// elevate answers that page and its form. A right password leads on, and so does a
// wrong one; a header tells them apart (two public scripts).
func (a *Atlassian) elevate(c *atlassianCall) {
	w := a.product.webSudo
	switch {
	case c.user == "":
		c.redirect(a.loginURL(c.path))
	case c.path != w.action || c.Method != http.MethodPost:
		a.show(c, "Administrator Access", `<form id="login-form" action="`+a.context+w.action+`" method="post"><input name="`+w.password+`" type="password">
<input name="`+w.destination+`" type="hidden" value=""></form>`)
	default:
		form, ok := c.form()
		if !ok {
			return
		}
		to := a.product.webSudo.page
		if a.judge(c, c.user, form.Get(w.password), false) == seraphOK {
			c.session.elevated = true
			c.header.Set("X-Atlassian-WebSudo", "Has-Authentication")
			to = localPath(form.Get(w.destination), a.product.home)
		}
		c.redirect(a.context + to)
	}
}
