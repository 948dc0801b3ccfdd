package login

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// loginProgram has the test's own executable log in at a commandSite.
const loginProgram = "log-in-as-a-program"

// thisProgram is a command that runs the test's own executable, in whatever way that
// is writable.
func thisProgram(args ...string) []string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return append([]string{"/bin/sh", "-c", `exec "$0" "$@"`, self}, args...)
}

// logInAsProgram posts what it gets to login_url, and says what comes of that.
func logInAsProgram() {
	say := func(member string, value any) {
		json.NewEncoder(os.Stdout).Encode(map[string]any{"version": 1, member: value})
	}
	fail := func(code api.Code, used bool) {
		say("error", map[string]any{"code": code, "detail": "the program's own words", "password_used": used})
	}
	var in commandInput
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil || in.Version != 1 {
		fail(api.UnexpectedStatus, false)
		return
	}
	r, err := http.NewRequest(http.MethodPost, in.LoginURL, strings.NewReader(url.Values{"u": {in.Username}, "p": {in.Password}}.Encode()))
	if err != nil {
		fail(api.UnexpectedStatus, false)
		return
	}
	r.Header.Set("Content-Type", urlencoded)
	r.Header.Set("User-Agent", in.UserAgent)
	answer, err := (&http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
	}}).RoundTrip(r)
	if err != nil {
		fail(api.NetworkError, true)
		return
	}
	from := in.LoginURL
	if to, err := answer.Location(); err == nil {
		from = to.String()
	}
	switch answer.StatusCode {
	case http.StatusUnauthorized:
		fail(api.BadCredentials, true)
		return
	case http.StatusServiceUnavailable:
		fail(api.Maintenance, false)
		return
	case http.StatusTooManyRequests:
		fail(api.RateLimited, false)
		return
	}
	lines := []map[string]string{}
	for _, line := range answer.Header["Set-Cookie"] {
		lines = append(lines, map[string]string{"url": from, "line": line})
	}
	say("set_cookie", lines)
}

// commandSite begins a session for a POST.
func commandSite(b behaviour, foreign string) http.HandlerFunc {
	form := formSite(b, foreign)
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/app/me", b == down, b == limited:
			form(w, r)
		case r.PostFormValue("u") != "build" || r.PostFormValue("p") != "CANARY-password" || r.UserAgent() != "test/1":
			w.WriteHeader(http.StatusBadRequest)
		case b == refused:
			w.WriteHeader(http.StatusUnauthorized)
		case b != keepsNothing:
			w.Header().Set("Set-Cookie", "s=CANARY-session; Path=/app")
			if b == toForeignHost {
				http.Redirect(w, r, foreign, http.StatusFound)
			}
		}
	}
}

// shell is a command that is a script.
func shell(script string, args ...string) *command {
	return &command{Command: append([]string{"/bin/sh", "-c", script, "sh"}, args...), Timeout: maxCommandTime, proof: proof{ProbeURL: "me", IdentityJSON: "name"}}
}

// atNobody is an exchange that no test of a program needs an answer from.
func atNobody(t *testing.T) *web.Exchange {
	return exchangeWith(t, http.NotFoundHandler(), new(web.Jar), nil)
}

// TestCommandOutput: what a program may say, and what that means for the password.
func TestCommandOutput(t *testing.T) {
	used, unseen := lent{taken: true}, lent{taken: true, back: true}
	const c1, ok = `{"url":"http://app.corp.example:1/app","line":"s=CANARY-1; Path=/"}`, `printf %s '{"version":1,"set_cookie":[{"url":"http://app.corp.example:1/","line":"s=CANARY-1"}]}'`
	cookies := func(list string) string { return `printf %s '{"version":1,"set_cookie":[` + list + `]}'` }
	failure := func(members string) string { return `printf %s '{"version":1,"error":{` + members + `}}'` }
	raw := func(text string) string { return `printf %s '` + text + `'` }
	for name, c := range map[string]struct {
		script string
		code   api.Code
		want   lent
		text   string // in the detail
	}{
		"a cookie":              {ok, "", used, ""},
		"white space":           {`printf '\n '; ` + ok + `; printf ' \n'`, "", used, ""},
		"reads nothing":         {`exec <&-; ` + ok, "", used, ""},
		"replaced":              {cookies(c1 + `,{"url":"http://app.corp.example:1/app","line":"s=CANARY-2; Path=/"}`), "", used, ""},
		"one that nobody takes": {cookies(c1 + `,{"url":"http://app.corp.example:1/","line":"x=1; Domain=evil.example"}`), "", used, ""},
		"no cookie":             {cookies(``), api.NoSessionCookie, used, "no cookie"},
		"none that is taken":    {cookies(`{"url":"http://app.corp.example:1/","line":"s=CANARY-1; Secure"}`), api.NoSessionCookie, used, "no cookie"},
		"deleted":               {cookies(c1 + `,{"url":"http://app.corp.example:1/","line":"s=; Path=/; Max-Age=0"}`), api.NoSessionCookie, used, "no cookie"},
		"of another host":       {cookies(c1 + `,{"url":"http://evil.example/CANARY?CANARY","line":"s=1"}`), api.SSORedirect, used, "set_cookie[1].url"},
		"of another scheme":     {cookies(`{"url":"ftp://app.corp.example:1/","line":"s=1"}`), api.SSORedirect, used, "set_cookie[0].url"},
		"of a user's":           {cookies(`{"url":"http://CANARY:x@app.corp.example:1/","line":"s=1"}`), api.SSORedirect, used, "set_cookie[0].url"},
		"of nowhere":            {cookies(`{"url":"/CANARY","line":"s=1"}`), api.UnexpectedStatus, used, "set_cookie[0].url is not"},
		"of no url":             {cookies(`{"url":"http://[CANARY","line":"s=1"}`), api.UnexpectedStatus, used, "set_cookie[0].url is not"},
		"without a url":         {cookies(c1 + `,{"line":"s=CANARY"}`), api.UnexpectedStatus, used, "set_cookie[1].url is not an absolute URL"},
		"without a line":        {cookies(`{"url":"http://app.corp.example:1/"}`), api.NoSessionCookie, used, "no cookie"},
		"a line that is null":   {cookies(`{"url":"http://app.corp.example:1/","line":null}`), api.NoSessionCookie, used, "no cookie"},
		"a line that is a list": {cookies(`{"url":"http://app.corp.example:1/","line":["CANARY"]}`), api.UnexpectedStatus, used, "set_cookie.line is of another type"},
		"another member":        {cookies(`{"url":"http://app.corp.example:1/","line":"s=1","CANARY":2}`), api.UnexpectedStatus, used, "a member that is not one of version 1"},
		"a member elsewhere":    {cookies(`{"url":"http://app.corp.example:1/","line":"s=1","detail":"CANARY"}`), api.UnexpectedStatus, used, "a member that is not one of version 1"},
		"a member twice":        {cookies(`{"url":"http://evil.example/","url":"http://app.corp.example:1/","line":"s=1"}`), api.UnexpectedStatus, used, "a member stands there twice"},
		"twice in another case": {cookies(`{"url":"http://app.corp.example:1/","line":"s=1","LINE":"s=2"}`), api.UnexpectedStatus, used, "a member stands there twice"},
		"all twice":             {raw(`{"version":1,"set_cookie":[],"set_cookie":[]}`), api.UnexpectedStatus, used, "a member stands there twice"},
		"no object":             {cookies(`"s=CANARY"`), api.UnexpectedStatus, used, "set_cookie is of another type"},
		"no array":              {raw(`{"version":1,"set_cookie":"s=CANARY"}`), api.UnexpectedStatus, used, "set_cookie is of another type"},
		"no list":               {raw(`{"version":1,"set_cookie":null}`), api.UnexpectedStatus, used, "either set_cookie or error"},
		"nothing in it":         {raw(`{"version":1}`), api.UnexpectedStatus, used, "either set_cookie or error"},
		"both":                  {raw(`{"version":1,"set_cookie":[],"error":{"code":"captcha"}}`), api.UnexpectedStatus, used, "either set_cookie or error"},
		"another version":       {raw(`{"version":2,"sessions":["CANARY"]}`), api.UnexpectedStatus, used, "version is not 1"},
		"no version":            {raw(`{"set_cookie":[]}`), api.UnexpectedStatus, used, "version is not 1"},
		"a version in words":    {raw(`{"version":"1","set_cookie":[]}`), api.UnexpectedStatus, used, "version is not 1"},
		"unknown":               {raw(`{"version":1,"set_cookie":[],"CANARY":1}`), api.UnexpectedStatus, used, "a member that is not one of version 1"},
		"another document":      {ok + ";" + ok, api.UnexpectedStatus, used, "not one JSON document"},
		"a cookie as text":      {raw(`s=CANARY-1`), api.UnexpectedStatus, used, "not one JSON document"},
		"an array":              {raw(`["CANARY"]`), api.UnexpectedStatus, used, "it is not an object"},
		"not UTF-8":             {`printf '{"version":1,"CANARY\377":1}'`, api.UnexpectedStatus, used, "not UTF-8"},
		"nothing":               {`:`, api.UnexpectedStatus, used, "it is empty"},
		"nothing, and failed":   {`echo CANARY-password >&2; exit 3`, api.UnexpectedStatus, used, "ended with status 3 and without saying why: it is empty"},
		"text, and failed":      {`echo CANARY-password; exit 3`, api.UnexpectedStatus, used, "ended with status 3"},
		"killed":                {`kill -SEGV $$`, api.UnexpectedStatus, used, "was ended by a signal (segmentation fault)"},
		"a cookie, and failed":  {ok + `; exit 4`, api.UnexpectedStatus, used, "ended with status 4"},
		"too much":              {`exec cat /dev/zero`, api.UnexpectedStatus, used, "more than 256 KiB"},
		"refused":               {failure(`"code":"bad_credentials","detail":"the server said no","password_used":true`), api.BadCredentials, used, "/bin/sh says bad_credentials: the server said no"},
		"refused, and failed":   {failure(`"code":"bad_credentials"`) + `; exit 1`, api.BadCredentials, used, "/bin/sh says bad_credentials"},
		"not used":              {failure(`"code":"captcha","password_used":false`), api.Captcha, unseen, "says captcha"},
		"used or not":           {failure(`"code":"network_error"`), api.NetworkError, used, "network_error"},
		"a code of no program":  {failure(`"code":"no_ticket","detail":"x"`), api.Unknown, used, "may not say: x"},
		"a code of nobody's":    {failure(`"code":"CANARY"`), api.Unknown, used, "may not say"},
		"no code":               {failure(`"detail":"x"`), api.Unknown, used, "may not say: x"},
		"a code in figures":     {failure(`"code":4242`), api.UnexpectedStatus, used, "error.code is of another type"},
		"a detail of its own":   {failure(`"code":"captcha","detail":["CANARY"]`), api.UnexpectedStatus, used, "error.detail is of another type"},
		"used perhaps":          {failure(`"code":"captcha","password_used":"CANARY"`), api.UnexpectedStatus, used, "error.password_used is of another type"},
		"used null":             {failure(`"code":"captcha","password_used":null`), api.Captcha, used, "says captcha"},
		"a failure of more":     {failure(`"code":"captcha","retry":"CANARY"`), api.UnexpectedStatus, used, "a member that is not one of version 1"},
		"a failure in a word":   {raw(`{"version":1,"error":"CANARY"}`), api.UnexpectedStatus, used, "error is of another type"},
		"escapes":               {failure(`"code":"captcha","detail":"a\u001b[31m\nb\u202e"`), api.Captcha, used, "a?[31m?b?"},
		"a long story":          {failure(`"code":"captcha","detail":"` + strings.Repeat("xx ", 5000) + `"`), api.Captcha, used, "xx xx …"},
		"a long word":           {failure(`"code":"captcha","detail":"` + strings.Repeat("x", 5000) + `"`), api.Captcha, used, "says captcha: …"},
	} {
		p := new(lent)
		x := web.NewExchange(web.Options{Base: &url.URL{Scheme: "http", Host: "app.corp.example:1", Path: "/app"}, InsecureHTTP: true}, new(web.Jar))
		err := shell(c.script).Login(t.Context(), x, p)
		quiet(t, name, err)
		e := api.AsError(err)
		if api.CodeOf(err) != c.code || *p != c.want || e != nil && (!strings.Contains(e.Detail, c.text) || len(e.Detail) > 300) {
			t.Errorf("%s: %v, want %q with %q; the password: %+v", name, err, c.code, c.text, *p)
		}
		if err == nil && x.Jar().Len() != 1 {
			t.Errorf("%s: %d cookies", name, x.Jar().Len())
		}
		x.Close()
	}
}

// TestCommandCodes: a program may say what a person can do something about.
func TestCommandCodes(t *testing.T) {
	for code, remedy := range commandRemedies {
		err := (&commandFailure{Code: code}).error("x", secret.New("CANARY-password"))
		if api.CodeOf(err) != code || remedy == "" || code.Exit() == api.ExitOther {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// TestCommandProcess: what a program gets, and nothing else.
func TestCommandProcess(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CANARY_VARIABLE", "CANARY-variable")
	leak, err := unix.Open("/dev/null", unix.O_RDONLY, 0) // as one that the agent was started with
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	const password = "CANARY-\"\\ <&>ü日"
	script := `for f in /proc/$$/fd/*; do [ -e "$f" ] && fds="$fds ${f##*/}"; done
cat >"$1/input"; tr '\0' '\n' </proc/$$/environ >"$1/environ"; tr '\0' '\n' </proc/$$/cmdline >"$1/cmdline"
printf %s "$fds" >"$1/fd"; pwd >"$1/pwd"; cat /proc/$$/stat >"$1/stat"; printf %s "$2" >"$1/argument"
(exec 3</dev/tty) 2>/dev/null && echo yes >"$1/tty"
printf '{"version":1,"error":{"code":"captcha"}}'`
	c := shell(script, dir, "$(id) `id` 'x' \"y\"")
	c.LoginURL = "login?next=1"
	x := web.NewExchange(web.Options{Base: &url.URL{Scheme: "https", Host: "app.corp.example", Path: "/app"}, UserAgent: "test/1"}, new(web.Jar))
	defer x.Close()
	if err := c.Login(t.Context(), x, &account{offered{text: password}, "bü<ild>"}); api.CodeOf(err) != api.Captcha {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const want = `{"version":1,"site":"https://app.corp.example/app","login_url":"https://app.corp.example/app/login?next=1","username":"bü<ild>","password":"CANARY-\"\\ <&>ü日","user_agent":"test/1"}` + "\n"
	if got := read("input"); got != want {
		t.Errorf("it reads %s", got)
	}
	environ := strings.Split(strings.TrimSpace(read("environ")), "\n")
	if slices.Sort(environ); !slices.Equal(environ, []string{"HOME=/nonexistent", "LANG=C.UTF-8", "PATH=/usr/bin:/bin"}) {
		t.Errorf("its environment is %q", environ)
	}
	if strings.Contains(read("cmdline"), "CANARY") || read("argument") != c.Command[5] || read("pwd") != "/\n" {
		t.Errorf("it is %q in %q", read("cmdline"), read("pwd"))
	}
	if fds := strings.Fields(read("fd")); !slices.Equal(fds, []string{"0", "1", "2"}) {
		t.Errorf("it has the descriptors %s", fds)
	}
	// pid (comm) state ppid pgrp session tty_nr (proc(5))
	if f := strings.Fields(read("stat")); f[0] != f[4] || f[0] != f[5] || f[6] != "0" {
		t.Errorf("it is process %s in group %s and session %s, with terminal %s", f[0], f[4], f[5], f[6])
	}
	if _, err := os.Stat(filepath.Join(dir, "tty")); err == nil {
		t.Error("it has a terminal")
	}
}

// pipe makes a named pipe.
func pipe(t *testing.T) string {
	name := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// watch watches a pipe that the processes of a program have open, which first writes its
// number there: started is closed then, and the test goes on after gone when nobody has
// it open for writing any more. If that takes too long, the program's group is killed,
// and the test fails.
func watch(t *testing.T, name string) (started <-chan struct{}, gone func()) {
	own, err := os.OpenFile(name, os.O_RDWR, 0) // or whoever opens it would wait
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	wrote, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		var group int
		if _, err := fmt.Fscanln(f, &group); err != nil || group <= 1 {
			t.Errorf("group %d: %v", group, err)
			return
		}
		close(wrote)
		stop := context.AfterFunc(ctx, func() {
			t.Error("a process of the program's lives on")
			if err := unix.Kill(-group, unix.SIGKILL); err != nil {
				f.Close()
			}
		})
		defer stop()
		if _, err := io.Copy(io.Discard, f); err != nil {
			t.Error(err)
		}
	}()
	end := sync.OnceFunc(func() {
		own.Close()
		<-done
		cancel()
	})
	t.Cleanup(end)
	return wrote, end
}

// TestCommandEnds: no process of a program's survives the login, in whatever way that
// ends.
func TestCommandEnds(t *testing.T) {
	// Each process has the pipe open, and each would stay for ever.
	const children = `exec 3>"$1"; echo $$ >&3; (trap '' TERM HUP PIPE; kill -STOP $(exec sh -c 'echo $PPID')) & sh -c 'sh -c "kill -STOP \$\$" & kill -STOP $$' & `
	t.Run("done", func(t *testing.T) {
		name := pipe(t)
		_, gone := watch(t, name)
		x := atNobody(t)
		u, err := x.URL("")
		if err != nil {
			t.Fatal(err)
		}
		err = shell(children+`printf '{"version":1,"set_cookie":[{"url":"%s","line":"s=CANARY-1"}]}' "$2"`, name, u.String()).Login(t.Context(), x, new(lent))
		if err != nil || x.Jar().Len() != 1 {
			t.Error(err)
		}
		gone()
	})
	t.Run("failed", func(t *testing.T) {
		name := pipe(t)
		_, gone := watch(t, name)
		if err := shell(children+`exit 3`, name).Login(t.Context(), atNobody(t), new(lent)); api.CodeOf(err) != api.UnexpectedStatus {
			t.Error(err)
		}
		gone()
	})
	t.Run("says too much", func(t *testing.T) {
		name := pipe(t)
		_, gone := watch(t, name)
		if err := shell(children+`trap '' PIPE; cat /dev/zero; kill -STOP $$`, name).Login(t.Context(), atNobody(t), new(lent)); api.CodeOf(err) != api.UnexpectedStatus || !strings.Contains(err.Error(), "256 KiB") {
			t.Error(err)
		}
		gone()
	})
	t.Run("time is over", func(t *testing.T) {
		name := pipe(t)
		_, gone := watch(t, name)
		c, p := shell(children+`kill -STOP $$`, name), new(lent)
		c.Timeout = 1
		err := c.Login(t.Context(), atNobody(t), p)
		quiet(t, "time is over", err)
		if api.CodeOf(err) != api.Timeout || !strings.Contains(err.Error(), "after 1 s") || *p != (lent{taken: true}) {
			t.Errorf("%v; the password: %+v", err, *p)
		}
		gone()
	})
	t.Run("cancelled", func(t *testing.T) {
		name := pipe(t)
		started, gone := watch(t, name)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-started
			cancel()
		}()
		p := new(lent)
		err := shell(children+`kill -STOP $$`, name).Login(ctx, atNobody(t), p)
		quiet(t, "cancelled", err)
		if api.CodeOf(err) != api.Timeout || !strings.Contains(err.Error(), "the time for the login was over") || *p != (lent{taken: true}) {
			t.Errorf("%v; the password: %+v", err, *p)
		}
		gone()
	})
	// What leaves the group is out of reach, but nobody waits for it.
	t.Run("left behind", func(t *testing.T) {
		left, stays := pipe(t), pipe(t)
		x := atNobody(t)
		u, err := x.URL("")
		if err != nil {
			t.Fatal(err)
		}
		err = shell(`setsid sh -c 'echo >"$1"; read x <"$2"' sh "$1" "$2" & read x <"$1"
printf '{"version":1,"set_cookie":[{"url":"%s","line":"s=CANARY-1"}]}' "$3"`, left, stays, u.String()).Login(t.Context(), x, new(lent))
		if err != nil {
			t.Error(err)
		}
		f, err := os.OpenFile(stays, os.O_WRONLY, 0) // waits for it
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	})
}

// TestCommandOrphan: a program does not survive the agent, even if that is killed. This
// test is the agent, too, in a process of its own.
func TestCommandOrphan(t *testing.T) {
	const variable = "TEST_COMMAND_ORPHAN"
	if name := os.Getenv(variable); name != "" {
		t.Fatal(shell(`exec 3>"$1"; echo $$ >&3; kill -STOP $$`, name).Login(t.Context(), atNobody(t), new(lent)))
	}
	name := pipe(t)
	started, gone := watch(t, name)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.CommandContext(t.Context(), self, "-test.run=^TestCommandOrphan$")
	agent.Env = append(os.Environ(), variable+"="+name)
	var out bytes.Buffer
	agent.Stdout, agent.Stderr = &out, &out
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- agent.Wait() }()
	select {
	case <-started:
	case err := <-over:
		t.Fatalf("the agent: %v\n%s", err, &out)
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-over
	gone()
}

// TestCommandPrograms: which programs are run, and that no other gets a password.
func TestCommandPrograms(t *testing.T) {
	const safe = 0o755
	const script = "#!/bin/sh\necho '{\"version\":1,\"error\":{\"code\":\"captcha\"}}'\n"
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	folder := func(mode os.FileMode) string {
		temporary := t.TempDir()
		dir := filepath.Join(temporary, "bin")
		must(os.Chmod(temporary, safe), os.Mkdir(dir, 0o700), os.Chmod(dir, mode)) // whatever the umask is
		return dir
	}
	write := func(dir string, mode os.FileMode, content string) string {
		name := filepath.Join(dir, "login")
		must(os.WriteFile(name, []byte(content), 0o600), os.Chmod(name, mode))
		return name
	}
	program := func(fileMode, dirMode os.FileMode) string { return write(folder(dirMode), fileMode, script) }
	link := func(to string, dirMode os.FileMode) string {
		name := filepath.Join(folder(dirMode), "login")
		must(os.Symlink(to, name))
		return name
	}
	below := func(dir string) string {
		must(os.Mkdir(filepath.Join(dir, "bin"), 0o700))
		return write(filepath.Join(dir, "bin"), safe, script)
	}
	good := program(safe, safe)
	loop, relative := folder(safe), folder(safe)
	below(relative)
	must(os.Symlink("login", filepath.Join(loop, "login")), os.Symlink("bin/./../bin//login", filepath.Join(relative, "login")))
	// Beside a link to a folder, ".." is not what it looks like.
	aside := folder(safe)
	write(aside, safe, script)
	must(os.Mkdir(filepath.Join(aside, "x"), 0o700), os.Symlink(below(folder(0o777))+"/..", filepath.Join(aside, "x", "link")))
	const others = "others can write to"
	type test struct {
		program string
		want    string // what is wrong with it
	}
	tests := map[string]test{
		"good":                         {good, ""},
		"private":                      {program(0o700, safe), ""},
		"a link":                       {link(good, safe), ""},
		"a link to a link":             {link(link(good, safe), safe), ""},
		"a relative link":              {filepath.Join(relative, "login"), ""},
		"a sticky folder":              {program(safe, 0o777|os.ModeSticky), ""},
		"below a sticky folder":        {below(folder(0o777 | os.ModeSticky)), ""},
		"not there":                    {good + "x", "does not exist"},
		"a link to nowhere":            {link(good+"x", safe), "does not exist"},
		"a link to itself":             {filepath.Join(loop, "login"), "lead nowhere"},
		"below a file":                 {good + "/x", "not a directory"},
		"a directory":                  {filepath.Dir(good), "is not a file"},
		"a device":                     {"/dev/null", others},
		"not executable":               {program(0o644, safe), "is not executable"},
		"the group's":                  {program(0o775, safe), others},
		"everybody's":                  {program(0o757, safe), others},
		"the group's folder":           {program(safe, 0o775), others},
		"everybody's folder":           {program(safe, 0o757), others},
		"everybody's file in a sticky": {program(0o757, 0o777|os.ModeSticky), others},
		"everybody's grandparent":      {below(folder(0o777)), others},
		"a link to the worse":          {link(program(0o775, safe), safe), others},
		"a link in a bad one":          {link(good, 0o777), others},
		"a link through a bad one":     {link(link(good, 0o777), safe), others},
		"a link into one":              {link(program(safe, 0o757), safe), others},
		"up from a link":               {filepath.Join(aside, "x") + "/link/../login", others},
	}
	if os.Geteuid() == 0 {
		const nobodys = 4242
		own := func(name string) string {
			must(os.Lchown(name, nobodys, nobodys))
			return name
		}
		theirs := program(safe, safe)
		own(filepath.Dir(theirs))
		tests["another's file"] = test{own(program(safe, safe)), "belongs to uid 4242"}
		tests["another's folder"] = test{theirs, "belongs to uid 4242"}
		tests["another's link"] = test{own(link(good, 0o777|os.ModeSticky)), "belongs to uid 4242"}
	} else {
		t.Log("SKIPPED: programs of another user, which only root can make")
	}
	for name, c := range tests {
		d := &command{Command: []string{c.program}, Timeout: 30, proof: proof{ProbeURL: "me", IdentityJSON: "name"}}
		if err := d.Check(web.Options{Base: &url.URL{Scheme: "https", Host: "app.corp.example"}}, ""); err != nil {
			t.Errorf("%s: %v, which is for the file system to say", name, err)
		}
		if err := d.Missing(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		p := new(lent)
		err := d.Login(t.Context(), atNobody(t), p)
		quiet(t, name, err)
		if want := map[bool]api.Code{true: api.Captcha, false: api.ConfigInvalid}[c.want == ""]; api.CodeOf(err) != want || p.taken != (c.want == "") {
			t.Errorf("%s: %v, taken %v", name, err, p.taken)
		}
	}
	// What the kernel does not run nobody has given the password.
	for name, content := range map[string]string{"no program": "CANARY", "no interpreter": "#!/nonexistent/CANARY\n"} {
		p := new(lent)
		err := (&command{Command: []string{write(folder(safe), safe, content)}, Timeout: 30}).Login(t.Context(), atNobody(t), p)
		quiet(t, name, err)
		if api.CodeOf(err) != api.ConfigInvalid || *p != (lent{taken: true, back: true}) || !strings.Contains(err.Error(), "cannot be started") {
			t.Errorf("%s: %v; the password: %+v", name, err, *p)
		}
	}
	latched := &api.Error{Code: api.Latched, Detail: "x", Remedy: "x"}
	ran := filepath.Join(t.TempDir(), "ran")
	if err := shell(`echo >"$1"`, ran).Login(t.Context(), atNobody(t), &lent{err: latched}); api.CodeOf(err) != api.Latched {
		t.Error(err)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a program runs without a password")
	}
}

// TestUnmapped: whose files are nobody's that can be told by a number.
func TestUnmapped(t *testing.T) {
	for _, c := range []struct {
		users string // of /proc/self/uid_map
		owner uint32
		want  bool
	}{
		{"         0          0 4294967295\n", 65534, false}, // no namespace: it is nobody
		{"         0          0 4294967295\n", 1001, false},
		{"         0          0      65536\n", 65534, false},
		{"      1000       1000          1\n", 65534, true}, // a user's own service
		{"      1000       1000          1\n", 1001, false},
		{"         0       1000          1\n", 65534, true}, // unshare --map-root-user
		{"         0       1000          1\n         1     100000      65536\n", 65534, true},
		{"         0     100000      65536\n", 65533, false},
		{"", 65534, false}, // a kernel without namespaces
	} {
		if got := unmapped(c.owner, c.users); got != c.want {
			t.Errorf("uid %d where %q: %v", c.owner, c.users, got)
		}
	}
}

func TestCommandCheck(t *testing.T) {
	o := web.Options{Base: &url.URL{Scheme: "https", Host: "app.corp.example"}}
	proven := proof{ProbeURL: "me", IdentityJSON: "name"}
	sh := []string{"/bin/sh"}
	for name, c := range map[string]struct {
		c    command
		want string
	}{
		"good":          {command{Command: sh, Timeout: 30, proof: proven}, ""},
		"least":         {command{Command: sh, Timeout: 1, proof: proof{LoginURL: "login", IdentityHeader: "X-User"}}, ""},
		"most":          {command{Command: []string{"/bin/sh", "-c", "x"}, Timeout: maxCommandTime, proof: proven}, ""},
		"not there":     {command{Command: []string{"/nonexistent/login"}, Timeout: 30, proof: proven}, ""}, // which Missing says
		"no program":    {command{Timeout: 30, proof: proven}, "command is missing"},
		"relative":      {command{Command: []string{"bin/login"}, Timeout: 30, proof: proven}, "not an absolute path"},
		"empty":         {command{Command: []string{""}, Timeout: 30, proof: proven}, "not an absolute path"},
		"a NUL":         {command{Command: []string{"/bin/sh", "a\x00b"}, Timeout: 30, proof: proven}, "no program can get"},
		"no time":       {command{Command: sh, proof: proven}, "timeout is 0"},
		"too long":      {command{Command: sh, Timeout: maxCommandTime + 1, proof: proven}, "timeout is 121"},
		"no proof":      {command{Command: sh, Timeout: 30, proof: proof{IdentityJSON: "name"}}, "probe_url is missing"},
		"no identity":   {command{Command: sh, Timeout: 30, proof: proof{ProbeURL: "me"}}, "identity_json"},
		"foreign proof": {command{Command: sh, Timeout: 30, proof: proof{ProbeURL: "https://evil.example/", IdentityJSON: "name"}}, "login_hosts"},
	} {
		if err := c.c.Check(o, ""); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if d := New("command").(*command); d.Timeout != 30 {
		t.Errorf("the time limit is %d s", d.Timeout)
	}
}

// TestCommandDetail: no part of the password is in what a program is quoted with,
// wherever that is cut.
func TestCommandDetail(t *testing.T) {
	const password = "CANARY-correct horse"
	for _, padding := range []string{"x", "x "} {
		for n := range 220 {
			f := commandFailure{Code: api.Captcha, Detail: strings.Repeat(padding, n)[:n] + password + " and more"}
			detail := api.AsError(f.error("x", secret.New(password))).Detail
			for _, part := range []string{"CAN", "hor"} {
				if strings.Contains(detail, part) {
					t.Fatalf("%d characters and the password: %s", n, detail)
				}
			}
			if n < 180 && !strings.Contains(detail, "[redacted]") {
				t.Fatalf("%d characters and the password: %s", n, detail)
			}
		}
	}
}

// commandTexts are what the messages about a program's output can be.
var commandTexts = regexp.MustCompile(`^(it is empty|it is not UTF-8|it is not one JSON document, and nothing else|it is not an object|version is not 1|a member stands there twice|` +
	`it has a member that is not one of version 1|it has to have either set_cookie or error|` +
	`(set_cookie|set_cookie\.(url|line)|error|error\.(code|detail|password_used)) is of another type|set_cookie\[\d+\]\.url is not an absolute URL)$`)

// FuzzCommandOutput: what a program says is cookies, a failure or wrong, and what is
// wrong is not shown.
func FuzzCommandOutput(f *testing.F) {
	for _, doc := range []string{
		`{"version":1,"set_cookie":[{"url":"https://app.corp.example/x?y","line":"s=1; Path=/; Secure"},{"line":"","url":"http://a"}]}`,
		`{"version":1,"error":{"code":"bad_credentials","detail":"x\ud800","password_used":false}}`,
		`{"version":2}`, `[{"version":1}]`, `{"version":1,"version":1}`, `{"version":1,"set_cookie":null}`, `{"version":1,"set_cookie":[[]]}`, ` `, `{}{}`,
		`{"version":1,"error":{"code":1}}`, `null`, `{"version":1,"Set_Cookie":[null]}`, strings.Repeat("[", 12000),
	} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		says, err := readCommandOutput(doc)
		if err != nil {
			if says != nil {
				t.Fatalf("%v, and yet %v", err, says)
			}
			if !commandTexts.MatchString(err.Error()) {
				t.Fatalf("%q is none of the fixed texts", err)
			}
			return
		}
		if (says.Error == nil) == (says.SetCookie == nil) || says.Version != 1 || !json.Valid(doc) || !utf8.Valid(doc) {
			t.Fatalf("%v of %q", says, doc)
		}
		for _, c := range says.SetCookie {
			if c.url.Host == "" {
				t.Fatalf("a cookie of %s", c.url)
			}
		}
		// The same, said once more, is the same.
		same := map[string]any{"version": 1, "set_cookie": says.SetCookie}
		if says.Error != nil {
			same = map[string]any{"version": 1, "error": says.Error}
		}
		again, err := json.Marshal(same)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readCommandOutput(again); err != nil || !reflect.DeepEqual(got, says) {
			t.Fatalf("%q became %q: %v %v", doc, again, got, err)
		}
	})
}
