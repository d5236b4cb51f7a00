package simtest

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	search = flag.Duration("search", 0, "run seeds in processes of their own until this much time is over")
	procs  = flag.Int("procs", 2, "with -search: how many processes")
)

// found is what runs amounted to.
type found struct {
	Seeds   int
	Virtual time.Duration
	Counts  Counts
}

func (f *found) add(r *Result) {
	f.Seeds++
	f.Virtual += r.Virtual
	f.Counts.add(&r.Counts)
}

func (f *found) join(g *found) {
	f.Seeds += g.Seeds
	f.Virtual += g.Virtual
	f.Counts.add(&g.Counts)
}

// enough fails the test if a fault never struck, or clients did little: then runs prove
// little. Twelve seeds are the least that must show everything.
func (f *found) enough(t *testing.T) {
	t.Helper()
	t.Logf("%d seeds, %.2f hours of virtual time: %+v", f.Seeds, f.Virtual.Hours(), f.Counts)
	if f.Seeds < 12 || f.Virtual < 12*30*time.Second {
		return
	}
	c := &f.Counts
	for what, n := range map[string][2]int{
		"crashes": {c.Crashes, 2}, "kills": {c.Kills, 1}, "deaths in a turn": {c.PointCrashes, 1}, "pauses": {c.Pauses, 1},
		"partitions": {c.Partitions, 1}, "one-way cuts": {c.OneWayCuts, 1}, "bad links": {c.BadLinks, 1}, "transfers": {c.Transfers, 1},
		"writes": {c.Writes, 60}, "reads": {c.Reads, 80}, "follower reads": {c.FollowerReads, 40},
		"snapshots": {c.Snapshots, 3}, "snapshots again": {c.SnapshotsAgain, 4}, "unknown outcomes": {c.Unknown, 4},
		"events published": {c.Published, 50}, "events delivered": {c.Delivered, 100}, "events redelivered": {c.Repeated, 2}, "acks": {c.Acked, 100},
		"leaders": {c.Leaders, 5}, "log truncations": {c.Truncations, 5},
	} {
		if least := n[1] * f.Seeds; n[0] < least {
			t.Errorf("%s: only %d in %d seeds, not %d", what, n[0], f.Seeds, least)
		}
	}
	v := reflect.ValueOf(*c)
	for i := range v.NumField() {
		if v.Field(i).Int() == 0 {
			t.Errorf("%s: none in %d seeds", v.Type().Field(i).Name, f.Seeds)
		}
	}
}

// TestSearch runs seeds, from -first on, in -procs processes for the time that -search
// gives, and stops at the first that fails.
func TestSearch(t *testing.T) {
	if *search == 0 {
		t.Skip("runs with -search 5m")
	}
	if i := os.Getenv(searcherEnv); i != "" {
		searcher(t, i)
		return
	}
	start := time.Now()
	var (
		mu  sync.Mutex
		sum found
		bad []string
		all sync.WaitGroup
	)
	var kids []*exec.Cmd
	for i := range *procs {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSearch$", "-test.timeout=0",
			"-search", search.String(), "-procs", strconv.Itoa(*procs), "-first", fmt.Sprint(*first), "-simtime", simtime.String())
		cmd.Env = append(os.Environ(), searcherEnv+"="+strconv.Itoa(i))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		kids = append(kids, cmd)
		all.Go(func() {
			lines := bufio.NewScanner(out)
			lines.Buffer(nil, 1<<20)
			for lines.Scan() {
				var f finding
				if json.Unmarshal(lines.Bytes(), &f) != nil {
					continue
				}
				mu.Lock()
				sum.join(&f.found)
				if f.Failed != "" {
					bad = append(bad, f.Failed)
					for _, k := range kids {
						_ = k.Process.Signal(os.Interrupt)
					}
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for i, k := range kids {
		if err := k.Wait(); err != nil && len(bad) == 0 {
			t.Errorf("process %d ended: %v", i, err)
		}
	}
	took := time.Since(start)
	fmt.Printf("search: %d seeds from %d on, %.1f virtual hours in %v with %d processes: %.0f times real time\n",
		sum.Seeds, *first, sum.Virtual.Hours(), took.Round(time.Second), *procs, sum.Virtual.Seconds()/took.Seconds())
	if len(bad) > 0 {
		t.Fatal(strings.Join(bad, "\n\n"))
	}
	sum.enough(t)
}

// searcherEnv tells a process that it is one of those that TestSearch starts, and which.
const searcherEnv = "ALMANAC_SEARCHER"

// finding is a line that a searching process writes: what it did since the line before.
type finding struct {
	found
	Failed string
}

// searcher runs every procs-th seed until the time is over or one fails.
func searcher(t *testing.T, number string) {
	i, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	out := json.NewEncoder(os.Stdout)
	for end := time.Now().Add(*search); time.Now().Before(end); i += *procs {
		cfg := Config{Seed: *first + uint64(i), Faults: *simtime}
		res := simulate(t, cfg)
		var f finding
		f.add(&res)
		if len(res.Violations) > 0 {
			f.Failed = story(cfg, res)
		}
		if err := out.Encode(&f); err != nil || f.Failed != "" {
			return
		}
	}
}
