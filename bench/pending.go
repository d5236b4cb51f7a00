package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"time"

	"github.com/almanacdb/almanac/internal/load"
	"github.com/almanacdb/almanac/internal/localcluster"
)

// pendingMeasure publishes events that fall due in an hour, and finds what they cost in
// memory and at a restart.
func pendingMeasure() measure {
	return measure{system: almanac, name: "pending events", run: func(ctx context.Context, b *bench, c *cluster) (figures, error) {
		if !pause(ctx, b.idle) {
			return nil, ctx.Err()
		}
		fresh, err := c.largest()
		if err != nil {
			return nil, err
		}
		events, done, err := c.topic(ctx, "pending")
		if err != nil {
			return nil, err
		}
		t, err := load.Load{
			Clients: 16, Batch: 500, Count: b.pending, Seed: 1, Request: events.Publish(load.PendTimes(time.Now().Add(time.Hour))),
		}.Run(ctx, io.Discard)
		done()
		if err != nil {
			return nil, err
		}
		if t.Ops < b.pending {
			return nil, fmt.Errorf("%d of %d events were not published, %d of them were refused, the first error: %v", b.pending-t.Ops, b.pending, t.Refused, t.FirstError)
		}
		if !pause(ctx, b.idle) {
			return nil, ctx.Err()
		}
		loaded, err := c.largest()
		if err != nil {
			return nil, err
		}
		f := figures{"rate": t.PerSecond(), "fresh": float64(fresh), "loaded": float64(loaded), "above": float64(loaded - fresh)}
		if f["after SIGTERM"], err = c.restarts(ctx, syscall.SIGTERM); err != nil {
			return nil, err
		}
		f["after kill"], err = c.restarts(ctx, syscall.SIGKILL)
		return f, err
	}}
}

// restarts ends one node after another with a signal, and returns the longest time from
// start to ready, in seconds.
func (c *cluster) restarts(ctx context.Context, s syscall.Signal) (slowest float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for i, n := range c.nodes {
		if s == syscall.SIGKILL {
			n.Kill()
		} else if err := n.Stop(ctx); err != nil {
			return 0, fmt.Errorf("stopping a node: %w", err)
		}
		took, err := startTime(ctx, n, c.http[i])
		if err != nil {
			return 0, err
		}
		slowest = max(slowest, took.Seconds())
		if err := c.await(ctx); err != nil {
			return 0, err
		}
	}
	return slowest, nil
}

// startTime starts a node and waits until it says that it is ready.
func startTime(ctx context.Context, n *localcluster.Process, address string) (time.Duration, error) {
	begin := time.Now()
	if err := n.Start(); err != nil {
		return 0, err
	}
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
		if err != nil {
			return 0, err
		}
		answer, err := http.DefaultClient.Do(request)
		if err == nil {
			_ = answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return time.Since(begin), nil
			}
		}
		if !pause(ctx, 10*time.Millisecond) {
			return 0, fmt.Errorf("waiting for a node to be ready: %w\n%s", ctx.Err(), n.LogTail(1000))
		}
	}
}
