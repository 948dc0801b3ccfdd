package krb

import (
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
	// Bytes of all files together, one that is included twice counting twice. A
	// realm with five KDCs takes 200 of them, so there is room for thousands of
	// realms; and each may cost some hundred bytes of memory.
	maxConfigSize  = 1 << 20
	maxConfigFiles = 256
	maxWarnings    = 100  // a person reads no more
	maxConfigDepth = 10   // braces inside braces, and includes inside includes
	maxConfigLine  = 2047 // bytes with the line feed: MIT takes what follows as the next line
)

// Config is what krb5.conf says, as MIT krb5's library reads it, which is at
// times not what krb5.conf(5) says. Sections and options that the agent has no
// use for are accepted and ignored.
type Config struct {
	paths    []string      // the files that were asked for
	files    []string      // every file that was read
	root     section       // what stands in the files
	realm    string        // whose subsections of [libdefaults] count; see ForRealm
	lifetime time.Duration // ticket_lifetime of [libdefaults]
	warnings []string
	untold   int // warnings beyond maxWarnings
}

// section is a section or subsection, or the whole: what it has by each name.
type section struct {
	sections  map[string]*section
	relations map[string][]relation
	final     int // which of the listed files marked it final, 0: none
}

// below returns the section that a path of names leads to, nil if there is none.
func (s *section) below(names ...string) *section {
	for _, name := range names {
		if s == nil {
			break
		}
		s = s.sections[name]
	}
	return s
}

// relation is one "tag = value" with the place it stands at.
type relation struct {
	value  string
	at     position
	source int // which of the listed files it is from, includes and all, counting from 1
}

type position struct {
	file string // as shown
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
	c := &Config{paths: paths}
	p := parser{config: c}
	var denied error
	for i, path := range paths {
		if rest, ok := strings.CutPrefix(path, "~/"); ok {
			if home, err := os.UserHomeDir(); err == nil {
				path = home + "/" + rest
			}
		}
		p.source = i + 1
		err := p.named(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			if !errors.As(err, new(*api.Error)) {
				if errors.Is(err, fs.ErrPermission) {
					denied = err
				}
				c.warn("%s: nothing is read from it", withShownPath(err))
				continue
			}
		}
		if err != nil {
			return nil, unreadable(err)
		}
	}
	if denied != nil && len(c.files) == 0 { // MIT goes on without files, but not then
		return nil, unreadable(denied)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

// Warnings tells of what MIT's library passes over in silence: missing files,
// lines and values that have no effect. Each says in which file, and on which
// line if there is one. Of many it has the first, and the last element says how
// many more there are.
func (c *Config) Warnings() []string {
	all := slices.Clone(c.warnings)
	if c.untold > 0 {
		all = append(all, fmt.Sprintf("krb5.conf: and %d more warnings", c.untold))
	}
	return all
}

func (c *Config) warn(format string, args ...any) {
	if len(c.warnings) == maxWarnings {
		c.untold++
		return
	}
	c.warnings = append(c.warnings, fmt.Sprintf(format, args...))
}

// relations returns what stands at a path of names: section, subsections, tag.
func (c *Config) relations(names ...string) []relation {
	tag := len(names) - 1
	if s := c.root.below(names[:tag]...); s != nil {
		return s.relations[names[tag]]
	}
	return nil
}

func (c *Config) first(names ...string) (relation, bool) {
	if rs := c.relations(names...); len(rs) > 0 {
		return rs[0], true
	}
	return relation{}, false
}

// parser reads profile files into a Config.
type parser struct {
	config *Config
	source int // which of the listed files, counting from 1
	files  int
	size   int // bytes of all files
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
	return &api.Error{Code: api.Krb5ConfInvalid, Detail: "krb5.conf: " + withShownPath(err).Error(), Err: err,
		Remedy: "name what the agent's user can read"}
}

// withShownPath makes an error about a file fit for a message.
func withShownPath(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return &fs.PathError{Op: e.Op, Path: shown(e.Path), Err: e.Err}
	}
	return err
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
		return &api.Error{Code: api.Krb5ConfInvalid, Detail: fmt.Sprintf("%s: more than %d configuration files", shown(name), maxConfigFiles),
			Remedy: "include fewer files"}
	}
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		p.config.warn("%s is a directory: nothing is read from it", shown(name))
		return nil
	}
	var data []byte
	if name != os.DevNull { // the usual way to say: no configuration
		var err error
		if data, err = readRegular(name, maxConfigSize); err != nil {
			return err
		}
	}
	if p.size += len(data); p.size > maxConfigSize {
		return &api.Error{Code: api.Krb5ConfInvalid, Remedy: "include fewer or smaller files",
			Detail: fmt.Sprintf("%s: the configuration files are larger than %d KiB together", shown(name), maxConfigSize>>10)}
	}
	p.config.files = append(p.config.files, shown(name))
	return p.text(shown(name), string(data), depth)
}

// text reads the text of a file.
func (p *parser) text(file, text string, depth int) error {
	f := fileParser{parser: p, depth: depth, at: position{file: file}}
	for line := range strings.Lines(text) {
		f.at.line++
		for line != "" {
			chunk := line[:min(len(line), maxConfigLine)]
			line = line[len(chunk):]
			chunk, _, _ = strings.Cut(chunk, "\x00")
			f.at.text = strings.Trim(chunk, space)
			if err := f.line(chunk); err != nil {
				return err
			}
		}
	}
	if len(f.where) > 1 {
		f.warnf("the file ends inside the braces of %s", f.innermost())
	}
	return nil
}

// fileParser is the state within one file.
type fileParser struct {
	*parser
	depth int
	at    position
	where []scope // the section and subsections that the line is in; nil: before the first section
	brace bool    // the next line must begin with {
}

// scope is a section that the file is in.
type scope struct {
	name string
	// nil: what stands in it does not count, as a file of higher priority marked
	// it, or one around it, as final
	section *section
}

// innermost is the name of the subsection that the line is in, for a message.
func (f *fileParser) innermost() string { return quote(f.where[len(f.where)-1].name) }

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
			return f.at.errorf("%s has no value, and the line after it does not begin with {", f.innermost())
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
		return f.at.errorf("section inside the braces of %s", f.innermost())
	}
	name, rest, ok := strings.Cut(text, "]")
	rest, final := strings.CutPrefix(rest, "*")
	if !ok || strings.Trim(rest, space) != "" {
		return f.at.errorf("no section header")
	}
	if name != strings.Trim(name, space) {
		f.warnf("the blanks inside the brackets are part of the section's name")
	}
	f.where = nil
	f.open(&f.config.root, name)
	if final {
		f.markFinal()
	}
	return nil
}

// open goes into a section of another one, which is nil as in scope.
func (f *fileParser) open(around *section, name string) {
	var s *section
	if around != nil {
		if s = around.sections[name]; s == nil {
			s = new(section)
			if around.sections == nil {
				around.sections = make(map[string]*section)
			}
			around.sections[name] = s
		}
		if s.final != 0 && s.final < f.source {
			s = nil
		}
	}
	f.where = append(f.where, scope{name, s})
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
	in := f.where[len(f.where)-1].section
	value = strings.TrimLeft(value, space)
	if value == "" || value[0] == '{' && strings.Trim(value[1:], space) == "" {
		if len(f.where) == maxConfigDepth {
			return f.at.errorf("more than %d levels of braces", maxConfigDepth)
		}
		f.open(in, tag)
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
	if in != nil {
		if in.relations == nil {
			in.relations = make(map[string][]relation)
		}
		in.relations[tag] = append(in.relations[tag], relation{value, f.at, f.source})
	}
	return nil
}

// markFinal marks the open section.
func (f *fileParser) markFinal() {
	if s := f.where[len(f.where)-1].section; s != nil && s.final == 0 {
		s.final = f.source
	}
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
	return f.at.errorf("%v", withShownPath(err))
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

func (f *fileParser) warnf(format string, args ...any) { f.config.warnf(f.at, format, args...) }

func (at position) says(format string, args ...any) string {
	return fmt.Sprintf("%s:%d: %s: %s", at.file, at.line, fmt.Sprintf(format, args...), quote(at.text))
}

func (at position) errorf(format string, args ...any) error {
	return &api.Error{Code: api.Krb5ConfInvalid, Detail: at.says(format, args...),
		Remedy: "correct that line; krb5.conf(5) describes the format"}
}
