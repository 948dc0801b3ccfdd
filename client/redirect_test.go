package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/idna"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// siteAgent is an agent with the session of one site, for URLs of its origin as
// the agent compares those: without the dot at the end, and mapped by UTS 46.
type siteAgent struct {
	agent
	site string
}

const bearer = "Bearer CANARY-bearer"

func (a *siteAgent) origin(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	o := originOf(u)
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if mapped, err := idna.Lookup.ToASCII(host); err == nil {
		host = mapped
	}
	return o.scheme + " " + host + " " + o.port
}

func (a *siteAgent) GetSession(_ context.Context, m *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	if strings.Contains(m.GetUrl(), "@") || a.origin(m.GetUrl()) != a.origin(a.site) {
		return nil, coded(api.InvalidRequest, "name the site of that URL")
	}
	return &pb.GetSessionResponse{Session: &pb.Session{Site: "jira", Generation: "g1", Url: m.GetUrl(), Headers: []*pb.Header{
		{Name: "Cookie", Value: []byte(cookie), Secret: true}, {Name: "Authorization", Value: []byte(bearer), Secret: true},
		{Name: "User-Agent", Value: []byte("sessionctl/1")}, {Name: "X-Atlassian-Token", Value: []byte("no-check")},
	}}}, nil
}

func (a *siteAgent) ListSessions(context.Context, *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	return &pb.ListSessionsResponse{Sessions: []*pb.SessionSummary{{Site: "jira", Url: a.site}}}, nil
}

// wire is a proxy that is at the end of every way: it records what would be sent,
// and to whom, and answers as everybody. /jira/begin leads to where it is told.
type wire struct {
	*httptest.Server
	trusted *tls.Config // of a client that calls it by many names
	to      string
	status  int
	ending  sync.WaitGroup

	mu   sync.Mutex
	sent []posted
}

// posted is a request: where it goes, as whose the server there takes it, and all
// of it.
type posted struct{ place, host, text string }

func newWire(t *testing.T) *wire {
	w := &wire{}
	w.Server = httptest.NewUnstartedServer(w)
	w.StartTLS() // for a certificate; nobody comes here with TLS before CONNECT
	certificate := w.TLS
	known := x509.NewCertPool()
	known.AddCert(w.Certificate())
	w.trusted = &tls.Config{RootCAs: known, ServerName: "example.com"} // as httptest has it
	w.Close()
	w.Server = httptest.NewServer(w)
	w.TLS = certificate
	t.Cleanup(func() { w.Close(); w.ending.Wait() })
	return w
}

func (w *wire) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		w.answer(rw, r, "http://"+withPort(r.URL.Host, "80"))
		return
	}
	c, _, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		panic(err)
	}
	io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	w.ending.Go(func() {
		defer c.Close()
		inside := tls.Server(c, &tls.Config{Certificates: w.TLS.Certificates})
		request, err := http.ReadRequest(bufio.NewReader(inside))
		if err != nil {
			return
		}
		answer := httptest.NewRecorder()
		w.answer(answer, request, "https://"+r.Host)
		answer.Header().Set("Connection", "close")
		answer.Result().Write(inside)
		inside.Close()
	})
}

func withPort(host, port string) string {
	if (&url.URL{Host: host}).Port() == "" {
		return host + ":" + port
	}
	return host
}

func (w *wire) answer(rw http.ResponseWriter, r *http.Request, place string) {
	var text bytes.Buffer
	fmt.Fprintln(&text, r.Method, r.Host)
	r.Header.Write(&text)
	io.Copy(&text, r.Body)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, posted{strings.ToLower(place), strings.ToLower(r.Host), text.String()})
	if r.URL.Path == "/jira/begin" {
		rw.Header().Set("Location", w.to+"/jira/end")
		rw.WriteHeader(w.status)
	}
}

// TestRedirectMatrix: http.Client follows wherever a site leads. The session goes
// along to the site's own origin alone.
func TestRedirectMatrix(t *testing.T) {
	w := newWire(t)
	proxy, err := url.Parse(w.URL)
	if err != nil {
		t.Fatal(err)
	}
	// Who has a name's certificate is not what this is about.
	base := &http.Transport{Proxy: http.ProxyURL(proxy), TLSClientConfig: w.trusted, DisableKeepAlives: true}
	const jira = "jira.corp.example"
	cells := 0
	for _, scheme := range []string{"https", "http"} {
		other, port := "http", "443"
		if scheme == "http" {
			other, port = "https", "80"
		}
		agent := &siteAgent{site: scheme + "://" + jira + "/jira"}
		path := socketPath(t)
		serveOn(t, path, agent)
		c := &Client{Socket: path}
		h := &http.Client{Transport: &Transport{Site: "jira", Client: c, Base: base}}
		for _, turn := range []struct {
			change, to string
			own        bool
		}{
			{"scheme", other + "://" + jira, false},
			{"scheme", other + "://" + jira + ":" + port, false},
			{"scheme", "ftp://" + jira, false},
			{"port", scheme + "://" + jira + ":8443", false},
			{"port", scheme + "://" + jira + ":" + port, true},
			{"sub-domain", scheme + "://sub." + jira, false},
			{"sub-domain", "//sub." + jira, false},
			{"parent", scheme + "://corp.example", false},
			{"sibling", scheme + "://wiki.corp.example", false},
			{"foreign", scheme + "://evil.example", false},
			{"foreign", scheme + "://" + jira + ".evil.example", false},
			{"trailing dot", scheme + "://" + jira + ".", true},
			{"trailing dot", scheme + "://" + jira + "..", false},
			{"trailing dot", scheme + "://evil.example.", false},
			{"case", scheme + "://JIRA.Corp.Example", true},
			{"case", strings.ToUpper(scheme) + "://" + jira, true},
			{"case", scheme + "://EVIL.example", false},
			{"userinfo", scheme + "://user:pw@" + jira, true}, // the user is not sent
			{"userinfo", scheme + "://" + jira + "@evil.example", false},
			{"userinfo", scheme + "://" + jira + ":" + port + "@evil.example", false},
			{"IDN", scheme + "://jir\u0430.corp.example", false},
			{"IDN", scheme + "://\uff4aira.corp.example", false}, // of which net/http makes another name than the agent
			{"IP", scheme + "://127.0.0.1", false},
			{"IP", scheme + "://[::1]", false},
		} {
			for _, status := range []int{302, 303, 307, 308} {
				for _, method := range []string{http.MethodGet, http.MethodPost} {
					name := fmt.Sprintf("%s, %s -> %s, %d, %s", turn.change, scheme, turn.to, status, method)
					w.mu.Lock()
					w.to, w.status, w.sent = turn.to, status, nil
					w.mu.Unlock()
					r, err := http.NewRequestWithContext(t.Context(), method, scheme+"://"+jira+"/jira/begin", strings.NewReader("body of it"))
					if err != nil {
						t.Fatal(err)
					}
					resp, err := h.Do(r)
					if err == nil {
						resp.Body.Close()
					}
					if got := fmt.Sprint(err); strings.Contains(got, "CANARY") {
						t.Errorf("%s: the message shows a secret: %s", name, got)
					}
					w.mu.Lock()
					with, without := 0, 0
					for _, q := range w.sent {
						rest, ours := strings.CutPrefix(q.place, scheme+"://"+jira)
						ours = ours && (rest == ":"+port || rest == ".:"+port) && strings.TrimSuffix(strings.TrimSuffix(q.host, ":"+port), ".") == jira
						switch has := strings.Contains(q.text, "CANARY") || strings.Contains(q.text, "sessionctl/1") || strings.Contains(q.text, "no-check"); {
						case has && !ours:
							t.Errorf("%s: LEAK to %s: %s", name, q.place, q.text)
						case ours && !(strings.Contains(q.text, cookie) && strings.Contains(q.text, bearer)):
							t.Errorf("%s: the site gets a request without the session: %s", name, q.text)
						case ours:
							with++
						default:
							without++
						}
					}
					w.mu.Unlock()
					wanted := [2]int{1, 1}
					switch {
					case turn.own:
						wanted = [2]int{2, 0}
					case strings.HasPrefix(turn.to, "ftp:"):
						wanted = [2]int{1, 0}
					}
					if got := [2]int{with, without}; got != wanted || (err != nil) != (wanted == [2]int{1, 0}) {
						t.Errorf("%s: %v; requests with and without the session: %v, want %v", name, err, got, wanted)
					}
					cells++
				}
			}
		}
		c.Close()
	}
	t.Logf("%d cells", cells)
}
