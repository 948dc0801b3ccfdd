package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// maxPassphrase is the longest passphrase, in bytes: a terminal cuts longer lines
// (termios(3), canonical mode).
const maxPassphrase = 4094

// readPassphrase returns the first line of standard input, without its end; on a
// terminal it asks for it, and what is typed is not shown.
func readPassphrase(ctx context.Context, stdin *os.File, stderr io.Writer) ([]byte, error) {
	if shown, err := hideInput(stdin); err == nil {
		defer shown()
		fmt.Fprint(stderr, "Passphrase of the store: ")
		defer fmt.Fprintln(stderr)
	}
	type result struct {
		line []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		line, err := firstLine(stdin)
		done <- result{line, err}
	}()
	select {
	case r := <-done:
		switch {
		case r.err != nil:
			return nil, noPassphrase("standard input cannot be read", r.err)
		case len(r.line) == 0:
			return nil, noPassphrase("there is none on standard input", nil)
		case len(r.line) > maxPassphrase:
			clear(r.line)
			return nil, noPassphrase(fmt.Sprintf("it has more than %d bytes", maxPassphrase), nil)
		}
		return r.line, nil
	case <-ctx.Done():
		return nil, noPassphrase("it was not waited for", ctx.Err())
	}
}

func noPassphrase(why string, err error) error {
	return &api.Error{Code: api.StoreKeyMissing, Detail: "no passphrase for the store: " + why, Err: err,
		Remedy: "start sessiond --passphrase on a terminal, or with the passphrase on its standard input; a unit has neither: hand the key over as the credential master instead (systemd.exec(5), LoadCredentialEncrypted=)"}
}

// firstLine reads a line and no more. It may be cut, but not to maxPassphrase.
func firstLine(f *os.File) ([]byte, error) {
	line, c := make([]byte, 0, maxPassphrase+2), make([]byte, 1) // of its full size: no copy is left behind
	for len(line) < cap(line) {
		n, err := f.Read(c)
		if n == 1 && c[0] == '\n' || err == io.EOF {
			break
		}
		if err != nil {
			clear(line)
			return nil, err
		}
		line = append(line, c[0])
	}
	return bytes.TrimSuffix(line, []byte("\r")), nil
}

// hideInput keeps a terminal from showing what is typed, until the function that it
// returns is called. Its error says that this is none.
func hideInput(f *os.File) (shown func(), err error) {
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	hidden := *t
	hidden.Lflag &^= unix.ECHO
	// No stopping meanwhile: a shell that takes over would show what is typed.
	hidden.Cc[unix.VSUSP], hidden.Cc[unix.VQUIT] = 0, 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &hidden); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t) }, nil
}
