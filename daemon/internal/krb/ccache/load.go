package ccache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/sessionctl/sessionctl/api"
)

// maxSize is the largest cache that is read, in bytes: a thousand service
// tickets of 4 kB, which is what a member of 400 groups of Active Directory gets.
const maxSize = 4 << 20

// Load reads the client's tickets from the cache of this name, in MIT's syntax
// (https://web.mit.edu/kerberos/krb5-latest/doc/basic/ccache_def.html):
//
//	FILE:PATH, PATH             a file
//	DIR:PATH                    a directory: its primary file, then its other tkt* files
//	DIR::PATH                   one of them
//	KCM:                        the KCM daemon: its default cache, then the user's others
//	KCM:NAME                    one of them
//	KEYRING:ANCHOR:NAME         a collection in the kernel's keyrings: its primary cache, then the
//	                            others; ANCHOR is persistent (NAME a uid, or nothing for one's own),
//	                            user or session
//	KEYRING:ANCHOR:NAME:CACHE   one of them
//	KEYRING:NAME                as KEYRING:legacy:NAME, which is in the session keyring
//
// It is read anew on each call. The error is an *api.Error of code
// CCacheUnusable if there is no such cache, if it cannot be read, or if all
// that is there belongs to others than the client; or that of an ended context.
func Load(ctx context.Context, name string, client Principal) (*Cache, error) {
	return load(ctx, name, client, kcmSocket)
}

func load(ctx context.Context, name string, client Principal, kcmSocket string) (*Cache, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &search{client: client}
	kind, rest, found := strings.Cut(name, ":")
	if !found {
		kind, rest = "FILE", name
	}
	c, err := s.find(ctx, kind, rest, kcmSocket)
	if c == nil && err == nil && len(s.others) > 0 {
		// Names have no case in Active Directory, whose KDC may write its own.
		s.fold = true
		c, err = s.find(ctx, kind, rest, kcmSocket)
	}
	switch {
	case err == nil && c != nil:
		return c, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	kinit := func(name string) string { return "as the agent's user: kinit -c " + name + " " + client.String() }
	failure := &api.Error{Code: api.CCacheUnusable, Err: err, Remedy: "keep the tickets elsewhere; " + kinit("FILE:PATH")}
	var unreadable elsewhere
	switch {
	case errors.As(err, &unreadable):
		failure.Remedy = "keep the tickets where the agent can read them; " + kinit("FILE:PATH")
	case errors.Is(err, fs.ErrPermission):
		failure.Remedy = "let the agent's user read it, or keep the tickets elsewhere; " + kinit("FILE:PATH")
	case errors.Is(err, errKeytab):
		failure.Remedy = "write keytab in the place of ccache"
	case errors.Is(err, errDirectory) && kind == "FILE":
		failure.Remedy = "for a directory of ticket caches write DIR:PATH"
	case errors.Is(err, fs.ErrNotExist):
		failure.Remedy = kinit(name)
	case err == nil && len(s.others) == 0:
		err = errors.New("nothing is there")
		failure.Remedy = kinit(name)
	case err == nil:
		err = errors.New("no tickets of " + client.String() + "; there are those of " + s.seen())
		failure.Remedy = "correct the credential's principal, or name another ticket cache"
	}
	failure.Detail = "ticket cache " + name + ": " + err.Error()
	return nil, failure
}

// find looks for the cache of a type.
func (s *search) find(ctx context.Context, kind, rest, kcmSocket string) (*Cache, error) {
	switch kind {
	case "FILE":
		return s.file(rest)
	case "DIR":
		if path, one := strings.CutPrefix(rest, ":"); one {
			return s.file(path)
		}
		return s.directory(ctx, rest)
	case "KCM":
		return s.daemon(ctx, kcmSocket, rest)
	case "KEYRING":
		return s.keyring(rest)
	case "MEMORY":
		return nil, elsewhere("a MEMORY cache is seen by the process that made it alone")
	}
	return nil, elsewhere("there is no cache type " + fmt.Sprintf("%.40q", kind) + " on Linux")
}

// What a file may be that is no cache.
var (
	errKeytab    = errors.New("that is a keytab")
	errDirectory = errors.New("it is not a regular file, but a directory")
)

// elsewhere is the error for caches that no process like the agent can read.
type elsewhere string

func (e elsewhere) Error() string { return string(e) }

// search looks for the client's cache. Its methods return nil without an error
// if all that is there belongs to others.
type search struct {
	client Principal
	fold   bool     // without regard to case
	others []string // whose caches it has seen instead, quoted, for a message
}

// maxNames is how many principals a message names.
const maxNames = 5

// quote shows foreign text in a message: printable, and not for long.
func quote(s string) string {
	const limit = 200
	if len(s) > limit {
		return fmt.Sprintf("%q…", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}

func (s *search) match(p Principal) bool {
	if p.equal(s.client) || s.fold && p.fits(s.client) {
		return true
	}
	if name := quote(p.String()); len(s.others) <= maxNames && !slices.Contains(s.others, name) {
		s.others = append(s.others, name)
	}
	return false
}

// seen names the others.
func (s *search) seen() string {
	if len(s.others) > maxNames {
		return strings.Join(s.others[:maxNames], ", ") + " and others"
	}
	return strings.Join(s.others, ", ")
}

func (s *search) file(path string) (*Cache, error) {
	b, err := readRegular(path, maxSize)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	c, err := Parse(b)
	if err != nil && bytes.HasPrefix(b, []byte{5, 2}) { // a cache of that version is older than MIT krb5 1.0
		return nil, errKeytab
	}
	if err != nil {
		return nil, err
	}
	if !s.match(c.Principal) {
		return nil, nil
	}
	return c, nil
}

// directory looks through a collection of files. One that cannot be read only
// matters if no other is the client's.
func (s *search) directory(ctx context.Context, dir string) (*Cache, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "tkt") {
			names = append(names, e.Name())
		}
	}
	// The line in the file primary names the cache to use first. Without it, or
	// if it makes no sense, all are alike.
	if b, err := readRegular(filepath.Join(dir, "primary"), 1<<10); err == nil {
		line, _, _ := bytes.Cut(b, []byte("\n"))
		if i := slices.Index(names, string(line)); i >= 0 {
			names = slices.Insert(slices.Delete(names, i, i+1), 0, string(line))
		}
	}
	var first error
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		c, err := s.file(filepath.Join(dir, name))
		if c != nil {
			return c, nil
		}
		if first == nil && err != nil {
			first = fmt.Errorf("%s: %w", quote(name), err)
		}
	}
	return nil, first
}

// readRegular reads a regular file of at most limit bytes. It follows links, and
// never waits for a pipe or a device. No error names the file, whose name may be
// another's choice.
func readRegular(path string, limit int64) (b []byte, err error) {
	defer func() {
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			err = e.Err
		}
	}()
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, errDirectory
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	b, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("it is larger than %d KiB", limit>>10)
	}
	return b, err
}
