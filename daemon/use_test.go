package daemon

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/keeper"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

const (
	peopleText = "[credential.anna]\nusername = \"anna\"\n[credential.bert]\nusername = \"bert\"\n[credential.bert2]\nusername = \"bert\"\n"
	almText    = "[site.alm]\nurl = \"https://alm.corp.example/jira\"\nkind = \"jira\"\n"
	idpText    = "[idp.sso]\nurl = \"https://sso.corp.example/\"\nkind = \"spnego\"\ncredential = \"build\"\nidentity_json = \"user\"\n"
	crowdText  = "[idp.crowd]\nurl = \"https://jira.corp.example/jira\"\nkind = \"crowd\"\nvia = \"jira\"\ncredential = \"anna\"\n"
	memberText = "[site.wiki]\nurl = \"https://wiki.corp.example/\"\nkind = \"form\"\nidp = \"sso\"\nidentity_json = \"user\"\n"
)

// loaded is a configuration that has no mistake.
func loaded(t testing.TB, texts ...string) *Config {
	t.Helper()
	c, err := configure(t, map[string]string{"sessiond.toml": credentialText + peopleText + strings.Join(texts, "")})
	if err != nil {
		t.Fatalf("%v in %q", err, texts)
	}
	return c
}

func uid(n uint32) peer.Caller { return peer.Caller{UID: n, GID: n} }

// TestUses: the first use that fits serves, the site's own credential is the last,
// and one credential is one session.
func TestUses(t *testing.T) {
	c := loaded(t, almText, `credential = "build"
identity = "Build"
allow = ["uid:3", "uid:4"]
[[site.alm.use]]
credential = "anna"
allow = ["uid:1", "gid:20"]
fallback = ""
[[site.alm.use]]
credential = "bert"
identity = "Bertha"
allow = ["uid:2", "uid:1", "uid:5"]
[[site.alm.use]]
credential = "anna"
allow = ["uid:5", "uid:6", "uid:3"]
`)
	site := c.Sites[0]
	var ids []string
	for _, u := range site.users {
		ids = append(ids, u.id)
	}
	if want := []string{"alm/anna", "alm/bert", "alm/build"}; !slices.Equal(ids, want) {
		t.Errorf("the sessions are %q, want %q", ids, want)
	}
	for n, want := range map[uint32]string{1: "anna", 2: "bert", 3: "anna", 4: "build", 5: "bert", 6: "anna", 7: ""} {
		got := ""
		if u := site.serves(uid(n)); u != nil {
			got = u.credential.Name
		}
		if got != want {
			t.Errorf("uid %d is served by %q, want %q", n, got, want)
		}
	}
	if u := site.serves(peer.Caller{UID: 2, GID: 2, Groups: []uint32{20}}); u == nil || u.credential.Name != "anna" {
		t.Error("a group of the first use does not count")
	}
	anna, bert, build := site.users[0], site.users[1], site.users[2]
	if !slices.Equal(anna.expect.Names, []string{"anna"}) || !slices.Equal(bert.expect.Names, []string{"Bertha"}) || !slices.Equal(build.expect.Names, []string{"Build"}) {
		t.Errorf("expected are %q, %q and %q", anna.expect.Names, bert.expect.Names, build.expect.Names)
	}
	if anna.driver == bert.driver || anna.fingerprint == bert.fingerprint || anna.setup == bert.setup {
		t.Error("two users have a driver, a fingerprint or a setup in common")
	}
	if !site.lets(uid(5), anna) || site.lets(uid(2), anna) || site.lets(uid(7), build) {
		t.Error("lets")
	}
	for _, c := range []struct {
		uid              uint32
		credential, want string
	}{{1, "", "anna"}, {7, "", ""}, {7, "bert", "bert"}, {1, "bert", "bert"}, {1, "carl", ""}, {1, "person\x1b[", ""}} {
		u, err := site.meant(uid(c.uid), c.credential)
		if got := u; got != nil && got.credential.Name != c.want || (got == nil) != (c.want == "") {
			t.Errorf("%+v: %+v %v", c, got, err)
		}
		if c.want != "" {
			continue
		}
		if e := api.AsError(err); e.Code != api.InvalidRequest || !strings.Contains(e.Detail, "anna, bert, build") || !strings.Contains(e.Remedy, "--credential") || strings.Contains(e.Detail, "\x1b") {
			t.Errorf("%+v: %v", c, err)
		}
	}

	// Without an allow it is the agent's own user who may; an empty one is nobody's.
	c = loaded(t, almText, "use = [{ credential = \"anna\" }, { credential = \"bert\", allow = [] }]\n")
	if uses := c.Sites[0].uses; len(uses) != 2 || len(uses[0].allow) != 1 || len(uses[1].allow) != 0 {
		t.Errorf("%+v", uses)
	}
	// One session, whatever the entries: its name has to tell users apart that a
	// reload may add.
	if only, plain := loaded(t, almText, "[[site.alm.use]]\ncredential = \"anna\"\n").Sites[0].users[0].id, loaded(t, almText, "credential = \"anna\"\n").Sites[0].users[0].id; only != "alm/anna" || plain != "alm" {
		t.Errorf("the sessions are %q and %q", only, plain)
	}
	// Tickets and passwords at one site; what is for tickets is for those.
	c = loaded(t, almText, "spn = \"HTTP/alm\"\ncredential = \"anna\"\n[[site.alm.use]]\ncredential = \"build\"\nfallback = \"bert\"\n")
	if u := c.Sites[0].users[0]; u.fallback == nil || u.fallback.Name != "bert" || !slices.Equal(u.expect.Names, []string{"svc-build", "svc-build@CORP.EXAMPLE", "bert"}) {
		t.Errorf("%+v", u)
	}
}

// TestMember: a site whose identity provider logs in to it.
func TestMember(t *testing.T) {
	c := loaded(t, idpText, "fallback = \"anna\"\nlogin_hosts = [\"https://login.corp.example:8443\"]\nkeep_alive = true\n",
		memberText, "login_hosts = [\"static.corp.example\"]\nallow = [\"uid:5\"]\n", strings.Replace(memberText, "wiki", "tracker", 2), "identity = \"Builder\"\nkeep_alive = true\n")
	if len(c.Sites) != 2 || len(c.idps) != 1 {
		t.Fatalf("%+v", c)
	}
	idp, tracker, wiki := c.idps[0], c.Sites[0], c.Sites[1]
	w := wiki.users[0]
	if wiki.idp != idp || w.id != "wiki" || w.credential.Name != "build" || w.fallback != nil || idp.users[0].id != "sso" || !idp.keepAlive {
		t.Errorf("%+v %+v", wiki, w)
	}
	if !slices.Equal(w.expect.Names, []string{"svc-build", "svc-build@CORP.EXAMPLE", "anna"}) || !slices.Equal(tracker.users[0].expect.Names, []string{"Builder"}) {
		t.Errorf("expected are %q and %q", w.expect.Names, tracker.users[0].expect.Names)
	}
	origins := func(texts ...string) (all []web.Origin) {
		for _, text := range texts {
			o, err := web.ParseOrigin(text)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, o)
		}
		return all
	}
	theirs := origins("https://sso.corp.example", "https://login.corp.example:8443")
	if hosts := origins("https://static.corp.example"); !slices.Equal(wiki.hosts(), append(hosts, theirs...)) || !slices.Equal(tracker.hosts(), theirs) || !slices.Equal(idp.origins(), theirs) {
		t.Errorf("hosts %v and %v", wiki.hosts(), tracker.hosts())
	}
	if wiki.serves(uid(5)) != w || wiki.serves(uid(6)) != nil || idp.serves(uid(0)) != nil {
		t.Error("who may use it")
	}

	// Nobody finds the identity provider, by name or by URL.
	everything := func(*Site) bool { return true }
	for _, name := range []string{"sso", "idp.sso"} {
		if s, _, err := c.find(name, "", everything); api.CodeOf(err) != api.UnknownSite {
			t.Errorf("%s: %+v %v", name, s, err)
		}
	}
	if s, _, err := c.find("", "https://sso.corp.example/", everything); api.CodeOf(err) != api.UnknownSite {
		t.Errorf("by its URL: %+v %v", s, err)
	}

	// As the keeper has them: the credential is with the identity provider alone.
	engine := krb.New(krb.Options{Config: c.kerberos})
	t.Cleanup(engine.Close)
	have := &secrets{engine: engine, passwords: map[passwordKey]*keeper.Password{}, inURLs: map[string]web.ProxyPassword{}, clock: keeper.NewClock()}
	sites, idps := c.keeperSites(have)
	if len(sites) != 2 || len(idps) != 1 {
		t.Fatalf("%d sites, %d identity providers", len(sites), len(idps))
	}
	member, provider := sites[1], idps[0]
	if member.Name != "wiki" || member.IdP != provider.ID || !slices.Equal(member.IdPOrigins, theirs) || member.Password != nil || member.Fallback != nil || member.Bring != nil ||
		member.Ready() != nil || member.Forgive(t.Context()) != nil || member.Realm != "" || member.Account != "svc-build@CORP.EXAMPLE" || member.Credential != "build" {
		t.Errorf("the member is %+v", member)
	}
	if provider.Name != "sso" || provider.IdP != "" || provider.IdPOrigins != nil || provider.Ready == nil || provider.Fallback == nil || provider.Realm != "CORP.EXAMPLE" || !provider.KeepAlive || provider.RecheckSet {
		t.Errorf("the identity provider is %+v", provider)
	}

	// What proves a session is the member's own, and so is what is as by default.
	loaded(t, idpText, memberText, "probe_url = \"me\"\n", almText, "idp = \"sso\"\nsession_url = \"me\"\nlogin_url = \"login.jsp\"\n")

	// Its credential is looked at like every other.
	if problems := c.Problems(t.Context()); len(problems) != 1 || api.CodeOf(problems[0]) != api.KeytabUnreadable {
		t.Errorf("problems: %v", problems)
	}
	alone := loaded(t, idpText)
	if len(alone.Warnings) != 1 || !strings.Contains(alone.Warnings[0], `idp sso: no site has idp = "sso"`) {
		t.Errorf("warnings: %q", alone.Warnings)
	}
}

// TestSharedProvider: the sites of a provider that shares its cookies may be where it
// logs in, and are the user's whose token it is.
func TestSharedProvider(t *testing.T) {
	const jira = "[site.jira]\nurl = \"https://jira.corp.example/jira\"\nkind = \"jira\"\nidp = \"crowd\"\n"
	c := loaded(t, `[credential.person]
username = "person"
[idp.crowd]
url = "https://jira.corp.example/jira"
kind = "crowd"
via = "jira"
credential = "person"
`, jira)
	if u := c.Sites[0].users[0]; !slices.Equal(u.expect.Names, []string{"person"}) {
		t.Errorf("%+v", u.expect)
	}
	c = loaded(t, `[credential.application]
username = "sessionctl"
[idp.crowd]
url = "https://crowd.corp.example/crowd"
kind = "crowd"
via = "rest"
user = "build"
probe_url = "https://jira.corp.example/jira/rest/auth/1/session"
identity_json = "name"
login_hosts = ["jira.corp.example"]
credential = "application"
`, jira)
	for _, s := range []*Site{c.Sites[0], c.idps[0]} {
		if u := s.users[0]; !slices.Equal(u.expect.Names, []string{"build"}) {
			t.Errorf("%s: %+v", u.id, u.expect)
		}
		if got := s.summary(keeper.Summary{Site: keeper.Site{Account: s.users[0].credential.account()}}); got.GetUser() != "build" {
			t.Errorf("%s is listed as %s's", s.Name, got.GetUser())
		}
	}
}

// TestSharedAllow: whoever may use a site of a provider that shares has what is a login
// at its others; if these are for others, a person should know.
func TestSharedAllow(t *testing.T) {
	site := func(name, idp, more string) string {
		return fmt.Sprintf("[site.%s]\nurl = \"https://%s.corp.example/\"\nkind = \"confluence\"\nidp = %q\n%s", name, name, idp, more)
	}
	own := fmt.Sprintf("allow = [\"uid:%d\"]\n", os.Geteuid())
	for _, c := range []struct {
		idp, first, second string
		warn               bool
	}{
		{"crowd", "", "", false},
		{"crowd", "", own, false},
		{"crowd", "allow = [\"uid:1\", \"gid:2\"]\n", "allow = [\"gid:2\", \"uid:1\"]\n", false},
		{"crowd", "allow = [\"uid:1\", \"gid:2\"]\n", "allow = [\"uid:1\"]\n", true},
		{"crowd", "allow = [\"uid:1\"]\n", "allow = []\n", true},
		{"sso", "allow = [\"uid:1\"]\n", "allow = []\n", false}, // which shares nothing
	} {
		text := map[string]string{"crowd": crowdText, "sso": idpText}[c.idp]
		got := loaded(t, text, site("wiki", c.idp, c.first), site("git", c.idp, c.first), site("zoo", c.idp, c.second)).Warnings
		want := "idp crowd: its sites git and zoo have different allow, but whoever may use one of them gets the provider's cookie, which is a login at all of them: set the same allow for each"
		if c.warn != slices.Contains(got, want) || len(got) > 1 || len(got) == 1 && !c.warn {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// TestUseMistakes: each is one sentence that names the table.
func TestUseMistakes(t *testing.T) {
	use := func(credential, more string) string {
		return fmt.Sprintf("[[site.alm.use]]\ncredential = %q\n%s", credential, more)
	}
	for name, c := range map[string]struct{ text, want string }{
		"nobody":                  {almText, "site.alm: credential is missing: name one, or one in each of several [[site.alm.use]], or the idp that logs in here"},
		"no entries":              {almText + "use = []\n", "site.alm: credential is missing"},
		"no credential":           {almText + "[[site.alm.use]]\nallow = [\"uid:1\"]\n", "site.alm: use: entry 1 has no credential"},
		"credential":              {almText + use("anna", "") + use("carl", ""), "site.alm: use: entry 2: there is no [credential.carl]"},
		"allow":                   {almText + use("anna", "") + use("bert", "allow = [\"everybody\"]\n"), `site.alm: use: entry 2: allow: "everybody" is not user:NAME`},
		"one account":             {almText + use("bert", "") + use("bert2", ""), "site.alm: credential.bert and credential.bert2 are both bert: name one of them in both places"},
		"one account, own":        {almText + "credential = \"bert2\"\n" + use("bert", ""), "site.alm: credential.bert and credential.bert2 are both bert"},
		"one user, two names":     {almText + use("bert", "identity = \"Bertha\"\n") + use("bert", ""), "site.alm: two of its users have credential bert, and another identity or fallback"},
		"one user, two fallbacks": {almText + "credential = \"build\"\n" + use("build", "fallback = \"anna\"\n"), "site.alm: two of its users have credential build"},
		"allow of nobody":         {almText + "allow = [\"uid:1\"]\n" + use("bert", ""), "site.alm: allow beside use entries is for a credential of the site's own"},
		"identity of nobody":      {almText + "identity = \"x\"\n" + use("bert", ""), "site.alm: identity beside use entries"},
		"fallback of nobody":      {almText + "fallback = \"x\"\n" + use("bert", ""), "site.alm: fallback beside use entries"},
		"fallback":                {almText + use("build", "fallback = \"carl\"\n"), "site.alm: use: entry 1: fallback: there is no [credential.carl]"},
		"own credential":          {almText + "credential = \"carl\"\n" + use("anna", ""), "site.alm: there is no [credential.carl]"},
		"tickets of nobody":       {almText + "spn = \"HTTP/x\"\n" + use("anna", "") + use("bert", ""), "site.alm: spn is for tickets, and credential.anna is a username and its password"},
		"unproven Jira":           {almText + use("anna", "identity = \"unproven\"\n"), "site.alm: use: entry 1: identity = \"unproven\" is not for Jira, which always names the user"},
		"wrong means":             {strings.Replace(siteText, `credential = "build"`, "", 1) + "[[site.app.use]]\ncredential = \"anna\"\n", "site.app: use: entry 1: the kind spnego does not log in with a username and its password"},
		"unknown key":             {almText + use("anna", "recheck = \"1m\"\n"), "unknown key recheck"},
		"another case":            {almText + use("anna", "Allow = []\n"), "unknown key site.alm.use.Allow: keys are in lower case"},
		"no list":                 {almText + "use = 5\n", "site.alm.use: an integer stands where a list is wanted"},
		"no such idp":             {memberText, "site.wiki: there is no [idp.sso]"},
		"member with credential":  {idpText + memberText + "credential = \"build\"\n", "site.wiki: credential is for the login, which is that of idp.sso: set it there"},
		"member with fallback":    {idpText + memberText + "fallback = \"anna\"\n", "site.wiki: fallback is for the login"},
		"member with spn":         {idpText + memberText + "spn = \"HTTP/x\"\n", "site.wiki: spn is for the login"},
		"member with no_pac":      {idpText + memberText + "no_pac = true\n", "site.wiki: no_pac is for the login"},
		"member with mutual_auth": {idpText + memberText + "mutual_auth = \"off\"\n", "site.wiki: mutual_auth is for the login"},
		"member with bindings":    {idpText + memberText + "channel_bindings = \"off\"\n", "site.wiki: channel_bindings is for the login"},
		"member with login_url":   {idpText + memberText + "login_url = \"/login\"\n", "site.wiki: login_url is for the login, which is that of idp.sso: set it there"},
		"member with user field":  {idpText + memberText + "username_field = \"u\"\n", "site.wiki: username_field is for the login"},
		"member with field":       {idpText + memberText + "probe_url = \"me\"\npassword_field = \"p\"\n", "site.wiki: password_field is for the login"},
		"Jira with login_url":     {idpText + almText + "idp = \"sso\"\nlogin_url = \"/login\"\n", "site.alm: login_url is for the login"},
		"spnego with login_url":   {idpText + strings.Replace(memberText, "form", "spnego", 1) + "login_url = \"/login\"\n", "site.wiki: login_url is for the login"},
		"member with uses":        {idpText + memberText + "[[site.wiki.use]]\ncredential = \"anna\"\n", "site.wiki: it has use entries and an idp"},
		"member with a token":     {idpText + "[site.wiki]\nurl = \"https://wiki.corp.example/\"\nkind = \"token\"\nidp = \"sso\"\nproduct = \"confluence\"\n", "site.wiki: the kind token takes no cookies, and idp.sso has nothing else for it: give it a credential of its own, in the place of the idp"},
		"member that shares":      {idpText + "[site.wiki]\nurl = \"https://wiki.corp.example/\"\nkind = \"crowd\"\nidp = \"sso\"\nvia = \"confluence\"\n", "site.wiki: the kind crowd is that of a provider, and no provider logs in to another: make it an [idp.wiki] with a credential"},
		"idp with a token":        {"[idp.sso]\nurl = \"https://sso.corp.example/\"\nkind = \"token\"\ncredential = \"anna\"\nproduct = \"jira\"\n", "idp.sso: the kind token has no cookies, and so nothing that could log in to a site"},
		"login, not of the idp":   {crowdText + "[site.wiki]\nurl = \"https://wiki.corp.example/\"\nkind = \"confluence\"\nidp = \"crowd\"\nlogin = \"tsv\"\n", "site.wiki: login is for the login, which is that of idp.crowd, whose kind has no such option: leave it out"},
		"login, of the idp":       {crowdText + "[site.wiki]\nurl = \"https://wiki.corp.example/\"\nkind = \"confluence\"\nidp = \"crowd\"\nlogin_url = \"l\"\n", "site.wiki: login_url is for the login, which is that of idp.crowd: set it there"},
		"two mistakes":            {strings.Replace(memberText, "idp = \"sso\"", "credential = \"anna\"\nlogin_url = \"https://a.example/\"\nprobe_url = \"https://b.example/\"", 1), "site.wiki: login_url leads to https://a.example, which is not one of the site's hosts; if that host belongs to the login, add \"https://a.example\" to the site's login_hosts (config_invalid)"},
		"empty option":            {almText + "credential = \"anna\"\ntsv_url = \"\"\n", `site.alm: tsv_url is empty: leave it out, and it is "rest/tsv/1.0/authenticate"`},
		"empty token":             {strings.Replace(crowdText, "via =", "token = \"\"\nvia =", 1), `idp.crowd: token is empty: leave it out, and it is "crowd.token_key"`},
		"member at its idp":       {idpText + strings.Replace(memberText, "wiki.corp", "sso.corp", 1), "site.wiki: https://sso.corp.example is a host of idp.sso"},
		"member at a login host":  {idpText + "login_hosts = [\"wiki.corp.example\"]\n" + memberText, "site.wiki: https://wiki.corp.example is a host of idp.sso"},
		"idp in clear":            {strings.Replace(idpText, "https", "http", 1) + "insecure_http = true\n" + memberText, "site.wiki: idp.sso has an http url, over which the login of this site would go: set insecure_http = true here, too"},
		"member without a proof":  {idpText + strings.Replace(memberText, "identity_json = \"user\"\n", "", 1), "site.wiki: nothing says how the site names the user"},
		"idp without kind":        {"[idp.sso]\nurl = \"https://sso.corp.example/\"\n", "idp.sso: kind is missing"},
		"idp of no kind":          {"[idp.sso]\nkind = \"saml\"\n", `idp.sso: kind "saml" is not one of`},
		"idp without credential":  {strings.Replace(idpText, "credential = \"build\"\n", "", 1), "idp.sso: credential is missing"},
		"idp without url":         {"[idp.sso]\nkind = \"form\"\ncredential = \"anna\"\n", "idp.sso: url is missing"},
		"idp's credential":        {strings.Replace(idpText, "build", "carl", 1), "idp.sso: there is no [credential.carl]"},
		"idp's means":             {strings.Replace(idpText, "build", "anna", 1), "idp.sso: the kind spnego does not log in with a username"},
		"idp's spn":               {idpText + "spn = \"HTTP\"\n", "idp.sso: spn: "},
		"idp's proxy":             {idpText + "proxy = \"corp\"\n", "idp.sso: there is no [proxy.corp]"},
		"idp with allow":          {idpText + "allow = [\"uid:1\"]\n", "unknown key allow: nobody may use an identity provider itself; its sites have allow"},
		"idp with idp":            {idpText + "idp = \"sso\"\n", "unknown key idp"},
		"idp with use":            {idpText + "use = []\n", "unknown key use"},
		"idp with unknown":        {idpText + "session_url = \"x\"\n", "unknown key session_url: it is an option of kind jira"},
		"idp's name":              {strings.Replace(idpText, "idp.sso", "idp.\"s o\"", 1), `"s o" cannot name an identity provider`},
		"idp in another case":     {idpText + "Recheck = \"1s\"\n", "idp.sso.Recheck"},
		"idp is no table":         {"[idp]\nsso = 5\n", "idp.sso: an integer stands where a table is wanted"},
		"keep_alive":              {siteText + "keep_alive = \"yes\"\n", "site.app.keep_alive: a string stands where true or false is wanted"},
		"idp is a list":           {siteText + "idp = [\"x\"]\n", "site.app.idp: an array stands where a string is wanted"},
	} {
		_, err := configure(t, map[string]string{"sessiond.toml": credentialText + peopleText + c.text})
		if api.CodeOf(err) != api.ConfigInvalid || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "sessiond.toml") || strings.Count(err.Error(), "(config_invalid)") != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	// In several files, the one is named that has the mistake.
	for name, files := range map[string][2]string{
		"member of nothing": {credentialText, memberText},
		"idp twice":         {credentialText + idpText, idpText},
		"wrong use":         {credentialText, almText + "[[site.alm.use]]\ncredential = \"build\"\nfallback = \"nobody\"\n"},
	} {
		_, err := configure(t, map[string]string{"sessiond.toml": files[0], "conf.d/1.toml": files[1]})
		if api.CodeOf(err) != api.ConfigInvalid || !strings.Contains(err.Error(), "conf.d/1.toml: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := configure(t, map[string]string{"sessiond.toml": memberText, "conf.d/1.toml": idpText, "conf.d/2.toml": credentialText})
	if err != nil || len(c.Sites) != 1 || c.Sites[0].idp == nil {
		t.Errorf("a site, its identity provider and the credential in three files: %v", err)
	}
}

// TestSetup: what a session is made from is in its setup, all of it, and who may
// use it is not; that is in the site's.
func TestSetup(t *testing.T) {
	t.Setenv("https_proxy", "http://environment.corp.example:3128")
	base := peopleText + credentialText + "[proxy.corp]\nurl = \"http://proxy.corp.example:3128\"\ncredential = \"build\"\n" + idpText + memberText + siteText + "proxy = \"corp\"\n" +
		almText + "credential = \"build\"\n[[site.alm.use]]\ncredential = \"anna\"\n"
	load := func(text string) map[string]*user {
		t.Helper()
		c, err := configure(t, map[string]string{"sessiond.toml": text})
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		all := map[string]*user{}
		for _, s := range slices.Concat(c.Sites, c.idps) {
			all["site "+s.Name] = &user{setup: s.setup}
			for _, u := range s.users {
				all[u.id] = u
			}
		}
		return all
	}
	was := load(base)
	for _, c := range []struct {
		old, text string
		// The sessions that are set up anew, and those that end.
		setup, ends string
	}{
		{"# nothing", "", "", ""},
		{`kind = "spnego"` + "\ncredential = \"build\"\nidentity_json = \"user\"\nproxy", "kind = \"spnego\"\nallow = [\"uid:1\"]\ncredential = \"build\"\nidentity_json = \"user\"\nproxy", "", ""},
		{"[[site.alm.use]]\n", "[[site.alm.use]]\nallow = [\"uid:1\"]\n", "", ""},
		{"[credential.anna]", "# a comment\n[credential.anna]", "", ""},
		{"principal = \"svc-build\"\n", "principal = \"svc-build\"\nexport = [\"uid:1\"]\n", "", ""},
		{"principal = \"svc-build\"\n", "principal = \"svc-build\"\nno_pac = true\n", "alm/build app sso wiki", ""},
		{"principal = \"svc-build\"\n", "principal = \"svc-other\"\n", "alm/build app sso wiki", "alm/build app sso wiki"},
		{"build.keytab", "other.keytab", "alm/build app sso wiki", ""},
		{`username = "anna"`, `username = "otto"`, "alm/anna", "alm/anna"},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nrecheck = \"1m\"\n", "app", ""},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nkeep_alive = true\n", "app", ""},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nuser_agent = \"x\"\n", "app", ""},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nspn = \"HTTP/x\"\n", "app", ""},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nno_pac = true\n", "app", ""},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nmutual_auth = \"required\"\n", "app", ""},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nchannel_bindings = \"off\"\n", "app", ""},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nlogin_hosts = [\"x.example\"]\n", "app", "app"},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nlogin_url = \"/x\"\n", "app", "app"},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\ninsecure_http = true\n", "app", "app"},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nidentity = \"x\"\n", "app", "app"},
		{"proxy = \"corp\"\n", "proxy = \"corp\"\nfallback = \"bert\"\n", "app", "app"},
		{"proxy = \"corp\"\n", "", "app", ""},
		{"proxy = \"corp\"\n", "proxy = \"none\"\n", "app", ""},
		{"proxy.corp.example:3128", "proxy.corp.example:8080", "app", ""},
		{"[proxy.corp]\n", "[proxy.corp]\nspn = \"HTTP/x\"\n", "app", ""},
		{"[[site.alm.use]]\n", "[[site.alm.use]]\nidentity = \"Anna\"\n", "alm/anna", "alm/anna"},
		{"alm.corp.example/jira", "alm.corp.example/alm", "alm/anna alm/build", "alm/anna alm/build"},
		{"sso.corp.example", "sso2.corp.example", "sso wiki", "sso wiki"},
		{"[idp.sso]\n", "[idp.sso]\nlogin_hosts = [\"x.example\"]\n", "sso wiki", "sso wiki"},
		{"[idp.sso]\n", "[idp.sso]\nkeep_alive = true\n", "sso wiki", ""},
		{"kind = \"form\"\n", "kind = \"spnego\"\n", "wiki", "wiki"},
		{"idp = \"sso\"\n", "idp = \"sso\"\nallow = [\"uid:1\"]\n", "", ""},
	} {
		text := strings.ReplaceAll(base, c.old, c.text)
		if text == base && c.text != "" {
			t.Fatalf("%q is not in the configuration", c.old)
		}
		is := load(text)
		var setup, ends []string
		for _, id := range slices.Sorted(maps.Keys(was)) {
			if is[id] == nil || is[id].setup == was[id].setup && is[id].fingerprint != was[id].fingerprint {
				t.Fatalf("%s: another fingerprint without another setup, or gone", id)
			}
			if strings.HasPrefix(id, "site ") {
				continue
			}
			if is[id].setup != was[id].setup {
				setup = append(setup, id)
			}
			if is[id].fingerprint != was[id].fingerprint {
				ends = append(ends, id)
			}
			if site, _, _ := strings.Cut(id, "/"); is[id].setup != was[id].setup && (is["site "+site].setup == was["site "+site].setup) != (id == "wiki" && is[id].fingerprint == was[id].fingerprint) {
				// What only its provider's login is made from is no change of a member.
				t.Errorf("%q → %q: the site %s counts as changed, or as unchanged", c.old, c.text, site)
			}
		}
		if strings.Join(setup, " ") != c.setup || strings.Join(ends, " ") != c.ends {
			t.Errorf("%q → %q: set up anew are %v, want %s; ended are %v, want %s", c.old, c.text, setup, c.setup, ends, c.ends)
		}
		if strings.Contains(c.text, "allow") && maps.EqualFunc(is, was, func(a, b *user) bool { return a.setup == b.setup }) {
			t.Errorf("%q → %q: no site counts as changed", c.old, c.text)
		}
	}
	for text, want := range map[string]bool{"recheck = \"1m\"\n": true, "keep_alive = true\n": true, "allow = [\"uid:1\"]\n": true, "# a comment\n": false} {
		if is := load(strings.Replace(base, "idp = \"sso\"\n", "idp = \"sso\"\n"+text, 1)); (is["site wiki"].setup != was["site wiki"].setup) != want {
			t.Errorf("%q: the member counts as changed: %t", text, !want)
		}
	}
	t.Setenv("https_proxy", "http://user:CANARY-password@environment.corp.example:3128")
	if is := load(base); is["alm/anna"].setup == was["alm/anna"].setup || is["app"].setup != was["app"].setup || is["alm/anna"].fingerprint != was["alm/anna"].fingerprint || strings.Contains(is["alm/anna"].setup, "CANARY") {
		t.Error("another proxy of the environment")
	}
}

// TestSecretsStay: what is known of a secret, and whose turn it is, outlives the
// configuration that named it.
func TestSecretsStay(t *testing.T) {
	made := 0
	have := &secrets{passwords: map[passwordKey]*keeper.Password{}, inURLs: map[string]web.ProxyPassword{}, newEngine: func(c *krb.Config) *krb.Engine {
		made++
		return krb.New(krb.Options{Config: c})
	}}
	t.Cleanup(have.close)
	text := peopleText + almText + "credential = \"anna\"\n"
	configured := func(text string) (*Config, *keeper.Password) {
		c, err := configure(t, map[string]string{"sessiond.toml": text})
		if err != nil {
			t.Fatal(err)
		}
		have.configure(c)
		return c, have.password(c.Sites[0].users[0].credential)
	}
	_, first := configured(text)
	if have.kerberos() != nil || first == nil {
		t.Error("an engine, or no password, without principals")
	}
	_, second := configured(text + "recheck = \"1s\"\n" + credentialText)
	if engine := have.kerberos(); engine == nil || second != first {
		t.Error("no engine, or another password")
	}
	if _, other := configured(strings.ReplaceAll(text, `username = "anna"`, `username = "otto"`)); other == first || have.kerberos() == nil {
		t.Error("the password of somebody else, or the engine is gone")
	}
	if _, back := configured(text + credentialText); back != first || made != 1 {
		t.Errorf("another password, or %d engines", made)
	}
	u := &url.URL{Scheme: "http", Host: "proxy:3128", User: url.UserPassword("user", "CANARY-password")}
	a, b := &proxy{url: u, inURL: web.UserPassword(u.User)}, &proxy{url: u, inURL: web.UserPassword(u.User)}
	if have.inURL(a) != a.inURL || have.inURL(b) != a.inURL || have.inURL(&proxy{url: u}) != nil {
		t.Error("a password in a proxy's URL is another one after a reload")
	}
}
