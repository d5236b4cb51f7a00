//go:build linux && amd64

package chaos

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/proctest"
)

const (
	registers   = 10              // keys of a generation that stand alone
	twins       = 4               // pairs of keys that are only written together
	callTimeout = 3 * time.Second // of one operation
)

// keyLoad is clients at work on keys, each operation recorded. A generation of keys is
// worked on for a few faults, so that the history of one key stays short enough to
// judge; at the end all are read once more.
type keyLoad struct {
	prefix     string
	recorder   *lincheck.Recorder
	generation atomic.Int64
	done       atomic.Int64 // calls with an answer
	unsure     atomic.Int64 // writes of unknown outcome
	failed     atomic.Int64 // all other failures: surely nothing was done
	lastClient atomic.Int64

	mu      sync.Mutex
	reasons map[string]int
	torn    []string // twins that were seen apart
}

func newKeyLoad(prefix string) *keyLoad {
	return &keyLoad{prefix: prefix, recorder: lincheck.NewRecorder(nil), reasons: make(map[string]int)}
}

func (l *keyLoad) registers(generation int64) string {
	return fmt.Sprintf("%s/r/%d/", l.prefix, generation)
}

func (l *keyLoad) register(generation int64, i int) string {
	return fmt.Sprint(l.registers(generation), i)
}

// pair is the prefix of two keys, and the name under which both are one register.
func (l *keyLoad) pair(generation int64, i int) string {
	return fmt.Sprintf("%s/p/%d/%d/", l.prefix, generation, i)
}

func both(pair, value string) []proctest.Pair {
	return []proctest.Pair{{Key: pair + "a", Value: value}, {Key: pair + "b", Value: value}}
}

// worker is one client. After a write of unknown outcome, which may still happen, it
// goes on under a new number.
type worker struct {
	*keyLoad
	store  proctest.Store
	rng    *rand.Rand
	number int // of this worker, for values
	client int
	n      int
}

// work does random operations until ctx ends.
func (l *keyLoad) work(ctx context.Context, s proctest.Store, number int) {
	w := &worker{keyLoad: l, store: s, rng: rand.New(rand.NewPCG(*seed, uint64(number))), number: number, client: int(l.lastClient.Add(1))}
	for ctx.Err() == nil {
		w.n++
		pause := time.Duration(2+w.rng.IntN(8)) * time.Millisecond
		if !w.step(context.WithoutCancel(ctx)) {
			pause += 30 * time.Millisecond
		}
		proctest.Pause(ctx, pause)
	}
}

// read does nothing but read single registers. Its calls are short: a client that also
// writes soon waits for an answer that an orderer cut off from the others cannot give,
// while that orderer might still answer reads.
func (l *keyLoad) read(ctx context.Context, s proctest.Store, number int) {
	w := &worker{keyLoad: l, store: s, rng: rand.New(rand.NewPCG(*seed, uint64(number))), client: int(l.lastClient.Add(1))}
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout/10)
		w.one(call, lincheck.Input{Op: lincheck.Get, Key: w.register(w.generation.Load(), w.rng.IntN(registers))})
		cancel()
		proctest.Pause(ctx, time.Duration(5+w.rng.IntN(10))*time.Millisecond)
	}
}

// step does one random operation, on a key of this generation or the one before.
func (w *worker) step(ctx context.Context) bool {
	g := max(0, w.generation.Load()-int64(w.rng.IntN(4)/3))
	key := w.register(g, w.rng.IntN(registers))
	value := fmt.Sprintf("%d.%d", w.number, w.n)
	switch w.rng.IntN(10) {
	case 0, 1:
		return w.one(ctx, lincheck.Input{Op: lincheck.Get, Key: key})
	case 2, 3:
		return w.one(ctx, lincheck.Input{Op: lincheck.Put, Key: key, Value: value})
	case 4:
		return w.one(ctx, lincheck.Input{Op: lincheck.Delete, Key: key})
	case 5:
		return w.swap(ctx, key, value)
	case 6:
		return w.list(ctx, w.store, g)
	case 7:
		return w.two(ctx, key, w.register(g, w.rng.IntN(registers)), value)
	case 8:
		return w.writePair(ctx, w.pair(g, w.rng.IntN(twins)), value)
	default:
		_, _, ok := w.readPair(ctx, w.store, w.pair(g, w.rng.IntN(twins)))
		return ok
	}
}

// record makes one call that counts as one operation on each of several keys. The call
// tells the answers; where it leaves one out, nothing was done to that key.
func (w *worker) record(ctx context.Context, ins []lincheck.Input, call func(ctx context.Context) ([]lincheck.Output, error)) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ends := make([]func(lincheck.Output), len(ins))
	reads := true
	for i, in := range ins {
		ends[i] = w.recorder.Begin(w.client, in)
		reads = reads && in.Op == lincheck.Get
	}
	outs, err := call(ctx)
	if err == nil {
		w.done.Add(1)
		for i, end := range ends {
			if i < len(outs) {
				end(outs[i])
			} else {
				end(lincheck.Output{Refused: true})
			}
		}
		return true
	}
	refused := reads || w.store.Refused(err)
	for _, end := range ends {
		end(lincheck.Output{Refused: refused, Unknown: !refused})
	}
	if refused {
		w.failed.Add(1)
	} else {
		w.unsure.Add(1)
		w.client = int(w.lastClient.Add(1))
	}
	w.because(err)
	return false
}

func (l *keyLoad) because(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reasons[reason(err)]++
}

// reason is what an error is counted under.
func reason(err error) string {
	if r := client.ReasonOf(err); r != client.ReasonInternal {
		return string(r)
	}
	return err.Error()
}

func (w *worker) one(ctx context.Context, in lincheck.Input) bool {
	return w.record(ctx, []lincheck.Input{in}, func(ctx context.Context) ([]lincheck.Output, error) {
		out, err := proctest.Do(ctx, w.store, in)
		return []lincheck.Output{out}, err
	})
}

// swap expects what it has just read, so that some succeed.
func (w *worker) swap(ctx context.Context, key, value string) bool {
	in := lincheck.Input{Op: lincheck.CompareSwap, Key: key, Value: value}
	read := w.record(ctx, []lincheck.Input{{Op: lincheck.Get, Key: key}}, func(ctx context.Context) ([]lincheck.Output, error) {
		was, present, err := w.store.Get(ctx, key)
		in.Expect, in.Absent = was, !present
		return []lincheck.Output{{Present: present, Value: was}}, err
	})
	return read && w.one(ctx, in)
}

// list reads all registers of a generation at once.
func (w *worker) list(ctx context.Context, s proctest.Store, generation int64) bool {
	var ins []lincheck.Input
	for i := range registers {
		ins = append(ins, lincheck.Input{Op: lincheck.Get, Key: w.register(generation, i)})
	}
	return w.record(ctx, ins, func(ctx context.Context) ([]lincheck.Output, error) {
		found, err := s.Range(ctx, w.registers(generation))
		var outs []lincheck.Output
		for _, in := range ins {
			value, present := found[in.Key]
			outs = append(outs, lincheck.Output{Present: present, Value: value})
		}
		return outs, err
	})
}

// two writes two registers in one transaction, half the time only if the first still
// holds what it held.
func (w *worker) two(ctx context.Context, first, second, value string) bool {
	if first == second {
		return w.one(ctx, lincheck.Input{Op: lincheck.Put, Key: first, Value: value})
	}
	puts := []proctest.Pair{{Key: first, Value: value}, {Key: second, Value: value}}
	put := lincheck.Input{Op: lincheck.Put, Key: second, Value: value}
	if w.rng.IntN(2) == 0 {
		return w.record(ctx, []lincheck.Input{{Op: lincheck.Put, Key: first, Value: value}, put},
			func(ctx context.Context) ([]lincheck.Output, error) {
				_, err := w.store.Txn(ctx, nil, puts)
				return make([]lincheck.Output, 2), err
			})
	}
	var was string
	var present bool
	if !w.record(ctx, []lincheck.Input{{Op: lincheck.Get, Key: first}}, func(ctx context.Context) ([]lincheck.Output, error) {
		var err error
		was, present, err = w.store.Get(ctx, first)
		return []lincheck.Output{{Present: present, Value: was}}, err
	}) {
		return false
	}
	if !present {
		return true
	}
	swap := lincheck.Input{Op: lincheck.CompareSwap, Key: first, Expect: was, Value: value}
	return w.record(ctx, []lincheck.Input{swap, put}, func(ctx context.Context) ([]lincheck.Output, error) {
		done, err := w.store.Txn(ctx, []proctest.Pair{{Key: first, Value: was}}, puts)
		if !done { // then nothing was done to the second
			return []lincheck.Output{{}}, err
		}
		return []lincheck.Output{{Swapped: true}, {}}, err
	})
}

// writePair writes both twins, half the time only if both hold what they held.
func (w *worker) writePair(ctx context.Context, pair, value string) bool {
	if w.rng.IntN(2) == 0 {
		return w.record(ctx, []lincheck.Input{{Op: lincheck.Put, Key: pair, Value: value}}, func(ctx context.Context) ([]lincheck.Output, error) {
			_, err := w.store.Txn(ctx, nil, both(pair, value))
			return make([]lincheck.Output, 1), err
		})
	}
	was, present, ok := w.readPair(ctx, w.store, pair)
	if !ok || !present {
		return ok
	}
	swap := lincheck.Input{Op: lincheck.CompareSwap, Key: pair, Expect: was, Value: value}
	return w.record(ctx, []lincheck.Input{swap}, func(ctx context.Context) ([]lincheck.Output, error) {
		done, err := w.store.Txn(ctx, both(pair, was), both(pair, value))
		return []lincheck.Output{{Swapped: done}}, err
	})
}

// readPair reads both twins at once; seen apart they break invariant 2.
func (w *worker) readPair(ctx context.Context, s proctest.Store, pair string) (value string, present, ok bool) {
	ok = w.record(ctx, []lincheck.Input{{Op: lincheck.Get, Key: pair}}, func(ctx context.Context) ([]lincheck.Output, error) {
		found, err := s.Range(ctx, pair)
		if err != nil {
			return nil, err
		}
		var first, second bool
		var other string
		value, first = found[pair+"a"]
		other, second = found[pair+"b"]
		if present = first; first != second || value != other {
			w.mu.Lock()
			w.torn = append(w.torn, fmt.Sprintf("%s: %v", pair, found))
			w.mu.Unlock()
		}
		return []lincheck.Output{{Present: present, Value: value}}, nil
	})
	return value, present, ok
}

// readAll reads every key once more through a store: what was acknowledged must be there.
func (l *keyLoad) readAll(t *testing.T, s proctest.Store) {
	t.Helper()
	w := &worker{keyLoad: l, store: s, client: int(l.lastClient.Add(1))}
	for g := range l.generation.Load() + 1 {
		proctest.Until(t, 20*time.Second, "a last read of all registers", func(ctx context.Context) string {
			return missing(w.list(ctx, s, g), "not answered")
		})
		for i := range twins {
			proctest.Until(t, 20*time.Second, "a last read of a pair", func(ctx context.Context) string {
				_, _, ok := w.readPair(ctx, s, l.pair(g, i))
				return missing(ok, "not answered")
			})
		}
	}
}

func missing(ok bool, what string) string {
	if ok {
		return ""
	}
	return what
}

// judge returns what is wrong with the history; drawings go into dir.
func (l *keyLoad) judge(dir string) []string {
	l.mu.Lock()
	wrong := slices.Clone(l.torn)
	l.mu.Unlock()
	verdict, err := lincheck.CheckKeys(l.recorder.Keys(), time.Minute, dir)
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	if !verdict.OK() {
		wrong = append(wrong, verdict.String())
	}
	return wrong
}

// unknownShare is the share of operations whose outcome is not known.
func (l *keyLoad) unknownShare() float64 {
	unsure := float64(l.unsure.Load())
	return unsure / max(1, float64(l.done.Load())+unsure)
}

// failures lists the reasons of failed calls, most frequent first.
func (l *keyLoad) failures() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return mostFrequent(l.reasons)
}

func mostFrequent(reasons map[string]int) string {
	names := slices.Sorted(maps.Keys(reasons))
	slices.SortStableFunc(names, func(a, b string) int { return reasons[b] - reasons[a] })
	s := ""
	for _, n := range names {
		s += fmt.Sprintf(", %d × %s", reasons[n], n)
	}
	if s == "" {
		return "none"
	}
	return s[2:]
}
