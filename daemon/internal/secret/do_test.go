package secret

import "testing"

// TestDo: in both builds f is called once, its result stays, and a panic comes through.
func TestDo(t *testing.T) {
	var kept []byte
	calls := 0
	Do(func() { calls++; kept = append(kept, "CANARY-kept"...) })
	if calls != 1 || string(kept) != "CANARY-kept" {
		t.Errorf("%d calls, %d bytes", calls, len(kept))
	}
	defer func() {
		if recover() != "in f" {
			t.Error("the panic is lost")
		}
	}()
	Do(func() { panic("in f") })
}
