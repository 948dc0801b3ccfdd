package login

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/html/charset"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// offered is a password of a test's own.
type offered struct {
	lent
	text string
}

func (o *offered) Take(ctx context.Context) (secret.String, error) {
	o.taken = true
	return secret.New(o.text), o.err
}

// quiet fails the test if an error shows a secret or leaves a person without a
// next step. A refused password has its own, from the keeper.
func quiet(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	e := api.AsError(err)
	if text := fmt.Sprintf("%+v %s %s", err, e.Detail, e.Remedy); strings.Contains(text, "CANARY") {
		t.Errorf("%s: %s", what, text)
	}
	if e.Detail == "" || e.Remedy == "" && e.Code != api.BadCredentials && e.Code != api.Expired {
		t.Errorf("%s: no next step: %+v", what, e)
	}
}

// TestFormApplication logs in at an application whose form has a token and whose
// sessions change with the login.
func TestFormApplication(t *testing.T) {
	app, err := rig.StartForm()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(app.Stop)
	app.AddUser("build", "CANARY-&=+%ü\" ;'<>\\日")
	base, err := url.Parse(app.URL() + "/app/")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		login    string
		password string
		code     api.Code
	}{
		"form":           {"/login", "CANARY-&=+%ü\" ;'<>\\日", ""},
		"leads to it":    {"whoami", "CANARY-&=+%ü\" ;'<>\\日", ""},
		"the url itself": {"", "CANARY-&=+%ü\" ;'<>\\日", ""},
		"wrong password": {"/login", "CANARY-wrong", api.BadCredentials},
		"no form":        {"/nowhere", "CANARY-wrong", api.UnexpectedStatus},
	} {
		before := app.Counts()
		f := &form{proof: proof{LoginURL: c.login, ProbeURL: "whoami", IdentityJSON: "user"}}
		x := web.NewExchange(web.Options{Base: base, InsecureHTTP: true}, new(web.Jar))
		p := &offered{text: c.password}
		err := f.Login(t.Context(), x, p)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || p.back || p.taken != (name != "no form") {
			t.Errorf("%s: %v, want %q; %+v", name, err, c.code, p)
		}
		after := app.Counts()
		if want := c.code == api.BadCredentials; (after.Failures > before.Failures) != want {
			t.Errorf("%s: %+v after %+v", name, after, before)
		}
		if c.code == "" {
			if id, err := f.Probe(t.Context(), x); err != nil || id.Name != "build" || after.Logins != before.Logins+1 {
				t.Errorf("%s: %+v %v, %+v", name, id, err, after)
			}
		}
		x.Close()
	}
}

// at is a page as an exchange returns it.
func at(t *testing.T, address, contentType, body string) *web.Response {
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return &web.Response{URL: u, Status: http.StatusOK, Header: http.Header{"Content-Type": {contentType}}, Body: []byte(body)}
}

const fields = `<input name=u><input type=password name=p>`

// TestFormEntries: what of a page is sent, and to where.
func TestFormEntries(t *testing.T) {
	x := web.NewExchange(web.Options{
		Base:       &url.URL{Scheme: "https", Host: "app.corp.example", Path: "/app"},
		LoginHosts: []web.Origin{{Scheme: "https", Host: "login.corp.example", Port: "443"}},
	}, new(web.Jar))
	defer x.Close()
	const page = "https://app.corp.example/app/login?next=%2Fx#top"
	for name, c := range map[string]struct {
		form   form
		html   string
		action string // "" if it is the page
		body   string
	}{
		"least":           {form{}, `<form method=post>` + fields, "", "u=build&p=PW"},
		"hidden token":    {form{}, `<form method=post><input type=hidden name=csrf value="a&amp;b=c">` + fields + `</form>`, "", "csrf=a%26b%3Dc&u=build&p=PW"},
		"case":            {form{}, `<FORM METHOD=Post ACTION=in><INPUT TYPE=Text NAME=u><INPUT TYPE=PASSWORD NAME=p></FORM>`, "https://app.corp.example/app/in", "u=build&p=PW"},
		"email":           {form{}, `<form method=post><input type=email name=u value=old><input type=password name=p value=old>`, "", "u=build&p=PW"},
		"unknown type":    {form{}, `<form method=post><input type=username name=u><input type=password name=p>`, "", "u=build&p=PW"},
		"empty action":    {form{}, `<base href=/other/><form method=post action="">` + fields, "", "u=build&p=PW"},
		"relative action": {form{}, `<form method=post action=" j_security_check;v=1?a=b#c ">` + fields, "https://app.corp.example/app/j_security_check;v=1?a=b", "u=build&p=PW"},
		"login host":      {form{}, `<form method=post action=//login.corp.example:443/in>` + fields, "https://login.corp.example:443/in", "u=build&p=PW"},
		"base":            {form{}, `<base target=x><base href=/base/x><base href=/not><form method=post action=in>` + fields, "https://app.corp.example/base/in", "u=build&p=PW"},
		"no base":         {form{}, `<base href="data:,x"><form method=post action=in>` + fields, "https://app.corp.example/app/in", "u=build&p=PW"},
		"foreign base":    {form{}, `<base href=https://cdn.example/><form method=post action=https://app.corp.example/in>` + fields, "https://app.corp.example/in", "u=build&p=PW"},
		"search and login": {form{}, `<form action=https://search.example/><input name=q><button>Search</button></form>
			<form method=post>` + fields + `<button name=b value=in>Log in</button></form>`, "", "u=build&p=PW&b=in"},
		"login and registration": {form{}, `<form method=post action=register><input name=u><input type=password name=p1><input type=password name=p2></form>
			<form method=post action=register2><input name=u><input type=password name=p autocomplete="section-x New-Password"></form>
			<form method=post action=in>` + fields + `</form>`, "https://app.corp.example/app/in", "u=build&p=PW"},
		"overrides": {form{UsernameField: "who", PasswordField: "pin"}, `<form method=post action=a>` + fields + `</form>
			<form method=post action=b><input name=realm value=r><input name=pin><input type=password name=p value=v><input name=who></form>`, "https://app.corp.example/app/b", "realm=r&pin=PW&p=v&who=build"},
		"username override":      {form{UsernameField: "who"}, `<form method=post><input name=u><input name=who><input type=password name=p>`, "", "u=&who=build&p=PW"},
		"username after":         {form{UsernameField: "u"}, `<form method=post><input type=password name=p><input name=u>`, "", "p=PW&u=build"},
		"password override":      {form{PasswordField: "p2"}, `<form method=post><input name=u><input type=password name=p1><input type=password name=p2>`, "", "u=build&p1=&p2=PW"},
		"marked username":        {form{}, `<form method=post><input name=u autocomplete="username email"><input name=domain value=CORP><input type=password name=p>`, "", "u=build&domain=CORP&p=PW"},
		"what is no text":        {form{}, `<form method=post><input name=u><input name=x readonly value=1><input name=y disabled><input name=z hidden><input><input type=password name=p>`, "", "u=build&x=1&z=&p=PW"},
		"invisible password":     {form{}, `<form method=post><input type=password name=a hidden><input type=password name=b disabled>` + fields, "", "a=&u=build&p=PW"},
		"boxes":                  {form{}, `<form method=post>` + fields + `<input type=checkbox name=a><input type=checkbox name=b checked><input type=checkbox name=c checked value=""><input type=radio name=d value=1><input type=radio name=d value=2 checked>`, "", "u=build&p=PW&b=on&c=&d=2"},
		"remember me":            {form{}, `<form method=post>` + fields + `<input type=hidden name=remember_me value=0><input type=checkbox name=remember_me value=1 checked><input type=checkbox name=KeepMeSignedIn checked><input type=checkbox name=terms checked>`, "", "u=build&p=PW&remember_me=0&terms=on"},
		"disabled":               {form{}, `<form method=post>` + fields + `<input type=hidden name=a disabled><fieldset disabled><fieldset><input name=b></fieldset><input name=c></fieldset><input type=hidden name=d></fieldset><input type=hidden name=e>`, "", "u=build&p=PW&d=&e="},
		"select":                 {form{}, `<form method=post>` + fields + `<select name=a><option disabled>0<option value=1>one<option>two</select><select name=b><option>x<option selected> y  z </select><select name=c><option>1<option selected disabled>2</select><select name=d></select>`, "", "u=build&p=PW&a=1&b=y+z"},
		"selects":                {form{}, `<form method=post>` + fields + `<select multiple name=a><option selected>1<option>2<option selected>3</select><select size=3 name=b><option>1</select><select name=c><optgroup disabled><option>1</optgroup><option>2</select><select name=d><option>1<input type=hidden name=e value=2>x<select name=f><option selected>1<option selected>2</select>`, "", "u=build&p=PW&a=1&a=3&c=2&d=1&e=2&f=2"},
		"textarea":               {form{}, "<form method=post>" + fields + "<textarea name=a>\n<input name=x>\r\n2&amp;</textarea>", "", "u=build&p=PW&a=%3Cinput+name%3Dx%3E%0D%0A2%26"},
		"buttons":                {form{}, `<form method=post>` + fields + `<button type=button name=a></button><input type=reset name=b value=b><button type=submit disabled name=c></button><button name=d value=d></button><input type=submit name=e value=e>`, "", "u=build&p=PW&d=d"},
		"button without name":    {form{}, `<form method=post>` + fields + `<button>Log in</button><button name=cancel value=1>Cancel</button>`, "", "u=build&p=PW"},
		"button's own":           {form{}, `<form action=a>` + fields + `<button formaction=b formmethod=post name=c value=d>`, "https://app.corp.example/app/b", "u=build&p=PW&c=d"},
		"image":                  {form{}, `<form method=post>` + fields + `<input type=image name=go src=x>`, "", "u=build&p=PW&go.x=0&go.y=0"},
		"nameless image":         {form{}, `<form method=post>` + fields + `<input type=image>`, "", "u=build&p=PW&x=0&y=0"},
		"file":                   {form{}, `<form method=post>` + fields + `<input type=file name=a value=x>`, "", "u=build&p=PW&a="},
		"required, but there":    {form{}, `<form method=post>` + fields + `<input name=a required value=1><input type=hidden name=b required><input name=c required disabled>`, "", "u=build&p=PW&a=1&b="},
		"form attribute":         {form{}, `<input type=hidden name=a value=1 form=x><form id=y></form><form method=post id=x><input type=hidden name=b form=y><input type=hidden name=c form=none><input name=u></form><input type=password name=p form=x>`, "", "a=1&u=build&p=PW"},
		"table":                  {form{}, `<table><form method=post><tr><td><input name=u></td></tr><tr><td><input type=password name=p></form></table><input name=x>`, "", "u=build&p=PW"},
		"nested form":            {form{}, `<div><form method=post></div><form action=//evil.example>` + fields + `</form><input name=x>`, "", "u=build&p=PW"},
		"template and script":    {form{}, `<template><form method=post action=a>` + fields + `</form><template></template></template><script>"<form>"</script><!-- <form> --><title><form></title><form method=post>` + fields, "", "u=build&p=PW"},
		"noscript":               {form{}, `<noscript><form method=post>` + fields + `</form></noscript>`, "", "u=build&p=PW"},
		"picture":                {form{}, `<svg><title/><style/><path/></svg><form method=post>` + fields, "", "u=build&p=PW"},
		"attribute twice":        {form{}, `<form method=post action=a action=b>` + fields, "https://app.corp.example/app/a", "u=build&p=PW"},
		"many controls":          {form{}, `<form method=post>` + fields + strings.Repeat(`<input type=hidden>`, maxControls-2), "", "u=build&p=PW"},
		"encoding type":          {form{}, `<form method=post enctype=application/json>` + fields, "", "u=build&p=PW"},
		"_charset_":              {form{}, `<form method=post><input type=hidden name=_charset_>` + fields, "", "_charset_=utf-8&u=build&p=PW"},
		"accept-charset":         {form{}, `<form method=post accept-charset="nonsense Latin1 utf-8"><input type=hidden name=a value=&uuml;&#x2713;>` + fields, "", "a=%FC%26%2310003%3B&u=build&p=PW"},
		"accept-charset unknown": {form{}, `<form method=post accept-charset=nonsense><input type=hidden name=_charset_>` + fields, "", "_charset_=utf-8&u=build&p=PW"},
		"accept-charset utf-16":  {form{}, `<form method=post accept-charset=utf-16><input type=hidden name=_charset_>` + fields, "", "_charset_=utf-8&u=build&p=PW"},
	} {
		r := at(t, page, "text/html; charset=utf-8", c.html)
		s, err := c.form.fill(x, r, "build")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if c.action == "" {
			c.action = "https://app.corp.example/app/login?next=%2Fx"
		}
		if got := s.action.String(); got != c.action {
			t.Errorf("%s: sent to %s, want %s", name, got, c.action)
		}
		if got := string(s.body("build", "PW")); got != c.body {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.body)
		}
	}
}

// TestFormRefusals: pages that get no password.
func TestFormRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		form form
		html string
		code api.Code
		want string // in the detail or the remedy
	}{
		"no form":             {form{}, `<p>please log in</p>`, api.UnexpectedStatus, "no form"},
		"fields of no form":   {form{}, fields, api.UnexpectedStatus, "no form"},
		"made by a script":    {form{}, `<form method=post><input id=u><input type=password id=p></form>`, api.UnexpectedStatus, "scripts"},
		"username first":      {form{}, `<form method=post><input name=u><button>Next</button></form>`, api.UnexpectedStatus, "no form"},
		"registration":        {form{}, `<form method=post>` + fields + `<input type=password name=p2>`, api.UnexpectedStatus, "no form"},
		"new password":        {form{}, `<form method=post><input name=u><input type=password name=p autocomplete=new-password>`, api.UnexpectedStatus, "no form"},
		"two logins":          {form{}, `<form method=post>` + fields + `</form><form method=post>` + fields + `</form>`, api.UnexpectedStatus, "more than one form"},
		"not the field":       {form{UsernameField: "x"}, `<form method=post>` + fields, api.UnexpectedStatus, "no form"},
		"not the password":    {form{PasswordField: "x"}, `<form method=post>` + fields, api.UnexpectedStatus, "no form"},
		"the field twice":     {form{UsernameField: "u"}, `<form method=post><input name=u>` + fields, api.UnexpectedStatus, "no form"},
		"password as user":    {form{UsernameField: "p"}, `<form method=post>` + fields, api.UnexpectedStatus, "no form"},
		"no username":         {form{}, `<form method=post><input type=password name=p>`, api.UnexpectedStatus, "username_field"},
		"two usernames":       {form{}, `<form method=post><input name=domain>` + fields, api.UnexpectedStatus, "username_field"},
		"two marked":          {form{}, `<form method=post><input name=a autocomplete=username><input name=b autocomplete=username><input type=password name=p>`, api.UnexpectedStatus, "username_field"},
		"one name for both":   {form{}, `<form method=post><input name=p><input type=password name=p>`, api.UnexpectedStatus, "no form"},
		"too many controls":   {form{}, `<form method=post>` + fields + strings.Repeat(`<input type=hidden name=x>`, maxControls-2), api.UnexpectedStatus, "no form"},
		"GET":                 {form{}, `<form>` + fields, api.UnexpectedStatus, "password would stand in a URL"},
		"GET by the button":   {form{}, `<form method=post>` + fields + `<button formmethod=get>`, api.UnexpectedStatus, "password would stand in a URL"},
		"multipart":           {form{}, `<form method=post enctype=Multipart/Form-Data>` + fields, api.UnexpectedStatus, "application/x-www-form-urlencoded"},
		"plain text":          {form{}, `<form method=post>` + fields + `<button formenctype=text/plain>`, api.UnexpectedStatus, "application/x-www-form-urlencoded"},
		"one-time code":       {form{}, `<form method=post>` + fields + `<input name=otp required>`, api.UnexpectedStatus, "more than a username and a password"},
		"terms":               {form{}, `<form method=post>` + fields + `<input type=checkbox name=terms required>`, api.UnexpectedStatus, "more than a username and a password"},
		"foreign action":      {form{}, `<form method=post action=https://evil.example/?CANARY-token>` + fields, api.SSORedirect, "https://app.corp.example/app/login leads to https://evil.example, which is not one of the site's hosts"},
		"foreign button":      {form{}, `<form method=post action=in>` + fields + `<button formaction=//evil.example>`, api.SSORedirect, "https://evil.example"},
		"foreign base":        {form{}, `<base href=https://evil.example><form method=post action=in>` + fields, api.SSORedirect, "https://evil.example"},
		"in clear":            {form{}, `<form method=post action=http://app.corp.example/in>` + fields, api.InsecureRedirect, "from https to http://app.corp.example"},
		"script as action":    {form{}, `<form method=post action=javascript:CANARY()>` + fields, api.SSORedirect, "not a web address"},
		"user in the action":  {form{}, `<form method=post action=https://u:CANARY@app.corp.example/>` + fields, api.SSORedirect, "user name"},
		"action is no URL":    {form{}, `<form method=post action="https://[CANARY">` + fields, api.UnexpectedStatus, "not a web address"},
		"captcha field":       {form{}, `<form method=post>` + fields + `<input name=captcha_response>`, api.Captcha, "browser"},
		"captcha picture":     {form{}, `<form method=post>` + fields + `<img src=/Captcha.png>`, api.Captcha, "browser"},
		"widget":              {form{}, `<form method=post>` + fields + `<div class="x g-recaptcha"></div>`, api.Captcha, "browser"},
		"turnstile":           {form{}, `<form method=post>` + fields + `<div class=cf-turnstile></div>`, api.Captcha, "browser"},
		"captcha's button":    {form{}, `<form id=f method=post>` + fields + `</form><button class=h-captcha form=f>`, api.Captcha, "browser"},
		"user not in charset": {form{}, `<form method=post accept-charset=iso-8859-7>` + fields, api.UnexpectedStatus, "UTF-8"},
		"too long":            {form{}, `<form method=post>` + fields + `</form>` + strings.Repeat(" ", maxPage), api.UnexpectedStatus, "too long"},
	} {
		x := web.NewExchange(web.Options{Base: &url.URL{Scheme: "https", Host: "app.corp.example", Path: "/app"}, InsecureHTTP: true}, new(web.Jar))
		_, err := c.form.fill(x, at(t, "https://app.corp.example/app/login?CANARY-query", "text/html; charset=utf-8", `<input type=hidden name=x value=CANARY-token>`+c.html), "bü")
		quiet(t, name, err)
		if e := api.AsError(err); e == nil || e.Code != c.code || !strings.Contains(e.Detail+"\n"+e.Remedy, c.want) {
			t.Errorf("%s: %+v, want %s with %q", name, e, c.code, c.want)
		}
		x.Close()
	}
}

// TestFormCaptchaElsewhere: what another form of the page wants is no matter.
func TestFormCaptchaElsewhere(t *testing.T) {
	x := web.NewExchange(web.Options{Base: &url.URL{Scheme: "https", Host: "app.corp.example"}}, new(web.Jar))
	defer x.Close()
	page := at(t, "https://app.corp.example/", "text/html; charset=utf-8", `<form method=post><input type=email name=m><div class=g-recaptcha></div></form><form method=post>`+fields+`</form>`)
	if _, err := new(form).fill(x, page, "build"); err != nil {
		t.Error(err)
	}
}

// TestFormAnswers: what a site says to the form, whether the password is spent
// by it, and that it goes out once.
func TestFormAnswers(t *testing.T) {
	const loginForm = `<form method=post action=in>` + fields + `</form>`
	answer := func(status int, header, value, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if header != "" {
				w.Header().Set(header, value)
			}
			w.WriteHeader(status)
			w.Write([]byte(body))
		}
	}
	session := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Set-Cookie", "s=CANARY-session; Path=/")
			h(w, r)
		}
	}
	for name, c := range map[string]struct {
		post http.HandlerFunc
		me   string // the proof
		code api.Code
		back bool
	}{
		"redirect":                  {session(answer(303, "Location", "home", "")), "", "", false},
		"redirect, answered by 403": {session(answer(302, "Location", "forbidden", "")), "", "", false},
		"page":                      {session(answer(200, "", "", "welcome")), "", "", false},
		"empty":                     {session(answer(204, "", "", "")), "", "", false},
		"form again":                {answer(200, "", "", loginForm), "", api.BadCredentials, false},
		"form again with a cookie":  {session(answer(200, "", "", loginForm)), "", api.BadCredentials, false},
		"form again, 401":           {answer(401, "", "", loginForm), "", api.BadCredentials, false},
		"form again, 422":           {answer(422, "", "", loginForm), "", api.BadCredentials, false},
		"redirect to the form":      {answer(302, "Location", "login?error", ""), "", api.BadCredentials, false},
		"now with a captcha":        {answer(200, "", "", `<form>`+fields+`<input name=captcha>`), "", api.Captcha, false},
		"401":                       {answer(401, "", "", ""), "", api.BadCredentials, false},
		"403":                       {answer(403, "", "", "CSRF"), "", api.UnexpectedStatus, false},
		"404":                       {session(answer(404, "", "", "")), "", api.UnexpectedStatus, false},
		"429":                       {answer(429, "", "", ""), "", api.RateLimited, true},
		"503":                       {answer(503, "", "", loginForm), "", api.Maintenance, true},
		"500":                       {answer(500, "", "", ""), "", api.Server5xx, false},
		"503 afterwards":            {session(answer(302, "Location", "down", "")), "", api.Maintenance, false},
		"307":                       {session(answer(307, "Location", "in2", "")), "", api.UnexpectedStatus, false},
		"308":                       {session(answer(308, "Location", "in2", "")), "", api.UnexpectedStatus, false},
		"307 to a foreign host":     {answer(307, "Location", "http://evil.example/", ""), "", api.SSORedirect, false},
		"302 to a foreign host":     {session(answer(302, "Location", "http://evil.example/?CANARY-token", "")), "", api.SSORedirect, false},
		"foreign host later":        {session(answer(302, "Location", "away", "")), "", api.SSORedirect, false},
		"302 to nowhere":            {session(answer(302, "", "", "")), "", api.UnexpectedStatus, false},
		"the same cookie, proven":   {answer(302, "Location", "home", ""), "build", "", false},
		"the same cookie":           {answer(200, "Set-Cookie", "anonymous=CANARY-1; Path=/", "no"), "", api.BadCredentials, false},
		"the form, logged in":       {session(answer(303, "Location", "login", "")), "build", "", false},
		"the form, nobody there":    {session(answer(303, "Location", "login", "")), "", api.BadCredentials, false},
		"the form, no proof now":    {session(answer(303, "Location", "login", "")), "down", api.Maintenance, false},
		"the form, as before":       {answer(303, "Location", "login", ""), "build", api.BadCredentials, false},
		"the same cookie, changed":  {answer(200, "Set-Cookie", "anonymous=CANARY-2; Path=/", "welcome"), "", "", false},
		"cookie taken away":         {answer(200, "Set-Cookie", "anonymous=; Path=/; Max-Age=0", "welcome"), "build", api.NoSessionCookie, false},
		"the same, no proof now":    {answer(200, "", "", "welcome"), "down", api.Maintenance, false},
		"the same, 403 now":         {answer(200, "", "", "welcome"), "forbidden", api.NoSessionCookie, false},
		"cut off":                   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "", api.NetworkError, false},
		"another form":              {session(answer(200, "", "", `<form><input name=q></form><form><input type=password name=p></form>`)), "", "", false},
	} {
		var posts atomic.Int32
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, port, _ := net.SplitHostPort(r.Host); r.Host != "app.corp.example:"+port {
				t.Errorf("%s: %s was asked", name, r.Host)
			}
			if r.Method == http.MethodPost {
				posts.Add(1)
				if r.URL.Path != "/app/in" || r.FormValue("u") != "build" || r.FormValue("p") != "CANARY-password" {
					t.Errorf("%s: %s %v", name, r.URL, r.Form)
				}
				c.post(w, r)
				return
			}
			switch r.URL.Path {
			case "/app/login":
				http.SetCookie(w, &http.Cookie{Name: "anonymous", Value: "CANARY-1", Path: "/"})
				w.Write([]byte(loginForm))
			case "/app/home":
				w.Write([]byte("welcome"))
			case "/app/forbidden":
				w.WriteHeader(http.StatusForbidden)
			case "/app/away":
				http.Redirect(w, r, "http://evil.example/", http.StatusFound)
			case "/app/me":
				switch c.me {
				case "down":
					w.WriteHeader(http.StatusServiceUnavailable)
				case "forbidden":
					w.WriteHeader(http.StatusForbidden)
				}
				fmt.Fprintf(w, `{"user":%q}`, c.me)
			default:
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}), new(web.Jar), nil)
		f := &form{proof: proof{LoginURL: "login", ProbeURL: "me", IdentityJSON: "user"}}
		p := new(lent)
		err := f.Login(t.Context(), x, p)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || p.back != c.back || posts.Load() != 1 {
			t.Errorf("%s: %v, want %q; given back: %v; %d posts", name, err, c.code, p.back, posts.Load())
		}
	}
}

// TestFormTooLate: a form that the site has forgotten is shown and sent once more, and
// not a third time.
func TestFormTooLate(t *testing.T) {
	for times, code := range map[int]api.Code{1: "", 2: api.UnexpectedStatus} {
		posts := 0
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPost:
				if posts++; posts <= times {
					w.WriteHeader(http.StatusRequestTimeout)
					return
				}
				w.Header().Add("Set-Cookie", "s=CANARY-session; Path=/")
			case r.URL.Path == "/app/login":
				w.Write([]byte(loginForm))
			}
		}), new(web.Jar), nil)
		p := new(lent)
		err := (&form{proof: proof{LoginURL: "login", ProbeURL: "me", IdentityJSON: "user"}}).Login(t.Context(), x, p)
		if api.CodeOf(err) != code || posts != 2 || !p.back {
			t.Errorf("%d times 408: %v, want %q; %d posts, given back: %v", times, err, code, posts, p.back)
		}
	}
}

// TestFormNoPassword: nothing is sent if there is none, or none is wanted.
func TestFormNoPassword(t *testing.T) {
	latched := &api.Error{Code: api.Latched, Detail: "refused before", Remedy: "x"}
	for name, c := range map[string]struct {
		page  http.HandlerFunc
		err   error
		code  api.Code
		taken bool
	}{
		"latched": {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`<form method=post>` + fields)) }, latched, api.Latched, true},
		"not found": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(404)
			w.Write([]byte(`<form method=post>` + fields))
		}, nil, api.UnexpectedStatus, false},
		"a gate": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(401)
		}, nil, api.ChallengeUnsupported, false},
		"down": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }, nil, api.Server5xx, false},
		"foreign": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://evil.example/", http.StatusFound)
		}, nil, api.SSORedirect, false},
	} {
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet {
				t.Errorf("%s: %s", name, r.Method)
			}
			c.page(w, r)
		}), new(web.Jar), nil)
		p := &lent{err: c.err}
		err := new(form).Login(t.Context(), x, p)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || p.taken != c.taken {
			t.Errorf("%s: %v, want %q; taken: %v", name, err, c.code, p.taken)
		}
	}
}

// TestFormCharset: a password arrives as it is, in the page's encoding, or stays
// here.
func TestFormCharset(t *testing.T) {
	for name, c := range map[string]struct {
		contentType, meta, password, label string // label: what the server reads
		code                               api.Code
	}{
		"utf-8":                {"text/html; charset=UTF-8", "", "CANARY-&=+%ü\" €日", "utf-8", ""},
		"latin-1":              {"text/html; charset=ISO-8859-1", "", "CANARY-&=+%ü\"€", "windows-1252", ""},
		"meta":                 {"text/html", `<meta charset=shift_jis>`, "CANARY-日本&", "shift_jis", ""},
		"undeclared":           {"text/html", "", "CANARY-ü", "windows-1252", ""},
		"not in latin-1":       {"text/html; charset=ISO-8859-1", "", "CANARY-日", "", api.UnexpectedStatus},
		"not in windows-1252":  {"text/html", "", "CANARY-日", "", api.UnexpectedStatus},
		"an escape of its own": {"text/html; charset=ISO-8859-1", "", "CANARY-&#26085;", "windows-1252", ""},
	} {
		var got []byte
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				w.Header().Set("Set-Cookie", "s=CANARY-session")
				if v := r.PostFormValue("t"); v != "\xe4" && v != "t" {
					t.Errorf("%s: the token came back as %q", name, v)
				}
				got = []byte(r.PostFormValue("p"))
				return
			}
			w.Header().Set("Content-Type", c.contentType)
			token := "t"
			if c.label == "windows-1252" && c.contentType != "text/html" {
				token = "\xe4" // as bytes of that encoding
			}
			fmt.Fprintf(w, `%s<form method=post><input type=hidden name=t value="%s">%s`, c.meta, token, fields)
		}), new(web.Jar), nil)
		p := &offered{text: c.password}
		err := new(form).Login(t.Context(), x, p)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || p.back != (c.code != "") {
			t.Errorf("%s: %v, want %q; given back: %v", name, err, c.code, p.back)
		}
		if c.code != "" {
			if got != nil {
				t.Errorf("%s: sent", name)
			}
			continue
		}
		e, _ := charset.Lookup(c.label)
		if text, err := e.NewDecoder().Bytes(got); err != nil || string(text) != c.password {
			t.Errorf("%s: %q arrived, %v", name, text, err)
		}
	}
}

// TestFormOrigin: guards against forged requests ask where a form came from
// (OWASP, CSRF Prevention Cheat Sheet); a stranger learns no more than the
// origin.
func TestFormOrigin(t *testing.T) {
	for _, action := range []string{"/app/in?CANARY-query", "http://login.corp.example/in"} {
		var got http.Header
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				got = r.Header
				w.Header().Set("Set-Cookie", "s=CANARY-session")
				return
			}
			fmt.Fprintf(w, `<form method=post action="%s">%s`, action, fields)
		}))
		x := web.NewExchange(web.Options{
			Base: &url.URL{Scheme: "http", Host: "app.corp.example", Path: "/app"}, InsecureHTTP: true,
			LoginHosts: []web.Origin{{Scheme: "http", Host: "login.corp.example", Port: "80"}},
			Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
			},
		}, new(web.Jar))
		if err := (&form{proof: proof{LoginURL: "login;CANARY-parameter?next=CANARY-query"}}).Login(t.Context(), x, new(lent)); err != nil {
			t.Error(err)
		}
		referer := "http://app.corp.example/app/login"
		if action[0] != '/' {
			referer = ""
		}
		if got.Get("Origin") != "http://app.corp.example" || got.Get("Referer") != referer || got.Get("Content-Type") != "application/x-www-form-urlencoded" {
			t.Errorf("%s: %v", action, got)
		}
		x.Close()
		server.Close()
	}
}

func TestFormCheck(t *testing.T) {
	o := web.Options{Base: &url.URL{Scheme: "https", Host: "app.corp.example"}}
	named := proof{IdentityJSON: "user"}
	for name, c := range map[string]struct {
		form form
		want string
	}{
		"good":          {form{proof: named}, ""},
		"fields":        {form{UsernameField: "u", PasswordField: "p", proof: named}, ""},
		"the same":      {form{UsernameField: "u", PasswordField: "u", proof: named}, "the same field"},
		"no proof":      {form{UsernameField: "u"}, "identity_json"},
		"foreign login": {form{proof: proof{LoginURL: "https://sso.example/", IdentityJSON: "user"}}, "login_url"},
	} {
		if err := c.form.Check(o, ""); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// FuzzForm serves any page as the login page: the password goes out at most
// once, whole, in the body of a POST, and to the site alone.
func FuzzForm(f *testing.F) {
	for _, page := range []string{
		`<form method=post action=in><input type=hidden name=csrf value=1>` + fields + `<button name=b>`,
		`<base href=//evil.example/><form method=post action=x><select name=s><optgroup disabled><option selected>1</select><textarea name=t>` + "\n</textarea>" + fields,
		`<table><form method=post id=f enctype=text/plain><tr><template><svg><title/></svg></template><fieldset disabled></fieldset>` + fields + `<button form=f formaction=//evil.example formenctype=x>`,
		`<meta charset=iso-2022-jp><form method=post accept-charset="gb18030 utf-16le"><noscript>` + fields + `<input type=image><input type=checkbox name=remember checked>`,
		`<form method=get action=http://u:p@app.corp.example/>` + fields + `<input formmethod=post type=submit name=&#0;>`,
	} {
		f.Add("text/html; charset=utf-8", []byte(page))
		f.Add("text/html", []byte(page))
	}
	const password = "CANARY-&=+%ü\" 日"
	type served struct {
		contentType string
		page        []byte
		posts       []string
		wrong       string
	}
	var now *served
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		body.ReadFrom(r.Body)
		if r.Host != "app.corp.example" || strings.Contains(r.URL.String(), "CANARY") || r.Method != http.MethodPost && body.Len() > 0 {
			now.wrong = r.Method + " " + r.Host + " " + r.URL.String()
		}
		if r.Method == http.MethodPost {
			now.posts = append(now.posts, body.String())
			w.Header().Set("Set-Cookie", "s=CANARY-session")
			return
		}
		w.Header().Set("Content-Type", now.contentType)
		w.Write(now.page)
	}))
	f.Cleanup(server.Close)
	base := &url.URL{Scheme: "http", Host: "app.corp.example", Path: "/app"}
	f.Fuzz(func(t *testing.T, contentType string, page []byte) {
		now = &served{contentType: strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return -1
			}
			return r
		}, contentType), page: page}
		x := web.NewExchange(web.Options{Base: base, InsecureHTTP: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		}}, new(web.Jar))
		defer x.Close()
		p := &offered{text: password}
		err := new(form).Login(t.Context(), x, p)
		quiet(t, "fuzz", err)
		if now.wrong != "" || len(now.posts) > 1 {
			t.Fatalf("%s; %q", now.wrong, now.posts)
		}
		if sent := len(now.posts) == 1; sent != (p.taken && !p.back) {
			t.Fatalf("sent %v, %+v, %v", sent, p, err)
		}
		if len(now.posts) == 0 {
			return
		}
		sent, err := url.ParseQuery(now.posts[0])
		if err != nil {
			t.Fatal(err)
		}
		r := &web.Response{Body: page, Header: http.Header{"Content-Type": {now.contentType}}}
		forms, _ := readForms(r)
		arrived := slices.ContainsFunc(forms, func(h *htmlForm) bool {
			e, _ := charset.Lookup(h.charset(r))
			for _, values := range sent {
				if slices.ContainsFunc(values, func(v string) bool { text, err := e.NewDecoder().String(v); return err == nil && text == password }) {
					return true
				}
			}
			return false
		})
		if !arrived {
			t.Fatalf("the password did not arrive: %q", now.posts[0])
		}
	})
}
