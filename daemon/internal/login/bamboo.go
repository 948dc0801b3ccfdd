package login

import "time"

var _ = register("bamboo", func() Driver {
	return &application{
		atlassian: atlassian{product: bambooProduct, LoginURL: "userlogin!doDefault.action", StatusURL: "rest/api/latest/status"},
		TSVURL:    tsv, ProbeURL: "rest/api/latest/currentUser", LogoutURL: "userLogout.action",
	}
})

// A session lives for 30 minutes unused (Atlassian knowledge base, 848977292).
var bambooProduct = &product{
	kind: "bamboo", name: "Bamboo", legacy: byForm, marker: "loginForm", username: "os_username", password: "os_password", action: "userlogin.action", idle: 30 * time.Minute,
	beside: []string{"fullName", "email"},
	whoami: func(body []byte) (string, error) { return jsonPath(body, "name") },
}
