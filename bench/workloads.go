package main

import (
	"fmt"
	"slices"
)

// newPlan lists every workload, and what is to be reached.
func newPlan() *plan {
	p := &plan{}
	p.keys()
	p.events()
	p.lateness()
	p.pendingEvents()
	p.failovers()
	p.pressure()
	names := p.workloads()
	slices.SortStableFunc(p.rows, func(a, b row) int {
		return slices.Index(names, a.workload) - slices.Index(names, b.workload)
	})
	return p
}

// size is the bytes of every value and payload.
const size = 256

func (p *plan) keys() {
	ph := phase{name: "keys"}
	for _, clients := range []int{64, 256} {
		peer := ph.add(putMeasure(etcd, etcdAPI, everywhere, clients))
		ours := ph.add(putMeasure(almanac, etcdAPI, everywhere, clients))
		p.row("put", fmt.Sprintf("put, etcd's API, all endpoints, %d clients", clients), perSecond, ours.as("rate"), peer.as("rate"), ratioAtLeast(1.5))
		p.row("cpu", fmt.Sprintf("server CPU for each put, etcd's API, all endpoints, %d clients", clients), seconds, ours.as("cpu"), peer.as("cpu"), ratioAtMost(1))
	}
	for _, clients := range []int{64, 256} {
		peer := ph.add(putMeasure(etcd, etcdAPI, atLeader, clients))
		for _, where := range []where{atLeader, everywhere} {
			ours := ph.add(putMeasure(almanac, ownAPI, where, clients))
			title := fmt.Sprintf("put, our client at %s, etcd's at its leader, %d clients", where, clients)
			p.row("put", title, perSecond, ours.as("rate"), peer.as("rate"), ratioAtLeast(2))
			if where == atLeader {
				p.row("cpu", fmt.Sprintf("server CPU for each put, each client at the leader, %d clients", clients), seconds, ours.as("cpu"), peer.as("cpu"), ratioAtMost(1))
			}
		}
	}
	peer := ph.add(putMeasure(etcd, etcdAPI, atLeader, 1))
	ours := ph.add(putMeasure(almanac, etcdAPI, atLeader, 1))
	p.row("put", "put, etcd's API at the leader, 1 client, p50", seconds, ours.as("p50"), peer.as("p50"), ratioAtMost(1))
	ours = ph.add(putMeasure(almanac, ownAPI, atLeader, 1))
	p.row("put", "put, each client at the leader, 1 client, p50", seconds, ours.as("p50"), peer.as("p50"), ratioAtMost(1))

	peer = ph.add(getMeasure(etcd, etcdAPI, everywhere, 64))
	ours = ph.add(getMeasure(almanac, etcdAPI, everywhere, 64))
	p.row("get", "linearizable get, etcd's API, all endpoints, 64 clients", perSecond, ours.as("rate"), peer.as("rate"), ratioAtLeast(1.1))
	ours = ph.add(getMeasure(almanac, ownAPI, everywhere, 64))
	p.row("get", "linearizable get, our client, all endpoints, 64 clients", perSecond, ours.as("rate"), peer.as("rate"), ratioAtLeast(3))
	p.phases = append(p.phases, ph)
}

func (p *plan) events() {
	ph := phase{name: "events"}
	const publishers, batch, clients = 30, 100, 64
	peer := ph.add(natsBatches(publishers, batch))
	ours := ph.add(publishMeasure(publishers, batch))
	title := fmt.Sprintf("publish, %d publishers, batches of %d", publishers, batch)
	p.row("publish", title, perSecond, ours.as("rate"), peer.as("rate"), atLeast(100_000))
	p.row("cpu", "server CPU for each event, "+title, seconds, ours.as("cpu"), peer.as("cpu"), noTarget)

	peer = ph.add(natsSingles(clients))
	ours = ph.add(publishMeasure(clients, 1))
	title = fmt.Sprintf("publish one at a time, %d clients", clients)
	p.row("single", title, perSecond, ours.as("rate"), peer.as("rate"), ratioAtLeast(1.2))
	p.row("cpu", "server CPU for each event, "+title, seconds, ours.as("cpu"), peer.as("cpu"), noTarget)
	p.phases = append(p.phases, ph)
}

func (p *plan) lateness() {
	ph := phase{name: "lateness"}
	peer := ph.add(latenessMeasure(nats))
	ours := ph.add(latenessMeasure(almanac))
	title := fmt.Sprintf("lateness of %s events over %v, ", thousands(lateEvents), lateOver)
	p.row("lateness", title+"p50", seconds, ours.as("p50"), peer.as("p50"), noTarget)
	p.row("lateness", title+"p99", seconds, ours.as("p99"), peer.as("p99"), atMost(0.010))
	p.row("lateness", title+"max", seconds, ours.as("max"), peer.as("max"), noTarget)
	p.row("lateness", title+"the earliest", seconds, ours.as("soonest"), peer.as("soonest"), noTarget)
	p.row("lateness", title+"received early", count, ours.as("early"), peer.as("early"), atMost(0))
	p.row("lateness", title+"never received", count, ours.as("missing"), peer.as("missing"), atMost(0))
	p.phases = append(p.phases, ph)
}

func (p *plan) pendingEvents() {
	ph := phase{name: "pending", once: true}
	ours := ph.add(pendingMeasure())
	p.row("pending", "publishing events due in an hour", perSecond, ours.as("rate"), ref{}, noTarget)
	p.row("pending", "memory of the largest node with them, above a fresh one", memory, ours.as("above"), ref{}, atMost(150e6))
	p.row("pending", "start of a node with them until it is ready, after SIGTERM", seconds, ours.as("after SIGTERM"), ref{}, atMost(3))
	p.row("pending", "start of a node with them until it is ready, after kill -9", seconds, ours.as("after kill"), ref{}, atMost(3))
	p.phases = append(p.phases, ph)
}

func (p *plan) failovers() {
	ph := phase{name: "failover", once: true}
	peer := ph.add(failoverMeasure(etcd))
	ours := ph.add(failoverMeasure(almanac))
	for _, of := range []struct{ name, kind string }{
		{"the keys' leader, which does not lead the system range,", "keys "}, {"the system range's leader,", "system "},
	} {
		title := fmt.Sprintf("kill -9 of %s gap of a writer, ", of.name)
		p.row("failover", title+"p50", seconds, ours.as(of.kind+"p50"), peer.as("keys p50"), atMost(1.5))
		p.row("failover", title+"max", seconds, ours.as(of.kind+"max"), peer.as("keys max"), atMost(3))
	}
	p.phases = append(p.phases, ph)
}

func (p *plan) pressure() {
	ph := phase{name: "back-pressure"}
	peer := ph.add(pressureMeasure(etcd, etcdAPI))
	for _, a := range []api{etcdAPI, ownAPI} {
		ours := ph.add(pressureMeasure(almanac, a))
		title := fmt.Sprintf("puts by %s, %d times the clients that saturate, ", a, overload)
		p.row("pressure", title+"share of the peak", share, ours.as("share"), peer.as("share"), atLeast(0.8))
		p.row("pressure", title+"p99", seconds, ours.as("p99"), peer.as("p99"), noTarget)
		p.row("pressure", title+"refused", share, ours.as("refused"), peer.as("refused"), noTarget)
	}
	p.phases = append(p.phases, ph)
}

func (p *plan) row(workload, title string, u unit, ours, theirs ref, t target) {
	p.rows = append(p.rows, row{workload: workload, title: title, unit: u, ours: ours, theirs: theirs, target: t})
}

// as names one of a measure's figures.
func (m *measure) as(figure string) ref { return ref{m, figure} }
