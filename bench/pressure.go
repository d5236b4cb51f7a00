package main

import (
	"context"
	"fmt"

	"github.com/almanacdb/almanac/internal/load"
)

const (
	// overload is how many times more clients than saturate a system are let loose on it.
	overload = 4
	// mostClients bounds the search for saturation.
	mostClients = 1024
	// gain is how much more twice the clients must do, else the system is saturated.
	gain = 1.05
)

// pressureMeasure looks for the number of clients that saturates a system, then lets
// overload times as many loose, and finds what is left of the peak. The peak is what the
// saturating number does right before and after: the highest of all that the search saw is
// also the luckiest.
func pressureMeasure(s system, a api) measure {
	return measure{system: s, name: "back-pressure, puts by " + string(a), run: func(ctx context.Context, b *bench, c *cluster) (figures, error) {
		keys, err := c.keys(ctx, a, everywhere)
		if err != nil {
			return nil, err
		}
		defer closeAll(keys.Stores)
		keys.Op = load.Put
		under := func(clients int) (load.Tally, error) {
			t, _, err := b.under(ctx, c, load.Load{Clients: clients, Batch: 1, Seed: 1, Request: keys.Request})
			return t, err
		}
		var search saturation
		for clients := 16; !search.over() && clients <= mostClients; clients *= 2 {
			t, err := under(clients)
			if err != nil {
				return nil, err
			}
			search.add(clients, t.PerSecond())
		}
		clients := search.found()
		before, err := under(clients)
		if err != nil {
			return nil, err
		}
		t, err := under(overload * clients)
		if err != nil {
			return nil, err
		}
		after, err := under(clients)
		if err != nil {
			return nil, err
		}
		peak := (before.PerSecond() + after.PerSecond()) / 2
		if t.Ops == 0 || peak == 0 {
			return nil, fmt.Errorf("nothing was done, the first error: %v", t.FirstError)
		}
		return figures{
			"clients": float64(clients), "peak": peak, "share": t.PerSecond() / peak, "p99": t.Quantile(99).Seconds(),
			"refused": float64(t.Refused) / float64(t.Ops+t.Refused+t.Errors),
		}, nil
	}}
}

// saturation is what came of more and more clients.
type saturation struct {
	clients []int
	rates   sample
	flat    int // how often more clients brought no gain, at last
}

func (s *saturation) add(clients int, rate float64) {
	_, best := s.rates.spread()
	if rate < best*gain {
		s.flat++
	} else {
		s.flat = 0
	}
	s.clients, s.rates = append(s.clients, clients), append(s.rates, rate)
}

// over says whether the peak is surely past: one flat step may be noise.
func (s *saturation) over() bool { return s.flat >= 2 }

// found returns the fewest clients that come near the peak.
func (s *saturation) found() (clients int) {
	_, peak := s.rates.spread()
	for i, r := range s.rates {
		if r*gain >= peak {
			return s.clients[i]
		}
	}
	return 0
}
