package admin

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/almanacdb/almanac/internal/oracle"
	"github.com/almanacdb/almanac/internal/replica"
)

// state is the collector of what is looked up when metrics are asked for.
type state struct{ *Server }

// looked lists the metrics that state collects.
var looked = []id{
	nodeInfo, nodeUp, nodeMember, nodeMemoryLimit, memoryBudget, memoryUsed, nodeDiskSize, nodeDiskFree, nodeDiskScarce,
	rangesHeld, rangesLed, rangesServing, rangesLeaderless, rangesApplyLag, rangesUncommitted, rangesRebuilding,
	oraclePhase, oracleIssued, oracleOffset, oracleOutside, oracleAhead, oracleRounds, oracleSteps, oracleStepped,
	oracleContinued, oracleTransfers, oracleBoundRetries, oracleBoundStalls,
	sessionsOpen, eventsOverdue, stateBytes,
}

var descs = func() (list [metricCount]*prometheus.Desc) {
	for _, i := range looked {
		list[i] = prometheus.NewDesc(table[i].name, table[i].help, table[i].labels, nil)
	}
	return list
}()

// Describe implements prometheus.Collector.
func (s state) Describe(ch chan<- *prometheus.Desc) {
	for _, i := range looked {
		ch <- descs[i]
	}
}

// sink takes values of metrics that are looked up.
type sink chan<- prometheus.Metric

func (ch sink) put(i id, v float64, labels ...string) {
	t := prometheus.GaugeValue
	if table[i].kind == counter {
		t = prometheus.CounterValue
	}
	ch <- prometheus.MustNewConstMetric(descs[i], t, v, labels...)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Collect implements prometheus.Collector.
func (s state) Collect(metrics chan<- prometheus.Metric) {
	ch := sink(metrics)
	ch.put(nodeInfo, 1, s.opts.Version)
	ch.put(nodeUp, truth(s.opts.Failed() == nil))
	ch.put(nodeMemoryLimit, float64(s.opts.Memory))
	if s.opts.Parts != nil {
		for _, p := range s.opts.Parts() {
			ch.put(memoryBudget, float64(p.Budget), p.Name)
			if p.Counted {
				ch.put(memoryUsed, float64(p.Used), p.Name)
			}
		}
	}
	if s.opts.Disk != nil {
		c := s.disk()
		ch.put(nodeDiskSize, float64(c.DiskTotal))
		ch.put(nodeDiskFree, float64(c.DiskFree))
		ch.put(nodeDiskScarce, truth(c.Scarce()))
	}
	if s.opts.StoreBytes != nil {
		ch.put(stateBytes, float64(s.opts.StoreBytes()))
	}
	m := s.joined()
	ch.put(nodeMember, truth(m != nil))
	if m == nil {
		return
	}
	replicas := m.Replicas()
	summarize(replicas, oracleNow(m).Milliseconds()).collect(ch)
	lost, _ := m.Rebuilding()
	ch.put(rangesRebuilding, float64(lost.Left))
	collectOracle(ch, oracleStatus(replicas))
}

// summary is what the replicas of a node come to.
type summary struct {
	held, led, serving, leaderless int
	applyLag, uncommitted          uint64 // log entries, at worst
	sessions                       int
	overdueMS                      int64
}

func summarize(replicas []*replica.Visible, nowMS int64) (s summary) {
	s.held = len(replicas)
	for _, v := range replicas {
		if v.Leader == 0 {
			s.leaderless++
		}
		if v.Commit > v.Applied.Index {
			s.applyLag = max(s.applyLag, v.Commit-v.Applied.Index)
		}
		if !v.Orderer {
			continue
		}
		s.led++
		if v.Serving {
			s.serving++
		}
		if v.Last > v.Commit {
			s.uncommitted = max(s.uncommitted, v.Last-v.Commit)
		}
		s.sessions += v.Sessions
		if v.NextDueMS != 0 {
			s.overdueMS = max(s.overdueMS, nowMS-v.NextDueMS)
		}
	}
	return s
}

func (s summary) collect(ch sink) {
	ch.put(rangesHeld, float64(s.held))
	ch.put(rangesLed, float64(s.led))
	ch.put(rangesServing, float64(s.serving))
	ch.put(rangesLeaderless, float64(s.leaderless))
	ch.put(rangesApplyLag, float64(s.applyLag))
	ch.put(rangesUncommitted, float64(s.uncommitted))
	ch.put(sessionsOpen, float64(s.sessions))
	ch.put(eventsOverdue, float64(s.overdueMS)/1000)
}

// oracleStatus returns the oracle of this node; nil if it does not run here.
func oracleStatus(replicas []*replica.Visible) *oracle.Status {
	for _, v := range replicas {
		if v.Oracle != nil {
			return v.Oracle
		}
	}
	return nil
}

func collectOracle(ch sink, o *oracle.Status) {
	var now oracle.Phase // idle
	if o != nil {
		now = o.Phase
	}
	for p := oracle.Idle; p <= oracle.Issuing; p++ {
		ch.put(oraclePhase, truth(p == now), p.String())
	}
	if o == nil {
		return
	}
	outside := 0
	for _, c := range o.Clocks {
		if c.Known {
			ch.put(oracleOffset, c.Ahead.Seconds(), strconv.FormatUint(uint64(c.Node), 10))
		}
		if c.Outside {
			outside++
		}
	}
	n := &o.Counted
	ch.put(oracleOutside, float64(outside))
	ch.put(oracleAhead, o.Ahead.Seconds())
	ch.put(oracleIssued, float64(n.Issued))
	ch.put(oracleRounds, float64(n.Rounds), "majority")
	ch.put(oracleRounds, float64(n.RoundsFailed), "failed")
	ch.put(oracleSteps, float64(n.Steps))
	ch.put(oracleStepped, n.SteppedBy.Seconds())
	ch.put(oracleContinued, float64(n.Continued))
	ch.put(oracleTransfers, float64(n.Transfers))
	ch.put(oracleBoundRetries, float64(n.BoundRetries))
	ch.put(oracleBoundStalls, float64(n.BoundStalls))
}
