package admin

// kind is what sort of number a metric is, as Prometheus names it.
type kind string

const (
	counter   kind = "counter"
	gauge     kind = "gauge"
	histogram kind = "histogram"
)

// metric describes one metric. Its name ends in its unit; help says what it means.
type metric struct {
	name   string
	kind   kind
	unit   string
	labels []string
	help   string
}

// id names a row of the table.
type id int

// The metrics, in the order in which docs/METRICS.md lists them.
const (
	nodeInfo id = iota
	nodeUp
	nodeMember
	nodeMemoryLimit
	memoryBudget
	memoryUsed
	nodeDiskSize
	nodeDiskFree
	nodeDiskScarce

	rangesHeld
	rangesLed
	rangesServing
	rangesLeaderless
	rangesApplyLag
	rangesUncommitted
	rangesRebuilding

	oraclePhase
	oracleIssued
	oracleOffset
	oracleOutside
	oracleAhead
	oracleRounds
	oracleSteps
	oracleStepped
	oracleContinued
	oracleTransfers
	oracleBoundRetries
	oracleBoundStalls

	sessionsOpen
	eventsOverdue
	eventsPublished
	eventsDelivered
	eventsRedelivered
	deliveryLateness
	eventsAcked

	requestDuration
	requestsInFlight
	requestsRefused
	streamsOpen
	streamsEnded

	transportMessages
	transportBytes
	transportDropped
	transportConnects
	transportConnections

	stateBytes
	storeStalls
	storeStalled
	storeSlow
	storeFull
	storeErrors
	storeCorruptions
	storeFlushes

	metricCount
)

// table is the one list of Almanac's metrics; docs/METRICS.md is written from it. No
// label takes its values from what users name or how much they store.
var table = [metricCount]metric{
	nodeInfo: {"almanac_node_info", gauge, "", []string{"version"},
		"Always 1; the label tells the node's version."},
	nodeUp: {"almanac_node_up", gauge, "", nil,
		"1 while the node can serve; 0 once it has failed and must be restarted."},
	nodeMember: {"almanac_node_member", gauge, "", nil,
		"1 once the node belongs to a cluster; 0 before."},
	nodeMemoryLimit: {"almanac_node_memory_limit_bytes", gauge, "bytes", nil,
		"Memory that the process should stay within, from --memory; 0 for no limit."},
	memoryBudget: {"almanac_memory_budget_bytes", gauge, "bytes", []string{"part"},
		"Shares of --memory, by what they are for. Of queues there is one for each peer and class."},
	memoryUsed: {"almanac_memory_used_bytes", gauge, "bytes", []string{"part"},
		"What is used of those shares that are counted; what finds no room is refused as busy."},
	nodeDiskSize: {"almanac_node_disk_size_bytes", gauge, "bytes", nil,
		"Size of the file system that holds the data directory."},
	nodeDiskFree: {"almanac_node_disk_free_bytes", gauge, "bytes", nil,
		"What is free on the file system that holds the data directory."},
	nodeDiskScarce: {"almanac_node_disk_scarce", gauge, "", nil,
		"1 while less is free there than the node keeps in reserve: the ranges it leads take no new data."},

	rangesHeld: {"almanac_ranges_held", gauge, "ranges", nil,
		"Ranges that have a replica on this node."},
	rangesLed: {"almanac_ranges_led", gauge, "ranges", nil,
		"Ranges whose commands this node orders."},
	rangesRebuilding: {"almanac_ranges_rebuilding", gauge, "ranges", nil,
		"Ranges whose replica on this node was lost with its stores and is not back from other nodes yet."},
	rangesServing: {"almanac_ranges_serving", gauge, "ranges", nil,
		"Ranges that this node orders and has begun to serve; below almanac_ranges_led only just after an election."},
	rangesLeaderless: {"almanac_ranges_without_leader", gauge, "ranges", nil,
		"Ranges with a replica here for which this node knows no leader; they take no writes from here."},
	rangesApplyLag: {"almanac_ranges_max_apply_lag_entries", gauge, "log entries", nil,
		"Log entries committed but not applied yet, on the replica here that is farthest behind."},
	rangesUncommitted: {"almanac_ranges_max_uncommitted_entries", gauge, "log entries", nil,
		"Log entries that wait for a majority, in the range led here that has the most."},

	oraclePhase: {"almanac_oracle_phase", gauge, "", []string{"phase"},
		"1 for the phase that the oracle on this node is in, 0 for the others: idle on nodes that do not lead the system range, then anchoring, starting, waiting, issuing."},
	oracleIssued: {"almanac_oracle_issued_total", counter, "timestamps", nil,
		"Timestamps issued. This and the following oracle metrics are there only while this node leads the system range."},
	oracleOffset: {"almanac_oracle_clock_offset_seconds", gauge, "seconds", []string{"node"},
		"How far the wall clock of each voter of the system range is ahead of their median, as the last round found it; negative: behind. Voters that did not answer are left out."},
	oracleOutside: {"almanac_oracle_clocks_outside", gauge, "nodes", nil,
		"Voters of the system range whose wall clock is farther from the median than --max-clock-offset."},
	oracleAhead: {"almanac_oracle_ahead_seconds", gauge, "seconds", nil,
		"How far oracle time is ahead of the median and still to be slewed back; negative: behind."},
	oracleRounds: {"almanac_oracle_rounds_total", counter, "rounds", []string{"result"},
		"Rounds in which the voters told their wall clocks, by result: majority, or failed."},
	oracleSteps: {"almanac_oracle_steps_total", counter, "steps", nil,
		"Times that oracle time stepped forward because it was too far behind the median."},
	oracleStepped: {"almanac_oracle_stepped_seconds_total", counter, "seconds", nil,
		"Sum of those steps."},
	oracleContinued: {"almanac_oracle_continued_total", counter, "times", nil,
		"Takeovers that moved oracle time forward to an earlier oracle's bound."},
	oracleTransfers: {"almanac_oracle_transfers_total", counter, "times", nil,
		"Times that this node handed leadership over because its own wall clock was off."},
	oracleBoundRetries: {"almanac_oracle_bound_retries_total", counter, "times", nil,
		"Proposed bounds that were not applied in time; rising: the system range is slow to commit."},
	oracleBoundStalls: {"almanac_oracle_bound_stalls_total", counter, "requests", nil,
		"Requests for timestamps refused because the persisted bound was used up."},

	sessionsOpen: {"almanac_sessions_open", gauge, "sessions", nil,
		"Hand-out sessions open at the ranges that this node leads; a subscriber has one at each range of its topic."},
	eventsOverdue: {"almanac_events_overdue_seconds", gauge, "seconds", nil,
		"How late the oldest pending event is that fell due in a range led here and has not fired; 0 if none is late. Staying above 0: the oracle issues nothing, or the range has no majority."},
	eventsPublished: {"almanac_events_published_total", counter, "events", []string{"result"},
		"Events that publishers sent to this node, by result: accepted, duplicate, or failed."},
	eventsDelivered: {"almanac_events_delivered_total", counter, "events", nil,
		"Deliveries sent to subscribers connected to this node, first ones and repeated ones."},
	eventsRedelivered: {"almanac_events_redelivered_total", counter, "events", nil,
		"Those of them that were not an event's first delivery to its group."},
	deliveryLateness: {"almanac_delivery_lateness_seconds", histogram, "seconds", nil,
		"Oracle time from an event's due time to its first delivery to a group through this node, up to 1 ms too low, because timestamps tell whole milliseconds. A group that starts at the earliest event, or was without a subscriber, counts with its whole backlog."},
	eventsAcked: {"almanac_events_acked_total", counter, "events", []string{"outcome"},
		"Acks that subscribers sent to this node, by outcome for each event: done, already (settled before), not_found, window_full, or failed."},

	requestDuration: {"almanac_request_duration_seconds", histogram, "seconds", []string{"service", "method", "code"},
		"How long calls took on this node, from receipt to answer, by gRPC service, method and status code. Calls that travel inside KV.Stream count as the method that they call, acks inside Events.Subscribe as the method Ack. Streams themselves are not timed."},
	requestsInFlight: {"almanac_requests_in_flight", gauge, "requests", nil,
		"Calls that this node works on now, those inside streams left out."},
	requestsRefused: {"almanac_requests_refused_total", counter, "requests", []string{"by"},
		"Requests refused as busy before anything was done, by what had no room: memory (the share for requests), or range (more requests for one range than it can answer)."},
	streamsOpen: {"almanac_streams_open", gauge, "streams", []string{"service", "method"},
		"Streams of clients that are open on this node."},
	streamsEnded: {"almanac_streams_ended_total", counter, "streams", []string{"service", "method", "code"},
		"Streams of clients that ended, by gRPC service, method and status code."},

	transportMessages: {"almanac_transport_messages_total", counter, "messages", []string{"class", "direction"},
		"Messages between nodes, by class (replication, calls, bulk) and direction (sent, received)."},
	transportBytes: {"almanac_transport_bytes_total", counter, "bytes", []string{"class", "direction"},
		"Bytes of those messages."},
	transportDropped: {"almanac_transport_dropped_messages_total", counter, "messages", []string{"class"},
		"Messages that did not leave this node: the queue was full, or the peer could not be reached."},
	transportConnects: {"almanac_transport_connects_total", counter, "connections", []string{"class"},
		"Connections to peers that came up; rising: connections break."},
	transportConnections: {"almanac_transport_connections", gauge, "connections", []string{"class"},
		"Connections to peers that are up."},

	stateBytes: {"almanac_state_bytes", gauge, "bytes", nil,
		"Estimate of what the state store takes on disk."},
	storeStalls: {"almanac_store_write_stalls_total", counter, "times", []string{"store"},
		"Times that writes had to wait for flushes and compactions, by store: log, or state."},
	storeStalled: {"almanac_store_write_stalled", gauge, "", []string{"store"},
		"1 while writes wait for flushes and compactions."},
	storeSlow: {"almanac_store_slow_operations_total", counter, "operations", []string{"store"},
		"Single disk operations that took longer than 2 s."},
	storeFull: {"almanac_store_disk_full_total", counter, "operations", []string{"store"},
		"Disk operations that failed because the disk was full."},
	storeErrors: {"almanac_store_background_errors_total", counter, "errors", []string{"store"},
		"Flushes and compactions that failed; the state store tries them again, the node stops on the log store's."},
	storeCorruptions: {"almanac_store_corruptions_total", counter, "errors", []string{"store"},
		"Files found damaged, each time that they are read."},
	storeFlushes: {"almanac_store_flushes_total", counter, "flushes", []string{"store"},
		"Memtables written to disk; each moves forward what the state store has durably."},
}
