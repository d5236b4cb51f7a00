package almanac

import (
	"strings"
	"testing"
	"time"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/router"
	"github.com/almanacdb/almanac/internal/timeline"
)

func TestPublishRefusesWhatCanNeverBe(t *testing.T) {
	s := New(Options{Routes: &routes{}, Node: node{}, Limits: Limits{PayloadBytes: 10, PublishEvents: 2, RequestBytes: 3000}})
	e := &eventsServer{Server: s}
	century := time.Now().AddDate(101, 0, 0).UnixMilli()
	for name, c := range map[string]struct {
		event *almanacv1.NewEvent
		want  fault.Kind
	}{
		"payload":      {&almanacv1.NewEvent{Payload: make([]byte, 11)}, fault.TooLarge},
		"message id":   {&almanacv1.NewEvent{MessageId: strings.Repeat("x", timeline.MaxMessageID+1)}, fault.TooLarge},
		"ordering key": {&almanacv1.NewEvent{OrderingKey: make([]byte, timeline.MaxOrderingKey+1)}, fault.TooLarge},
		"headers":      {&almanacv1.NewEvent{Headers: make([]*almanacv1.Header, timeline.MaxHeaders+1)}, fault.TooLarge},
		"both":         {&almanacv1.NewEvent{DueMs: 1, DelayMs: 1}, fault.Invalid},
		"negative":     {&almanacv1.NewEvent{DueMs: -1}, fault.Invalid},
		"backwards":    {&almanacv1.NewEvent{DelayMs: -1}, fault.Invalid},
		"far":          {&almanacv1.NewEvent{DueMs: century}, fault.Invalid},
		"late":         {&almanacv1.NewEvent{DelayMs: 1 << 62}, fault.Invalid},
	} {
		_, err := e.Publish(t.Context(), &almanacv1.PublishRequest{Topic: "orders", Events: []*almanacv1.NewEvent{{}, c.event}})
		wantReason(t, err, c.want)
		if detail(t, err).Remedy == "" || !strings.Contains(err.Error(), "event 1: ") && name != "headers" {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := e.Publish(t.Context(), &almanacv1.PublishRequest{Topic: "orders", Events: make([]*almanacv1.NewEvent, 3)})
	wantReason(t, err, fault.TooLarge)
	big := &almanacv1.NewEvent{Headers: []*almanacv1.Header{{Value: make([]byte, 3000)}}}
	_, err = e.Publish(t.Context(), &almanacv1.PublishRequest{Topic: "orders", Events: []*almanacv1.NewEvent{big}})
	wantReason(t, err, fault.TooLarge)
	_, err = e.Publish(t.Context(), &almanacv1.PublishRequest{Topic: "nowhere"})
	wantReason(t, err, fault.NotFound)
}

func TestPublishAnswersEachEvent(t *testing.T) {
	var got []timeline.NewEvent
	events := almanacv1.NewEventsClient(serve(t, &routes{publish: func(topic string, e []timeline.NewEvent) ([]router.Published, error) {
		if topic != "orders" {
			return nil, placement.UnknownTopic(topic)
		}
		got = e
		return []router.Published{
			{Partition: 3, Published: timeline.Published{Position: base.Position{DueMS: 9, Seq: 4}, Duplicate: true}},
			{Partition: 1, Err: fault.New(fault.UnknownOutcome, "no answer")},
		}, nil
	}}, Limits{}))
	list := []*almanacv1.NewEvent{
		{Payload: []byte("p"), MessageId: "m", OrderingKey: []byte("o"), DueMs: 9, Headers: []*almanacv1.Header{{Name: "h", Value: []byte("v")}}},
		{DelayMs: 5},
	}
	r, err := events.Publish(testContext(t), &almanacv1.PublishRequest{Topic: "orders", Events: list})
	if err != nil {
		t.Fatal(err)
	}
	if a := r.Results[0]; a.Partition != 3 || a.Position.DueMs != 9 || a.Position.Sequence != 4 || !a.Duplicate || a.Error != nil {
		t.Errorf("got %v", a)
	}
	if b := r.Results[1]; b.Partition != 1 || b.Position != nil || b.Error.Detail.Reason != "unknown_outcome" {
		t.Errorf("got %v", b)
	}
	if e := got[0]; e.MessageID != "m" || string(e.OrderingKey) != "o" || e.DueMS != 9 || e.Headers[0].Name != "h" || got[1].DelayMS != 5 {
		t.Errorf("published %+v", got)
	}
	_, err = events.Publish(testContext(t), &almanacv1.PublishRequest{Topic: "x", Events: list})
	wantReason(t, err, fault.NotFound)
}

func TestTopics(t *testing.T) {
	var asked placement.CreateTopic
	r := &routes{
		topics:  []placement.Topic{{ID: 4, Name: "a", Partitions: 2}, {ID: 5, Name: "b", Partitions: 8, Replicas: 2}},
		reports: make([]placement.Report, 3),
		create: func(c placement.CreateTopic) (placement.Topic, bool, error) {
			asked = c
			return placement.Topic{ID: 6, Name: c.Name, Partitions: c.Partitions, RetentionMS: c.RetentionMS}, true, nil
		},
	}
	events, ctx := almanacv1.NewEventsClient(serve(t, r, Limits{})), testContext(t)
	made, err := events.CreateTopic(ctx, &almanacv1.CreateTopicRequest{Name: "c", RetentionMs: 7})
	if err != nil || !made.Created || made.Topic.Partitions != 8 || made.Topic.Replicas != 3 || made.Topic.RetentionMs != 7 || asked.Replicas != 0 {
		t.Fatal(made, err)
	}
	list, err := events.ListTopics(ctx, &almanacv1.ListTopicsRequest{})
	if err != nil || len(list.Topics) != 2 || list.Topics[0].Replicas != 3 || list.Topics[1].Replicas != 2 {
		t.Fatal(list, err)
	}
	one, err := events.DescribeTopic(ctx, &almanacv1.DescribeTopicRequest{Name: "b"})
	if err != nil || one.Topic.TopicId != 5 {
		t.Fatal(one, err)
	}
	_, err = events.DescribeTopic(ctx, &almanacv1.DescribeTopicRequest{Name: "z"})
	wantReason(t, err, fault.NotFound)
	_, err = events.DeleteTopic(ctx, &almanacv1.DeleteTopicRequest{Name: "z"})
	wantReason(t, err, fault.NotFound)
	for _, c := range []*almanacv1.CreateTopicRequest{{}, {Name: "a/b"}, {Name: "c", Partitions: 5000}, {Name: "c", RetentionMs: -1}} {
		_, err := events.CreateTopic(ctx, c)
		wantReason(t, err, fault.Invalid)
	}
}
