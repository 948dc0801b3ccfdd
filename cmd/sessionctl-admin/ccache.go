package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

func (a *app) ccache() *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:   "ccache PRINCIPAL [FILE]",
		Short: "Write a principal's ticket into a ticket cache",
		Long: `Write a principal's ticket-granting ticket into a ticket cache, for programs that
know nothing of the agent: klist, curl --negotiate, ssh, psql.

FILE is what $KRB5CCNAME names, else /tmp/krb5cc_UID. It is replaced as a whole,
never in part, and only you can read it. If krb5.conf has another
default_ccache_name, those programs find FILE by $KRB5CCNAME.

It says what it wrote on a terminal alone, so that cron has nothing to mail.

--keep stays, and writes the cache anew before the ticket ends, or when the file
has gone, and says so. What fails then is said once and tried again until you end
it, by Ctrl-C or SIGTERM: with status 0, and the file stays.

The agent gives tickets only to users that the export list of the principal's
credential names.`,
		Example:           "  sessionctl ccache build && klist\n  sessionctl ccache build@CORP.EXAMPLE /run/user/1000/krb5cc --keep",
		GroupID:           "serve",
		ValidArgsFunction: principalThenFile,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return usage("one PRINCIPAL is needed, and at most one FILE")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "stay, and write it anew before the ticket ends")
	c.RunE = func(c *cobra.Command, args []string) error {
		file, err := cacheFile(args[1:])
		if err != nil {
			return err
		}
		x := exporter{principal: shown(args[0]), file: file, stderr: a.stderr, say: keep || onTerminal(a.stderr)}
		x.ask = func() (resp *pb.ExportCacheResponse, err error) {
			t, err := a.client.Tickets()
			if err != nil {
				return nil, err
			}
			err = a.call(c, x.principal+": asking for a ticket", func(ctx context.Context) error {
				resp, err = t.ExportCache(ctx, &pb.ExportCacheRequest{Principal: args[0]})
				return err
			})
			return resp, err
		}
		if _, err := x.write(); err != nil || !keep {
			return err
		}
		return x.keep(c.Context())
	}
	return c
}

func principalThenFile(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault // a file
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// cacheFile returns the path of the cache to be written: as named, else as MIT's
// programs find it.
func cacheFile(named []string) (string, error) {
	name := os.Getenv("KRB5CCNAME")
	if len(named) > 0 {
		name = named[0]
	} else if name == "" {
		name = "/tmp/krb5cc_" + strconv.Itoa(os.Getuid())
	}
	path, isFile := strings.CutPrefix(name, "FILE:")
	if kind, _, ok := strings.Cut(path, ":"); ok && !isFile && kind == strings.ToUpper(kind) && !strings.Contains(kind, "/") {
		return "", usage("a cache of type %s cannot be written; name a file", api.Clean(kind))
	}
	if path == "" {
		return "", usage("the name of the file is empty")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return "", usage("%s is there, and no ordinary file", api.Clean(path))
	}
	return path, nil
}

// shown is a principal as messages have it: printable, and not for long.
func shown(principal string) string {
	const limit = 200 // characters
	if r := []rune(api.Clean(principal)); len(r) > limit {
		return string(r[:limit]) + "…"
	}
	return api.Clean(principal)
}

// onTerminal reports whether a person reads along.
func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && terminal(f)
}

// exporter writes a principal's tickets into a file.
type exporter struct {
	principal string // as it is shown
	file      string
	ask       func() (*pb.ExportCacheResponse, error)
	stderr    io.Writer
	say       bool // also when all is well

	end     time.Time // of the ticket that was written
	refresh time.Time // from when on there may be a newer one
}

// write asks for a ticket and writes the cache, and reports whether it did: a
// cache that has the ticket already may by now hold what others got with it.
func (x *exporter) write() (written bool, err error) {
	resp, err := x.ask()
	if err != nil {
		return false, err
	}
	if err := checkExport(resp, time.Now()); err != nil {
		return false, err
	}
	end := resp.GetEndTime().AsTime()
	if end.After(x.end) || x.gone() {
		if err := replace(x.file, resp.GetCache()); err != nil {
			return false, err
		}
		x.end, written = end, true
		if x.say {
			fmt.Fprintf(x.stderr, "sessionctl: a ticket of %s is in %s until %s\n", shown(resp.GetPrincipal()), api.Clean(x.file), end.Local().Format(time.RFC3339))
		}
	}
	x.refresh = resp.GetRefreshTime().AsTime()
	if x.refresh.After(end) {
		x.refresh = end // there is nothing to wait for beyond it
	}
	return written, nil
}

// maxCache bounds a ticket cache with one ticket, in bytes. The agent takes a
// quarter of that from a KDC.
const maxCache = 1 << 20

// cacheVersion is what a ticket cache in version 4 of MIT's FILE format begins
// with.
const cacheVersion = "\x05\x04"

// checkExport looks whether an answer has what programs can use, before the cache
// that they use is replaced by it.
func checkExport(resp *pb.ExportCacheResponse, now time.Time) error {
	what := ""
	switch end, cache := resp.GetEndTime(), resp.GetCache(); {
	case !bytes.HasPrefix(cache, []byte(cacheVersion)):
		what = "no ticket cache"
	case len(cache) > maxCache:
		what = fmt.Sprintf("a ticket cache of %d bytes", len(cache))
	case end.CheckValid() != nil || end.GetSeconds() > math.MaxUint32: // as the cache has it
		what = "a ticket without an end"
	case !end.AsTime().After(now):
		what = "a ticket that has ended"
	default:
		return nil
	}
	return &api.Error{Code: api.Unknown, Detail: "the agent answered with " + what, Remedy: "see that it and sessionctl are of one release: sessionctl version"}
}

// gone tells whether somebody has removed the cache.
func (x *exporter) gone() bool {
	_, err := os.Lstat(x.file)
	return errors.Is(err, os.ErrNotExist)
}

// replace puts a cache in the place of a file in one step, whatever the mode of
// the old one.
func replace(file string, cache []byte) error {
	// Beside the file: a directory for temporary files may be less private.
	f, err := renameio.NewPendingFile(file, renameio.WithTempDir(filepath.Dir(file)), renameio.WithStaticPermissions(0o600))
	if err == nil {
		defer f.Cleanup()
		if _, err = f.Write(cache); err == nil {
			err = f.CloseAtomicallyReplace()
		}
	}
	if err == nil {
		return nil
	}
	what := err.Error()
	if cause, ok := errors.AsType[syscall.Errno](err); ok {
		what = cause.Error() // without the temporary file's name
	}
	return &api.Error{Code: api.CCacheUnusable, Detail: file + " cannot be written: " + what, Remedy: "name another file: sessionctl ccache PRINCIPAL FILE", Err: err}
}

// How long keep waits until it looks whether it is time: a timer for hours would
// sleep on while the machine does, and an agent that is confused is asked no more
// often.
const (
	keepLook  = 30 * time.Second
	keepPause = 5 * time.Second
)

// wait returns how long it is until the next look.
func (x *exporter) wait() time.Duration {
	left := time.Until(x.refresh)
	if left <= 0 {
		return keepLook // it was time, and nothing came of it
	}
	return max(keepPause, min(keepLook, left))
}

// keep writes the cache anew whenever it is time or the file has gone, until ctx
// ends. What keeps it from that is said once, and it tries on at every look.
func (x *exporter) keep(ctx context.Context) error {
	const none = api.Code("none")
	var said api.Code
	for {
		select {
		case <-ctx.Done():
			return nil // the way to end it
		case <-time.After(x.wait()):
		}
		if time.Now().Round(0).Before(x.refresh) && !x.gone() { // without the monotonic clock
			continue
		}
		written, err := x.write()
		switch code := api.CodeOf(err); {
		case ctx.Err() != nil:
			return nil
		case written:
			said = ""
		case err != nil && code != said:
			said = code
			fail(x.stderr, x.principal, err)
		case err == nil && said == "":
			said = none
			fmt.Fprintf(x.stderr, "sessionctl: %s: there is no newer ticket yet; this one ends at %s\n", x.principal, x.end.Local().Format(time.RFC3339))
		}
	}
}
