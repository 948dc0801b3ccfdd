package web

import (
	"slices"
	"strings"
)

// Challenge is one challenge of a WWW-Authenticate or Proxy-Authenticate
// field (RFC 9110, section 11.6.1).
type Challenge struct {
	// Scheme in lower case.
	Scheme string
	// Token is the token68 form's content, if the challenge has that form.
	Token string
	// Params are the auth-params, names in lower case, values unquoted.
	Params map[string]string
}

// ParseChallenges reads the values of all fields of one name. It accepts
// several fields, several challenges in one field, any case, empty list
// elements and commas inside quoted strings. What cannot be read is passed
// over up to the next comma, so that one product's malformed challenge does not
// hide another scheme. A quote that is never closed is a byte like any other.
func ParseChallenges(values []string) []Challenge {
	var all []Challenge
	for _, v := range values {
		all = parseChallengeList(all, v)
	}
	return all
}

// FindChallenge returns the first challenge of a scheme (lower case), or nil.
func FindChallenge(cs []Challenge, scheme string) *Challenge {
	for i := range cs {
		if cs[i].Scheme == scheme {
			return &cs[i]
		}
	}
	return nil
}

// schemes lists the schemes of challenges for a message, as far as a person
// would read.
func schemes(cs []Challenge) string {
	const most, longest = 8, 32
	var names []string
	for _, c := range cs {
		name := c.Scheme
		if len(name) > longest {
			name = name[:longest] + "…"
		}
		if slices.Contains(names, name) {
			continue
		}
		if len(names) == most {
			return strings.Join(names, ", ") + " and others"
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

func parseChallengeList(all []Challenge, s string) []Challenge {
	p := challengeParser{s: s}
	first := len(all)
	for {
		p.skip(" \t,")
		if p.s == "" {
			return all
		}
		word := p.token()
		if word == "" {
			p.skipElement()
			continue
		}
		space := p.skip(" \t")
		// An auth-param of the challenge before, or a new scheme? A param has
		// "=" and a value next; a scheme has white space, a comma or the end.
		if len(all) > first && p.peek() == '=' && !p.onlyPadding() {
			p.s = p.s[1:]
			c := &all[len(all)-1]
			p.param(c, word)
			continue
		}
		c := Challenge{Scheme: strings.ToLower(word)}
		if space > 0 {
			p.credentials(&c)
		} else if next := p.peek(); next != 0 && next != ',' {
			p.skipElement() // not a scheme after all
			continue
		}
		all = append(all, c)
	}
}

// credentials reads what follows a scheme and white space: token68 or the
// first auth-param; further params come round through the list.
func (p *challengeParser) credentials(c *Challenge) {
	if p.peek() == 0 || p.peek() == ',' {
		return
	}
	rest := p.s
	if t := p.token68(); t != "" {
		p.skip(" \t")
		if n := p.peek(); n == 0 || n == ',' {
			c.Token = t
			return
		}
	}
	p.s = rest
	name := p.token()
	p.skip(" \t")
	if name == "" || p.peek() != '=' {
		p.skipElement()
		return
	}
	p.s = p.s[1:]
	p.param(c, name)
}

// maxParams is the most auth-params of a field that are kept. A map for each of
// thousands of challenges would take many times the memory of the text.
const maxParams = 1000

type challengeParser struct {
	s      string
	params int // so far
	// open says that a quote was found which nothing closes. No later quote is
	// closed either: looking for its end each time would take for ever.
	open bool
}

func (p *challengeParser) peek() byte {
	if p.s == "" {
		return 0
	}
	return p.s[0]
}

func (p *challengeParser) skip(set string) int {
	n := len(p.s)
	p.s = strings.TrimLeft(p.s, set)
	return n - len(p.s)
}

// onlyPadding reports whether what is left of the element is "=" signs, as at
// the end of a token68.
func (p *challengeParser) onlyPadding() bool {
	rest := strings.TrimLeft(p.s, "=")
	rest = strings.TrimLeft(rest, " \t")
	return rest == "" || rest[0] == ','
}

func (p *challengeParser) token() string {
	i := 0
	for i < len(p.s) && isTokenChar(p.s[i]) {
		i++
	}
	t := p.s[:i]
	p.s = p.s[i:]
	return t
}

func (p *challengeParser) token68() string {
	i := 0
	for i < len(p.s) && isToken68Char(p.s[i]) {
		i++
	}
	if i == 0 {
		return ""
	}
	for i < len(p.s) && p.s[i] == '=' {
		i++
	}
	t := p.s[:i]
	p.s = p.s[i:]
	return t
}

func (p *challengeParser) param(c *Challenge, name string) {
	p.skip(" \t")
	value, ok := p.quoted()
	if !ok {
		p.skip(`"`)
		value = p.token()
	}
	if p.params++; p.params <= maxParams {
		if c.Params == nil {
			c.Params = map[string]string{}
		}
		if name = strings.ToLower(name); c.Params[name] == "" {
			c.Params[name] = value
		}
	}
	p.skip(" \t")
	if n := p.peek(); n != 0 && n != ',' {
		p.skipElement()
	}
}

// quoted reads a quoted string, if there is one that ends.
func (p *challengeParser) quoted() (string, bool) {
	if p.open || p.peek() != '"' {
		return "", false
	}
	var b strings.Builder
	for i := 1; i < len(p.s); i++ {
		switch c := p.s[i]; {
		case c == '\\' && i+1 < len(p.s):
			i++
			b.WriteByte(p.s[i])
		case c == '"':
			p.s = p.s[i+1:]
			return b.String(), true
		default:
			b.WriteByte(c)
		}
	}
	p.open = true
	return "", false
}

// skipElement goes to the next comma outside quotes.
func (p *challengeParser) skipElement() {
	for p.s != "" && p.s[0] != ',' {
		if _, ok := p.quoted(); !ok {
			p.s = p.s[1:]
		}
	}
}

func isTokenChar(c byte) bool {
	return isAlnum(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func isToken68Char(c byte) bool {
	return isAlnum(c) || strings.IndexByte("-._~+/", c) >= 0
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}
