package login

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/charset"

	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// htmlForm is a form element with its controls in the page's order.
type htmlForm struct {
	attr     map[string]string
	controls []*control
}

// control is a field or button, or else, of kind "captcha", what is named like
// one.
type control struct {
	kind    string // an input's type; "submit", "reset" or "button"; "textarea", "select"
	attr    map[string]string
	within  bool // a disabled fieldset
	text    strings.Builder
	options []*option
}

// option is a choice of a select.
type option struct {
	attr     map[string]string
	disabled bool
	text     strings.Builder
}

// charset returns the name of the encoding that the form is sent in (HTML
// standard, "picking an encoding for the form").
func (h *htmlForm) charset(page *web.Response) string {
	const utf8 = "utf-8"
	_, name, _ := charset.DetermineEncoding(page.Body, page.Header.Get("Content-Type"))
	if labels, ok := h.attr["accept-charset"]; ok {
		name = utf8
		for label := range strings.FieldsSeq(labels) {
			if _, accepted := charset.Lookup(label); accepted != "" {
				name = accepted
				break
			}
		}
	}
	if name == "replacement" || strings.HasPrefix(name, "utf-16") {
		return utf8 // no form is sent in these (Encoding standard, "get an output encoding")
	}
	return name
}

func (h *htmlForm) captcha() bool {
	return slices.ContainsFunc(h.controls, func(c *control) bool { return c.kind == "captcha" })
}

// button returns the button that sends the form when a person presses Enter.
func (h *htmlForm) button() *control {
	for _, c := range h.controls {
		if (c.kind == "submit" || c.kind == "image") && !c.disabled() {
			return c
		}
	}
	return nil
}

// field returns the only field of a name that a person sees to type into, nil if
// there is none or more; a name that is empty is none.
func (h *htmlForm) field(name string) *control {
	var found *control
	for _, c := range h.controls {
		switch c.kind {
		case "text", "email", "tel", "password", "url", "search", "number":
			if name != "" && c.name() == name && !c.disabled() && !c.has("hidden") {
				if found != nil {
					return nil
				}
				found = c
			}
		}
	}
	return found
}

func (c *control) name() string         { return c.attr["name"] }
func (c *control) has(attr string) bool { _, ok := c.attr[attr]; return ok }
func (c *control) disabled() bool       { return c.within || c.has("disabled") }

// missing reports whether a browser would ask a person to fill the control in.
func (c *control) missing() bool {
	asks := c.kind != "hidden" && c.kind != "radio" && c.has("required") && !c.has("readonly") && !c.disabled()
	return asks && strings.Join(c.values(), "") == ""
}

func (c *control) autocompletes(what string) bool {
	return slices.Contains(strings.Fields(strings.ToLower(c.attr["autocomplete"])), what)
}

// remembers reports whether a box asks to remember the user.
func (c *control) remembers() bool {
	return c.kind == "checkbox" && containsAny(strings.ToLower(c.name()), "remember", "persist", "keep", "stay")
}

// values returns what an enabled control says as the page has it.
func (c *control) values() []string {
	switch c.kind {
	case "captcha", "submit", "image", "reset", "button":
		return nil
	case "checkbox", "radio":
		switch v, ok := c.attr["value"]; {
		case !c.has("checked"):
			return nil
		case !ok:
			return []string{"on"}
		default:
			return []string{v}
		}
	case "file":
		return []string{""} // no file was chosen
	case "textarea":
		return []string{strings.TrimPrefix(c.text.String(), "\n")}
	case "select":
		return c.chosen()
	}
	return []string{c.attr["value"]}
}

// chosen returns the values of a select.
func (c *control) chosen() []string {
	var chosen []*option
	for _, o := range c.options {
		if _, ok := o.attr["selected"]; ok {
			chosen = append(chosen, o)
		}
	}
	if !c.has("multiple") {
		if i := slices.IndexFunc(c.options, func(o *option) bool { return !o.disabled }); len(chosen) == 0 && i >= 0 && !c.listBox() {
			chosen = c.options[i : i+1]
		}
		chosen = chosen[max(0, len(chosen)-1):]
	}
	var values []string
	for _, o := range chosen {
		if !o.disabled {
			values = append(values, o.value())
		}
	}
	return values
}

// listBox reports whether a select shows several options, so that none may be
// chosen.
func (c *control) listBox() bool {
	size := c.attr["size"]
	return size != "" && size != "0" && size != "1"
}

func (o *option) value() string {
	if v, ok := o.attr["value"]; ok {
		return v
	}
	return strings.Join(strings.FieldsFunc(o.text.String(), func(r rune) bool { return strings.ContainsRune(" \t\n\f\r", r) }), " ")
}

// asksForPassword reports whether a page shows a field for a password.
func asksForPassword(page *web.Response) bool {
	forms, _ := readForms(page)
	return slices.ContainsFunc(forms, func(h *htmlForm) bool {
		return slices.ContainsFunc(h.controls, func(c *control) bool { return c.kind == "password" })
	})
}

// Limits of a page, whose elements take many times the memory of their text. A
// page that goes beyond shows no forms: some could be incomplete.
const (
	maxControls = 1000
	maxChoices  = 5000 // forms, and options of selects
	// maxAttributes is the most attributes of an element that are looked at.
	maxAttributes = 100
	// maxToken is the longest tag, comment or script, in bytes.
	maxToken = 256 << 10
)

// readForms returns the forms of a page and what its base element says. It reads
// tokens, not a tree: which form owns a control is a matter of the tags' order
// (HTML standard, "form element pointer"), and not of nesting.
func readForms(page *web.Response) (forms []*htmlForm, base string) {
	e, _, _ := charset.DetermineEncoding(page.Body, page.Header.Get("Content-Type"))
	text, err := e.NewDecoder().Bytes(page.Body)
	if err != nil {
		return nil, ""
	}
	r := formReader{html: html.NewTokenizer(bytes.NewReader(text)), byID: map[string]*htmlForm{}}
	r.html.SetMaxBuf(maxToken)
	for len(r.controls) <= maxControls && r.choices <= maxChoices {
		switch r.html.Next() {
		case html.ErrorToken:
			if r.html.Err() != io.EOF { // the end
				return nil, ""
			}
			for _, c := range r.controls {
				if id, ok := c.attr["form"]; ok {
					c.owner = r.byID[id]
				}
				if c.owner != nil {
					c.owner.controls = append(c.owner.controls, c.control)
				}
			}
			return r.forms, r.base
		case html.TextToken:
			if r.text != nil {
				r.text.Write(r.html.Text())
			}
		case html.StartTagToken:
			r.start(false)
		case html.SelfClosingTagToken:
			r.start(true)
		case html.EndTagToken:
			r.end()
		}
	}
	return nil, ""
}

// formReader is where readForms is in a page.
type formReader struct {
	html      *html.Tokenizer
	base      string
	forms     []*htmlForm
	byID      map[string]*htmlForm
	controls  []owned
	choices   int // forms and options
	svg       bool
	templates int // open ones, whose contents are no part of the page
	fieldsets []bool
	form      *htmlForm        // open, or nil
	choice    *control         // a select that is open, or nil
	group     bool             // within a disabled optgroup
	text      *strings.Builder // what text belongs to, or nil
}

// owned is a control with its form, if it has one.
type owned struct {
	*control
	owner *htmlForm
}

func (r *formReader) start(selfClosing bool) {
	name, more := r.html.TagName()
	tag := string(name)
	if tag == "noscript" {
		r.html.NextIsNotRawText() // scripts do not run here
	}
	switch {
	case tag == "svg":
		r.svg = true
	case r.svg && selfClosing:
		r.html.NextIsNotRawText() // a <title/> or <style/> there has no end tag
	}
	if tag == "template" {
		r.templates++
	}
	if r.templates > 0 {
		return
	}
	attr := make(map[string]string)
	for more && len(attr) < maxAttributes {
		var key, value []byte
		key, value, more = r.html.TagAttr()
		if _, ok := attr[string(key)]; !ok {
			attr[string(key)] = string(value)
		}
	}
	for _, key := range []string{"class", "id", "name", "src"} {
		if containsAny(strings.ToLower(attr[key]), "captcha", "turnstile") {
			r.add("captcha", attr)
			break
		}
	}
	switch tag {
	case "base":
		if href, ok := attr["href"]; ok && r.base == "" {
			r.base = href
		}
	case "form":
		if r.form == nil {
			r.choices++
			r.form = &htmlForm{attr: attr}
			r.forms = append(r.forms, r.form)
			if id := attr["id"]; id != "" && r.byID[id] == nil {
				r.byID[id] = r.form
			}
		}
	case "fieldset":
		_, disabled := attr["disabled"]
		r.fieldsets = append(r.fieldsets, disabled)
	case "input":
		r.choice, r.text = nil, nil
		r.add(inputType(attr["type"]), attr)
	case "button":
		switch kind := strings.ToLower(attr["type"]); kind {
		case "reset", "button":
			r.add(kind, attr)
		default:
			r.add("submit", attr)
		}
	case "textarea":
		r.choice = nil
		r.text = &r.add("textarea", attr).text
	case "select":
		r.choice, r.group, r.text = r.add("select", attr), false, nil
	case "optgroup":
		_, r.group = attr["disabled"]
		r.text = nil
	case "option":
		if r.choice != nil {
			r.choices++
			_, disabled := attr["disabled"]
			o := &option{attr: attr, disabled: disabled || r.group}
			r.choice.options, r.text = append(r.choice.options, o), &o.text
		}
	}
}

func (r *formReader) end() {
	name, _ := r.html.TagName()
	switch tag := string(name); {
	case tag == "svg":
		r.svg = false
	case tag == "template":
		r.templates = max(0, r.templates-1)
	case r.templates > 0:
	default:
		r.close(tag)
	}
}

func (r *formReader) close(tag string) {
	switch tag {
	case "form":
		r.form = nil
	case "fieldset":
		r.fieldsets = r.fieldsets[:max(0, len(r.fieldsets)-1)]
	case "select":
		r.choice, r.text = nil, nil
	case "optgroup":
		r.group, r.text = false, nil
	case "option", "textarea":
		r.text = nil
	}
}

func (r *formReader) add(kind string, attr map[string]string) *control {
	c := &control{kind: kind, attr: attr, within: slices.Contains(r.fieldsets, true)}
	r.controls = append(r.controls, owned{c, r.form})
	return c
}

// inputType returns an input's type; one that the standard does not have is
// "text".
func inputType(attr string) string {
	switch kind := strings.ToLower(attr); kind {
	case "hidden", "search", "tel", "url", "email", "password", "date", "month", "week", "time", "datetime-local", "number", "range", "color",
		"checkbox", "radio", "file", "submit", "image", "reset", "button":
		return kind
	}
	return "text"
}

func containsAny(s string, parts ...string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(s, p) })
}
