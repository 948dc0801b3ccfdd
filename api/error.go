package api

import (
	"context"
	"errors"
)

// Error is a failure with its code, what was seen, and what to do next.
// It never holds a secret, so that it may be logged and shown as it is.
type Error struct {
	// Code is the failure's stable name.
	Code Code
	// Detail says what was seen: lower case, no full stop.
	Detail string
	// Remedy names the next step, if there is one: a command to run, a file
	// to change, a person to ask.
	Remedy string
	// Err is the cause, if another error was it. Its text is not shown;
	// Detail says what matters of it.
	Err error
}

// Error returns the detail followed by the code.
func (e *Error) Error() string {
	if e.Detail == "" {
		return string(e.Code)
	}
	return e.Detail + " (" + string(e.Code) + ")"
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an *Error of the same code without any other
// field, so that errors.Is(err, &Error{Code: c}) asks for a code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Detail == "" && t.Remedy == "" && t.Err == nil
}

// AsError returns err as an *Error: itself when it wraps one, else an error of
// code Timeout or Deadline for an ended context, or Unknown.
func AsError(err error) *Error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: Timeout, Detail: "no answer in time", Err: err}
	case errors.Is(err, context.Canceled):
		return &Error{Code: Deadline, Detail: "cancelled by the caller", Err: err}
	}
	return &Error{Code: Unknown, Detail: err.Error(), Err: err}
}

// CodeOf returns the code of err, "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return AsError(err).Code
}
