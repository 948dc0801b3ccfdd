package daemon

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
)

// tomlError says where and why a file is not what it should be. It quotes keys
// and never values: the decoder's own texts show whole lines, and the lines
// around them, where a password may stand.
func tomlError(file string, doc []byte, err error) *api.Error {
	e := configError(file, "it is not TOML")
	lines := strings.Split(string(doc), "\n")
	var strict *toml.StrictMissingError
	var decode *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		var all []string
		for _, missing := range strict.Errors {
			row, _ := missing.Position()
			key := missing.Key()
			what := "unknown key " + key[len(key)-1]
			switch kinds := kindsWith(key[len(key)-1]); {
			case key[0] == "credential" && strings.HasPrefix(key[len(key)-1], "passw"):
				what += ": a password comes in by sessionctl login SITE, not by a file"
			case key[0] == "idp" && len(key) == 3 && key[2] == "allow":
				what += ": nobody may use an identity provider itself; its sites have allow"
			case (key[0] == "site" || key[0] == "idp") && len(key) == 3 && len(kinds) > 0:
				what += ": it is an option of kind " + strings.Join(kinds, ", ")
			}
			if strings.HasPrefix(strings.TrimSpace(lines[row-1]), "[") {
				what = "unknown table [" + strings.Join(key, ".") + "]"
			}
			all = append(all, fmt.Sprintf("%s:%d: %s", file, row, printable(what)))
		}
		e.Detail = strings.Join(all, "\n")
	case errors.As(err, &decode):
		row, _ := decode.Position()
		what := reason(strings.TrimPrefix(decode.Error(), "toml: "))
		if key := strings.Join(decode.Key(), "."); key != "" {
			what = key + ": " + what
		} else if m := opening.FindStringSubmatch(lines[row-1]); m != nil {
			what = m[1] + m[2] + ": " + what
		}
		e.Detail = fmt.Sprintf("%s:%d: %s", file, row, printable(what))
	}
	return e
}

var (
	// opening is how a line of a configuration begins: with a key, or with the
	// head of a table. It is narrow, so that the last line of a value in base64
	// ("…=") does not pass for one.
	opening = regexp.MustCompile(`^\s*(?:([a-z_]+)\s*=|(\[\[?(?:site|idp|credential)[\w.-]*))`)
	// mismatch is go-toml's text for a value of the wrong type, which ends in
	// the wanted type of Go.
	mismatch = regexp.MustCompile(`^cannot (?:decode TOML|store an?) (.+?) (?:into|in) (?:.* of type |a )?(.+)$`)
)

// reason is go-toml's reason without types of Go and without values, which it
// shows after a colon and in "integer value 5 cannot be stored in int8".
func reason(text string) string {
	m := mismatch.FindStringSubmatch(text)
	if m == nil {
		text, _, _ = strings.Cut(text, ":")
		if strings.Contains(text, " cannot be stored in ") {
			return "the number is too large or too small"
		}
		return text
	}
	article, wanted := "a ", "a table"
	if strings.ContainsRune("aeiou", rune(m[1][0])) {
		article = "an "
	}
	switch {
	case m[2] == "bool":
		wanted = "true or false"
	case m[2] == "string":
		wanted = "a string"
	case strings.HasPrefix(m[2], "[]"):
		wanted = "a list"
	case strings.HasPrefix(m[2], "int"):
		wanted = "an integer"
	}
	return article + m[1] + " stands where " + wanted + " is wanted"
}

// printable replaces what a key may hold but a message may not.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
}

// kindsWith returns the kinds of site that have an option of that name.
func kindsWith(option string) []string {
	return slices.DeleteFunc(login.Kinds(), func(kind string) bool {
		keys, _ := options(login.New(kind))
		return !slices.ContainsFunc(keys, func(k reflect.StructField) bool { return k.Tag.Get("toml") == option })
	})
}
