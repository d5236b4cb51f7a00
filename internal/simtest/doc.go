// Package simtest runs whole clusters in one goroutine under simulated time, network,
// disks and power, and checks what clients saw against the invariants of DESIGN.md. The
// store, host, replica, dispatch, oracle, raft and state machine code is the product's;
// clock, transport, engines and clients are the simulator's. From one seed a run is the
// same to the bit. Tests only.
//
// # Running
//
//	go test ./internal/simtest                         everything, with a dozen seeds
//	go test ./internal/simtest -v -search 5m -procs 2  seeds in processes of their own, for 5 minutes
//	go test ./internal/simtest -seed 17                replay one; with -v its whole trace
//	go test ./internal/simtest -run Seeds -seeds 2000  so many, one after the other
//
// With -simtime 5m faults last longer; -first says from which seed on. A violation reports
// its seed, the command that replays it, and the last lines of the trace. More is in
// docs/SIMULATION.md.
//
// # What happens in a run
//
// One, three or five nodes hold the system range, the default keyspace's range and two ranges
// of a topic. Clients put, get, compare-and-swap and delete a few keys through any node,
// read snapshots at timestamps and ask for them again elsewhere, and raise the history
// horizon; publishers publish events
// that fall due now or later; members of two groups ack most of what they get. Meanwhile
// nodes are killed or lose power, at once, in the middle of a turn or on the way back, lose
// what was not synced, and restart; one may lose its disks and gets its replicas back from
// the others; all lose power together; a disk fails once, in a write,
// a sync or a flush, or is slow; nodes pause; the network is cut, in one direction or both,
// delays, loses, repeats and reorders; one wall clock at a time steps; leaders are told to
// hand over. Queues, caches and messages are as small as the seed says. In the end
// everything heals and the cluster gets time to settle. A test that ran a dozen seeds fails
// if any fault never struck.
//
// # What is checked (numbers are those of DESIGN.md's invariants)
//
//   - 1: every acknowledged write is in the history of every replica, at its stamp.
//   - 2, 9: each key's operations are linearizable (package lincheck), and timestamps agree
//     with real time: an operation's is above all that were known when it began.
//   - 3: acknowledged events reach each group, none before its due time by true time less
//     the worst honest clock's offset.
//   - 5: a group's cursor, as a function of the applied index, never falls.
//   - 7: replicas apply the same entries at the same indexes, no two lead in one term, and
//     in the end their states are equal to the byte.
//   - S6: a node whose disk failed stops.
//   - K3, E2: a range's last stamp and clock never fall.
//   - K8: below an acknowledged horizon nothing is read.
//   - 10: no slice and no map that a node's store reaches holds more than its limits say, and
//     logs are truncated.
//   - 11: snapshots at a timestamp read the same at any replica later.
//   - The cluster recovers once faults end, no replica calls itself broken, and none
//     keeps the others busy without end.
//
// # Scripts and single deaths
//
// TestScenarios plays the stories in testdata. TestEveryPoint lets a node die at each of its
// points in a small workload, one after the other.
//
// # Planted bugs
//
//	go test -tags plant ./internal/simtest -run Planted                  each is found
//	go test -tags plant ./internal/simtest -run Planted -plantseeds 20   how often, how soon
//
// A checker that finds nothing proves little, so TestPlanted breaks the cluster on purpose
// and demands to be told within a few seeds: the table in plant_test.go lists the bugs.
// Most are hooks in the product's code (package plant), which only a build with the tag
// holds; some stand around it, in the engines, clocks and messages that it is given, and
// are run without the tag too.
package simtest
