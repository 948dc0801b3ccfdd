package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// TestKillAgent: an agent that is killed at any instant, while sessions are made anew all
// the time, has lost none that somebody was given, and starts with them without a login.
func TestKillAgent(t *testing.T) {
	kills, seed, life := 10, uint64(1), 150*time.Millisecond
	if raceFlag == "-race" { // with which a program is some ten times slower
		kills, life = 4, 10*life
	}
	if os.Getenv("STORE_TORTURE") != "" {
		kills, seed = 1000, rand.Uint64()
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	w := inProcess(t)
	var tables []string
	sites := make([]string, 6)
	for i := range sites {
		sites[i] = fmt.Sprint("site", i)
		tables = append(tables, w.site(sites[i], "/spnego/"))
	}
	h := newHome(t, w, tables...)
	// given holds, for each site, the generations that callers had before the last one.
	given := make(map[string][]string)
	made := 0
	for kill := range kills {
		a := h.start(t)
		sessions := h.rpc(t)
		logins := w.hits(t, "/spnego/").Negotiate
		for site, had := range given {
			resp, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: site})
			must(t, err)
			if g := resp.GetSession().GetGeneration(); slices.Contains(had[:len(had)-1], g) {
				t.Errorf("after kill %d, %s: a session of before the one that was given last", kill, site)
			}
		}
		if more := w.hits(t, "/spnego/").Negotiate - logins; more > 0 {
			t.Errorf("after kill %d: %d logins for what was stored", kill, more)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var callers sync.WaitGroup
		for _, site := range sites {
			callers.Go(func() {
				for ctx.Err() == nil {
					resp, err := sessions.RefreshSession(ctx, &pb.RefreshSessionRequest{Site: site, Force: true})
					if err != nil {
						return // it was killed
					}
					mu.Lock()
					given[site] = append(given[site], resp.GetSession().GetGeneration())
					made++
					mu.Unlock()
				}
			})
		}
		<-time.After(time.Duration(r.Int64N(int64(life))))
		must(t, a.cmd.Process.Kill())
		<-a.done
		cancel()
		callers.Wait()
	}
	t.Logf("%d kills, %d sessions given", kills, made)
	if made < kills {
		t.Error("too few to tell anything")
	}
}
