package transport

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/wire"
)

// echo answers calls; what it gets back, it counts down.
type echo struct {
	g       *TCP
	replies chan int
}

func (e *echo) Receive(from base.NodeID, msgs []wire.Message) {
	var answers []wire.Message
	for _, m := range msgs {
		if m.Call != nil {
			answers = append(answers, wire.Message{Reply: &wire.Reply{ID: m.Call.ID, Body: m.Call.Body}})
		}
	}
	if len(answers) > 0 {
		e.g.Send(from, ClassCalls, answers...)
	} else {
		e.replies <- len(msgs)
	}
}

// BenchmarkEcho measures calls and their replies between two nodes over loopback TCP,
// with a number of calls in flight.
func BenchmarkEcho(b *testing.B) {
	for name, inFlight := range map[string]int{"1": 1, "64": 64, "1024": 1024} {
		b.Run("in flight "+name, func(b *testing.B) { benchmarkEcho(b, inFlight) })
	}
}

func benchmarkEcho(b *testing.B, inFlight int) {
	var addresses [3]string
	var nodes [3]*echo
	var serving sync.WaitGroup
	defer serving.Wait() // after every server has stopped
	for id := 1; id <= 2; id++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		addresses[id] = l.Addr().String()
		e := &echo{replies: make(chan int, 4096)}
		e.g, err = NewTCP(Options{
			Self: base.NodeID(id), Cluster: base.ClusterID{1}, Handler: e,
			Resolve: func(n base.NodeID) (string, bool) { return addresses[n], true },
		})
		if err != nil {
			b.Fatal(err)
		}
		serving.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return // the test has ended
				}
				serving.Go(func() {
					if _, err := io.ReadFull(conn, make([]byte, len(Preface))); err == nil {
						e.g.Serve(conn)
					}
				})
			}
		})
		nodes[id] = e
		defer l.Close()
		defer e.g.Close()
	}
	body := make([]byte, 128)
	a := nodes[1]
	b.ReportAllocs()
	b.ResetTimer()
	for sent, answered := 0, 0; answered < b.N; {
		for sent < b.N && sent-answered < inFlight {
			a.g.Send(2, ClassCalls, wire.Message{Call: &wire.Call{ID: uint64(sent), Method: wire.MethodPropose, Body: body}})
			sent++
		}
		answered += <-a.replies
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}
