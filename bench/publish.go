package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/load"
)

// publishMeasure publishes events that are due at once into a topic of its own, by one
// connection an endpoint.
func publishMeasure(clients, batch int) measure {
	return measure{
		system: almanac, name: fmt.Sprintf("publish, %d clients, %d at a time", clients, batch),
		run: func(ctx context.Context, b *bench, c *cluster) (figures, error) {
			events, done, err := c.topic(ctx, fmt.Sprintf("publish-%d", batch))
			if err != nil {
				return nil, err
			}
			defer done()
			return b.drive(ctx, c, load.Load{Clients: clients, Batch: batch, Seed: 1, Request: events.Publish(load.AtOnce)})
		},
	}
}

// topic makes a topic as it comes, and clients that the caller closes by calling done.
func (c *cluster) topic(ctx context.Context, name string) (events *load.Events, done func(), err error) {
	return c.topicOf(ctx, name, 0)
}

// topicOf makes a topic with a number of partitions; 0 is the default.
func (c *cluster) topicOf(ctx context.Context, name string, partitions uint32) (events *load.Events, done func(), err error) {
	events = &load.Events{Topic: name, Payloads: load.NewFiller(1, size)}
	var opened []*client.Client
	done = func() {
		for _, o := range opened {
			_ = o.Close()
		}
	}
	for _, endpoints := range append([][]string{c.endpoints}, one(c.endpoints)...) {
		o, err := client.Open(ctx, client.Options{Endpoints: endpoints})
		if err != nil {
			done()
			return nil, nil, err
		}
		opened = append(opened, o)
	}
	events.Subscriber, events.Publishers = opened[0], opened[1:]
	if _, err := events.Subscriber.Events.CreateTopic(ctx, name, client.TopicOptions{Partitions: partitions}); err != nil {
		done()
		return nil, nil, err
	}
	return events, done, nil
}

// one returns a list of each alone.
func one(list []string) (alone [][]string) {
	for _, s := range list {
		alone = append(alone, []string{s})
	}
	return alone
}

// natsStream is a stream with as many copies as nodes, on disk, and a connection for each
// client of a load.
type natsStream struct {
	subject  string
	conns    []*natsgo.Conn
	js       []jetstream.JetStream
	payloads load.Filler
}

// stream makes a stream; outstanding is how many messages each connection may have under
// way.
func (c *cluster) stream(ctx context.Context, config jetstream.StreamConfig, clients, outstanding int) (*natsStream, error) {
	s := &natsStream{subject: config.Name + ".", payloads: load.NewFiller(1, size)}
	for i := range clients {
		conn, err := natsgo.Connect(c.endpoints[i%len(c.endpoints)])
		if err != nil {
			s.close()
			return nil, err
		}
		s.conns = append(s.conns, conn)
		js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(outstanding))
		if err != nil {
			s.close()
			return nil, err
		}
		s.js = append(s.js, js)
	}
	config.Replicas, config.Storage = nodes, jetstream.FileStorage
	if len(config.Subjects) == 0 {
		config.Subjects = []string{s.subject + ">"}
	}
	if _, err := s.js[0].CreateStream(ctx, config); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *natsStream) close() {
	for _, c := range s.conns {
		c.Close()
	}
}

// natsSingles publishes one message after another.
func natsSingles(clients int) measure {
	return measure{
		system: nats, name: fmt.Sprintf("publish, %d clients, 1 at a time", clients),
		run: func(ctx context.Context, b *bench, c *cluster) (figures, error) {
			s, err := c.stream(ctx, jetstream.StreamConfig{Name: "singles"}, clients, 1)
			if err != nil {
				return nil, err
			}
			defer s.close()
			return b.drive(ctx, c, load.Load{Clients: clients, Batch: 1, Seed: 1, Request: func(i int) load.Request {
				subject := s.subject + strconv.Itoa(i)
				return func(ctx context.Context, random *rand.Rand, _ int) (int, error) {
					ctx, cancel := context.WithTimeout(ctx, requestTimeout)
					defer cancel()
					_, err := s.js[i].Publish(ctx, subject, s.payloads.Value(random.Int64()))
					return 1, err
				}
			}})
		},
	}
}

// natsBatches publishes without waiting while fewer than outstanding messages of a
// publisher are unacknowledged: NATS's nearest to a batch, and kinder than one, as the
// window slides.
func natsBatches(publishers, outstanding int) measure {
	return measure{
		system: nats, name: fmt.Sprintf("publish, %d clients, %d outstanding", publishers, outstanding),
		run: func(ctx context.Context, b *bench, c *cluster) (figures, error) {
			s, err := c.stream(ctx, jetstream.StreamConfig{Name: "batches"}, publishers, outstanding)
			if err != nil {
				return nil, err
			}
			defer s.close()
			return b.drive(ctx, c, load.Load{Clients: publishers, Batch: 1, Seed: 1, Request: s.window(outstanding)})
		},
	}
}

// window returns requests that each publish a message, and wait for the oldest one if
// too many are unacknowledged.
func (s *natsStream) window(outstanding int) func(int) load.Request {
	unacknowledged := make([]chan jetstream.PubAckFuture, len(s.js))
	for i := range unacknowledged {
		unacknowledged[i] = make(chan jetstream.PubAckFuture, outstanding)
	}
	return func(i int) load.Request {
		subject, under := s.subject+strconv.Itoa(i), unacknowledged[i]
		return func(ctx context.Context, random *rand.Rand, _ int) (int, error) {
			done := 0
			if len(under) == outstanding {
				oldest := <-under
				select {
				case <-oldest.Ok():
					done = 1
				case err := <-oldest.Err():
					return 0, err
				case <-ctx.Done():
					return 0, ctx.Err()
				}
			}
			future, err := s.js[i].PublishAsync(subject, s.payloads.Value(random.Int64()))
			if err == nil {
				under <- future
			}
			return done, err
		}
	}
}
