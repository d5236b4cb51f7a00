package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/almanacdb/almanac/internal/proctest"
)

// peerProgram returns the path of another system's program, as tools/peers/build left it.
func peerProgram(t *testing.T, name string) string {
	t.Helper()
	needE2E(t)
	dir := os.Getenv("ALMANAC_PEERS")
	if dir == "" {
		t.Skip("ALMANAC_PEERS is not set: tools/peers/build DIR builds what it names")
	}
	return filepath.Join(dir, name)
}

// startEtcd runs an etcd of one node and returns its client address.
func startEtcd(t *testing.T) string {
	t.Helper()
	program := peerProgram(t, "etcd")
	var urls [2]string
	for i := range urls {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		urls[i] = "http://" + l.Addr().String()
		_ = l.Close()
	}
	cmd := exec.Command(program, "--data-dir", t.TempDir(), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
		"--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1], "--initial-cluster", "default="+urls[1])
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return strings.TrimPrefix(urls[0], "http://")
}

// subject is one of the systems that are compared. How each numbers its revisions is its
// own, so requests and answers speak of the n-th write.
type subject struct {
	nodes     []*clientv3.Client // a request goes to one after the other
	asked     int
	prefix    string
	revisions []int64
}

func newSubject(t *testing.T, addresses ...string) *subject {
	s := &subject{}
	for _, a := range addresses {
		s.nodes = append(s.nodes, proctest.NewEtcdClient(t, a))
	}
	return s
}

func (s *subject) key(k string) string { return s.prefix + k }

// rev is the revision of the n-th write; one beyond the last is in the future.
func (s *subject) rev(n int) int64 {
	if n < len(s.revisions) {
		return s.revisions[n]
	}
	return s.revisions[len(s.revisions)-1] + 1<<50
}

// nth is the inverse of rev.
func (s *subject) nth(revision int64) string {
	for n, r := range s.revisions {
		if r == revision {
			return fmt.Sprint("#", n)
		}
	}
	if revision == 0 {
		return "none"
	}
	return "of no known write"
}

// step is one request, for either system.
type step struct {
	name    string
	op      func(s *subject) clientv3.Op
	compact func(s *subject) int64 // instead of op
}

// do sends a request and says how it went, in terms that must be the same for both.
func (s *subject) do(ctx context.Context, st step) string {
	node := s.nodes[s.asked%len(s.nodes)]
	s.asked++
	if st.compact != nil {
		if _, err := node.Compact(ctx, st.compact(s)); err != nil {
			return "error: " + err.Error()
		}
		return "compacted"
	}
	r, err := node.Do(ctx, st.op(s))
	if err != nil {
		return "error: " + err.Error()
	}
	var header *pb.ResponseHeader
	wrote := false
	switch {
	case r.Put() != nil:
		header, wrote = r.Put().Header, true
	case r.Del() != nil:
		header, wrote = r.Del().Header, r.Del().Deleted > 0
	case r.Txn() != nil:
		header, wrote = r.Txn().Header, txnWrote(r.Txn().Responses)
	default:
		header = r.Get().Header
	}
	if last := len(s.revisions) - 1; last >= 0 && header.Revision < s.revisions[last] {
		return fmt.Sprintf("revision %d after %d", header.Revision, s.revisions[last])
	}
	if wrote {
		s.revisions = append(s.revisions, header.Revision)
	}
	return s.show(r)
}

func txnWrote(list []*pb.ResponseOp) bool {
	for _, op := range list {
		if op.GetResponsePut() != nil || op.GetResponseDeleteRange().GetDeleted() > 0 || txnWrote(op.GetResponseTxn().GetResponses()) {
			return true
		}
	}
	return false
}

func (s *subject) show(r clientv3.OpResponse) string {
	switch {
	case r.Put() != nil:
		return "put" + s.showKVs(r.Put().PrevKv)
	case r.Del() != nil:
		return fmt.Sprint("deleted ", r.Del().Deleted, s.showKVs(r.Del().PrevKvs...))
	case r.Txn() != nil:
		return s.showTxn((*pb.TxnResponse)(r.Txn()))
	}
	return s.showRange((*pb.RangeResponse)(r.Get()))
}

func (s *subject) showRange(r *pb.RangeResponse) string {
	return fmt.Sprint("count ", r.Count, " more ", r.More, s.showKVs(r.Kvs...))
}

func (s *subject) showTxn(r *pb.TxnResponse) string {
	text := fmt.Sprint("succeeded ", r.Succeeded, " {")
	for _, op := range r.Responses {
		switch {
		case op.GetResponseRange() != nil:
			text += s.showRange(op.GetResponseRange())
		case op.GetResponsePut() != nil:
			text += "put" + s.showKVs(op.GetResponsePut().PrevKv)
		case op.GetResponseDeleteRange() != nil:
			text += fmt.Sprint("deleted ", op.GetResponseDeleteRange().Deleted, s.showKVs(op.GetResponseDeleteRange().PrevKvs...))
		case op.GetResponseTxn() != nil:
			text += s.showTxn(op.GetResponseTxn())
		}
		text += "; "
	}
	return text + "}"
}

func (s *subject) showKVs(kvs ...*mvccpb.KeyValue) string {
	text := ""
	for _, kv := range kvs {
		if kv != nil {
			text += fmt.Sprintf(" %q=%.20q created %s modified %s version %d lease %d", kv.Key, kv.Value,
				s.nth(kv.CreateRevision), s.nth(kv.ModRevision), kv.Version, kv.Lease)
		}
	}
	return text
}

// TestSameAnswersAsEtcd sends the same requests to etcd and to our cluster: through each
// node alone, then through all in turn, so that one node reads what another wrote.
func TestSameAnswersAsEtcd(t *testing.T) {
	etcd := newSubject(t, startEtcd(t))
	c := start(t, 3)
	var all []string
	for _, n := range c.Nodes {
		all = append(all, n.Address)
	}
	for i, addresses := range [][]string{all[:1], all[1:2], all[2:], all} {
		ours := newSubject(t, addresses...)
		t.Run(fmt.Sprint(len(addresses), " nodes from ", i+1), func(t *testing.T) {
			steps := append(script(), randomSteps(uint64(i), 400)...)
			etcd.prefix, etcd.revisions = fmt.Sprint("pass", i, "/"), nil
			ours.prefix = etcd.prefix
			failed, errors := 0, 0
			for n, st := range steps {
				ctx := proctest.Within(t, 15*time.Second)
				want, got := etcd.do(ctx, st), ours.do(ctx, st)
				if strings.HasPrefix(want, "error") {
					errors++
				}
				if got != want {
					t.Errorf("step %d, %s\nAlmanac: %s\netcd:    %s", n, st.name, got, want)
					if failed++; failed > 5 {
						t.FailNow()
					}
				}
			}
			t.Logf("%d requests, %d writes and %d errors among them, have the same answers", len(steps), len(etcd.revisions), errors)
		})
	}
}

// script is the requests that a person thought of.
func script() []step {
	var steps []step
	add := func(name string, op func(s *subject) clientv3.Op) { steps = append(steps, step{name: name, op: op}) }
	put := func(key, value string, o ...clientv3.OpOption) {
		add("put "+key, func(s *subject) clientv3.Op { return clientv3.OpPut(s.key(key), value, o...) })
	}
	get := func(name, key string, o ...clientv3.OpOption) {
		add("get "+name, func(s *subject) clientv3.Op { return clientv3.OpGet(s.key(key), o...) })
	}
	del := func(name, key string, o ...clientv3.OpOption) {
		add("delete "+name, func(s *subject) clientv3.Op { return clientv3.OpDelete(s.key(key), o...) })
	}
	for i, k := range []string{"c", "a", "e", "b", "d"} {
		put(k, fmt.Sprint("v", 5-i))
	}
	put("a", "second", clientv3.WithPrevKV())
	put("a", "third")
	put("", "empty suffix")
	get("a", "a")
	get("missing", "missing")
	get("prefix", "", clientv3.WithPrefix())
	get("serializable", "a", clientv3.WithSerializable())
	get("keys only", "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	get("count only", "", clientv3.WithPrefix(), clientv3.WithCountOnly())
	get("limit", "", clientv3.WithPrefix(), clientv3.WithLimit(2))
	for target := clientv3.SortByKey; target <= clientv3.SortByValue; target++ {
		for _, order := range []clientv3.SortOrder{clientv3.SortNone, clientv3.SortAscend, clientv3.SortDescend} {
			get(fmt.Sprint("sorted by ", target, " ", order), "", clientv3.WithPrefix(), clientv3.WithSort(target, order))
		}
		get(fmt.Sprint("first three by ", target), "", clientv3.WithPrefix(), clientv3.WithSort(target, clientv3.SortDescend), clientv3.WithLimit(3))
	}
	for n := range 10 {
		add(fmt.Sprint("get at write ", n), func(s *subject) clientv3.Op {
			return clientv3.OpGet(s.prefix, clientv3.WithPrefix(), clientv3.WithRev(s.rev(n)))
		})
		add(fmt.Sprint("get modified from write ", n), func(s *subject) clientv3.Op {
			return clientv3.OpGet(s.prefix, clientv3.WithPrefix(), clientv3.WithMinModRev(s.rev(n)))
		})
		add(fmt.Sprint("get created up to write ", n), func(s *subject) clientv3.Op {
			return clientv3.OpGet(s.prefix, clientv3.WithPrefix(), clientv3.WithMaxCreateRev(s.rev(n)))
		})
	}
	add("range a to d", func(s *subject) clientv3.Op { return clientv3.OpGet(s.key("a"), clientv3.WithRange(s.key("d"))) })
	add("range backwards", func(s *subject) clientv3.Op { return clientv3.OpGet(s.key("d"), clientv3.WithRange(s.key("a"))) })
	del("a", "a", clientv3.WithPrevKV())
	del("a again", "a", clientv3.WithPrevKV())
	get("deleted a", "a")
	add("deleted a before", func(s *subject) clientv3.Op { return clientv3.OpGet(s.key("a"), clientv3.WithRev(s.rev(6))) })
	put("a", "reborn")
	get("reborn", "a")
	put("a", "", clientv3.WithIgnoreValue())
	put("nothing", "", clientv3.WithIgnoreValue())
	put("nothing", "x", clientv3.WithIgnoreLease())
	put("a", "value and ignored", clientv3.WithIgnoreValue())
	put("large", strings.Repeat("x", 2<<20))
	put("large enough", strings.Repeat("x", 1<<20))
	add("empty key", func(*subject) clientv3.Op { return clientv3.OpPut("", "x") })
	steps = append(steps, txnScript()...)
	steps = append(steps,
		step{name: "compact in the future", compact: func(s *subject) int64 { return s.rev(10_000) }},
		step{name: "compact at write 8", compact: func(s *subject) int64 { return s.rev(8) }},
		step{name: "compact again", compact: func(s *subject) int64 { return s.rev(8) }},
		step{name: "compact before", compact: func(s *subject) int64 { return s.rev(3) }},
		step{name: "compact at 0", compact: func(*subject) int64 { return 0 }})
	for _, n := range []int{3, 7, 8, 9, 10_000} {
		add(fmt.Sprint("get after compaction at write ", n), func(s *subject) clientv3.Op {
			return clientv3.OpGet(s.prefix, clientv3.WithPrefix(), clientv3.WithRev(s.rev(n)), clientv3.WithKeysOnly())
		})
	}
	del("prefix", "", clientv3.WithPrefix(), clientv3.WithPrevKV())
	get("nothing left", "", clientv3.WithPrefix())
	put("a", "m")
	return steps
}

func txnScript() []step {
	var steps []step
	txn := func(name string, f func(s *subject) (cmp []clientv3.Cmp, then, els []clientv3.Op)) {
		steps = append(steps, step{name: "txn " + name, op: func(s *subject) clientv3.Op {
			cmp, then, els := f(s)
			return clientv3.OpTxn(cmp, then, els)
		}})
	}
	both := func(name string, cmp func(s *subject) clientv3.Cmp) {
		txn(name, func(s *subject) ([]clientv3.Cmp, []clientv3.Op, []clientv3.Op) {
			return []clientv3.Cmp{cmp(s)}, []clientv3.Op{clientv3.OpPut(s.key("then"), "1"), clientv3.OpGet(s.key("then"))},
				[]clientv3.Op{clientv3.OpDelete(s.key("then"), clientv3.WithPrevKV()), clientv3.OpGet(s.key("b"))}
		})
	}
	for _, how := range []string{"=", "!=", "<", ">"} {
		both("value "+how, func(s *subject) clientv3.Cmp { return clientv3.Compare(clientv3.Value(s.key("b")), how, "v2") })
		both("version "+how, func(s *subject) clientv3.Cmp { return clientv3.Compare(clientv3.Version(s.key("a")), how, 1) })
		both("create "+how, func(s *subject) clientv3.Cmp {
			return clientv3.Compare(clientv3.CreateRevision(s.key("b")), how, s.rev(3))
		})
		both("modify "+how, func(s *subject) clientv3.Cmp {
			return clientv3.Compare(clientv3.ModRevision(s.key("c")), how, s.rev(4))
		})
		both("version of a missing key "+how, func(s *subject) clientv3.Cmp {
			return clientv3.Compare(clientv3.Version(s.key("missing")), how, 0)
		})
		both("value of a missing key "+how, func(s *subject) clientv3.Cmp { return clientv3.Compare(clientv3.Value(s.key("missing")), how, "") })
		both("all of a prefix "+how, func(s *subject) clientv3.Cmp {
			return clientv3.Compare(clientv3.Version(s.prefix).WithPrefix(), how, 1)
		})
	}
	txn("that sees its own writes", func(s *subject) ([]clientv3.Cmp, []clientv3.Op, []clientv3.Op) {
		return nil, []clientv3.Op{
			clientv3.OpPut(s.key("t1"), "1"), clientv3.OpGet(s.key("t"), clientv3.WithPrefix()), clientv3.OpPut(s.key("t2"), "2"),
			clientv3.OpGet(s.key("t"), clientv3.WithPrefix()), clientv3.OpDelete(s.key("b"), clientv3.WithPrevKV()),
			clientv3.OpGet(s.key("b")),
		}, nil
	})
	txn("nested", func(s *subject) ([]clientv3.Cmp, []clientv3.Op, []clientv3.Op) {
		inner := clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value(s.key("t1")), "=", "outer")},
			[]clientv3.Op{clientv3.OpPut(s.key("t3"), "then"), clientv3.OpGet(s.key("t1"))},
			[]clientv3.Op{clientv3.OpPut(s.key("t3"), "else"), clientv3.OpGet(s.key("t1"))})
		return nil, []clientv3.Op{clientv3.OpPut(s.key("t1"), "outer"), inner, clientv3.OpGet(s.key("t3"))}, nil
	})
	txn("two puts of a key", func(s *subject) ([]clientv3.Cmp, []clientv3.Op, []clientv3.Op) {
		return nil, []clientv3.Op{clientv3.OpPut(s.key("x"), "1"), clientv3.OpPut(s.key("x"), "2")}, nil
	})
	txn("put and delete of a key", func(s *subject) ([]clientv3.Cmp, []clientv3.Op, []clientv3.Op) {
		return nil, []clientv3.Op{clientv3.OpPut(s.key("x"), "1"), clientv3.OpDelete(s.key("x"))}, nil
	})
	txn("too many operations", func(s *subject) ([]clientv3.Cmp, []clientv3.Op, []clientv3.Op) {
		var ops []clientv3.Op
		for i := range 129 {
			ops = append(ops, clientv3.OpPut(s.key(fmt.Sprint("many", i)), "x"))
		}
		return nil, ops, nil
	})
	txn("a read in the future", func(s *subject) ([]clientv3.Cmp, []clientv3.Op, []clientv3.Op) {
		return nil, []clientv3.Op{clientv3.OpPut(s.key("x"), "1"), clientv3.OpGet(s.key("a"), clientv3.WithRev(s.rev(10_000)))}, nil
	})
	txn("reads of the past", func(s *subject) ([]clientv3.Cmp, []clientv3.Op, []clientv3.Op) {
		return nil, []clientv3.Op{clientv3.OpGet(s.key("a"), clientv3.WithRev(s.rev(1))), clientv3.OpGet(s.key("a"))}, nil
	})
	txn("empty", func(*subject) ([]clientv3.Cmp, []clientv3.Op, []clientv3.Op) { return nil, nil, nil })
	return steps
}

// randomSteps are n requests over few keys. Reads of the past stay above the compaction.
func randomSteps(seed uint64, n int) []step {
	r := rand.New(rand.NewPCG(seed, 3))
	var make func(depth int) func(s *subject) clientv3.Op
	key := func() string { return []string{"a", "b", "c", "d", "aa"}[r.IntN(5)] }
	make = func(depth int) func(s *subject) clientv3.Op {
		k, other, v, back := key(), key(), string(rune('m'+r.IntN(4))), r.IntN(10)
		switch kind := r.IntN(4 + depth); {
		case kind == 0:
			return func(s *subject) clientv3.Op { return clientv3.OpPut(s.key(k), v, clientv3.WithPrevKV()) }
		case kind == 1 && back < 5:
			return func(s *subject) clientv3.Op { return clientv3.OpDelete(s.key(k), clientv3.WithPrevKV()) }
		case kind == 2:
			return func(s *subject) clientv3.Op {
				return clientv3.OpGet(s.key(k), clientv3.WithRev(s.rev(max(len(s.revisions)-1-back, 0))))
			}
		case kind <= 3:
			sort := clientv3.WithSort(clientv3.SortTarget(r.IntN(5)), clientv3.SortOrder(1+r.IntN(2)))
			limit := clientv3.WithLimit(int64(r.IntN(4)))
			return func(s *subject) clientv3.Op { return clientv3.OpGet(s.prefix, clientv3.WithPrefix(), sort, limit) }
		}
		how, version := []string{"=", "!=", "<", ">"}[r.IntN(4)], r.IntN(4)
		ops := [2]func(s *subject) clientv3.Op{make(depth - 1), make(depth - 1)}
		return func(s *subject) clientv3.Op {
			return clientv3.OpTxn([]clientv3.Cmp{
				clientv3.Compare(clientv3.Version(s.key(k)), how, version), clientv3.Compare(clientv3.Value(s.key(other)), "!=", v),
			}, []clientv3.Op{ops[0](s), clientv3.OpGet(s.key(k))}, []clientv3.Op{ops[1](s)})
		}
	}
	steps := []step{}
	for i := range n {
		steps = append(steps, step{name: fmt.Sprint("random ", i), op: make(2)})
	}
	return steps
}

// TestEtcdctl runs etcd's own command line client against etcd and each of our nodes.
func TestEtcdctl(t *testing.T) {
	program := peerProgram(t, "etcdctl")
	reference := startEtcd(t)
	c := start(t, 3)
	ctl := func(address, in string, args ...string) answer {
		return run(t, 30*time.Second, in, program, append([]string{"--endpoints", address}, args...)...)
	}
	proctest.Until(t, 20*time.Second, "etcd to answer", func(context.Context) string {
		if a := ctl(reference, "", "endpoint", "health"); a.code != 0 {
			return a.err
		}
		return ""
	})
	revision := regexp.MustCompile(`"Revision" : (\d+)`)
	for _, n := range c.Nodes {
		prefix := fmt.Sprint("ctl", n.Index, "/")
		for _, tc := range []struct{ in, args string }{
			{"", "put P/a one"}, {"", "put P/b two"}, {"", "put P/a three --prev-kv"}, {"", "get P/a"}, {"", "get P/missing"},
			{"", "get P --prefix"}, {"", "get P --prefix --keys-only"}, {"", "get P --prefix --print-value-only --limit 1"},
			{"", "get P/ --prefix --order DESCEND --sort-by MODIFY"}, {"", "get P/a P/b"},
			{"value(\"P/a\") = \"three\"\n\nput P/c four\nget P/a\n\nput P/d five\n\n", "txn"},
			{"mod(\"P/b\") = \"1\"\n\nput P/c four\n\nget P/c\ndel P/b\n\n", "txn"},
			{"", "del P/a --prev-kv"}, {"", "del P/missing"}, {"", "del P --prefix"}, {"", "get P --prefix"},
			{"", "put"}, {"", "compaction 9223372036854775807"},
		} {
			in, args := strings.ReplaceAll(tc.in, "P", prefix), strings.Fields(strings.ReplaceAll(tc.args, "P", prefix))
			want, got := ctl(reference, in, args...), ctl(n.Address, in, args...)
			if got.code != want.code || got.out != want.out || errorText(got.err) != errorText(want.err) {
				t.Errorf("node %d: etcdctl %s\nAlmanac: %d %q %q\netcd:    %d %q %q", n.Index, tc.args,
					got.code, got.out, errorText(got.err), want.code, want.out, errorText(want.err))
			}
		}
		found := revision.FindStringSubmatch(ctl(n.Address, "", "get", "x", "-w", "fields").out)
		if found == nil {
			t.Fatal("no revision")
		}
		if a := ctl(n.Address, "", "compaction", found[1]); a.code != 0 || a.out != "compacted revision "+found[1]+"\n" {
			t.Errorf("compaction: %+v", a)
		}
		if a := ctl(n.Address, "", "get", "x", "--rev", "5"); a.code == 0 || !strings.Contains(a.err, "required revision has been compacted") {
			t.Errorf("a read below the compaction: %+v", a)
		}
		if a := ctl(n.Address, "", "endpoint", "health"); a.code != 0 || !strings.Contains(a.out+a.err, n.Address+" is healthy") {
			t.Errorf("health: %+v", a)
		}
		members := ctl(n.Address, "", "member", "list")
		if members.code != 0 || strings.Count(members.out, "started") != 3 || !strings.Contains(members.out, "http://"+n.Address) {
			t.Errorf("members: %+v", members)
		}
	}
	c.endpointStatus(t, program)
}

// errorText returns what an error of etcdctl says; a log line around it differs by time.
func errorText(s string) string {
	if i := strings.Index(s, "Error: "); i >= 0 {
		return s[i:]
	}
	var line struct{ Error string }
	if json.Unmarshal([]byte(s), &line) == nil {
		return line.Error
	}
	return s
}

// endpointStatus wants the same leader and term from all, and one node that is it.
func (c *cluster) endpointStatus(t *testing.T, program string) {
	t.Helper()
	a := run(t, 30*time.Second, "", program, "--endpoints", c.Endpoints(), "endpoint", "status", "-w", "json")
	var list []struct {
		Endpoint string
		Status   struct {
			Header struct {
				MemberID uint64 `json:"member_id"`
			}
			Version                                               string
			DBSize, Leader, RaftIndex, RaftTerm, RaftAppliedIndex uint64
		}
	}
	if err := json.Unmarshal([]byte(a.out), &list); err != nil || len(list) != 3 {
		t.Fatalf("endpoint status: %v\n%+v", err, a)
	}
	leaders := 0
	for _, e := range list {
		if e.Status.Leader != list[0].Status.Leader || e.Status.RaftTerm != list[0].Status.RaftTerm || e.Status.Leader == 0 ||
			e.Status.DBSize == 0 || e.Status.RaftAppliedIndex == 0 || e.Status.Version == "" {
			t.Errorf("endpoint status: %+v", e)
		}
		if e.Status.Header.MemberID == e.Status.Leader {
			leaders++
		}
	}
	if leaders != 1 {
		t.Errorf("%d nodes say that they lead", leaders)
	}
	for _, args := range []string{"endpoint status -w table", "endpoint health --cluster", "member list -w table", "alarm list"} {
		if a := run(t, 30*time.Second, "", program, append([]string{"--endpoints", c.Endpoints()}, strings.Fields(args)...)...); a.code != 0 {
			t.Errorf("etcdctl %s: %+v", args, a)
		}
	}
}
