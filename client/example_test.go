package client_test

import (
	"context"
	"fmt"
	"log"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/almanacdb/almanac/client"
)

// README.md shows the functions of this file; internal/rules compares them.

func remind(ctx context.Context) error {
	c, err := client.Open(ctx, client.Options{Endpoints: []string{"127.0.0.1:7400"}})
	if err != nil {
		return err
	}
	defer c.Close()

	// What is, and what was: every write returns a revision, to read at later.
	key := []byte("users/ada")
	first, err := c.KV.Put(ctx, key, []byte("balance 100"))
	if err != nil {
		return err
	}
	if _, err := c.KV.CompareAndPut(ctx, key, []byte("balance 90"), first); err != nil {
		return err // client.ReasonOf(err) tells "compare_failed" from "unknown_outcome"
	}
	now, err := c.KV.Get(ctx, key)
	if err != nil {
		return err
	}
	then, err := c.KV.Get(ctx, key, client.At(first))
	if err != nil {
		return err
	}
	fmt.Printf("%s, and before that %s\n", now.Value, then.Value)

	// What happens next: an event that falls due in two seconds.
	if _, err := c.Events.CreateTopic(ctx, "reminders", client.TopicOptions{IfNotExists: true}); err != nil {
		return err
	}
	call := client.NewEvent{Payload: []byte("call Ada"), MessageID: "ada-1", Due: time.Now().Add(2 * time.Second)}
	if _, err := c.Events.Publish(ctx, "reminders", call); err != nil {
		return err
	}
	sub, err := c.Events.Subscribe(ctx, client.SubscribeOptions{Topic: "reminders", Group: "callers"})
	if err != nil {
		return err
	}
	event, err := sub.Next(ctx) // not before it is due; again, until it is acked
	if err != nil {
		return err
	}
	fmt.Printf("%s, %v late\n", event.Payload, event.Lateness())
	if err := sub.Ack(event); err != nil {
		return err
	}
	return sub.Close(ctx) // returns once the ack is committed
}

func withEtcdsClient(ctx context.Context) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:7400"}, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer c.Close()
	won, err := c.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision("leader"), "=", 0)).
		Then(clientv3.OpPut("leader", "me")).
		Else(clientv3.OpGet("leader")).
		Commit()
	if err != nil {
		return err
	}
	fmt.Println(won.Succeeded, won.Header.Revision)
	return nil
}

// Needs a node on the default port, so it is compiled and not run.
func Example() {
	if err := remind(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// Needs a node on the default port, so it is compiled and not run.
func Example_etcd() {
	if err := withEtcdsClient(context.Background()); err != nil {
		log.Fatal(err)
	}
}
