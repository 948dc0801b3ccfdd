package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/client/clienttest"
)

// exampleSite is a site that takes one cookie, and an agent that gets it.
func exampleSite() (site *httptest.Server, agent *clienttest.Agent, end func()) {
	cookie := "JSESSIONID=CANARY-1"
	site = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cookie") != cookie {
			http.Error(w, "log in first", http.StatusUnauthorized)
			return
		}
		fmt.Fprintln(w, r.Method, r.URL.Path)
	}))
	agent, err := clienttest.Start()
	if err != nil {
		log.Fatal(err)
	}
	agent.AddSite(clienttest.Site{Name: "jira", URL: site.URL, Login: func() (clienttest.Session, error) {
		return clienttest.Session{User: "svc-build", Header: http.Header{"Cookie": {cookie}}}, nil
	}})
	return site, agent, func() {
		agent.Close()
		site.Close()
	}
}

// A request now and then: ask for the session, put it on the request.
func ExampleClient_Session() {
	site, agent, end := exampleSite()
	defer end()
	c := agent.Client() // in a program: var c client.Client

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	session, err := c.Session(ctx, client.Query{Site: "jira", URL: site.URL + "/rest/api/2/myself"})
	if err != nil {
		log.Fatal(err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, session.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := session.Apply(r); err != nil {
		log.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println(session.User, "gets", resp.StatusCode)
	// Output: svc-build gets 200
}

// A service that makes its requests in its own way has the session at hand, and
// reports one that the site refuses.
func ExampleClient_Watch() {
	site, agent, end := exampleSite()
	defer end()
	c := agent.Client() // in a program: var c client.Client

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	source, err := c.Watch(ctx, client.Query{Site: "jira"})
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()

	// For each request:
	session, err := source.Session()
	if err != nil {
		log.Fatal(err)
	}
	status := dial(site.URL, session.Header())
	if status == http.StatusUnauthorized {
		if session, err = c.Refresh(ctx, session); err != nil {
			log.Fatal(err)
		}
		status = dial(site.URL, session.Header())
	}
	fmt.Println("connected with", status)
	// Output: connected with 200
}

// dial stands for a library that takes headers, for WebSockets say.
func dial(url string, header http.Header) (status int) {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		log.Fatal(err)
	}
	r.Header = header
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// Every request of an http.Client is made with the session, and sent again with
// a new one if the site refuses the old.
func ExampleTransport() {
	site, agent, end := exampleSite()
	defer end()

	// In a program Site is enough.
	h := &http.Client{Transport: &client.Transport{Site: "jira", Client: agent.Client()}}
	resp, err := h.Post(site.URL+"/rest/api/2/issue", "application/json", strings.NewReader(`{"fields":{}}`))
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}

// What to do about a failure: its code says what it is, the code's exit status
// of which sort.
func ExampleClient_Session_errors() {
	agent, err := clienttest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer agent.Close()
	agent.AddSite(clienttest.Site{Name: "jira", URL: "https://jira.corp.example", Login: func() (clienttest.Session, error) {
		return clienttest.Session{}, &api.Error{Code: api.Latched, Detail: "the password was refused", Remedy: "sessionctl login jira --password-stdin"}
	}})

	_, err = agent.Client().Session(context.Background(), client.Query{Site: "jira"})
	switch code := api.CodeOf(err); {
	case err == nil:
		fmt.Println("go on")
	case code == api.UnknownSite:
		fmt.Println("the site is not configured, or not for this user")
	case code.Temporary():
		fmt.Println("try again later:", err)
	case code.Exit() == api.ExitPerson:
		fmt.Println("ask a person:", err)
		fmt.Println("next:", api.AsError(err).Remedy)
	default:
		fmt.Println("failed:", err)
	}
	// errors.Is asks for one code.
	fmt.Println(errors.Is(err, &api.Error{Code: api.Latched}))
	// Output:
	// ask a person: the password was refused (latched)
	// next: sessionctl login jira --password-stdin
	// true
}
