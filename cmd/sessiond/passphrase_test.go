package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
)

// TestReadPassphrase from a pipe: it is the first line, whatever comes after it.
func TestReadPassphrase(t *testing.T) {
	longest := "CANARY-" + strings.Repeat("x", maxPassphrase-len("CANARY-"))
	for given, want := range map[string]string{
		"CANARY-a b \nmore\n": "CANARY-a b ", "CANARY-a": "CANARY-a", "CANARY-a\r\n": "CANARY-a", longest + "\n": longest,
		"": "", "\n": "", "\r\n": "", longest + "x\n": "", longest + longest: "",
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString(given); err != nil { // there is room in a pipe
			t.Fatal(err)
		}
		w.Close()
		var stderr bytes.Buffer
		got, err := readPassphrase(t.Context(), r, &stderr)
		r.Close()
		if string(got) != want || (err == nil) != (want != "") || stderr.Len() > 0 {
			t.Errorf("%.20q: %.20q, %v; %s", given, got, err, &stderr)
		}
		if e := api.AsError(err); err != nil && (e.Code != api.StoreKeyMissing || e.Remedy == "" || strings.Contains(fmt.Sprintf("%+v", e), "CANARY")) {
			t.Errorf("%.20q: %+v", given, e)
		}
	}
}

// TestPassphraseIsNotWaitedFor: a signal ends the waiting.
func TestPassphraseIsNotWaitedFor(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := readPassphrase(ctx, r, &bytes.Buffer{}); api.CodeOf(err) != api.StoreKeyMissing {
		t.Errorf("%v", err)
	}
}
