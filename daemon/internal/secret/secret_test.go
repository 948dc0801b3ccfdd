package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestNeverPrinted(t *testing.T) {
	const canary = "CANARY-secret"
	s := New(canary)
	if s.Reveal() != canary {
		t.Fatal("Reveal does not return the value")
	}
	type holder struct {
		Name  string
		Value String
		inner String
	}
	h := holder{"n", s, s}
	var log bytes.Buffer
	l := slog.New(slog.NewTextHandler(&log, nil))
	l.Info("x", "s", s, "h", h, "p", &h)
	j, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{
		log.String(), string(j),
		fmt.Sprintf("%v %s %+v %#v %q", s, s, s, s, s),
		fmt.Sprintf("%v %+v", []String{s}, map[string]String{"k": s}),
		fmt.Sprintf("%v %+v %#v", h.Value, []holder{{Value: s}}, s),
	} {
		if strings.Contains(out, canary) {
			t.Errorf("the secret was printed: %s", out)
		}
	}
}
