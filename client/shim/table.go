package shim

import "slices"

// Verb is a line of the grammar, for the help and the completion of
// sessionctl-admin.
type Verb struct {
	Name    string // "raw"
	Operand string // "SITE|URL"
	Rest    bool   // whether another program's arguments follow the operand
	About   string // what it does
	Flags   []Flag // the common ones, too
}

// Flag is a flag of a Verb.
type Flag struct {
	Name  string // "min-validity", without the dashes
	Value string // "DURATION"; "" for a switch
	About string
}

// Verbs returns the hot verbs.
func Verbs() []Verb {
	all := make([]Verb, len(verbs))
	for i, v := range verbs {
		all[i] = Verb{Name: v.name, Operand: v.operands(), Rest: v.rest != "", About: v.about}
		for _, f := range slices.Concat(v.flags, commonFlags) {
			all[i].Flags = append(all[i].Flags, Flag{f.name, f.value, f.about})
		}
	}
	return all
}

// Usage returns the help of a hot verb.
func Usage(name string) string {
	for i := range verbs {
		if verbs[i].name == name {
			return usage(&verbs[i])
		}
	}
	return usage(nil)
}
