package login

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// manifestJSON is what an application says of itself.
func manifestJSON(typeID, version string) http.HandlerFunc {
	return says(200, fmt.Sprintf(`{"id":"CANARY-id","name":"CANARY","typeId":%q,"version":%q,"buildNumber":1}`, typeID, version), "Content-Type: application/json")
}

// manifestXML is the same to whoever does not ask for JSON.
func manifestXML(typeID, version string) http.HandlerFunc {
	return says(200, fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8" standalone="yes"?><manifest><id>CANARY-id</id><name>CANARY</name><typeId>%s</typeId><version>%s</version><inboundAuthenticationTypes>CANARY</inboundAuthenticationTypes></manifest>`,
		typeID, version), "Content-Type: application/xml")
}

// loginOptions are those of the login page.
func loginOptions(types ...string) http.HandlerFunc {
	results := []map[string]any{}
	for i, kind := range types {
		results = append(results, map[string]any{"id": i, "type": kind, "buttonText": "CANARY", "loginLink": "https://CANARY-host/"})
	}
	b, err := json.Marshal(map[string]any{"start": 0, "limit": 25, "size": len(types), "isLastPage": true, "results": results})
	if err != nil {
		panic(err)
	}
	return says(200, string(b))
}

// detect looks at a site whose url has a path or not, with no cookie, no token and at
// most seven requests.
func detect(t *testing.T, name, kind, path string, say map[string]http.HandlerFunc) (Findings, error) {
	t.Helper()
	requests := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		if r.Header.Get("Authorization") != "" || r.Method != http.MethodGet || !strings.HasPrefix(r.Host, "app.corp.example:") {
			t.Errorf("%s: %s %s%s %q", name, r.Method, r.Host, r.URL, r.Header)
		}
		if strings.Contains(r.URL.Path, "/rest/") && r.Header.Get("Accept") != "application/json" {
			t.Errorf("%s: %s is asked for %q", name, r.URL.Path, r.Header.Get("Accept"))
		}
		if answer := say[r.URL.Path]; answer != nil {
			answer(w, r)
			return
		}
		http.NotFound(w, r)
	}))
	defer s.Close()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	x := web.NewExchange(web.Options{
		Base: &url.URL{Scheme: "http", Host: "app.corp.example:" + u.Port(), Path: path}, InsecureHTTP: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, u.Host)
		},
	}, new(web.Jar))
	defer x.Close()
	f, err := New(kind).(Detector).Detect(t.Context(), x)
	quiet(t, name, err)
	if requests > 7 {
		t.Errorf("%s: %d requests", name, requests)
	}
	return f, err
}

// windowsOnly asks agents with the word for Negotiate.
func windowsOnly(others http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.UserAgent(), "Windows NT") {
			others = says(401, page, challenge)
		}
		others(w, r)
	}
}

// TestDetect: what is found out of a site.
func TestDetect(t *testing.T) {
	const resource, options = "/rest/applinks/1.0/manifest", "/rest/authconfig/latest/login-options"
	legacyPage := map[string]string{}
	for _, m := range family {
		legacyPage[m.kind] = m.form("")
	}
	two := says(200, `<div id=root>CANARY</div>`, nobody)
	for name, c := range map[string]struct {
		kind    string
		path    string // of the site's url
		at      string // where the product is
		asked   map[string]http.HandlerFunc
		page    http.HandlerFunc
		options http.HandlerFunc
		want    Findings
		code    api.Code
		says    string
	}{
		"legacy form": {kind: "confluence", path: "/wiki", asked: map[string]http.HandlerFunc{"/wiki" + resource: manifestJSON("confluence", "7.19.30")},
			page: says(200, legacyPage["confluence"]), want: Findings{Product: "confluence", Version: "7.19.30", Login: byForm}},
		"legacy form, XML": {kind: "bamboo", path: "/", asked: map[string]http.HandlerFunc{resource: manifestXML("bamboo", "9.6.1")},
			page: says(200, legacyPage["bamboo"]), want: Findings{Product: "bamboo", Version: "9.6.1", Login: byForm}},
		"two-step": {kind: "bitbucket", path: "", asked: map[string]http.HandlerFunc{resource: manifestJSON("stash", "9.4.2")},
			page: two, options: loginOptions("LOGIN_FORM", "IDP"), want: Findings{Product: "bitbucket", Version: "9.4.2", Login: byTSV}},
		"two-step, by the new name": {kind: "bitbucket", path: "/git", asked: map[string]http.HandlerFunc{"/git" + resource: manifestJSON("bitbucket", "10.0")},
			page: two, options: loginOptions("LOGIN_FORM"), want: Findings{Product: "bitbucket", Version: "10.0", Login: byTSV}},
		"two-step, by the page alone": {kind: "confluence", path: "/wiki", asked: map[string]http.HandlerFunc{"/wiki" + resource: manifestJSON("confluence", "9.0.1")},
			page: two, want: Findings{Product: "confluence", Version: "9.0.1", Login: byTSV}},
		"legacy by the options": {kind: "confluence", path: "/wiki", page: two, options: loginOptions("LEGACY_LOGIN_FORM"), want: Findings{Login: byForm}},
		"Jira of old":           {kind: "jira", path: "/jira", asked: map[string]http.HandlerFunc{"/jira" + resource: manifestJSON("jira", "9.12.0")}, page: says(200, legacyPage["jira"]), want: Findings{Product: "jira", Version: "9.12.0", Login: byREST}},
		"Jira without the box":  {kind: "jira", path: "/jira", page: says(200, page, nobody), want: Findings{Login: byREST}},
		"Jira, two-step":        {kind: "jira", path: "/jira", asked: map[string]http.HandlerFunc{"/jira" + resource: manifestJSON("jira", "11.3.1")}, page: two, options: loginOptions("LOGIN_FORM"), want: Findings{Product: "jira", Version: "11.3.1", Login: byTSV}},
		"Jira, others' logins":  {kind: "jira", path: "/jira", page: two, options: loginOptions("IDP"), want: Findings{Login: byREST}},
		"others' logins":        {kind: "bamboo", path: "/b", page: two, options: loginOptions("IDP"), want: Findings{Login: byTSV}},
		"Fisheye":               {kind: "crucible", path: "/fe", asked: map[string]http.HandlerFunc{"/fe" + resource: manifestXML("fecru", "4.8.9")}, page: says(200, legacyPage["crucible"]), want: Findings{Product: "crucible", Version: "4.8.9", Login: byForm}},

		"a gate for all":                           {kind: "confluence", path: "/wiki", page: says(401, page, challenge), want: Findings{Gate: gateForAll}},
		"a gate for all, two-step":                 {kind: "confluence", path: "/wiki", page: says(401, page, challenge), options: loginOptions("LOGIN_FORM"), want: Findings{Gate: gateForAll, Login: byTSV}},
		"a gate for Windows":                       {kind: "confluence", path: "/wiki", page: windowsOnly(says(200, legacyPage["confluence"])), want: Findings{Gate: gateForWindows, Login: byForm}},
		"a gate of other kind":                     {kind: "confluence", path: "/wiki", page: says(401, page, basic), code: api.ChallengeUnsupported, says: "before Confluence is reached"},
		"a gate of another kind, but not for REST": {kind: "confluence", path: "/wiki", page: says(401, page, basic), options: says(404, page, request), want: Findings{}},
		"a gate everywhere":                        {kind: "jira", path: "/jira", asked: map[string]http.HandlerFunc{"/jira" + resource: says(401, page, challenge)}, page: says(401, page, challenge), options: says(401, page, challenge), want: Findings{Gate: gateForAll, Login: byREST}},
		"a gate, else elsewhere":                   {kind: "confluence", path: "/wiki", page: windowsOnly(says(302, "", foreignLocation)), want: Findings{Gate: gateForWindows}},

		"another product":             {kind: "jira", path: "/x", asked: map[string]http.HandlerFunc{"/x" + resource: manifestJSON("confluence", "9.2.1")}, code: api.ConfigInvalid, says: `the site is Confluence 9.2.1, not Jira; set kind = "confluence" for it`},
		"another product, no version": {kind: "jira", path: "/x", asked: map[string]http.HandlerFunc{"/x" + resource: manifestJSON("stash", "CANARY version")}, code: api.ConfigInvalid, says: `the site is Bitbucket, not Jira; set kind = "bitbucket"`},
		"another product, Fisheye":    {kind: "bamboo", path: "/x", asked: map[string]http.HandlerFunc{"/x" + resource: manifestXML("fecru", "4.8")}, code: api.ConfigInvalid, says: `kind = "crucible"`},
		"none of the family":          {kind: "jira", path: "/x", asked: map[string]http.HandlerFunc{"/x" + resource: manifestJSON("jenkins", "2.1")}, page: says(200, legacyPage["jira"]), want: Findings{Version: "2.1", Login: byREST}},

		"below, by a redirect": {kind: "jira", path: "", at: "/jira", asked: map[string]http.HandlerFunc{"/": says(302, "", "Location: /jira/secure/Dashboard.jspa;CANARY"), "/jira" + resource: manifestJSON("jira", "9.12.0")},
			page: says(200, legacyPage["jira"]), want: Findings{Product: "jira", Version: "9.12.0", Path: "/jira", Login: byREST}},
		"below, two segments": {kind: "bamboo", path: "/", at: "/ci/bamboo", asked: map[string]http.HandlerFunc{"/": says(301, "", "Location: ci/bamboo/userlogin!doDefault.action"), "/ci/bamboo" + resource: manifestJSON("bamboo", "10.2.14")},
			page: two, options: loginOptions("LOGIN_FORM"), want: Findings{Product: "bamboo", Version: "10.2.14", Path: "/ci/bamboo", Login: byTSV}},
		"below, by the page": {kind: "confluence", path: "", at: "/wiki", asked: map[string]http.HandlerFunc{"/": says(200, `<meta name="ajs-base-url" content="CANARY"><META content='/wiki' name=ajs-context-path>`), "/wiki" + resource: manifestJSON("confluence", "9.2.1")},
			page: windowsOnly(two), options: loginOptions("LOGIN_FORM"), want: Findings{Product: "confluence", Version: "9.2.1", Path: "/wiki", Login: byTSV, Gate: gateForWindows}},
		"below, where nothing is":  {kind: "confluence", path: "", asked: map[string]http.HandlerFunc{"/": says(302, "", "Location: /portal/")}, page: says(200, legacyPage["confluence"]), want: Findings{Login: byForm}},
		"below, another product":   {kind: "confluence", path: "", asked: map[string]http.HandlerFunc{"/": says(302, "", "Location: /jira"), "/jira" + resource: manifestJSON("jira", "9.12.0")}, code: api.ConfigInvalid, says: "is Jira 9.12.0"},
		"here, by its own page":    {kind: "jira", path: "", asked: map[string]http.HandlerFunc{"/": says(302, "", "Location: /secure/Dashboard.jspa")}, page: says(200, legacyPage["jira"]), want: Findings{Login: byREST}},
		"front page elsewhere":     {kind: "jira", path: "", asked: map[string]http.HandlerFunc{"/": says(302, "", foreignLocation)}, page: says(200, legacyPage["jira"]), want: Findings{Login: byREST}},
		"a path is not looked for": {kind: "jira", path: "/x", asked: map[string]http.HandlerFunc{"/x": says(302, "", "Location: /jira"), "/jira" + resource: manifestJSON("jira", "9.12.0")}, page: says(200, legacyPage["jira"]), want: Findings{Login: byREST}},

		"to a foreign host":           {kind: "confluence", path: "/wiki", page: says(302, "", foreignLocation), code: api.SSORedirect, says: "login.foreign.example"},
		"to a foreign host, two-step": {kind: "confluence", path: "/wiki", page: says(302, "", foreignLocation), options: loginOptions("IDP"), want: Findings{Login: byTSV}},
		"to a foreign host, Jira":     {kind: "jira", path: "/jira", page: says(302, "", foreignLocation), options: says(404, page, nobody), want: Findings{}},
		"to a foreign host, no Jira":  {kind: "jira", path: "/jira", page: says(302, "", foreignLocation), code: api.SSORedirect, says: "login.foreign.example"},
		"to a foreign host, Fisheye":  {kind: "crucible", path: "/fe", page: says(302, "", foreignLocation), code: api.SSORedirect},
		"in circles":                  {kind: "bitbucket", path: "/git", page: says(302, "", "Location: /git/login"), code: api.RedirectLoop},
		"in circles, Jira":            {kind: "jira", path: "/jira", asked: map[string]http.HandlerFunc{"/jira" + resource: manifestJSON("jira", "9.12.0")}, page: says(302, "", "Location: /jira/login.jsp"), want: Findings{Product: "jira", Version: "9.12.0"}},
		"to https":                    {kind: "confluence", path: "/wiki", page: toHTTPS, code: api.InsecureRedirect},

		"away":                     {kind: "confluence", path: "/wiki", asked: map[string]http.HandlerFunc{"/wiki" + resource: says(503, page)}, code: api.Maintenance},
		"broken":                   {kind: "confluence", path: "/wiki", page: says(500, page), code: api.Server5xx},
		"a resource is broken":     {kind: "confluence", path: "/wiki", asked: map[string]http.HandlerFunc{"/wiki" + resource: says(502, page)}, page: says(200, legacyPage["confluence"]), want: Findings{Login: byForm}},
		"limited":                  {kind: "confluence", path: "/wiki", asked: map[string]http.HandlerFunc{"/wiki" + resource: says(429, page)}, code: api.RateLimited},
		"page away":                {kind: "confluence", path: "/wiki", page: says(503, page), code: api.Maintenance},
		"options away":             {kind: "confluence", path: "/wiki", page: two, options: says(503, page), code: api.Maintenance},
		"front page away":          {kind: "confluence", path: "", asked: map[string]http.HandlerFunc{"/": says(503, page)}, code: api.Maintenance},
		"below, away":              {kind: "confluence", path: "", asked: map[string]http.HandlerFunc{"/": says(302, "", "Location: /wiki"), "/wiki" + resource: says(503, page)}, code: api.Maintenance},
		"maintenance with 200":     {kind: "crucible", path: "/fe", page: says(200, `<html><head><title>Crucible Maintenance</title>`), code: api.Maintenance},
		"maintenance everywhere":   {kind: "jira", path: "/jira", asked: map[string]http.HandlerFunc{"/jira" + resource: says(200, `<title>Down for maintenance</title>`)}, code: api.Maintenance},
		"a wiki about maintenance": {kind: "confluence", path: "/wiki", page: says(200, `<title>Log In - Maintenance</title>`, nobody), want: Findings{Login: byTSV}},

		"starting":                     {kind: "confluence", path: "/wiki", asked: map[string]http.HandlerFunc{"/wiki" + resource: says(200, page), "/wiki/status": says(200, `{"state":"STARTING"}`)}, page: says(200, page), options: says(200, page), code: api.Maintenance, says: "running"},
		"hidden, two-step":             {kind: "confluence", path: "/wiki", page: says(200, page), options: loginOptions("LOGIN_FORM"), want: Findings{Login: byTSV}},
		"a front that hides it":        {kind: "jira", path: "", asked: map[string]http.HandlerFunc{"/": says(302, "", "Location: /portal"), "/status": says(200, `{"state":"RUNNING"}`)}, page: says(200, page), want: Findings{}},
		"a page in front alone":        {kind: "bamboo", path: "/b", page: says(200, page), code: api.Maintenance, says: "not Bamboo's"},
		"a page for everything":        {kind: "jira", path: "", asked: map[string]http.HandlerFunc{"/": says(200, page), resource: says(200, page), "/status": says(200, page)}, page: says(200, page), options: says(200, page), code: api.Maintenance, says: "not Jira's"},
		"a page, a gate for Windows":   {kind: "jira", path: "/jira", page: windowsOnly(says(200, page)), want: Findings{Gate: gateForWindows}},
		"a page, by Jira's manifest":   {kind: "jira", path: "/jira", asked: map[string]http.HandlerFunc{"/jira" + resource: says(403, page, request)}, page: says(200, page), want: Findings{}},
		"a page, not Fisheye's":        {kind: "crucible", path: "/fe", page: says(200, page), code: api.UnexpectedStatus, says: "answers 200 with a page"},
		"a form, Fisheye's":            {kind: "crucible", path: "/fe", page: says(200, legacyPage["crucible"]), want: Findings{Login: byForm}},
		"a form, not Fisheye's":        {kind: "crucible", path: "/fe", page: says(200, `<form method=post><input name=u><input type=password name=p></form>`), code: api.UnexpectedStatus},
		"nothing, not Fisheye":         {kind: "crucible", path: "/fe", code: api.UnexpectedStatus, says: "answers 404"},
		"a page for all that is asked": {kind: "confluence", path: "/wiki", asked: map[string]http.HandlerFunc{"/wiki" + resource: two}, page: two, options: two, want: Findings{Login: byTSV}},
		"nothing there":                {kind: "confluence", path: "/wiki", code: api.UnexpectedStatus, says: "answers 404"},
	} {
		m := memberOf(c.kind)
		say := map[string]http.HandlerFunc{}
		for path, answer := range c.asked {
			say[path] = answer
		}
		below := strings.TrimSuffix(c.path, "/") + c.at
		say[below+"/"+m.login], say[below+options] = c.page, c.options
		f, err := detect(t, name, c.kind, c.path, say)
		if f != c.want || api.CodeOf(err) != c.code {
			t.Errorf("%s: %+v %v, want %+v %q", name, f, err, c.want, c.code)
		}
		if e := api.AsError(err); err != nil && !strings.Contains(e.Detail+"; "+e.Remedy, c.says) {
			t.Errorf("%s: %+v, want %q", name, e, c.says)
		}
	}
	// A User-Agent that the configuration names is not changed, and asked about once.
	a := &answers{t: t, say: map[string]http.HandlerFunc{"GET login.action": two}}
	if f, err := New("confluence").(Detector).Detect(t.Context(), exchangeAs(t, a, "corp/1", nil)); err != nil || f != (Findings{Login: byTSV}) || len(a.asked) != 3 {
		t.Errorf("%+v %v; asked %q", f, err, a.asked)
	}
}

// TestReadManifest: what is taken from a manifest.
func TestReadManifest(t *testing.T) {
	for doc, want := range map[string]manifest{
		`{"typeId":"jira","version":"9.12.0"}`:                              {"jira", "9.12.0"},
		`{"typeId":"stash","version":"8.19.3-m1"}`:                          {"bitbucket", "8.19.3-m1"},
		`{"typeId":"crowd","version":"7.1.3"}`:                              {"crowd", "7.1.3"},
		`{"typeId":"jira"}`:                                                 {"jira", ""},
		`{"typeId":"jira","version":"9\n12"}`:                               {"jira", ""},
		`{"typeId":"jira","version":"` + strings.Repeat("9", 60) + `"}`:     {"jira", ""},
		`<manifest><typeId>fecru</typeId><version>2.7</version></manifest>`: {"crucible", "2.7"},
		`<manifest><name>x</name></manifest>`:                               {},
		`<html><typeId>jira</typeId></html>`:                                {},
		`{"typeId":["jira"]}`:                                               {},
		`{"typeId":"generic","version":"1"}`:                                {"", "1"},
		page:                                                                {}, "": {}, "null": {}, "[]": {},
	} {
		if m, ok := readManifest([]byte(doc)); m != want || ok != (want != manifest{}) {
			t.Errorf("%s: %+v %v, want %+v", doc, m, ok, want)
		}
	}
}

// TestContextPath: where a front page leads to.
func TestContextPath(t *testing.T) {
	for to, want := range map[string]string{
		"/jira": "/jira", "/jira/": "/jira", "/jira/login.jsp": "/jira", "/a/b/secure/x": "/a/b", "/login": "", "/": "", "": "", "/wiki/plugins/servlet/saml": "/wiki",
		"/b/userlogin!doDefault.action": "/b", "/wiki/index.action?x": "/wiki", "/../x": "", "/%2e%2e/x": "", "/a%20b/x": "", "/" + strings.Repeat("x", 100): "", "/a/b/c/d/e/f": "",
	} {
		u, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		if got := beforeOwn(u); got != want {
			t.Errorf("%s: %q, want %q", to, got, want)
		}
	}
	for page, want := range map[string]string{
		`<meta name="ajs-context-path" content="/jira">`: "/jira", `<meta content="/x" name="ajs-context-path"/>`: "/x", `<meta name="ajs-context-path" content="">`: "",
		`<meta name="ajs-context-path" content="//evil.example/x">`: "", `<meta name="ajs-context-path" content="/a/../b">`: "", `<meta name="other" content="/x">`: "",
		`<!-- <meta name="ajs-context-path" content="/x"> -->`: "", `<script><meta name="ajs-context-path" content="/x"></script>`: "", "": "",
	} {
		if got := contextPath([]byte(page)); got != want {
			t.Errorf("%s: %q, want %q", page, got, want)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"typeId":"stash","version":"9.4.2"}`))
	f.Add([]byte(`<?xml version="1.0"?><manifest><typeId>fecru</typeId><version>4.8.9</version></manifest>`))
	f.Fuzz(func(t *testing.T, body []byte) {
		m, ok := readManifest(body)
		if !ok && m != (manifest{}) || m.kind != "" && products[m.kind] == "" || len(m.version) > 32 || strings.ContainsAny(m.version, " \n\"<") {
			t.Errorf("%q: %+v %v", body, m, ok)
		}
	})
}

func FuzzLoginOptions(f *testing.F) {
	f.Add([]byte(`{"size":1,"results":[{"id":"1","type":"LOGIN_FORM"}]}`))
	f.Add([]byte(`{"results":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if types, ok := readLoginOptions(body); !ok && types != nil || ok && !json.Valid(body) {
			t.Errorf("%q: %q %v", body, types, ok)
		}
	})
}

func FuzzContextPath(f *testing.F) {
	f.Add([]byte(`<meta name="ajs-context-path" content="/jira">`), "/jira/secure/Dashboard.jspa")
	f.Fuzz(func(t *testing.T, page []byte, to string) {
		for _, path := range []string{contextPath(page), beforeOwn(&url.URL{Path: to})} {
			base := &url.URL{Scheme: "https", Host: "app.corp.example"}
			if u, err := web.Resolve(base, path+"/rest"); path != "" && (err != nil || u.Host != base.Host || u.Path != path+"/rest") {
				t.Errorf("%q, %q give %q: %v %v", page, to, path, u, err)
			}
		}
	})
}
