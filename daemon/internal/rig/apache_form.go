package rig

import (
	"crypto/sha1"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
)

// passwordPages are the pages of Apache for whoever is in the file of users.
var passwordPages = []string{"form", "inline", "clear", "away", "abroad", "password", "tracked"}

// usersFile is where mod_authn_file finds them, at every look.
const usersFile = "users"

// writeForms writes the users, and the pages that mod_auth_form shows to others.
func (a *Apache) writeForms() error {
	var users strings.Builder
	for name, password := range a.options.Users {
		digest := sha1.Sum([]byte(password))
		users.WriteString(name + ":{SHA}" + base64.StdEncoding.EncodeToString(digest[:]) + "\n")
	}
	if err := os.WriteFile(filepath.Join(a.dir, usersFile), []byte(users.String()), 0o600); err != nil {
		return err
	}
	dir := filepath.Join(a.dir, "htdocs", "login")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for page, action := range map[string]string{"form": "/form/login", "away": "/away/login", "inline": ""} {
		text := `<!DOCTYPE html>
<title>Log in</title>
<form method="post" action="` + action + `">
<input name="httpd_username">
<input type="password" name="httpd_password">
<input type="submit" name="login" value="Log in">
</form>
`
		if err := os.WriteFile(filepath.Join(dir, page+".html"), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}
