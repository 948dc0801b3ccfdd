package rig

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The one project.
const (
	projectKey = "LAB"
	projectID  = "10000"
)

// jiraKinds are the issue types, with their ids.
var jiraKinds = []struct{ id, name string }{{"10001", "Task"}, {"10002", "Bug"}}

// jiraFields are the fields of an issue, with what JQL calls them.
var jiraFields = []struct{ id, name, clause string }{
	{"summary", "Summary", "summary"}, {"description", "Description", "description"},
	{"issuetype", "Issue Type", "issuetype"}, {"project", "Project", "project"},
	{"status", "Status", "status"}, {"reporter", "Reporter", "reporter"},
	{"created", "Created", "created"}, {"attachment", "Attachment", "attachments"},
}

// jiraIssue is an issue.
type jiraIssue struct {
	id, key                    string
	summary, description, kind string
	public                     bool   // whether everybody may read it
	reporter                   string // "" for Jira itself
	created                    time.Time
	attachments                []map[string]any
}

func (j *Atlassian) addIssue(i jiraIssue) *jiraIssue {
	n := len(j.issues) + 1
	i.id, i.key, i.created = strconv.Itoa(10000+n), projectKey+"-"+strconv.Itoa(n), j.now()
	j.issues = append(j.issues, &i)
	return &i
}

// jiraREST answers what is under /rest (Jira's REST API documentation, as far as
// python-jira 3.4 and go-jira 1 ask for it).
func (j *Atlassian) jiraREST(c *atlassianCall) {
	issue, attachments := strings.CutSuffix(c.path, "/attachments")
	takes := "application/json"
	if attachments {
		takes = "multipart/form-data"
	}
	if c.Method == http.MethodPost && !j.takes(c, takes) {
		return
	}
	name, isIssue := strings.CutPrefix(issue, "/rest/api/2/issue/")
	project, isProject := strings.CutPrefix(c.path, "/rest/api/2/project/")
	post := c.Method == http.MethodPost
	switch {
	case strings.HasPrefix(c.path, "/rest/api/3/"): // Cloud's; as others measured with Jira 10.3
		c.redirect(j.loginURL(c.path))
	case c.path == sessionPath:
		j.session(c)
	case isIssue && attachments && post:
		j.attachFile(c, name)
	case c.path == "/rest/api/2/issue" && post:
		j.createIssue(c)
	case c.path == "/rest/api/2/search" && (post || c.Method == http.MethodGet):
		j.search(c)
	case c.Method != http.MethodGet:
		c.page(http.StatusMethodNotAllowed, "Method Not Allowed (405)")
	case isIssue && !attachments:
		j.getIssue(c, name)
	case isProject:
		j.project(c, project)
	case c.path == "/rest/api/2/myself":
		j.myself(c)
	case c.path == "/rest/api/2/serverInfo":
		c.json(http.StatusOK, map[string]any{ // everybody may ask: python-jira does before anything else
			"baseUrl": j.URL(), "version": j.version, "versionNumbers": j.versionNumbers(), "deploymentType": "Server",
			"buildNumber": j.buildNumber(), "serverTitle": "Jira", "serverTime": jiraTime(j.now()),
		})
	case c.path == "/rest/api/2/field":
		fields := []any{}
		for _, f := range jiraFields {
			fields = append(fields, map[string]any{"id": f.id, "name": f.name, "custom": false, "searchable": true, "clauseNames": []string{f.clause}})
		}
		c.json(http.StatusOK, fields)
	case c.path == "/rest/api/2/issuetype":
		c.json(http.StatusOK, j.kinds())
	default:
		c.page(http.StatusNotFound, "Not Found (404)")
	}
}

func (j *Atlassian) myself(c *atlassianCall) {
	if c.user == "" {
		j.unauthorized(c, notAuthenticated)
		return
	}
	c.json(http.StatusOK, j.user(c.user))
}

// user is what the REST API says of a user.
func (j *Atlassian) user(name string) map[string]any {
	return map[string]any{
		"self": j.URL() + "/rest/api/2/user?username=" + name, "name": name, "key": name, "displayName": name,
		"active": true, "timeZone": "Etc/UTC", "locale": "en_US",
	}
}

func (j *Atlassian) kinds() []any {
	var kinds []any
	for _, k := range jiraKinds {
		kinds = append(kinds, j.kind(k.id, k.name))
	}
	return kinds
}

func (j *Atlassian) kind(id, name string) map[string]any {
	return map[string]any{"self": j.URL() + "/rest/api/2/issuetype/" + id, "id": id, "name": name, "subtask": false}
}

func (j *Atlassian) project(c *atlassianCall, name string) {
	if name != projectKey && name != projectID {
		c.errors(http.StatusNotFound, "No project could be found with key '"+name+"'.")
		return
	}
	c.json(http.StatusOK, map[string]any{
		"self": j.URL() + "/rest/api/2/project/" + projectID, "id": projectID, "key": projectKey, "name": "Lab", "issueTypes": j.kinds(),
	})
}

// render is what the REST API says of an issue.
func (j *Atlassian) render(i *jiraIssue) map[string]any {
	fields := map[string]any{
		"summary": i.summary, "description": i.description, "created": jiraTime(i.created),
		"project": map[string]any{"self": j.URL() + "/rest/api/2/project/" + projectID, "id": projectID, "key": projectKey, "name": "Lab"},
		"status":  map[string]any{"self": j.URL() + "/rest/api/2/status/1", "id": "1", "name": "Open"},
		// An empty list, not null: clients go through it.
		"attachment": append([]map[string]any{}, i.attachments...),
	}
	for _, k := range jiraKinds {
		if k.name == i.kind {
			fields["issuetype"] = j.kind(k.id, k.name)
		}
	}
	if i.reporter != "" {
		fields["reporter"] = j.user(i.reporter)
	}
	return map[string]any{"id": i.id, "key": i.key, "self": j.URL() + "/rest/api/2/issue/" + i.id, "fields": fields}
}

// find returns the issue of a key or id that the user may see, or answers.
func (j *Atlassian) find(c *atlassianCall, name string) *jiraIssue {
	n := slices.IndexFunc(j.issues, func(i *jiraIssue) bool { return i.key == name || i.id == name })
	switch {
	case n < 0:
		c.errors(http.StatusNotFound, "Issue Does Not Exist")
	case c.user == "" && !j.issues[n].public:
		j.unauthorized(c, "You do not have the permission to see the specified issue.", "Login Required")
	default:
		return j.issues[n]
	}
	return nil
}

func (j *Atlassian) getIssue(c *atlassianCall, name string) {
	if i := j.find(c, name); i != nil {
		c.json(http.StatusOK, j.render(i))
	}
}

// search answers with a page of the issues that the user may see: without a
// login 200 too, and fewer (Atlassian, "REST and os_authType").
func (j *Atlassian) search(c *atlassianCall) {
	page := struct{ StartAt, MaxResults int }{MaxResults: 50}
	if c.Method == http.MethodPost {
		if err := json.Unmarshal(c.body, &page); err != nil {
			c.errors(http.StatusBadRequest, "The request is not JSON.")
			return
		}
	} else {
		for name, value := range map[string]*int{"startAt": &page.StartAt, "maxResults": &page.MaxResults} {
			s := c.URL.Query().Get(name)
			if s == "" {
				continue
			}
			n, err := strconv.Atoi(s)
			if err != nil {
				c.errors(http.StatusBadRequest, name+" is not a number.")
				return
			}
			*value = n
		}
	}
	found := []any{}
	for _, i := range j.issues {
		if c.user != "" || i.public {
			found = append(found, j.render(i))
		}
	}
	total := len(found)
	page.StartAt = min(max(page.StartAt, 0), total)
	page.MaxResults = max(page.MaxResults, 0)
	found = found[page.StartAt:]
	c.json(http.StatusOK, map[string]any{
		"startAt": page.StartAt, "maxResults": page.MaxResults, "total": total,
		"issues": found[:min(page.MaxResults, len(found))],
	})
}

func (j *Atlassian) createIssue(c *atlassianCall) {
	if c.user == "" {
		j.unauthorized(c, notAuthenticated)
		return
	}
	var request struct {
		Fields struct {
			Summary, Description string
			Project              struct{ ID, Key string }
			IssueType            struct{ ID, Name string }
		}
	}
	if err := json.Unmarshal(c.body, &request); err != nil {
		c.errors(http.StatusBadRequest, "The request is not JSON.")
		return
	}
	f := request.Fields
	invalid := make(map[string]string)
	if f.Project.ID != projectID && f.Project.Key != projectKey {
		invalid["project"] = "project is required"
	}
	if f.Summary == "" {
		invalid["summary"] = "You must specify a summary of the issue."
	}
	kind := ""
	for _, k := range jiraKinds {
		if f.IssueType.ID == k.id || f.IssueType.Name == k.name {
			kind = k.name
		}
	}
	if kind == "" {
		invalid["issuetype"] = "issue type is required"
	}
	if len(invalid) > 0 {
		c.json(http.StatusBadRequest, map[string]any{"errorMessages": []string{}, "errors": invalid})
		return
	}
	i := j.addIssue(jiraIssue{summary: f.Summary, description: f.Description, kind: kind, reporter: c.user})
	j.counts.Created++
	c.json(http.StatusCreated, map[string]string{"id": i.id, "key": i.key, "self": j.URL() + "/rest/api/2/issue/" + i.id})
}

// attachFile adds the files of a form, which are called file.
func (j *Atlassian) attachFile(c *atlassianCall, name string) {
	if c.user == "" {
		j.unauthorized(c, notAuthenticated)
		return
	}
	i := j.find(c, name)
	if i == nil {
		return
	}
	_, params, _ := mime.ParseMediaType(c.Header.Get("Content-Type"))
	added := []map[string]any{}
	for form := multipart.NewReader(bytes.NewReader(c.body), params["boundary"]); ; {
		part, err := form.NextPart()
		if err == io.EOF {
			break
		}
		var content []byte
		if err == nil {
			content, err = io.ReadAll(part)
		}
		if err != nil {
			c.errors(http.StatusBadRequest, "The form is malformed.")
			return
		}
		if part.FormName() != "file" {
			continue
		}
		j.attachments++
		id := strconv.Itoa(10000 + j.attachments)
		added = append(added, map[string]any{
			"self": j.URL() + "/rest/api/2/attachment/" + id, "id": id, "filename": part.FileName(), "size": len(content),
			"mimeType": part.Header.Get("Content-Type"), "author": j.user(c.user), "created": jiraTime(j.now()),
		})
	}
	i.attachments = append(i.attachments, added...)
	c.json(http.StatusOK, added)
}
