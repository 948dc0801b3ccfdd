package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

// maxPage is how much of a page fetch shows, in bytes.
const maxPage = 1 << 20

// fetch gets a URL with the header lines that stand in headers, and writes the
// page. A status of 400 or more is an error, after the page.
func fetch(ctx context.Context, url string, headers io.Reader, page io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("%q is not a URL", url)
	}
	for lines := bufio.NewScanner(headers); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			return fmt.Errorf("standard input is not a list of header lines")
		}
		req.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	transport := http.DefaultTransport
	if strings.HasSuffix(req.URL.Hostname(), ".localhost") {
		transport = &http.Transport{DialContext: daemontest.DialLocalhost, DisableKeepAlives: true} // as curl does it
	}
	resp, err := transport.RoundTrip(req) // no redirects, as curl
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(page, io.LimitReader(resp.Body, maxPage)); err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
