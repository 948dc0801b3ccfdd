package login

import "time"

var _ = register("confluence", func() Driver {
	return &application{
		atlassian: atlassian{product: confluenceProduct, LoginURL: "login.action", StatusURL: "status"},
		TSVURL:    tsv, ProbeURL: "rest/api/user/current", LogoutURL: "logout.action",
	}
})

// A session lives for an hour unused (Atlassian knowledge base, 126910597).
var confluenceProduct = &product{
	kind: "confluence", name: "Confluence", legacy: byForm, marker: "loginform", username: "os_username", password: "os_password", action: "dologin.action", idle: time.Hour,
	beside: []string{"userKey", "_links"},
	whoami: confluenceUser,
}

// confluenceUser reads what Confluence says of the user who asks (Confluence REST
// API, "Get current user"): strangers are of type "anonymous", and get 200, too.
func confluenceUser(body []byte) (string, error) {
	kind, err := jsonPath(body, "type")
	if err != nil || kind != "known" {
		return "", err
	}
	return jsonPath(body, "username")
}
