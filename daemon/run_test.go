package daemon

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// elsewhere is a site whose cookie is not for the site's own URL.
type elsewhere struct{}

func (elsewhere) Takes() []login.Means { return []login.Means{login.Ticket} }

func (elsewhere) Login(_ context.Context, x *web.Exchange, _ login.Password) error {
	u, err := x.URL("/other/")
	x.Jar().Set(u, []string{"s=CANARY-1; Path=/other"}, time.Now())
	return err
}

func (elsewhere) Probe(context.Context, *web.Exchange) (login.Identity, error) {
	return login.Identity{Name: "svc-build"}, nil
}

// TestNoCookieForTheURL: a session that has nothing for the URL is a failure,
// never an answer that would be used as an anonymous request.
func TestNoCookieForTheURL(t *testing.T) {
	k, err := rig.NewKDC("CORP.EXAMPLE")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	k.AddPrincipal("svc-build", "CANARY-password")
	c, err := configure(t, map[string]string{"sessiond.toml": credentialText + siteText, "build.keytab": string(k.Keytab("svc-build"))})
	if err != nil {
		t.Fatal(err)
	}
	site := c.Sites[0]
	site.users[0].driver, site.users[0].credential.Keytab = elsewhere{}, filepath.Join(filepath.Dir(c.Files[0]), "build.keytab")
	dir := shortDir(t)
	l, err := Listen(filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Run(ctx, l, Options{Config: c, Store: filepath.Join(dir, "state", "store.db"), Log: slog.New(slog.DiscardHandler)})
	}()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	cl := &client.Client{Socket: filepath.Join(dir, "agent.sock")}
	defer cl.Close()
	sessions, err := cl.Sessions()
	if err != nil {
		t.Fatal(err)
	}
	for url, code := range map[string]api.Code{"": api.NoSessionCookie, "https://app.corp.example/x": api.NoSessionCookie, "https://app.corp.example/other/x": ""} {
		resp, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "app", Url: url})
		if api.CodeOf(err) != code || (err == nil) != (len(resp.GetSession().GetHeaders()) > 0) {
			t.Errorf("%q: %v %v, want %q", url, resp, err, code)
		}
	}
}

// TestNoCookieForAToken: where a token goes with each request, a cookie is no login;
// nobody is asked.
func TestNoCookieForAToken(t *testing.T) {
	const site = "[site.NAME]\nurl = \"https://wiki.corp.example/\"\nkind = \"token\"\nproduct = \"confluence\"\ncredential = \"anna\"\n"
	r := run(t, Options{Config: loaded(t, strings.Replace(site, "NAME", "one", 1), strings.Replace(site, "NAME", "two", 1)+"[[site.two.use]]\ncredential = \"bert\"\n")})
	for _, c := range []struct {
		request *pb.LoginRequest
		remedy  string
	}{
		{&pb.LoginRequest{Site: "one"}, "sessionctl login one --password-stdin"},
		{&pb.LoginRequest{Site: "two", Credential: "bert"}, "sessionctl login two --credential bert --password-stdin"},
	} {
		c.request.Cookie = []byte("JSESSIONID=CANARY-cookie")
		_, err := r.sessions.Login(t.Context(), c.request)
		if e := api.AsError(err); api.CodeOf(err) != api.InvalidRequest || e.Detail != "the site takes a token, and no cookie" || e.Remedy != c.remedy {
			t.Errorf("%v: %v, next: %s", c.request.GetSite(), err, e.Remedy)
		}
	}
}
