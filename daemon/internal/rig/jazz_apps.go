package rig

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// rootservices tells everybody what there is, without a cookie, with the elements that
// the recording of IBM/ELM-Python-Client has of DOORS Next 7.0.2. Those of other
// applications are the same, but for who authorizes.
func (j *Jazz) rootservices(c *jazzCall) {
	if j.modes.HideRootservices {
		c.page(http.StatusNotFound, "Error 404", "")
		return
	}
	self, auth, domain := j.URL(c.context), j.URL(c.context), j.URL(c.context)
	if j.delegates(c.context) {
		auth = j.URL(j.o.Context)
		domain = auth + "," + self
	}
	c.set("Content-Type", "application/rdf+xml; charset=UTF-8")
	fmt.Fprintf(c.w, `<?xml version="1.0"?>
<rdf:Description xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    xmlns:dc="http://purl.org/dc/terms/" xmlns:jfs="http://jazz.net/xmlns/prod/jazz/jfs/1.0/"
    xmlns:jd="http://jazz.net/xmlns/prod/jazz/discovery/1.0/" xmlns:jp06="http://jazz.net/xmlns/prod/jazz/process/0.6/"
    xmlns:oslc_cm="http://open-services.net/xmlns/cm/1.0/" xmlns:oslc_rm="http://open-services.net/xmlns/rm/1.0/"
    rdf:about="%[1]s/rootservices">
  <dc:title xml:lang="en">Jazz (%[4]s)</dc:title>
  <jd:jsaSsoEnabled>%[5]t</jd:jsaSsoEnabled>
  <jfs:oauthDomain>%[3]s</jfs:oauthDomain>
  <jfs:oauthRealmName>Jazz</jfs:oauthRealmName>
  <jfs:oauthAccessTokenUrl rdf:resource="%[2]s/oauth-access-token" />
  <jfs:oauthExpireTokenUrl rdf:resource="%[2]s/oauth-expire-token" />
  <jfs:oauthRequestConsumerKeyUrl rdf:resource="%[2]s/oauth-request-consumer" />
  <jfs:oauthRequestTokenUrl rdf:resource="%[2]s/oauth-request-token" />
  <jfs:oauthUserAuthorizationUrl rdf:resource="%[2]s/oauth-authorize" />
  <jfs:jauthIssueTokenUrl rdf:resource="%[2]s/jauth-issue-token" />
  <jfs:currentUser rdf:resource="%[2]s/whoami" />
  <jfs:users rdf:resource="%[2]s/users" />
  <jp06:projectAreas rdf:resource="%[1]s/process/project-areas" />
  <oslc_cm:cmServiceProviders rdf:resource="%[1]s/oslc/workitems/catalog" />
  <oslc_rm:version>7.0.2</oslc_rm:version>
</rdf:Description>
`, self, auth, domain, c.context, j.o.Auth == "jas")
}

// jazzArea is the only project area.
const jazzArea = "_sampleAreaOfNoSecrets"

// workItems is where a project area's are, in OSLC's terms a query and a creation
// factory.
var workItems = regexp.MustCompile(`^/oslc/contexts/([^/]+)/workitems$`)

// resource answers a user.
func (j *Jazz) resource(c *jazzCall) {
	m := workItems.FindStringSubmatch(c.path)
	switch {
	case isIdentity(c.path):
		j.identity(c)
	case c.path == "/oauth-authorize" && c.context == j.o.Context:
		j.oauthAuthorize(c)
	case c.path == "/whoami" && j.delegates(c.context):
		// Its root services name the JTS's (the recording); that it has none of its own
		// is a guess.
		c.page(http.StatusNotFound, "Error 404", "")
	case c.path == "/whoami":
		// The body is the URI of the user (MathWorks' client for DOORS Next and a
		// strategy of omniauth read it so, at /jts; that it is the same elsewhere, and
		// is there at all for qm and rm, is a guess). The name is percent-encoded, @
		// included (rtcclient's tests).
		c.set("Content-Type", "text/plain; charset=UTF-8")
		io.WriteString(c.w, j.URL(j.o.Context)+"/users/"+strings.ReplaceAll(url.QueryEscape(j.named(c)), "+", "%20"))
	case c.path == "/oslc/workitems/catalog" || c.path == "/process/project-areas":
		j.xml(c, fmt.Sprintf(`<projects><project title="Sample" area="%s" workitems="%s/oslc/contexts/%s/workitems"/></projects>`, jazzArea, j.URL(c.context), jazzArea))
	case m != nil && m[1] == jazzArea:
		j.workItems(c)
	default:
		c.page(http.StatusOK, "Jazz", "<p>Welcome.</p>")
	}
}

func (j *Jazz) xml(c *jazzCall, text string) {
	c.set("Content-Type", "application/xml;charset=UTF-8")
	io.WriteString(c.w, xml.Header+text+"\n")
}

func (j *Jazz) json(c *jazzCall, status int, v any) {
	c.set("Content-Type", "application/json;charset=UTF-8")
	c.w.WriteHeader(status)
	json.NewEncoder(c.w).Encode(v)
}

// named is the name of who asks.
func (j *Jazz) named(c *jazzCall) string {
	if j.modes.WrongUser != "" {
		return j.modes.WrongUser
	}
	return c.user
}

// identity leads on, after a login, to the application's path that it came from, or
// names the user and the user's roles, as text/json (two public clients of RQM read
// these fields).
func (j *Jazz) identity(c *jazzCall) {
	// The recording has the cookie; its full name is from another public source.
	c.setCookie("X-com-ibm-team-foundation-auth-loop-avoidance=false; Path=/" + c.context)
	if to := localPath(c.URL.Query().Get("redirectPath"), ""); to != "" {
		c.redirect(http.StatusFound, j.base()+to)
		return
	}
	c.set("Content-Type", "text/json;charset=UTF-8")
	json.NewEncoder(c.w).Encode(map[string]any{"userId": j.named(c), "roles": []string{"JazzUsers"}})
}

// workItems lists and creates work items, with the names of OSLC CM 1.0 and less of
// everything else.
func (j *Jazz) workItems(c *jazzCall) {
	type item struct {
		Identifier int    `json:"dc:identifier"`
		Title      string `json:"dc:title"`
	}
	switch c.Method {
	case http.MethodGet:
		var items []item
		for i, title := range j.items[c.context] {
			items = append(items, item{i + 1, title})
		}
		j.json(c, http.StatusOK, map[string]any{"oslc_cm:totalCount": len(items), "oslc_cm:results": items})
	case http.MethodPost:
		var in item
		if err := json.NewDecoder(c.Body).Decode(&in); err != nil || strings.TrimSpace(in.Title) == "" {
			c.page(http.StatusBadRequest, "Error 400", "<p>A work item needs a dc:title, in JSON.</p>")
			return
		}
		j.items[c.context] = append(j.items[c.context], in.Title)
		in.Identifier = len(j.items[c.context])
		c.set("Location", j.URL(c.context)+"/resource/itemName/com.ibm.team.workitem.WorkItem/"+strconv.Itoa(in.Identifier))
		j.json(c, http.StatusCreated, in)
	default:
		c.page(http.StatusMethodNotAllowed, "Error 405", "")
	}
}
