package shim

// Verb is a line of the grammar, for the help and the completion of
// sessionctl-admin.
type Verb struct {
	Name    string // "raw"
	Operand string // "SITE|URL"
	About   string // what it prints
}

// Verbs returns the hot verbs.
func Verbs() []Verb {
	all := make([]Verb, len(verbs))
	for i, v := range verbs {
		all[i] = Verb{v.name, v.operand, v.about}
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
