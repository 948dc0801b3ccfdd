package api

import "strings"

// MaxSiteName is the longest name of a site, in bytes.
const MaxSiteName = 63

// ValidSite reports whether name may name a site:
// [A-Za-z0-9][A-Za-z0-9._-]*, at most MaxSiteName bytes. Such a name passes
// through every shell unquoted.
func ValidSite(name string) bool {
	if name == "" || len(name) > MaxSiteName {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case '0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// CookieVariable returns the environment variable that `sessionctl cookie`
// sets for a site: its name in upper case, everything but letters and digits
// as an underscore, and "_COOKIE". "" when that is no variable name.
func CookieVariable(site string) string {
	b := []byte(strings.ToUpper(site) + "_COOKIE")
	for i, c := range b {
		if !('0' <= c && c <= '9' || 'A' <= c && c <= 'Z') {
			b[i] = '_'
		}
	}
	if '0' <= b[0] && b[0] <= '9' {
		return ""
	}
	return string(b)
}
