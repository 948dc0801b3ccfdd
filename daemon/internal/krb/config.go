package krb

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

const (
	maxConfigSize  = 1 << 20 // bytes of one file
	maxConfigFiles = 256     // all files together
	maxConfigDepth = 10      // braces inside braces, and includes inside includes
	maxConfigLine  = 2047    // bytes with the line feed: MIT takes what follows as the next line
)

// Config is what krb5.conf says, as MIT krb5's library reads it, which is at
// times not what krb5.conf(5) says. Sections and options that the agent has no
// use for are accepted and ignored.
type Config struct {
	paths     []string              // the files that were asked for
	files     []string              // every file that was read
	relations map[string][]relation // by path: section, subsections, tag
	sections  map[string]bool       // by path: section, subsections
	realm     string                // whose subsections of [libdefaults] count; see ForRealm
	lifetime  time.Duration         // ticket_lifetime of [libdefaults]
	warnings  []string
}

// relation is one "tag = value" with the place it stands at.
type relation struct {
	value  string
	at     position
	source int // which of the listed files it is from, includes and all
}

type position struct {
	file string
	line int
	text string
}

// LoadConfig reads files and directories in order of priority, like the list
// in KRB5_CONFIG: of a scalar the first value counts, lists add up, and what an
// earlier file marks final (*) later files cannot add to. Of a directory it
// reads what includedir would. As in MIT's library, what is missing is left
// out, even if nothing remains (Warnings tells), an empty name ends the list,
// and ~/ is the home directory.
//
// The error is an *api.Error of code Krb5ConfInvalid that quotes file, line
// number and line. It stands for what makes MIT's library refuse the files, or
// fail at each login, and for the agent's own bounds.
func LoadConfig(paths ...string) (*Config, error) {
	if i := slices.Index(paths, ""); i >= 0 {
		paths = paths[:i]
	}
	c := &Config{paths: paths, relations: make(map[string][]relation), sections: make(map[string]bool)}
	p := parser{config: c, final: make(map[string]int)}
	for i, path := range paths {
		if rest, ok := strings.CutPrefix(path, "~/"); ok {
			if home, err := os.UserHomeDir(); err == nil {
				path = home + "/" + rest
			}
		}
		p.source = i
		err := p.named(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			if !errors.As(err, new(*api.Error)) {
				p.warnings = append(p.warnings, err.Error()+": nothing is read from it")
				continue
			}
		}
		if err != nil {
			return nil, unreadable(err)
		}
	}
	c.warnings = p.warnings
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

// Warnings tells of what MIT's library passes over in silence: missing files,
// lines and values that have no effect. Each says in which file, and on which
// line if there is one.
func (c *Config) Warnings() []string { return slices.Clone(c.warnings) }

func (c *Config) first(elements ...string) (relation, bool) {
	if rs := c.relations[path(elements...)]; len(rs) > 0 {
		return rs[0], true
	}
	return relation{}, false
}

// path is the key of a section or relation. No element has the separator in
// it, because a zero byte ends a line.
func path(elements ...string) string { return strings.Join(elements, "\x00") }

// parser reads profile files into a Config.
type parser struct {
	config   *Config
	source   int            // which of the listed files, counting from 0
	final    map[string]int // path of a section → the source that marked it final
	files    int
	warnings []string
}

// named reads a file or directory of the list. Errors that are no *api.Error
// say that there is no such thing, or that it cannot be read.
func (p *parser) named(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return p.file(name, 0)
	}
	if err = p.directory(name, 0); err != nil {
		return unreadable(err)
	}
	return nil
}

// unreadable makes an *api.Error of err, if it is none.
func unreadable(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	return &api.Error{Code: api.Krb5ConfInvalid, Detail: "krb5.conf: " + err.Error(), Err: err,
		Remedy: "name what the agent's user can read"}
}

// directory reads the files of a directory whose names MIT accepts, in the
// order of their bytes.
func (p *parser) directory(name string, depth int) error {
	entries, err := os.ReadDir(name)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if includable(e.Name()) {
			if err := p.file(filepath.Join(name, e.Name()), depth); err != nil {
				return err
			}
		}
	}
	return nil
}

// file reads one file; depth counts the includes around it. Errors that are no
// *api.Error say that it cannot be read.
func (p *parser) file(name string, depth int) error {
	if p.files++; p.files > maxConfigFiles {
		return &api.Error{Code: api.Krb5ConfInvalid, Detail: fmt.Sprintf("%s: more than %d configuration files", name, maxConfigFiles),
			Remedy: "include fewer files"}
	}
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		p.warnings = append(p.warnings, name+" is a directory: nothing is read from it")
		return nil
	}
	var data []byte
	if name != os.DevNull { // the usual way to say: no configuration
		var err error
		if data, err = readRegular(name, maxConfigSize); err != nil {
			return err
		}
	}
	p.config.files = append(p.config.files, name)
	f := fileParser{parser: p, depth: depth, at: position{file: name}}
	for line := range bytes.Lines(data) {
		f.at.line++
		for chunk := range slices.Chunk(line, maxConfigLine) {
			text, _, _ := bytes.Cut(chunk, []byte{0})
			f.at.text = strings.Trim(string(text), space)
			if err := f.line(string(text)); err != nil {
				return err
			}
		}
	}
	if len(f.where) > 1 {
		f.warnf("the file ends inside the braces of %s", quote(f.where[len(f.where)-1]))
	}
	return nil
}

// fileParser is the state within one file.
type fileParser struct {
	*parser
	depth int
	at    position
	where []string // open section and subsections; nil: before the first section
	brace bool     // the next line must begin with {
}

// space is what C's isspace takes for white space.
const space = " \t\n\v\f\r"

// line reads one line, with its line feed. Directives are directives only at
// its very beginning.
func (f *fileParser) line(line string) error {
	for _, d := range []string{"include", "includedir"} {
		if rest, ok := strings.CutPrefix(line, d); ok && rest != "" && strings.Contains(space, rest[:1]) {
			return f.include(d, strings.TrimRight(strings.TrimLeft(rest, space), "\r\n"))
		}
	}
	text := strings.TrimRight(strings.TrimLeft(line, space), "\r\n")
	comment := text == "" || text[0] == '#' || text[0] == ';'
	switch {
	case f.where == nil && strings.HasPrefix(line, "module") && len(line) > 6 && strings.Contains(space, line[6:7]):
		return f.at.errorf("the agent loads no modules")
	case f.where == nil && !strings.HasPrefix(line, "["):
		if !comment {
			f.warnf("this stands before the first line that begins with [, and has no effect")
		}
	case f.brace:
		if !strings.HasPrefix(text, "{") {
			return f.at.errorf("%s has no value, and the line after it does not begin with {", quote(f.where[len(f.where)-1]))
		}
		f.brace = false
		f.ignored(text[1:])
	case comment:
	case text[0] == '[':
		return f.section(text[1:])
	case text[0] == '}':
		if len(f.where) < 2 {
			return f.at.errorf("} without {")
		}
		rest, final := strings.CutPrefix(text[1:], "*")
		if final {
			f.markFinal()
		}
		f.where = f.where[:len(f.where)-1]
		f.ignored(rest)
	default:
		return f.relation(text)
	}
	return nil
}

// section reads what follows a [.
func (f *fileParser) section(text string) error {
	if len(f.where) > 1 {
		return f.at.errorf("section inside the braces of %s", quote(f.where[len(f.where)-1]))
	}
	name, rest, ok := strings.Cut(text, "]")
	rest, final := strings.CutPrefix(rest, "*")
	if !ok || strings.Trim(rest, space) != "" {
		return f.at.errorf("no section header")
	}
	if name != strings.Trim(name, space) {
		f.warnf("the blanks inside the brackets are part of the section's name")
	}
	f.open(name)
	if final {
		f.markFinal()
	}
	return nil
}

// open goes into a section, or into a subsection if there are braces.
func (f *fileParser) open(where ...string) {
	f.where = where
	if !f.hidden() {
		f.config.sections[path(where...)] = true
	}
}

// relation reads tag = value, tag = { or tag =.
func (f *fileParser) relation(text string) error {
	tag, value, ok := strings.Cut(text, "=")
	tag = strings.TrimRight(tag, space)
	switch {
	case !ok:
		return f.at.errorf("neither a section nor tag = value")
	case text[0] == '=' || strings.ContainsAny(tag, space):
		return f.at.errorf("no single word before the =")
	}
	// MIT 1.20 heeds the mark only at sections, whatever krb5.conf(5) says.
	tag, _, final := strings.Cut(tag, "*")
	below := append(slices.Clip(f.where), tag)
	value = strings.TrimLeft(value, space)
	if value == "" || value[0] == '{' && strings.Trim(value[1:], space) == "" {
		if len(below) > maxConfigDepth {
			return f.at.errorf("more than %d levels of braces", maxConfigDepth)
		}
		f.open(below...)
		f.brace = value == ""
		if final {
			f.markFinal()
		}
		return nil
	}
	if value[0] == '"' {
		var rest string
		value, rest = unquote(value[1:])
		f.ignored(rest)
	} else {
		value = strings.TrimRight(value, space)
	}
	if !f.hidden() {
		key := path(below...)
		f.config.relations[key] = append(f.config.relations[key], relation{value, f.at, f.source})
	}
	return nil
}

// markFinal marks the open section.
func (f *fileParser) markFinal() {
	if _, ok := f.final[path(f.where...)]; !ok {
		f.final[path(f.where...)] = f.source
	}
}

// hidden says whether a file of higher priority marked the open section, or
// one around it, as final.
func (f *fileParser) hidden() bool {
	for i := range f.where {
		if source, ok := f.final[path(f.where[:i+1]...)]; ok && source < f.source {
			return true
		}
	}
	return false
}

// include reads a file or directory. Each file starts outside any section.
func (f *fileParser) include(directive, name string) error {
	if f.depth == maxConfigDepth {
		return f.at.errorf("includes nest deeper than %d", maxConfigDepth)
	}
	read := f.file
	if directive == "includedir" {
		read = f.directory
	}
	err := read(name, f.depth+1)
	if err == nil || errors.As(err, new(*api.Error)) {
		return err
	}
	return f.at.errorf("%v", err)
}

// includable is the rule for files of an includedir: the name does not begin
// with a dot, and it ends in .conf or has only letters, digits, dashes and
// underscores.
func includable(name string) bool {
	if strings.HasSuffix(name, ".conf") {
		return name[0] != '.'
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !('0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || r == '-' || r == '_')
	})
}

// unquote reads up to the closing quotation mark or, if there is none, to the
// end.
func unquote(text string) (value, rest string) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '"':
			return b.String(), text[i+1:]
		case text[i] == '\\' && i+1 < len(text):
			i++
			c, special := map[byte]byte{'n': '\n', 't': '\t', 'b': '\b'}[text[i]]
			if !special {
				c = text[i]
			}
			b.WriteByte(c)
		default:
			b.WriteByte(text[i])
		}
	}
	return b.String(), ""
}

// ignored warns of text after the end of what a line says, unless it is meant
// as a comment.
func (f *fileParser) ignored(rest string) {
	if rest = strings.Trim(rest, space); rest != "" && rest[0] != '#' && rest[0] != ';' {
		f.warnf("%s has no effect", quote(rest))
	}
}

func (f *fileParser) warnf(format string, args ...any) {
	f.warnings = append(f.warnings, f.at.says(format, args...))
}

func (at position) says(format string, args ...any) string {
	return fmt.Sprintf("%s:%d: %s: %s", at.file, at.line, fmt.Sprintf(format, args...), quote(at.text))
}

func (at position) errorf(format string, args ...any) error {
	return &api.Error{Code: api.Krb5ConfInvalid, Detail: at.says(format, args...),
		Remedy: "correct that line; krb5.conf(5) describes the format"}
}
