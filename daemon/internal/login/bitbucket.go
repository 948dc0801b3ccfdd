package login

import (
	"errors"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

var _ = register("bitbucket", func() Driver {
	return &application{
		atlassian: atlassian{product: bitbucketProduct, LoginURL: "login", StatusURL: "status"},
		TSVURL:    tsv, ProbeURL: "plugins/servlet/applinks/whoami", LogoutURL: "j_atl_security_logout",
	}
})

// A session lives for 30 minutes unused (Atlassian knowledge base, 779171650).
var bitbucketProduct = &product{
	kind: "bitbucket", name: "Bitbucket", legacy: byForm, marker: "j_username", username: "j_username", password: "j_password", action: "j_atl_security_check", idle: 30 * time.Minute,
	whoami: bitbucketUser,
}

// bitbucketUser reads the answer of the application links' whoami, which is the
// name alone, or nothing.
func bitbucketUser(body []byte) (string, error) {
	const longest = 255 // of a user's name in Bitbucket's directory
	name := strings.TrimSpace(string(body))
	if len(name) > longest || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || strings.ContainsRune(`<>{}`, r) }) {
		return "", errors.New("not a name")
	}
	return name, nil
}
