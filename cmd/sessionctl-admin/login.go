package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

func (a *app) login() *cobra.Command {
	var retry, password, cookie, proxy bool
	var credential string
	c := a.siteCommand("login", "Log in now; bring a password or a browser's cookie", `Log in at a site now, whether or not a session lives.

After a refusal the agent does not try the same secret again by itself, so that
no account is locked. --retry lifts that for one attempt.

A site whose credential has no keytab and no ccache needs a password once: on a
terminal login asks for it, --password-stdin reads it. It is kept, encrypted, after
the site, or the principal's realm, has accepted it. With --proxy it is the
password for the proxy that the site is reached through.

--cookie-stdin adopts a session that a person made in a browser: the value of
the Cookie header of a request that worked. Like any session it is served only
after the site has named the right user for it.`)
	c.Flags().BoolVar(&retry, "retry", false, "lift a latched refusal for one attempt")
	c.Flags().BoolVar(&password, "password-stdin", false, "read the password from standard input")
	c.Flags().BoolVar(&cookie, "cookie-stdin", false, "read a browser's Cookie header from standard input")
	c.Flags().BoolVar(&proxy, "proxy", false, "the password is for the site's proxy")
	a.ofCredential(c, &credential)
	c.RunE = func(c *cobra.Command, args []string) error {
		r := &pb.LoginRequest{Site: args[0], Retry: retry, Credential: credential}
		s, err := a.client.Sessions()
		switch {
		case cookie && (password || retry || proxy):
			return usage("--cookie-stdin stands alone")
		case proxy && credential != "":
			return usage("a proxy has a credential of its own: --proxy goes without --credential")
		case proxy && !password && !terminal(a.stdin):
			return usage("--proxy needs --password-stdin where there is no terminal")
		case err != nil:
			return err
		case password || proxy:
			whose := r.GetSite()
			if proxy {
				whose = "the proxy of " + whose
			}
			r.Password, err = a.readSecret(c.Context(), "Password for "+whose+": ")
		case cookie:
			r.Cookie, err = a.readSecret(c.Context(), "Cookie for "+r.GetSite()+": ")
		}
		if err != nil {
			return err
		}
		login := func(ctx context.Context) error {
			if proxy {
				_, err := s.LoginProxy(ctx, &pb.LoginProxyRequest{Site: r.GetSite(), Retry: retry, Password: r.GetPassword()})
				if err == nil {
					a.warn(r.GetSite(), "the proxy's password is kept")
				}
				return err
			}
			resp, err := s.Login(ctx, r)
			if err == nil {
				a.flags(resp.GetSession())
				a.warn(r.GetSite(), "logged in as "+whose(ctx, s, resp.GetSession()))
			}
			return err
		}
		err = a.call(c, r.GetSite()+": logging in", login)
		if api.CodeOf(err) != api.NoSecret || password || !terminal(a.stdin) {
			return err
		}
		a.warn(r.GetSite(), api.AsError(err).Detail)
		if r.Password, err = a.readSecret(c.Context(), "Password for "+r.GetSite()+": "); err != nil {
			return err
		}
		return a.call(c, r.GetSite()+": logging in", login)
	}
	return c
}

// maxSecret is the longest secret that is read, in bytes.
const maxSecret = 32 << 10

// readSecret returns what stands on standard input, without the end of its
// line; from a terminal one line, asked for and not shown.
func (a *app) readSecret(ctx context.Context, prompt string) ([]byte, error) {
	read := func() ([]byte, error) { return io.ReadAll(io.LimitReader(a.stdin, maxSecret+1)) }
	if terminal(a.stdin) {
		shown, err := hideInput(a.stdin)
		if err != nil {
			return nil, err
		}
		defer shown()
		fmt.Fprint(a.stderr, prompt)
		defer fmt.Fprintln(a.stderr)
		read = func() ([]byte, error) { return line(a.stdin) }
	}
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b, err := read()
		done <- result{b, err}
	}()
	select {
	case r := <-done:
		b := bytes.TrimSuffix(bytes.TrimSuffix(r.b, []byte("\n")), []byte("\r"))
		switch {
		case api.CodeOf(r.err) == api.InvalidRequest:
			return nil, r.err
		case r.err != nil:
			return nil, &api.Error{Code: api.InvalidRequest, Detail: "standard input cannot be read", Remedy: "sessionctl login --help", Err: r.err}
		case len(b) == 0:
			return nil, &api.Error{Code: api.InvalidRequest, Detail: "standard input is empty", Remedy: "sessionctl login --help"}
		case len(r.b) > maxSecret:
			return nil, &api.Error{Code: api.InvalidRequest, Detail: "standard input is too long for a secret", Remedy: "sessionctl login --help"}
		}
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// maxLine is the longest line that a terminal gives, without its end; it drops
// the rest (termios(3), canonical mode).
const maxLine = 4095

// line reads a terminal's next line.
func line(f *os.File) ([]byte, error) {
	var b []byte
	for c := make([]byte, 1); len(b) <= maxSecret; {
		n, err := f.Read(c)
		if n == 1 {
			if b = append(b, c[0]); c[0] == '\n' {
				break
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if len(bytes.TrimSuffix(b, []byte("\n"))) >= maxLine {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "a terminal cuts lines that long", Remedy: "give it by a pipe instead"}
	}
	return b, nil
}

func terminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// hideInput keeps a terminal from showing what is typed, until the function that
// it returns is called.
func hideInput(f *os.File) (shown func(), err error) {
	fd := int(f.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	hidden := *t
	hidden.Lflag &^= unix.ECHO
	// No stopping and no core dump meanwhile: a shell that takes over would show
	// what is typed, or leave the terminal like this.
	hidden.Cc[unix.VSUSP], hidden.Cc[unix.VQUIT] = 0, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, t) }, nil
}
