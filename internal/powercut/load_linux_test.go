package powercut

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

const (
	topic   = "power"
	group   = "workers"
	workers = 4 // of each kind for each node
)

// load writes keys and events through every node, each once, and has the events acked by a
// member; it remembers what was acknowledged to it.
type load struct {
	c      *cluster
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	rounds    int
	puts      map[string]string    // acknowledged, by key
	published map[string]bool      // acknowledged, by message id
	received  map[string]bool      // by the group, by message id
	acked     map[string]time.Time // by message id and position: when the ack was confirmed
	tried     int
}

func newLoad(t *testing.T, c *cluster) *load {
	t.Helper()
	if _, err := c.Client.Events.CreateTopic(t.Context(), topic, client.TopicOptions{Partitions: 4}); err != nil {
		t.Fatal(err)
	}
	return &load{c: c, puts: map[string]string{}, published: map[string]bool{}, received: map[string]bool{}, acked: map[string]time.Time{}}
}

// through returns a client of one node, which does not try again by itself.
func (c *cluster) through(n *localcluster.Node) *client.Client {
	return c.NewClient(client.Options{Endpoints: []string{n.Address}, RetryFor: -1})
}

// start begins to write; stop ends it.
func (l *load) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l.cancel = cancel
	l.rounds++
	for i, n := range l.c.Nodes {
		cl := l.c.through(n)
		for w := range workers {
			name := fmt.Sprintf("%d/%d/%d", l.rounds, i, w)
			l.wg.Go(func() { l.write(ctx, cl, name) })
			l.wg.Go(func() { l.publish(ctx, cl, name) })
		}
	}
	l.wg.Go(func() { l.consume(ctx) })
}

func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}

func (l *load) write(ctx context.Context, cl *client.Client, name string) {
	for i := 0; ctx.Err() == nil; i++ {
		key := fmt.Sprintf("power/%s/%d", name, i)
		value := key + strings.Repeat(" is here", i%50)
		call, cancel := context.WithTimeout(ctx, time.Second)
		_, err := cl.KV.Put(call, []byte(key), []byte(value))
		cancel()
		l.note(ctx, err, func() { l.puts[key] = value })
	}
}

func (l *load) publish(ctx context.Context, cl *client.Client, name string) {
	for i := 0; ctx.Err() == nil; i++ {
		id := fmt.Sprintf("%s/%d", name, i)
		call, cancel := context.WithTimeout(ctx, time.Second)
		results, err := cl.Events.Publish(call, topic, client.NewEvent{
			MessageID: id, Payload: []byte(id), Delay: time.Duration(i%10) * 50 * time.Millisecond,
		})
		cancel()
		if err == nil && results[0].Err != nil {
			err = results[0].Err
		}
		l.note(ctx, err, func() { l.published[id] = true })
	}
}

// note remembers a success. A failure says nothing of what was done; a node without power
// is not asked again at once.
func (l *load) note(ctx context.Context, err error, acknowledged func()) {
	l.mu.Lock()
	l.tried++
	if err == nil {
		acknowledged()
	}
	l.mu.Unlock()
	if err != nil {
		proctest.Pause(ctx, 20*time.Millisecond)
	}
}

// consume acks what it receives; an ack counts once it is confirmed.
func (l *load) consume(ctx context.Context) {
	for ctx.Err() == nil {
		sub, err := l.c.Client.Events.Subscribe(ctx, client.SubscribeOptions{Topic: topic, Group: group})
		if err != nil {
			proctest.Pause(ctx, 20*time.Millisecond)
			continue
		}
		for err == nil && ctx.Err() == nil {
			err = l.settle(ctx, sub)
		}
		closing, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		_ = sub.Close(closing) // of the rest nothing is known
		cancel()
	}
}

func (l *load) settle(ctx context.Context, sub *client.Subscription) error {
	batch, err := sub.NextBatch(ctx, 200)
	if err != nil {
		return err
	}
	l.mu.Lock()
	for _, e := range batch {
		l.received[e.MessageID] = true
	}
	l.mu.Unlock()
	if err := sub.Ack(batch...); err != nil {
		return err
	}
	flushing, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := sub.Flush(flushing); err != nil {
		return err
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range batch {
		l.acked[place(e)] = now
	}
	return nil
}

func place(e *client.Event) string {
	return fmt.Sprintf("%s at %d/%v", e.MessageID, e.Partition, e.Position)
}

// lost is what was acknowledged and is not there.
type lost struct{ puts, events, acks int }

func (x lost) none() bool { return x == lost{} }

// judge looks for all that was acknowledged: keys through every node, events in a group of
// their own, and confirmed acks in that nobody gets those events again. Call it after stop.
func (l *load) judge(t *testing.T) (x lost) {
	t.Helper()
	for _, n := range l.c.Nodes {
		cl := l.c.NewClient(client.Options{Endpoints: []string{n.Address}})
		x.puts = max(x.puts, l.lostPuts(t, cl))
	}
	missing, at := maps.Clone(l.published), map[string]string{}
	l.drain(t, fmt.Sprintf("judge%d", l.rounds), func() (time.Duration, bool) { return patience, len(missing) > 0 }, func(e *client.Event) {
		delete(missing, e.MessageID)
		if other, ok := at[e.MessageID]; ok && other != place(e) {
			t.Errorf("published once, and there twice: %s, %s", other, place(e))
		}
		at[e.MessageID] = place(e)
	})
	settled := maps.Clone(l.acked)
	waiting := maps.Clone(l.published)
	maps.DeleteFunc(waiting, func(id string, _ bool) bool { return l.received[id] })
	again, now := map[string]string{}, time.Now()
	l.drain(t, group, func() (time.Duration, bool) {
		if len(waiting) > 0 {
			return patience, true
		}
		return time.Second, true
	}, func(e *client.Event) {
		if acked, ok := settled[place(e)]; ok {
			again[place(e)] = fmt.Sprintf("%s, acked %v after the last cut began, handed out for the attempt %d %v after that",
				place(e), acked.Sub(l.c.began), e.Attempt, e.ReceivedAt.Sub(l.c.began))
		}
		delete(waiting, e.MessageID)
		l.received[e.MessageID], l.acked[place(e)] = true, now
	})
	if x.acks = len(again); x.acks > 0 {
		t.Logf("handed out again: %s", strings.Join(slices.Sorted(maps.Values(again))[:min(x.acks, 20)], "\n"))
	}
	for what, lost := range map[string]map[string]bool{"by a new group": missing, "by the group": waiting} {
		if n := len(lost); n > 0 {
			t.Logf("%d events not received %s: %v", n, what, slices.Sorted(maps.Keys(lost))[:min(n, 20)])
		}
	}
	x.events = max(len(missing), len(waiting))
	if !x.none() {
		l.ranges(t)
	}
	t.Logf("%s round %d: %d tried; acknowledged: %d puts, %d events, %d acks; lost: %d, %d, %d", proctest.Clock(), l.rounds, l.tried,
		len(l.puts), len(l.published), len(settled), x.puts, x.events, x.acks)
	return x
}

func (l *load) lostPuts(t *testing.T, cl *client.Client) (n int) {
	t.Helper()
	found := map[string]string{}
	for round := range l.rounds {
		for i := range l.c.Nodes {
			for w := range workers {
				part, err := proctest.Almanac{KV: cl.KV}.Range(proctest.Within(t, 30*time.Second), fmt.Sprintf("power/%d/%d/%d/", round+1, i, w))
				if err != nil {
					t.Fatal(err)
				}
				maps.Copy(found, part)
			}
		}
	}
	var examples []string
	for key, value := range l.puts {
		if got, ok := found[key]; !ok || got != value {
			n++
			examples = append(examples, key)
		}
	}
	if slices.Sort(examples); n > 0 {
		t.Logf("lost keys: %v", examples[:min(n, 5)])
	}
	return n
}

// ranges logs who leads each range.
func (l *load) ranges(t *testing.T) {
	t.Helper()
	status, err := l.c.Client.Cluster.Ranges(proctest.Within(t, 10*time.Second), "", "")
	if err != nil {
		t.Log(err)
	}
	for _, r := range status {
		t.Logf("%+v", r)
	}
}

// patience is how long an event is waited for: a gateway that died keeps those that were
// handed out to its members until its sessions end.
const patience = 10 * time.Second

// drain receives what a group has not acked, and acks it, until nothing came for as long as
// wait says, or 3 s for the first, or wait says that nothing more is wanted.
func (l *load) drain(t *testing.T, group string, wait func() (time.Duration, bool), got func(*client.Event)) {
	t.Helper()
	sub, err := l.c.Client.Events.Subscribe(proctest.Within(t, 20*time.Second), client.SubscribeOptions{Topic: topic, Group: group})
	if err != nil {
		t.Fatal(err)
	}
	least := 3 * time.Second
	for {
		d, more := wait()
		if !more {
			break
		}
		asked := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), max(d, least))
		batch, err := sub.NextBatch(ctx, 500)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) || client.ReasonOf(err) == client.ReasonDeadline {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(asked); waited > time.Second {
			t.Logf("%s got nothing for %v, then %d events", group, waited, len(batch))
		}
		for _, e := range batch {
			got(e)
		}
		if err := sub.Ack(batch...); err != nil {
			t.Fatal(err)
		}
		least = 0
	}
	if err := sub.Close(proctest.Within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
}
