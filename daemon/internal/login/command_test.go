package login

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
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
		"without a url":         {cookies(c1 + `,{"line":"s=CANARY"}`), api.UnexpectedStatus, used, "set_cookie[1].url is not a string"},
		"without a line":        {cookies(`{"url":"http://app.corp.example:1/"}`), api.UnexpectedStatus, used, "set_cookie[0].line is not a string"},
		"a line that is null":   {cookies(`{"url":"http://app.corp.example:1/","line":null}`), api.UnexpectedStatus, used, "set_cookie[0].line is not a string"},
		"another member":        {cookies(`{"url":"http://app.corp.example:1/","line":"s=1","CANARY":2}`), api.UnexpectedStatus, used, "set_cookie[0] has a member that is none of url, line"},
		"another case":          {cookies(`{"URL":"http://app.corp.example:1/","line":"s=1"}`), api.UnexpectedStatus, used, "set_cookie[0] has a member"},
		"a member twice":        {cookies(`{"url":"http://evil.example/","url":"http://app.corp.example:1/","line":"s=1"}`), api.UnexpectedStatus, used, "set_cookie[0] has a member twice"},
		"no object":             {cookies(`"s=CANARY"`), api.UnexpectedStatus, used, "set_cookie[0] is not an object"},
		"no array":              {raw(`{"version":1,"set_cookie":"s=CANARY"}`), api.UnexpectedStatus, used, "set_cookie is not an array"},
		"no list":               {raw(`{"version":1,"set_cookie":null}`), api.UnexpectedStatus, used, "set_cookie is not an array"},
		"nothing in it":         {raw(`{"version":1}`), api.UnexpectedStatus, used, "either set_cookie or error"},
		"both":                  {raw(`{"version":1,"set_cookie":[],"error":{"code":"captcha"}}`), api.UnexpectedStatus, used, "either set_cookie or error"},
		"another version":       {raw(`{"version":2,"sessions":["CANARY"]}`), api.UnexpectedStatus, used, "version is not 1"},
		"no version":            {raw(`{"set_cookie":[]}`), api.UnexpectedStatus, used, "version is not 1"},
		"a version in words":    {raw(`{"version":"1","set_cookie":[]}`), api.UnexpectedStatus, used, "version is not 1"},
		"unknown":               {raw(`{"version":1,"set_cookie":[],"CANARY":1}`), api.UnexpectedStatus, used, "none of version, set_cookie, error"},
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
		"no code":               {failure(`"detail":"CANARY"`), api.UnexpectedStatus, used, "error.code is not a string"},
		"a detail of its own":   {failure(`"code":"captcha","detail":["CANARY"]`), api.UnexpectedStatus, used, "error.detail is not a string"},
		"used perhaps":          {failure(`"code":"captcha","password_used":"CANARY"`), api.UnexpectedStatus, used, "error.password_used is neither"},
		"used null":             {failure(`"code":"captcha","password_used":null`), api.UnexpectedStatus, used, "error.password_used is neither"},
		"a failure of more":     {failure(`"code":"captcha","retry":"CANARY"`), api.UnexpectedStatus, used, "error has a member that is none of"},
		"a failure in a word":   {raw(`{"version":1,"error":"CANARY"}`), api.UnexpectedStatus, used, "error is not an object"},
		"escapes":               {failure(`"code":"captcha","detail":"a\u001b[31m\nb\u202e"`), api.Captcha, used, "a?[31m?b?"},
		"a long story":          {failure(`"code":"captcha","detail":"` + strings.Repeat("x", 5000) + `"`), api.Captcha, used, "xxx"},
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
		err := (&commandFailure{code: code}).error("x")
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

// survivors watches a pipe: started is closed when somebody has written to it, and gone
// returns when nobody has it open for writing any more.
func survivors(t *testing.T, name string) (started <-chan struct{}, gone func()) {
	own, err := os.OpenFile(name, os.O_RDWR, 0) // or whoever opens it would wait
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	wrote, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		if _, err := f.Read(make([]byte, 1)); err == nil {
			close(wrote)
		}
		if _, err := io.Copy(io.Discard, f); err != nil {
			t.Error(err)
		}
	}()
	return wrote, func() {
		own.Close()
		<-done
	}
}

// TestCommandEnds: no process of a program's survives the login, in whatever way that
// ends. The test does not end while one lives.
func TestCommandEnds(t *testing.T) {
	// Each process has the pipe open, and each would stay for ever.
	const children = `exec 3>"$1"; (trap '' TERM HUP PIPE; kill -STOP $(exec sh -c 'echo $PPID')) & sh -c 'sh -c "kill -STOP \$\$" & kill -STOP $$' & `
	t.Run("done", func(t *testing.T) {
		name := pipe(t)
		_, gone := survivors(t, name)
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
		_, gone := survivors(t, name)
		if err := shell(children+`exit 3`, name).Login(t.Context(), atNobody(t), new(lent)); api.CodeOf(err) != api.UnexpectedStatus {
			t.Error(err)
		}
		gone()
	})
	t.Run("says too much", func(t *testing.T) {
		name := pipe(t)
		_, gone := survivors(t, name)
		if err := shell(children+`trap '' PIPE; cat /dev/zero; kill -STOP $$`, name).Login(t.Context(), atNobody(t), new(lent)); api.CodeOf(err) != api.UnexpectedStatus || !strings.Contains(err.Error(), "256 KiB") {
			t.Error(err)
		}
		gone()
	})
	t.Run("time is over", func(t *testing.T) {
		name := pipe(t)
		_, gone := survivors(t, name)
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
		started, gone := survivors(t, name)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-started
			cancel()
		}()
		p := new(lent)
		err := shell(children+`echo >&3; kill -STOP $$`, name).Login(ctx, atNobody(t), p)
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

// TestCommandPrograms: which programs are run, and that no other gets a password.
func TestCommandPrograms(t *testing.T) {
	o := web.Options{Base: &url.URL{Scheme: "https", Host: "app.corp.example"}}
	make := func(fileMode, dirMode os.FileMode, content string) string {
		dir := filepath.Join(t.TempDir(), "bin")
		name := filepath.Join(dir, "login")
		for _, err := range []error{os.Mkdir(dir, 0o700), os.WriteFile(name, []byte(content), 0o600), os.Chmod(name, fileMode), os.Chmod(dir, dirMode)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return name
	}
	link := func(to string, dirMode os.FileMode) string {
		name := make(0o700, dirMode, "")
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	const script = "#!/bin/sh\necho '{\"version\":1,\"error\":{\"code\":\"captcha\"}}'\n"
	good := make(0o755, 0o755, script)
	for name, c := range map[string]struct {
		program string
		want    string // what is wrong with it
	}{
		"good":                {good, ""},
		"private":             {make(0o700, 0o700, script), ""},
		"a link":              {link(good, 0o755), ""},
		"the group's folder":  {make(0o755, 0o775, script), ""},
		"relative":            {"bin/login", "not an absolute path"},
		"none":                {"", "not an absolute path"},
		"not there":           {good + "x", "does not exist"},
		"a link to nowhere":   {link(good+"x", 0o755), "does not exist"},
		"below a file":        {good + "/x", "not a directory"},
		"a directory":         {filepath.Dir(good), "is not a file"},
		"a device":            {"/dev/null", "is not a file"},
		"not executable":      {make(0o644, 0o755, script), "is not executable"},
		"the group's":         {make(0o775, 0o755, script), "others can write to"},
		"everybody's":         {make(0o757, 0o755, script), "others can write to"},
		"everybody's folder":  {make(0o755, 0o757, script), "others can write to"},
		"a temporary folder":  {make(0o755, 0o777|os.ModeSticky, script), "others can write to"},
		"a link to the worse": {link(make(0o775, 0o755, script), 0o755), "others can write to"},
		"a link in a bad one": {link(good, 0o757), "others can write to"},
		"a link into one":     {link(make(0o755, 0o757, script), 0o755), "others can write to"},
	} {
		d := &command{Command: []string{c.program}, Timeout: 30, proof: proof{ProbeURL: "me", IdentityJSON: "name"}}
		if err := d.Check(o, ""); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
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
		err := (&command{Command: []string{make(0o755, 0o755, content)}, Timeout: 30}).Login(t.Context(), atNobody(t), p)
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
		"no program":    {command{Timeout: 30, proof: proven}, "command is missing"},
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

// commandTexts are what the messages about a program's output can be.
var commandTexts = regexp.MustCompile(`^(it is empty|it is not UTF-8|it is not one JSON document, and nothing else|it has to have either set_cookie or error|version is not 1|` +
	`(it|error|set_cookie\[\d+\]) (is not an object|has a member twice|has a member that is none of [a-z_, ]+)|set_cookie is not an array|` +
	`(set_cookie\[\d+\]\.(url|line)|error\.(code|detail)) is not a string|set_cookie\[\d+\]\.url is not an absolute URL|error\.password_used is neither true nor false)$`)

// FuzzCommandOutput: what a program says is cookies, a failure or wrong, and what is
// wrong is not shown.
func FuzzCommandOutput(f *testing.F) {
	for _, doc := range []string{
		`{"version":1,"set_cookie":[{"url":"https://app.corp.example/x?y","line":"s=1; Path=/; Secure"},{"line":"","url":"http://a"}]}`,
		`{"version":1,"error":{"code":"bad_credentials","detail":"x\ud800","password_used":false}}`,
		`{"version":2}`, `[{"version":1}]`, `{"version":1,"version":1}`, `{"version":1,"set_cookie":null}`, `{"version":1,"set_cookie":[[]]}`, ` `, `{}{}`,
	} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		cookies, failure, err := readCommandOutput(doc)
		if err != nil {
			if cookies != nil || failure != nil {
				t.Fatalf("%v, and yet %v %v", err, cookies, failure)
			}
			if !commandTexts.MatchString(err.Error()) {
				t.Fatalf("%q is none of the fixed texts", err)
			}
			return
		}
		if failure != nil && cookies != nil || !json.Valid(doc) || !utf8.Valid(doc) || bytes.Count(doc, []byte("version")) == 0 {
			t.Fatalf("%v %v of %q", cookies, failure, doc)
		}
		// The same, said once more, is the same.
		var again []byte
		if failure != nil {
			again, err = json.Marshal(map[string]any{"version": 1, "error": map[string]any{"code": failure.code, "detail": failure.detail, "password_used": !failure.unused}})
		} else {
			list := []map[string]string{}
			for _, c := range cookies {
				if c.url.Host == "" {
					t.Fatalf("a cookie of %s", c.url)
				}
				list = append(list, map[string]string{"url": c.url.String(), "line": c.line})
			}
			again, err = json.Marshal(map[string]any{"version": 1, "set_cookie": list})
		}
		if err != nil {
			t.Fatal(err)
		}
		c2, f2, err := readCommandOutput(again)
		if err != nil || len(c2) != len(cookies) || failure != nil && *f2 != *failure {
			t.Fatalf("%q became %q: %v %v %v", doc, again, c2, f2, err)
		}
	})
}
