package lincheck

import (
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

var unknown = Output{Unknown: true}

// op is an operation on key k over [call, ret]; ret 0 means it never returned.
func op(client int, in Input, out Output, call, ret int) Operation {
	in.Key = "k"
	o := Operation{Client: client, Input: in, Output: out, Call: time.Duration(call), Return: time.Duration(ret)}
	if ret == 0 {
		o.Return = Forever
	}
	return o
}

func TestCheckKeys(t *testing.T) {
	put := func(v string) Input { return Input{Op: Put, Value: v} }
	get := Input{Op: Get}
	del := Input{Op: Delete}
	swap := func(from, to string) Input { return Input{Op: CompareSwap, Expect: from, Value: to} }
	create := func(v string) Input { return Input{Op: CompareSwap, Absent: true, Value: v} }
	is := func(v string) Output { return Output{Present: true, Value: v} }
	found, swapped, done := Output{Present: true}, Output{Swapped: true}, Output{}

	for _, tc := range []struct {
		name string
		ops  []Operation
		ok   bool
	}{
		{"empty", nil, true},
		{"read your write", []Operation{op(0, put("a"), done, 1, 2), op(0, get, is("a"), 3, 4)}, true},
		{"stale read", []Operation{op(0, put("a"), done, 1, 2), op(0, put("b"), done, 3, 4), op(1, get, is("a"), 5, 6)}, false},
		{"lost write", []Operation{op(0, put("a"), done, 1, 2), op(1, get, done, 3, 4)}, false},
		{"concurrent write may or may not be seen", []Operation{op(0, put("a"), done, 1, 9), op(1, get, done, 2, 3), op(1, get, is("a"), 4, 5)}, true},
		{"seen, then unseen", []Operation{op(0, put("a"), done, 1, 9), op(1, get, is("a"), 2, 3), op(1, get, done, 4, 5)}, false},
		{"invented value", []Operation{op(0, get, is("z"), 1, 2)}, false},
		{"unknown write seen later", []Operation{op(0, put("a"), unknown, 1, 2), op(1, get, done, 3, 4), op(1, get, is("a"), 5, 6)}, true},
		{"unknown write never seen", []Operation{op(0, put("a"), unknown, 1, 0), op(1, get, done, 3, 4)}, true},
		{"unknown write seen before its call", []Operation{op(1, get, is("a"), 1, 2), op(0, put("a"), unknown, 3, 0)}, false},
		{"unknown write applied twice", []Operation{op(0, put("a"), unknown, 1, 0), op(1, get, is("a"), 2, 3), op(1, del, found, 4, 5), op(1, get, is("a"), 6, 7)}, false},
		{"refused write seen", []Operation{op(0, put("a"), Output{Refused: true}, 1, 2), op(1, get, is("a"), 3, 4)}, false},
		{"delete", []Operation{op(0, put("a"), done, 1, 2), op(0, del, found, 3, 4), op(0, get, done, 5, 6), op(0, del, done, 7, 8)}, true},
		{"delete found nothing", []Operation{op(0, put("a"), done, 1, 2), op(0, del, done, 3, 4)}, false},
		{"unknown delete", []Operation{op(0, put("a"), done, 1, 2), op(0, del, unknown, 3, 0), op(1, get, is("a"), 4, 5), op(1, get, done, 6, 7)}, true},
		{"swap", []Operation{op(0, create("a"), swapped, 1, 2), op(0, create("b"), done, 3, 4), op(0, swap("a", "c"), swapped, 5, 6), op(0, get, is("c"), 7, 8)}, true},
		{"two swaps win", []Operation{op(0, put("a"), done, 1, 2), op(0, swap("a", "b"), swapped, 3, 6), op(1, swap("a", "c"), swapped, 3, 6)}, false},
		{"swap of an absent key is no swap of an empty value", []Operation{op(0, swap("", "b"), swapped, 1, 2)}, false},
		{"unknown swap", []Operation{op(0, put("a"), done, 1, 2), op(0, swap("a", "b"), unknown, 3, 0), op(1, get, is("b"), 4, 5)}, true},
		{"unknown swap whose compare cannot hold", []Operation{op(0, put("a"), done, 1, 2), op(0, swap("x", "b"), unknown, 3, 0), op(1, get, is("b"), 4, 5)}, false},
		{"unknown get says nothing", []Operation{op(0, put("a"), done, 1, 2), op(0, get, unknown, 3, 0)}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			v, err := CheckKeys(tc.ops, 0, dir)
			if err != nil {
				t.Fatal(err)
			}
			if v.OK() != tc.ok {
				t.Fatalf("%v", v)
			}
			if tc.ok != (v.Visualization == "") {
				t.Fatalf("visualization %q", v.Visualization)
			}
			if !tc.ok {
				html, err := os.ReadFile(v.Visualization)
				if err != nil || !strings.Contains(string(html), "<html") {
					t.Fatalf("no drawing: %v", err)
				}
			}
		})
	}
}

func TestCheckKeysNamesTheKey(t *testing.T) {
	good := op(0, Input{Op: Get}, Output{}, 1, 2)
	bad := op(0, Input{Op: Get}, Output{Present: true, Value: "z"}, 1, 2)
	good.Input.Key, bad.Input.Key = "a", "b"
	v, err := CheckKeys([]Operation{bad, good}, time.Minute, t.TempDir())
	if err != nil || v.Result != porcupine.Illegal || v.Key != "b" {
		t.Fatalf("%+v, %v", v, err)
	}
}

// Many goroutines on a correct store give a linearizable history, and the same store
// with one stale read does not.
func TestRecorder(t *testing.T) {
	var clock atomic.Int64
	r := NewRecorder(func() time.Duration { return time.Duration(clock.Add(1)) })
	var mu sync.Mutex
	store := map[string]string{}
	var wg sync.WaitGroup
	for client := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(client)))
			for range 100 {
				in := Input{Key: string(rune('a' + rng.IntN(3))), Op: Op(1 + rng.IntN(3)), Value: string(rune('0' + rng.IntN(10)))}
				end := r.Begin(client, in)
				mu.Lock()
				v, ok := store[in.Key]
				out := Output{}
				switch in.Op {
				case Get:
					out = Output{Present: ok, Value: v}
				case Put:
					store[in.Key] = in.Value
				case Delete:
					out.Present = ok
					delete(store, in.Key)
				}
				mu.Unlock()
				if in.Op != Get && rng.IntN(10) == 0 {
					out = unknown
				}
				end(out)
			}
		})
	}
	wg.Wait()
	// An unended operation counts as unknown.
	r.Begin(9, Input{Key: "a", Op: Put, Value: "never"})
	if v, err := CheckKeys(r.Keys(), 20*time.Second, t.TempDir()); err != nil || !v.OK() {
		t.Fatalf("%v, %v", v, err)
	}
	r.Begin(0, Input{Key: "b", Op: Put, Value: "x"})(Output{})
	r.Begin(0, Input{Key: "b", Op: Get})(Output{Present: true, Value: "planted"})
	v, err := CheckKeys(r.Keys(), 20*time.Second, t.TempDir())
	if err != nil || v.OK() || v.Key != "b" {
		t.Fatalf("the planted read was not found: %v, %v", v, err)
	}
}
