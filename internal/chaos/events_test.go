//go:build linux && amd64

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/proctest"
)

// groups of the topic; a bit each in what an event is owed.
var groups = []string{"billing", "mail"}

// maxClockOffset is the nodes' default: as far as a majority of clocks may be off, events
// may seem early.
const maxClockOffset = 500 * time.Millisecond

// eventLoad is publishers, and members of each group that leave and join again, all
// recorded. Each message id is published once.
type eventLoad struct {
	topic     string
	recorder  *lincheck.Recorder
	delivered atomic.Int64

	// tamper, if set, sees each event before it is recorded, and says whether it is;
	// unacked, if set, keeps acks from being sent. For lies that the checks must find.
	tamper  func(*client.Event) bool
	unacked bool

	mu               sync.Mutex
	published        map[string]bool // acknowledged
	got              map[string]int  // groups that have it
	earliest, latest time.Duration   // lateness
	unsure, refused  int             // publishes
	reasons          map[string]int
	wrong            []string // answers that break a promise by themselves
}

func newEventLoad(t *testing.T, c *client.Client, topic string) *eventLoad {
	t.Helper()
	if _, err := c.Events.CreateTopic(proctest.Within(t, 20*time.Second), topic, client.TopicOptions{Partitions: 6}); err != nil {
		t.Fatal(err)
	}
	l := &eventLoad{
		topic: topic, recorder: lincheck.NewRecorder(nil), earliest: time.Hour,
		published: make(map[string]bool), got: make(map[string]int), reasons: make(map[string]int),
	}
	for _, group := range groups { // a group is owed what falls due after it was made
		s, err := c.Events.Subscribe(proctest.Within(t, 20*time.Second), client.SubscribeOptions{Topic: topic, Group: group, Prefetch: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(proctest.Within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// publish publishes small batches, due now or up to 3 s later, until ctx ends.
func (l *eventLoad) publish(ctx context.Context, c *client.Client, publisher int) {
	r := rand.New(rand.NewPCG(*seed, uint64(1000+publisher)))
	for n := 0; ctx.Err() == nil; n++ {
		events := make([]client.NewEvent, 1+r.IntN(5))
		for i := range events {
			events[i] = client.NewEvent{MessageID: fmt.Sprintf("%d-%d-%d", publisher, n, i), Payload: []byte("payload")}
			later := time.Duration(r.IntN(3000)) * time.Millisecond
			switch r.IntN(3) {
			case 0:
				events[i].Delay = later
			case 1:
				events[i].Due = time.Now().Add(later).Truncate(time.Millisecond)
			}
		}
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		asked := time.Now()
		results, err := c.Events.Publish(call, l.topic, events...)
		cancel()
		for i, e := range events {
			if i < len(results) {
				l.outcome(e, asked, results[i])
			} else {
				l.failedPublish(e, asked, err)
			}
		}
		proctest.Pause(ctx, 50*time.Millisecond)
	}
}

func (l *eventLoad) outcome(e client.NewEvent, asked time.Time, p client.Published) {
	if p.Err != nil {
		l.failedPublish(e, asked, p.Err)
		return
	}
	l.recorder.Published(lincheck.Publish{
		EventID: lincheck.EventID{Topic: l.topic, ID: e.MessageID}, Partition: base.Partition(p.Partition),
		Position: base.Position{DueMS: p.Position.DueMS, Seq: p.Position.Sequence}, Acked: l.recorder.Now(),
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.published[e.MessageID] = true
	if !e.Due.IsZero() && p.Position.DueMS < e.Due.UnixMilli() {
		l.wrong = append(l.wrong, fmt.Sprintf("%s was asked for %d and is due %d", e.MessageID, e.Due.UnixMilli(), p.Position.DueMS))
	}
}

// failedPublish notes a publish that surely was not done, or perhaps was.
func (l *eventLoad) failedPublish(e client.NewEvent, asked time.Time, err error) {
	refused := proctest.SurelyNotDone(err)
	if !refused {
		due := asked.Add(e.Delay)
		if !e.Due.IsZero() {
			due = e.Due
		}
		l.recorder.Attempted(lincheck.Attempt{EventID: lincheck.EventID{Topic: l.topic, ID: e.MessageID}, DueMS: due.UnixMilli()})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reasons["publish: "+reason(err)]++
	if refused {
		l.refused++
	} else {
		l.unsure++
	}
}

// member joins a group, receives and acks for some seconds, leaves and joins again,
// until ctx ends.
func (l *eventLoad) member(ctx context.Context, c *client.Client, group, number int) {
	r := rand.New(rand.NewPCG(*seed, uint64(2000+10*group+number)))
	for ctx.Err() == nil {
		l.membership(ctx, c, group, time.Duration(2000+r.IntN(4000))*time.Millisecond)
	}
}

func (l *eventLoad) membership(ctx context.Context, c *client.Client, group int, stay time.Duration) {
	joined := l.recorder.Now()
	joining, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := c.Events.Subscribe(joining, client.SubscribeOptions{Topic: l.topic, Group: groups[group], Prefetch: 200})
	if err != nil {
		l.because("join", err)
		proctest.Pause(ctx, 100*time.Millisecond)
		return
	}
	var acked []*client.Event // sent; not known to be committed
	settle := func(wait func(context.Context) error, limit time.Duration) {
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		if err := wait(call); err != nil {
			l.because("ack", err)
			return
		}
		for _, e := range acked {
			l.recorder.Acked(lincheck.Ack{EventID: lincheck.EventID{Topic: l.topic, ID: e.MessageID}, Group: groups[group], At: l.recorder.Now()})
		}
		acked = nil
	}
	staying, cancel := context.WithTimeout(ctx, stay)
	defer cancel()
	for n := 1; staying.Err() == nil; n++ {
		batch, err := s.NextBatch(staying, 100)
		if err != nil {
			if staying.Err() == nil {
				l.because("receive", err)
			}
			break
		}
		for _, e := range batch {
			l.receive(e, group, joined)
		}
		if !l.unacked {
			if err := s.Ack(batch...); err != nil {
				l.because("ack", err)
				break
			}
		}
		if acked = append(acked, batch...); n%20 == 0 {
			settle(s.Flush, callTimeout)
		}
	}
	settle(s.Close, 10*time.Second)
}

func (l *eventLoad) because(what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reasons[what+": "+reason(err)]++
}

func (l *eventLoad) receive(e *client.Event, group int, joined time.Duration) {
	if l.tamper != nil && !l.tamper(e) {
		return
	}
	l.recorder.Delivered(lincheck.Delivery{
		EventID: lincheck.EventID{Topic: l.topic, ID: e.MessageID}, Group: groups[group], Partition: base.Partition(e.Partition),
		Position: base.Position{DueMS: e.Position.DueMS, Seq: e.Position.Sequence}, Attempt: int(e.Attempt),
		AtMS: e.ReceivedAt.UnixMilli(), At: l.recorder.Now(), Joined: joined,
	})
	l.delivered.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got[e.MessageID] |= 1 << group
	l.earliest, l.latest = min(l.earliest, e.Lateness()), max(l.latest, e.Lateness())
}

// owed says how many acknowledged events some group has not got yet.
func (l *eventLoad) owed(context.Context) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, example := 0, ""
	for id := range l.published {
		if l.got[id] != 1<<len(groups)-1 {
			n, example = n+1, id
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d acknowledged events are not delivered to each group, such as %s", n, len(l.published), example)
}

// judge returns what is wrong with the history; call it when all that was published had
// time to be delivered.
func (l *eventLoad) judge() (lincheck.EventReport, []string) {
	rules := lincheck.EventRules{EndMS: time.Now().UnixMilli(), EarlyMS: maxClockOffset.Milliseconds()}
	for _, g := range groups {
		rules.Groups = append(rules.Groups, lincheck.Group{Topic: l.topic, Name: g})
	}
	report := lincheck.CheckEvents(l.recorder.Events(), rules)
	l.mu.Lock()
	wrong := slices.Clone(l.wrong)
	l.mu.Unlock()
	for _, v := range report.Violations {
		wrong = append(wrong, v.String())
	}
	return report, wrong
}

func (l *eventLoad) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d events acknowledged, %d publishes of unknown outcome, %d refused; %d deliveries, lateness %v to %v; failures: %s",
		len(l.published), l.unsure, l.refused, l.delivered.Load(), l.earliest.Round(time.Millisecond), l.latest.Round(time.Millisecond),
		mostFrequent(l.reasons))
}
