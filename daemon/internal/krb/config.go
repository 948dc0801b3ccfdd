package krb

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

const (
	maxConfigSize  = 1 << 20 // bytes of one file
	maxConfigFiles = 256     // all files together
	maxConfigDepth = 10      // includes inside includes
)

// Config is what krb5.conf says, as MIT krb5 reads it (krb5.conf(5)). Sections
// and options that the agent has no use for are accepted and ignored.
type Config struct {
	files     []string              // every file that was read
	relations map[string][]relation // by path: section, subsections, tag
	lifetime  time.Duration         // of the tickets to ask for
}

// relation is one "tag = value" with the place it stands at.
type relation struct {
	value string
	at    position
}

type position struct {
	file string
	line int
	text string
}

// defaultLifetime is MIT's ticket_lifetime.
const defaultLifetime = 24 * time.Hour

// LoadConfig reads the files in order of priority, like the list in
// KRB5_CONFIG: of a scalar the first value counts, lists add up, and what an
// earlier file marks final (*) later files cannot add to. A missing file is
// skipped unless all are missing. The error is an *api.Error of code
// Krb5ConfInvalid that quotes file, line number and line.
func LoadConfig(paths ...string) (*Config, error) {
	p := parser{
		config: &Config{relations: make(map[string][]relation), lifetime: defaultLifetime},
		final:  make(map[string]int),
	}
	for i, path := range paths {
		p.source = i
		err := p.file(path, 0)
		if errors.Is(err, fs.ErrNotExist) && !errors.As(err, new(*api.Error)) {
			continue
		}
		if err != nil {
			return nil, configError(err)
		}
	}
	c := p.config
	if len(c.files) == 0 {
		return nil, &api.Error{Code: api.Krb5ConfInvalid,
			Detail: "no krb5.conf: none of " + quote(strings.Join(paths, ", ")) + " exists",
			Remedy: "install the Kerberos client configuration of your realm as /etc/krb5.conf"}
	}
	if r, ok := c.first("libdefaults", "ticket_lifetime"); ok {
		d, err := parseLifetime(r.value)
		if err != nil {
			return nil, r.at.errorf("%v", err)
		}
		c.lifetime = d
	}
	return c, nil
}

func configError(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	return &api.Error{Code: api.Krb5ConfInvalid, Detail: "krb5.conf: " + err.Error(), Err: err,
		Remedy: "make the file readable for the agent's user"}
}

// DefaultRealm returns [libdefaults] default_realm, "" if there is none.
func (c *Config) DefaultRealm() string {
	r, _ := c.first("libdefaults", "default_realm")
	return r.value
}

// KDCs returns the realm's KDCs as host:port, in the order of the files. An
// entry for a proxy (https://…) is left out.
func (c *Config) KDCs(realm string) []string {
	var kdcs []string
	for _, r := range c.relations[path("realms", realm, "kdc")] {
		// What follows a blank is not part of the host, as in MIT.
		host, _, _ := strings.Cut(strings.ReplaceAll(r.value, "\t", " "), " ")
		if host == "" || strings.Contains(host, "://") {
			continue
		}
		if a := withPort(host, "88"); !slices.Contains(kdcs, a) {
			kdcs = append(kdcs, a)
		}
	}
	return kdcs
}

// withPort adds the default port to "host", "1.2.3.4", "::1" and "[::1]".
func withPort(host, port string) string {
	if h, p, err := net.SplitHostPort(host); err == nil {
		return net.JoinHostPort(h, p)
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port)
}

// RealmOf returns the realm that [domain_realm] names for a host, "" if it
// names none. Of a.b.c it looks up a.b.c, .b.c, b.c, .c and c, in lower case.
func (c *Config) RealmOf(host string) string {
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	for name != "" {
		if r, ok := c.first("domain_realm", name); ok {
			return r.value
		}
		if rest, ok := strings.CutPrefix(name, "."); ok {
			name = rest
		} else if dot := strings.IndexByte(name, '.'); dot >= 0 {
			name = name[dot:]
		} else {
			return ""
		}
	}
	return ""
}

func (c *Config) first(elements ...string) (relation, bool) {
	if rs := c.relations[path(elements...)]; len(rs) > 0 {
		return rs[0], true
	}
	return relation{}, false
}

func path(elements ...string) string { return strings.Join(elements, "\x00") }

// parser reads profile files into a Config.
type parser struct {
	config *Config
	source int            // which of the listed files, counting from 0
	final  map[string]int // path → the source that marked it final
	files  int
}

// file reads one file; depth counts the includes around it. The error is
// fs.ErrNotExist for a missing file.
func (p *parser) file(name string, depth int) error {
	if p.files++; p.files > maxConfigFiles {
		return &api.Error{Code: api.Krb5ConfInvalid, Detail: fmt.Sprintf("%s: more than %d configuration files", name, maxConfigFiles)}
	}
	data, err := readRegular(name, maxConfigSize)
	if err != nil {
		return err
	}
	p.config.files = append(p.config.files, name)

	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var where []string // open section and subsections
	brace := ""        // the tag that waits for "{" on a line of its own
	var at position
	for n, text := range strings.Split(string(data), "\n") {
		line := strings.TrimSpace(text)
		at = position{file: name, line: n + 1, text: line}
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if brace != "" {
			if line != "{" {
				return at.errorf("%q has no value, and no { follows", brace)
			}
			where = append(where, brace)
			brace = ""
			continue
		}
		if directive, arg, ok := cutDirective(line); ok {
			if err := p.include(directive, arg, at, depth+1); err != nil {
				return err
			}
			continue
		}
		switch {
		case line[0] == '[':
			section, rest, ok := strings.Cut(line[1:], "]")
			section, rest = strings.TrimSpace(section), strings.TrimSpace(rest)
			if !ok || section == "" || rest != "" && rest != "*" {
				return at.errorf("no section header")
			}
			if len(where) > 1 {
				return at.errorf("section inside the braces of %q", where[len(where)-1])
			}
			where = []string{section}
			if rest == "*" {
				p.markFinal(where)
			}
		case line[0] == '}':
			if rest := strings.TrimSpace(line[1:]); len(where) < 2 || rest != "" && rest != "*" {
				return at.errorf("} without {")
			} else if rest == "*" {
				p.markFinal(where)
			}
			where = where[:len(where)-1]
		default:
			tag, value, ok := strings.Cut(line, "=")
			tag = strings.TrimSpace(tag)
			tag, final := strings.CutSuffix(tag, "*")
			switch {
			case !ok:
				return at.errorf("neither a section nor tag = value")
			case tag == "" || strings.ContainsAny(tag, " \t"):
				return at.errorf("no tag before the =")
			case len(where) == 0:
				return at.errorf("outside a section")
			case len(where) > maxConfigDepth:
				return at.errorf("more than %d levels of braces", maxConfigDepth)
			}
			below := append(slices.Clip(where), tag)
			switch value = strings.TrimSpace(value); {
			case value == "":
				brace = tag
			case value == "{":
				where = below
			default:
				if value, ok = unquote(value); !ok {
					return at.errorf("quotation mark is not closed")
				}
				p.add(below, relation{value, at})
			}
			if final {
				p.markFinal(below)
			}
		}
	}
	if brace != "" || len(where) > 1 {
		return at.errorf("the file ends inside the braces of %q", append(where, brace)[1])
	}
	return nil
}

func (p *parser) markFinal(elements []string) {
	if _, ok := p.final[path(elements...)]; !ok {
		p.final[path(elements...)] = p.source
	}
}

// add keeps a relation unless a file of higher priority marked it, or a
// section around it, as final.
func (p *parser) add(elements []string, r relation) {
	for i := range elements {
		if source, ok := p.final[path(elements[:i+1]...)]; ok && source < p.source {
			return
		}
	}
	key := path(elements...)
	p.config.relations[key] = append(p.config.relations[key], r)
}

func cutDirective(line string) (directive, arg string, ok bool) {
	for _, d := range []string{"include", "includedir"} {
		if rest, found := strings.CutPrefix(line, d); found && strings.TrimLeft(rest, " \t") != rest {
			if arg = strings.TrimSpace(rest); !strings.HasPrefix(arg, "=") {
				return d, arg, true
			}
		}
	}
	return "", "", false
}

// include reads a file, or all files of a directory whose names MIT accepts,
// in order of their names. They start outside any section.
func (p *parser) include(directive, arg string, at position, depth int) error {
	if depth > maxConfigDepth {
		return at.errorf("includes nest deeper than %d", maxConfigDepth)
	}
	names := []string{arg}
	if directive == "includedir" {
		entries, err := os.ReadDir(arg)
		if err != nil {
			return at.errorf("%v", err)
		}
		names = nil
		for _, e := range entries {
			if includable(e.Name()) && !e.IsDir() {
				names = append(names, filepath.Join(arg, e.Name()))
			}
		}
	}
	for _, name := range names {
		if err := p.file(name, depth); err != nil {
			if errors.As(err, new(*api.Error)) {
				return err
			}
			return at.errorf("%v", err)
		}
	}
	return nil
}

// includable is the rule of krb5.conf(5) for files of an includedir: the name
// ends in .conf and does not begin with a dot, or has only letters, digits,
// dashes and underscores.
func includable(name string) bool {
	if strings.HasSuffix(name, ".conf") {
		return name[0] != '.'
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !('0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || r == '-' || r == '_')
	})
}

// unquote takes the quotes off a value that begins with one.
func unquote(v string) (string, bool) {
	if v[0] != '"' {
		return v, true
	}
	var b strings.Builder
	for i := 1; i < len(v); i++ {
		switch v[i] {
		case '"':
			return b.String(), true
		case '\\':
			if i++; i < len(v) {
				b.WriteByte(unescape(v[i]))
			}
		default:
			b.WriteByte(v[i])
		}
	}
	return "", false
}

func (at position) errorf(format string, args ...any) error {
	return &api.Error{Code: api.Krb5ConfInvalid,
		Detail: fmt.Sprintf("%s:%d: %s: %s", at.file, at.line, fmt.Sprintf(format, args...), quote(at.text)),
		Remedy: "correct that line; krb5.conf(5) describes the format"}
}

// parseLifetime reads a duration as krb5.conf(5) defines it: seconds, h:mm,
// h:mm:ss, or numbers with the units d, h, m and s.
func parseLifetime(s string) (time.Duration, error) {
	bad := fmt.Errorf("%s is no duration such as 10h or 1d", quote(s))
	var total time.Duration
	add := func(number string, unit time.Duration) bool {
		n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 32)
		total += time.Duration(n) * unit
		return err == nil && total <= maxLifetime
	}
	if n := strings.Count(s, ":"); n == 1 || n == 2 {
		for i, number := range strings.Split(s, ":") {
			if !add(number, []time.Duration{time.Hour, time.Minute, time.Second}[i]) {
				return 0, bad
			}
		}
		return total, nil
	}
	for rest := strings.TrimSpace(s); rest != ""; {
		i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if i < 0 {
			rest += "s"
			i = len(rest) - 1
		}
		unit, ok := map[byte]time.Duration{'d': 24 * time.Hour, 'h': time.Hour, 'm': time.Minute, 's': time.Second}[rest[i]]
		if !ok || !add(rest[:i], unit) {
			return 0, bad
		}
		rest = strings.TrimSpace(rest[i+1:])
	}
	if total == 0 {
		return 0, bad
	}
	return total, nil
}

// maxLifetime keeps sums of durations far from an overflow.
const maxLifetime = 10 * 365 * 24 * time.Hour

// CheckRealm returns what is missing for tickets of a realm: an error of code
// Krb5ConfInvalid if it has no KDC.
func (c *Config) CheckRealm(realm string) error {
	if len(c.KDCs(realm)) > 0 {
		return nil
	}
	return &api.Error{Code: api.Krb5ConfInvalid,
		Detail: fmt.Sprintf("no KDC of the realm %s is configured in %s", realm, strings.Join(c.files, ", ")),
		Remedy: fmt.Sprintf("add to [realms]: %s = { kdc = kdc.example.com }, with the realm's own KDC", realm)}
}
