package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

const (
	eventTopic = "jobs"
	eventGroup = "workers"
)

// place is one event: a message id that is published again, once its event is due, makes
// another.
type place struct {
	id  string
	pos base.Position
}

// eventLoad is publishers and members of one group at work, all recorded.
type eventLoad struct {
	c        *cluster
	recorder *lincheck.Recorder

	mu        sync.Mutex
	published map[place]bool           // acknowledged
	positions map[string]base.Position // by message id, as acknowledged last
	delivered map[place]int
	acked     map[place]time.Time // committed for sure
	again     []string            // deliveries long after a committed ack
	worst     time.Duration       // highest lateness
	unsure    int
	repeats   int // publishes that said duplicate
	total     atomic.Int64
}

func newEventLoad(c *cluster) *eventLoad {
	return &eventLoad{
		c: c, recorder: lincheck.NewRecorder(nil),
		published: make(map[place]bool), positions: make(map[string]base.Position),
		delivered: make(map[place]int), acked: make(map[place]time.Time),
	}
}

// publish publishes one batch under message ids, again and again until each event is
// acknowledged. It records first what may come of it.
func (l *eventLoad) publish(ctx context.Context, events ...client.NewEvent) {
	now := time.Now()
	for i := range events {
		due := now.Add(events[i].Delay).UnixMilli()
		if !events[i].Due.IsZero() {
			due = events[i].Due.UnixMilli()
		}
		l.recorder.Attempted(lincheck.Attempt{EventID: lincheck.EventID{Topic: eventTopic, ID: events[i].MessageID}, DueMS: due})
	}
	for len(events) > 0 {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		results, err := l.c.Client.Events.Publish(call, eventTopic, events...)
		cancel()
		var left []client.NewEvent
		for i, e := range events {
			if i >= len(results) || results[i].Err != nil {
				left = append(left, e)
				continue
			}
			l.acknowledged(e.MessageID, results[i])
		}
		if err != nil {
			l.mu.Lock()
			l.unsure++
			l.mu.Unlock()
		}
		if events = left; ctx.Err() != nil {
			return
		}
	}
}

func (l *eventLoad) acknowledged(id string, p client.Published) {
	pos := base.Position{DueMS: p.Position.DueMS, Seq: p.Position.Sequence}
	l.recorder.Published(lincheck.Publish{
		EventID:   lincheck.EventID{Topic: eventTopic, ID: id},
		Partition: base.Partition(p.Partition), Position: pos, Acked: l.recorder.Now(),
	})
	now := time.Now().UnixMilli()
	l.mu.Lock()
	defer l.mu.Unlock()
	known, again := l.positions[id]
	if again && now < known.DueMS && (pos != known || !p.Duplicate) {
		l.c.t.Errorf("%s is pending at %v, and publishing it again made an event at %v", id, known, pos)
	}
	l.positions[id] = pos
	l.published[place{id, pos}] = true
	if p.Duplicate {
		l.repeats++
	}
}

// member receives and acks until ctx ends. An ack counts once Flush says that it is
// committed.
func (l *eventLoad) member(ctx context.Context, name string) error {
	cl := l.c.NewClient(client.Options{})
	sub, err := cl.Events.Subscribe(ctx, client.SubscribeOptions{Topic: eventTopic, Group: eventGroup})
	if err != nil {
		return fmt.Errorf("member %s: %w", name, err)
	}
	for {
		batch, err := sub.NextBatch(ctx, 200)
		if ctx.Err() != nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
			defer cancel()
			return sub.Close(closing)
		}
		if err != nil {
			return fmt.Errorf("member %s: %w", name, err)
		}
		for _, e := range batch {
			l.receive(e)
		}
		if err := sub.Ack(batch...); err != nil {
			return fmt.Errorf("member %s: %w", name, err)
		}
		if len(batch) == 1 { // committed for sure, now and then
			flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
			err := sub.Flush(flushing)
			cancel()
			if err != nil {
				return fmt.Errorf("member %s: flush: %w", name, err)
			}
			l.mu.Lock()
			l.acked[placeOf(batch[0])] = time.Now()
			l.mu.Unlock()
		}
	}
}

func placeOf(e *client.Event) place {
	return place{e.MessageID, base.Position{DueMS: e.Position.DueMS, Seq: e.Position.Sequence}}
}

func (l *eventLoad) receive(e *client.Event) {
	p := placeOf(e)
	l.recorder.Delivered(lincheck.Delivery{
		EventID: lincheck.EventID{Topic: eventTopic, ID: e.MessageID}, Group: eventGroup,
		Partition: base.Partition(e.Partition), Position: p.pos,
		Attempt: int(e.Attempt), AtMS: e.ReceivedAt.UnixMilli(), At: l.recorder.Now(),
	})
	l.total.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delivered[p]++
	// It may have been on its way to another member when the ack was committed, but not
	// for long: if it comes much later, a cursor has moved back.
	if at, ok := l.acked[p]; ok && e.ReceivedAt.Sub(at) > time.Second {
		l.again = append(l.again, fmt.Sprintf("%s at %v, attempt %d, came again %v after its ack was committed",
			p.id, p.pos, e.Attempt, e.ReceivedAt.Sub(at)))
	}
	l.worst = max(l.worst, e.Lateness())
}

// takeWorst returns the highest lateness since it was asked for last.
func (l *eventLoad) takeWorst() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	worst := l.worst
	l.worst = 0
	return worst.Round(time.Millisecond)
}

// missing says how many acknowledged events were not delivered yet.
func (l *eventLoad) missing(context.Context) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, example := 0, ""
	for p := range l.published {
		if l.delivered[p] == 0 {
			n, example = n+1, fmt.Sprintf("%s at %v", p.id, p.pos)
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d acknowledged events are not delivered, such as %s", n, len(l.published), example)
}

// judge holds the history to the rules; call it when everything is delivered.
func (l *eventLoad) judge(t *testing.T) {
	t.Helper()
	report := lincheck.CheckEvents(l.recorder.Events(), lincheck.EventRules{
		Groups: []lincheck.Group{{Topic: eventTopic, Name: eventGroup}}, EndMS: time.Now().UnixMilli(),
	})
	for i, v := range report.Violations {
		if i == 20 {
			t.Errorf("and %d more violations", len(report.Violations)-i)
			break
		}
		t.Error(v)
	}
	for _, again := range l.again {
		t.Error(again)
	}
	repeated := 0
	for _, n := range l.delivered {
		repeated += n - 1
	}
	t.Logf("%d events acknowledged, %d delivered, %d deliveries repeated, %d acks known to be committed; "+
		"%d publishes of unknown outcome or failed, %d recognised as duplicates",
		len(l.published), len(l.delivered), repeated, len(l.acked), l.unsure, l.repeats)
}

// TestEventsUnderKill: invariants 3 and 5 while each node in turn is killed.
func TestEventsUnderKill(t *testing.T) {
	c := start(t, 3)
	if _, err := c.Client.Events.CreateTopic(proctest.Within(t, 20*time.Second), eventTopic, client.TopicOptions{Partitions: 6}); err != nil {
		t.Fatal(err)
	}
	l := newEventLoad(c)
	memberCtx, leave := context.WithCancel(t.Context())
	defer leave()
	publishCtx, stop := context.WithCancel(t.Context())
	defer stop()
	members := l.join(memberCtx, 2)
	var publishers sync.WaitGroup
	for i := range 3 {
		publishers.Add(1)
		go func() {
			defer publishers.Done()
			l.keepPublishing(publishCtx, i)
		}()
	}
	c.delivers(l, 300)
	t.Logf("highest lateness before any kill: %v", l.takeWorst())
	victims := []*localcluster.Node{c.Leader(base.SystemRange)}
	for _, n := range c.Nodes {
		if n != victims[0] {
			victims = append(victims, n)
		}
	}
	for i, n := range victims {
		c.Kill(n, [...]string{"leads the system range", "the second", "the third"}[i])
		c.delivers(l, 600)
		t.Logf("%s events go on firing: highest lateness %v", proctest.Clock(), l.takeWorst())
		c.Restart(n)
		c.Well(3)
		c.delivers(l, 300)
		l.takeWorst()
	}
	stop()
	publishers.Wait()
	proctest.Until(t, 30*time.Second, "every acknowledged event", l.missing)
	leave()
	for err := range members {
		if err != nil {
			t.Error(err)
		}
	}
	l.judge(t)
	l.settled(t)
}

// join starts members of the group, and returns when the group exists; the channel
// delivers how each ended, then is closed.
func (l *eventLoad) join(ctx context.Context, n int) <-chan error {
	l.c.t.Helper()
	first, err := l.c.Client.Events.Subscribe(proctest.Within(l.c.t, 20*time.Second), client.SubscribeOptions{Topic: eventTopic, Group: eventGroup, Prefetch: 1})
	if err != nil {
		l.c.t.Fatal(err)
	}
	if err := first.Close(proctest.Within(l.c.t, 20*time.Second)); err != nil {
		l.c.t.Fatal(err)
	}
	ended := make(chan error, n)
	var members sync.WaitGroup
	for i := range n {
		members.Add(1)
		go func() {
			defer members.Done()
			ended <- l.member(ctx, fmt.Sprint(i+1))
		}()
	}
	go func() {
		members.Wait()
		close(ended)
	}()
	return ended
}

// keepPublishing publishes small batches, due now or up to 3 s later, by delay or by
// time; now and then one again.
func (l *eventLoad) keepPublishing(ctx context.Context, publisher int) {
	r := rand.New(rand.NewPCG(uint64(publisher), 11))
	for n := 0; ctx.Err() == nil; n++ {
		events := make([]client.NewEvent, 1+r.IntN(5))
		for i := range events {
			events[i] = client.NewEvent{
				MessageID: fmt.Sprintf("p%d-%d-%d", publisher, n, i), Payload: fmt.Appendf(nil, "payload %d", n),
			}
			later := time.Duration(r.IntN(3000)) * time.Millisecond
			switch r.IntN(3) {
			case 0:
				events[i].Delay = later
			case 1:
				events[i].Due = time.Now().Add(later).Truncate(time.Millisecond)
			}
		}
		l.publish(context.WithoutCancel(ctx), events...)
		if n%20 == 0 {
			l.publish(context.WithoutCancel(ctx), events...)
		}
		proctest.Pause(ctx, 20*time.Millisecond)
	}
}

// delivers waits for n more deliveries.
func (c *cluster) delivers(l *eventLoad, n int64) {
	c.t.Helper()
	goal := l.total.Load() + n
	proctest.Until(c.t, 30*time.Second, fmt.Sprintf("%d more deliveries", n), func(context.Context) string {
		if left := goal - l.total.Load(); left > 0 {
			return fmt.Sprintf("%d are missing", left)
		}
		return ""
	})
}

// settled checks that nothing is left for the group once all its members have acked
// everything: a new member gets only an event that is published now.
func (l *eventLoad) settled(t *testing.T) {
	t.Helper()
	ctx := proctest.Within(t, 30*time.Second)
	sub, err := l.c.Client.Events.Subscribe(ctx, client.SubscribeOptions{Topic: eventTopic, Group: eventGroup})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Close(ctx) }()
	if _, err := l.c.Client.Events.Publish(ctx, eventTopic, client.NewEvent{MessageID: "the last", Delay: time.Second}); err != nil {
		t.Fatal(err)
	}
	e, err := sub.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if e.MessageID != "the last" {
		t.Errorf("%s (attempt %d) came to a new member though it was acked before", e.MessageID, e.Attempt)
	}
	if err := sub.Ack(e); err != nil {
		t.Error(err)
	}
}

// TestPendingEventsSurviveRestart: 10,000 events wait on disk while all nodes are
// stopped, gently before they are due or at one blow while they fire.
func TestPendingEventsSurviveRestart(t *testing.T) {
	const (
		events = 10_000
		batch  = 1000
		window = 4 * time.Second
	)
	for _, tc := range []struct {
		name  string
		ahead time.Duration // from the first publish to the first due time
		stop  func(c *cluster, first time.Time)
	}{
		{"SIGTERM before they are due", 8 * time.Second, func(c *cluster, first time.Time) {
			began := time.Now()
			c.StopAll(proctest.Within(c.t, 20*time.Second))
			c.t.Logf("all nodes stopped by SIGTERM in %v, %v before the first event is due",
				time.Since(began).Round(time.Millisecond), time.Until(first).Round(time.Millisecond))
		}},
		{"kill -9 while they fire", 5 * time.Second, func(c *cluster, first time.Time) {
			proctest.Pause(c.t.Context(), time.Until(first.Add(window/2)))
			c.KillAll()
			c.t.Logf("all nodes killed %v after the first event was due", time.Since(first).Round(time.Millisecond))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := start(t, 3)
			ctx := proctest.Within(t, 60*time.Second)
			if _, err := c.Client.Events.CreateTopic(ctx, eventTopic, client.TopicOptions{Partitions: 8}); err != nil {
				t.Fatal(err)
			}
			l := newEventLoad(c)
			memberCtx, leave := context.WithCancel(t.Context())
			defer leave()
			members := l.join(memberCtx, 2)
			began := time.Now()
			first := began.Add(tc.ahead).Truncate(time.Millisecond)
			for n := 0; n < events; n += batch {
				list := make([]client.NewEvent, batch)
				for i := range list {
					due := first.Add(window * time.Duration(n+i) / events).Truncate(time.Millisecond)
					list[i] = client.NewEvent{MessageID: fmt.Sprintf("e%05d", n+i), Due: due}
				}
				l.publish(ctx, list...)
			}
			t.Logf("%d events published in %v", len(l.published), time.Since(began).Round(time.Millisecond))
			if time.Now().After(first) {
				t.Errorf("publishing took longer than %v, so some were due before the end", tc.ahead)
			}
			tc.stop(c, first)
			for _, n := range c.Nodes {
				if n.Running() || n.Answers() {
					t.Fatalf("node %d still runs", n.Index)
				}
			}
			began = time.Now()
			if err := c.StartAll(); err != nil {
				t.Fatal(err)
			}
			c.Well(3)
			t.Logf("well %v after the restart", time.Since(began).Round(time.Millisecond))
			proctest.Until(t, 60*time.Second, "every event", l.missing)
			t.Logf("all delivered %v after the last was due, highest lateness %v",
				time.Since(first.Add(window)).Round(time.Millisecond), l.takeWorst())
			leave()
			for err := range members {
				if err != nil {
					t.Error(err)
				}
			}
			l.judge(t)
			l.settled(t)
		})
	}
}
