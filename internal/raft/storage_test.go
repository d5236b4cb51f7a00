package raft

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	etcdraft "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
)

// TestStorage compares what upstream sees with the log itself, whatever is in memory,
// and checks that slices handed out never change.
func TestStorage(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		log := &memLog{before: base.LogMark{Index: 10, Term: 1}}
		s := &storage{log: log, maxBytes: rapid.IntRange(0, 2000).Draw(rt, "cache")}
		term := uint64(1)
		var out, outWas []*pb.Entry
		rt.Repeat(map[string]func(*rapid.T){
			"save": func(rt *rapid.T) {
				lo := log.Last() + 1 - uint64(rapid.IntRange(0, min(5, len(log.entries))).Draw(rt, "back"))
				if lo <= log.Last() {
					term++
				}
				var es []base.Entry
				for i := range rapid.IntRange(1, 6).Draw(rt, "n") {
					size := rapid.IntRange(1, 300).Draw(rt, "size")
					es = append(es, base.Entry{Index: lo + uint64(i), Term: term, Type: base.EntryCommand, Data: make([]byte, size)})
				}
				log.save(es)
				s.saved(toPB(es))
			},
			"truncate": func(rt *rapid.T) {
				log.truncate(log.before.Index + uint64(rapid.IntRange(0, len(log.entries)).Draw(rt, "at")))
			},
			"reset": func(rt *rapid.T) {
				if rapid.IntRange(0, 5).Draw(rt, "really") == 0 {
					s.forget()
					log.reset(base.LogMark{Index: log.Last() + uint64(rapid.IntRange(0, 9).Draw(rt, "ahead")), Term: term})
				}
			},
			"read": func(rt *rapid.T) {
				if len(log.entries) == 0 {
					return
				}
				lo := log.First() + uint64(rapid.IntRange(0, len(log.entries)-1).Draw(rt, "lo"))
				hi := lo + uint64(rapid.IntRange(1, int(log.Last()+1-lo)).Draw(rt, "n"))
				limit := uint64(rapid.IntRange(0, 1500).Draw(rt, "limit"))
				got, err := s.Entries(lo, hi, limit)
				if err != nil || len(got) == 0 {
					rt.Fatalf("entries [%d, %d): %d, %v", lo, hi, len(got), err)
				}
				size := 0
				for i, e := range got {
					want := log.entries[lo+uint64(i)-log.First()]
					if fmt.Sprint(fromPB(e)) != fmt.Sprint(want) {
						rt.Fatalf("entry %v, want %v", fromPB(e), want)
					}
					size += want.Size()
				}
				if len(got) > 1 && uint64(size) > limit {
					rt.Fatalf("%d bytes over a limit of %d", size, limit)
				}
				out, outWas = got, slices.Clone(got)
			},
			"": func(rt *rapid.T) {
				for i := log.First() - 1; i <= log.Last(); i++ {
					want, _ := log.Term(i)
					if got, err := s.Term(i); err != nil || got != want {
						rt.Fatalf("term of %d: %d, %v; want %d", i, got, err, want)
					}
				}
				if _, err := s.Term(log.Last() + 1); !errors.Is(err, etcdraft.ErrUnavailable) {
					rt.Fatalf("term above the end: %v", err)
				}
				if _, err := s.Entries(log.First()-1, log.First(), 100); !errors.Is(err, etcdraft.ErrCompacted) {
					rt.Fatalf("entries below the start: %v", err)
				}
				bytes := 0
				for _, e := range s.recent {
					bytes += cost(e)
				}
				if bytes != s.recentBytes || bytes > s.maxBytes {
					rt.Fatalf("%d bytes in memory, counted %d, allowed %d", bytes, s.recentBytes, s.maxBytes)
				}
				if !slices.Equal(out, outWas) {
					rt.Fatal("a slice changed after it was handed out")
				}
			},
		})
	})
}

func TestSnapshotNamesTheAppliedState(t *testing.T) {
	config := effect.Configuration{Epoch: 3, Voters: []base.ReplicaID{1, 2}, Learners: []base.ReplicaID{4}}
	s := &storage{config: config}
	if _, err := s.Snapshot(); !errors.Is(err, etcdraft.ErrSnapshotTemporarilyUnavailable) {
		t.Fatalf("a snapshot of nothing: %v", err)
	}
	s.applied = base.LogMark{Index: 20, Term: 4}
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	want := &effect.SnapshotMeta{Mark: s.applied, Config: config}
	if got := snapshotFromPB(snap); fmt.Sprint(*got) != fmt.Sprint(*want) {
		t.Fatalf("%+v, want %+v", got, want)
	}
}

func TestConverterSharesRuns(t *testing.T) {
	var entries []base.Entry
	for i := range 10 {
		entries = append(entries, base.Entry{Index: uint64(i + 5), Term: 2, Type: base.EntryCommand, Data: []byte{byte(i)}})
	}
	from := toPB(entries)
	other := toPB(entries) // the same places, other entries
	var c converter
	all := c.convert(from)
	if part := c.convert(from[3:7]); len(part) != 4 || cap(part) != 4 || &part[0] != &all[3] {
		t.Fatal("a part was converted again")
	}
	if fmt.Sprint(all) != fmt.Sprint(entries) {
		t.Fatalf("%v", all)
	}
	if o := c.convert(other); &o[0] == &all[0] {
		t.Fatal("other entries taken for the same")
	}
	if c.convert(append(from[8:10:10], toPB([]base.Entry{{Index: 15, Term: 2}})...))[2].Index != 15 {
		t.Fatal("a longer run was cut")
	}
	if c.convert(nil) != nil {
		t.Fatal("nothing became something")
	}
}
