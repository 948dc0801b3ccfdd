package login

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/html"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// Detect implements Detector. Redirects aside it makes seven requests at the most: for
// the manifest; if that is not there, for the front page and the manifest where this
// leads to; for the login page, in one or two guises, and for the ways to log in. Where
// none of them shows the product, the status resource is one more. If that does not,
// either, it finds nothing, and says why: that may be over soon.
func (a *atlassian) Detect(ctx context.Context, x *web.Exchange) (Findings, error) {
	var own bool // an answer is the product's
	m, path, err := a.locate(ctx, x, &own)
	if err != nil {
		return Findings{}, err
	}
	if m.kind != "" && m.kind != a.product.kind {
		return Findings{}, &api.Error{Code: api.ConfigInvalid, Detail: fmt.Sprintf("the site is %s, not %s", strings.TrimSpace(products[m.kind]+" "+m.version), a.product.name),
			Remedy: fmt.Sprintf("set kind = %q for it", m.kind)}
	}
	x.Below(path)
	found := Findings{Product: m.kind, Version: m.version, Path: path}
	page, gone, err := a.loginPage(ctx, x)
	if err != nil {
		return Findings{}, err
	}
	own = own || page != nil && hear(page).own
	if found.Login, err = a.takesPasswords(ctx, x, page, m, &own); err != nil {
		return Findings{}, err
	}
	if page != nil && asksForNegotiate(page) {
		found.Gate = gateForAll
		return found, nil
	}
	agent := x.UserAgent()
	x.Present(windows)
	if x.UserAgent() != agent {
		switch other, _, err := a.loginPage(ctx, x); {
		case err != nil:
			return Findings{}, err
		case other != nil && asksForNegotiate(other):
			found.Gate = gateForWindows
		}
	}
	// A front may keep all to itself that would show the product, but for what monitors
	// ask; or somebody knows better.
	none := m == (manifest{}) && !own && a.Generation == "" && found.Login == "" && found.Gate == "" && !a.runs(ctx, x)
	switch {
	case found.Gate != "", found.Login != "":
		return found, nil
	case gone != nil && (none || a.product.legacy != byREST):
		return Findings{}, gone
	case !none:
		return found, nil
	case page.Status == http.StatusUnauthorized && len(page.Challenges) > 0:
		return Findings{}, a.gated(page)
	case page.Status == http.StatusOK:
		return Findings{}, a.page(ctx, x, page)
	}
	return Findings{}, a.unexpected(page)
}

// runs reports whether the status resource says that the product is running.
func (a *atlassian) runs(ctx context.Context, x *web.Exchange) bool {
	_, state, err := a.status(ctx, x)
	return err == nil && state == running
}

// wrongOption is a failure of Detect where another option than kind names the
// product.
func wrongOption(err error, option string) error {
	if api.CodeOf(err) != api.ConfigInvalid {
		return err
	}
	e := *api.AsError(err)
	e.Remedy = strings.Replace(e.Remedy, "set kind =", "set "+option+" =", 1)
	return &e
}

// takesPasswords finds out how a product with that login page, nil if it is
// elsewhere, takes passwords: "" if that cannot be seen.
func (a *atlassian) takesPasswords(ctx context.Context, x *web.Exchange, page *web.Response, m manifest, own *bool) (string, error) {
	shown := page != nil && page.Status == http.StatusOK
	switch {
	case page != nil && a.marked(page):
		return a.product.legacy, nil
	case a.product.marker == "" && m != (manifest{}):
		return a.product.legacy, nil
	case a.product.marker == "":
		return "", nil
	}
	login, err := a.options(ctx, x, own)
	switch {
	case err != nil || login != "" || page == nil:
		return login, err
	case shown && m == (manifest{}) && !hear(page).own:
		return "", nil // nothing of this is the product's
	case a.product.legacy == byREST: // about which the login page says nothing
		return byREST, nil
	case shown:
		return byTSV, nil
	}
	return "", nil
}

// marked reports whether a page is a login page of the generation before the two-step
// login.
func (a *atlassian) marked(page *web.Response) bool {
	if a.product.marker == "" {
		return a.showsLogin(page)
	}
	return bytes.Contains(page.Body, []byte(a.product.marker))
}

// showsLogin reports whether a page has the login form.
func (a *atlassian) showsLogin(page *web.Response) bool {
	forms, _ := readForms(page)
	return slices.ContainsFunc(forms, func(h *htmlForm) bool {
		return h.field(a.product.username) != nil && h.field(a.product.password) != nil
	})
}

func asksForNegotiate(r *web.Response) bool {
	return r.Status == http.StatusUnauthorized && web.FindChallenge(r.Challenges, "negotiate") != nil
}

// loginPage gets the login page. Where it leads to what may not be asked, or nowhere,
// gone says so: the product may be there all the same.
func (a *atlassian) loginPage(ctx context.Context, x *web.Exchange) (page *web.Response, gone, err error) {
	u, err := x.URL(a.LoginURL)
	if err != nil {
		return nil, nil, err
	}
	page, err = x.Get(ctx, u)
	switch api.CodeOf(err) {
	case "":
	case api.SSORedirect, api.InsecureRedirect, api.RedirectLoop:
		return nil, err, nil
	default:
		return nil, nil, err
	}
	if err := web.StatusError(page); err != nil {
		return nil, nil, err
	}
	return page, nil, a.announced(page)
}

// ask requests a resource during Detect. What is not there, or broken, is no error: the
// login may need none of it. Whether the answer is the product's own is noted.
func (a *atlassian) ask(ctx context.Context, x *web.Exchange, ref string, own *bool) (*web.Response, error) {
	r, err := a.get(ctx, x, ref)
	if err != nil {
		return nil, err
	}
	*own = *own || hear(r).own
	switch r.Status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return nil, web.StatusError(r)
	}
	return r, a.announced(r)
}

// options finds out how passwords are taken, by what feeds the login page: "" if it
// does not say.
func (a *atlassian) options(ctx context.Context, x *web.Exchange, own *bool) (string, error) {
	r, err := a.ask(ctx, x, "rest/authconfig/latest/login-options", own)
	if err != nil || r.Status != http.StatusOK {
		return "", err
	}
	types, ok := readLoginOptions(r.Body)
	switch {
	case !ok:
		return "", nil
	case slices.Contains(types, "LOGIN_FORM"):
		return byTSV, nil
	case slices.Contains(types, "LEGACY_LOGIN_FORM"), a.product.legacy == byREST:
		return a.product.legacy, nil
	}
	return byTSV, nil // the page may have identity providers alone, and the resource be there
}

// readLoginOptions reads the types of a page of login options (Bitbucket Data
// Center's OpenAPI description, authconfig).
func readLoginOptions(body []byte) (types []string, ok bool) {
	var page struct {
		Results *[]struct{ Type string }
	}
	if json.Unmarshal(body, &page) != nil || page.Results == nil {
		return nil, false
	}
	for _, r := range *page.Results {
		types = append(types, r.Type)
	}
	return types, true
}

// locate asks the manifest, where the site's url is and, if that is a bare host, where
// its front page leads to: below path.
func (a *atlassian) locate(ctx context.Context, x *web.Exchange, own *bool) (m manifest, path string, err error) {
	const resource = "rest/applinks/1.0/manifest"
	get := func(below string) (manifest, error) {
		r, err := a.ask(ctx, x, below+resource, own)
		if err != nil || r.Status != http.StatusOK {
			return manifest{}, err
		}
		m, _ := readManifest(r.Body)
		return m, nil
	}
	base, err := x.URL("")
	if err != nil {
		return manifest{}, "", err
	}
	if m, err = get(""); err != nil || m != (manifest{}) || strings.Trim(base.Path, "/") != "" {
		return m, "", err
	}
	front, err := x.Send(ctx, web.Request{URL: base})
	if err != nil {
		return manifest{}, "", err
	}
	if err := web.StatusError(front); err != nil {
		return manifest{}, "", err
	}
	path = contextPath(front.Body)
	if to, err := x.Follows(front); err == nil && to != nil {
		path = beforeOwn(to)
	}
	if path == "" {
		return manifest{}, "", nil
	}
	if m, err = get(path + "/"); err != nil || m == (manifest{}) {
		return manifest{}, "", err
	}
	return m, path, nil
}

// manifest is what a product says of itself to other applications.
type manifest struct{ kind, version string }

// products are the names of the family's products, by kind.
var products = map[string]string{
	"jira": "Jira", "confluence": "Confluence", "bitbucket": "Bitbucket", "bamboo": "Bamboo", "crucible": "Crucible", "crowd": "Crowd",
}

// readManifest reads the manifest of an application link, JSON or XML. Of another
// application it is of no kind.
func readManifest(body []byte) (m manifest, ok bool) {
	var doc struct {
		XMLName xml.Name `json:"-" xml:"manifest"`
		TypeID  string   `json:"typeId" xml:"typeId"`
		Version string   `json:"version" xml:"version"`
	}
	if json.Unmarshal(body, &doc) != nil && xml.Unmarshal(body, &doc) != nil || doc.TypeID == "" {
		return manifest{}, false
	}
	switch m.kind = doc.TypeID; doc.TypeID {
	case "stash": // what Bitbucket was called
		m.kind = "bitbucket"
	case "fecru":
		m.kind = "crucible"
	}
	if products[m.kind] == "" {
		m.kind = ""
	}
	if versionText.MatchString(doc.Version) {
		m.version = doc.Version
	}
	return m, true
}

var versionText = regexp.MustCompile(`^[0-9][0-9A-Za-z.+_-]{0,31}$`)

// pathText is a context path that may be remembered. Tomcat's may have several
// segments.
var pathText = regexp.MustCompile(`^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,63}){1,4}$`)

// contextPath returns what a page says of where the product is (AJS, "ajs-context-path").
func contextPath(page []byte) string {
	z := html.NewTokenizer(bytes.NewReader(page))
	z.SetMaxBuf(maxToken)
	for {
		switch z.Next() {
		case html.ErrorToken:
			return ""
		case html.StartTagToken, html.SelfClosingTagToken:
			var named bool
			var content string
			tag, more := z.TagName()
			meta := string(tag) == "meta"
			for more && meta {
				var key, value []byte
				key, value, more = z.TagAttr()
				named = named || string(key) == "name" && string(value) == "ajs-context-path"
				if string(key) == "content" {
					content = string(value)
				}
			}
			if named {
				return pathText.FindString(content)
			}
		}
	}
}

// beforeOwn returns the part of a URL's path that comes before a product's own pages.
func beforeOwn(u *url.URL) string {
	var path strings.Builder
	for segment := range strings.SplitSeq(strings.Trim(u.Path, "/"), "/") {
		if segment == "" || strings.ContainsAny(segment, ".!") || slices.Contains(ownPages, segment) {
			break
		}
		path.WriteString("/" + segment)
	}
	return pathText.FindString(path.String())
}

// ownPages are the first segments of where the products' front pages lead to, beside
// those with a dot: "secure/Dashboard.jspa", "index.action".
var ownPages = []string{"secure", "plugins", "login", "dashboard", "projects", "getting-started", "start", "spaces", "pages", "display", "rest"}
