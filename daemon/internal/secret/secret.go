// Package secret holds the type of values that must never be printed:
// passwords, tokens, cookie values. Finding secrets in foreign text belongs
// here too; keeping or encrypting them does not.
package secret

import "log/slog"

// String is text that shows itself as "[redacted]" wherever it is formatted,
// logged or marshalled. The value itself comes out of Reveal only. The zero
// value is the empty secret. Two Strings are not comparable with ==.
type String struct {
	// Behind a pointer, because fmt prints unexported fields of other structs
	// without asking for their String method; of a pointer it prints the address.
	value *string
	_     [0]func()
}

// New wraps a secret.
func New(value string) String { return String{value: &value} }

// Reveal returns the secret.
func (s String) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// Empty reports whether there is nothing in it.
func (s String) Empty() bool { return s.Reveal() == "" }

// String implements fmt.Stringer for every verb that would print the value.
func (String) String() string { return "[redacted]" }

// GoString implements fmt.GoStringer.
func (String) GoString() string { return "[redacted]" }

// LogValue implements slog.LogValuer.
func (String) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalText keeps the value out of JSON and TOML.
func (String) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }
