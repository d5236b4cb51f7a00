package lincheck

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// Forever is the return time of an operation that has none: it may take effect at any
// time after its call.
const Forever = time.Duration(1<<63 - 1)

// Op is what a client asks of one key.
type Op uint8

// Operations.
const (
	Get         Op = iota + 1
	Put            // Value
	Delete         // found or not is told by Output.Present
	CompareSwap    // if the key holds Expect, or is absent where Absent: put Value
)

// Input is what was asked.
type Input struct {
	Op     Op
	Key    string
	Value  string
	Expect string
	Absent bool
}

// Output is what was answered.
type Output struct {
	// Unknown says that the operation may have taken effect, may yet, or never will.
	// A refusal that is sure to have had no effect is no operation: leave it out by
	// setting Refused.
	Unknown bool
	Refused bool
	Present bool   // get: the key exists; delete: it existed
	Value   string // get: its value
	Swapped bool   // compare-swap: the compare held
}

// Operation is one call and its answer. Times are monotonic, of one recorder.
type Operation struct {
	Client       int
	Input        Input
	Output       Output
	Call, Return time.Duration
}

// register is one key's state.
type register struct {
	present bool
	value   string
}

func (r register) String() string {
	if !r.present {
		return "absent"
	}
	return fmt.Sprintf("%q", r.value)
}

// Verdict is the answer of CheckKeys.
type Verdict struct {
	Result        porcupine.CheckResult // Ok, Illegal, or Unknown: the time was not enough
	Key           string                // the first key that is not Ok, in byte order
	Visualization string                // path of an HTML file about that key; empty if none was written
}

// OK says that every key's history was shown to be linearizable.
func (v Verdict) OK() bool { return v.Result == porcupine.Ok }

// String returns the verdict as one line for a test's failure.
func (v Verdict) String() string {
	if v.OK() {
		return "linearizable"
	}
	s := fmt.Sprintf("key %q: not linearizable", v.Key)
	if v.Result == porcupine.Unknown {
		s = fmt.Sprintf("key %q: not decided in time", v.Key)
	}
	if v.Visualization != "" {
		s += ", see " + v.Visualization
	}
	return s
}

// CheckKeys says whether every key's operations were linearizable. Each key gets up to
// timeout; 0 means no limit. For the first key that fails, a drawing of its history is
// written into dir, "" meaning the system's directory for temporary files.
func CheckKeys(history []Operation, timeout time.Duration, dir string) (Verdict, error) {
	byKey := make(map[string][]porcupine.Operation)
	for _, op := range history {
		if op.Output.Refused || op.Output.Unknown && op.Input.Op == Get {
			continue
		}
		if op.Output.Unknown {
			op.Return = Forever
		}
		byKey[op.Input.Key] = append(byKey[op.Input.Key], porcupine.Operation{
			ClientId: op.Client, Input: op.Input, Output: op.Output,
			Call: int64(op.Call), Return: int64(op.Return),
		})
	}
	keys := make([]string, 0, len(byKey))
	for k := range byKey {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	verdict := Verdict{Result: porcupine.Ok}
	for _, k := range keys {
		result := porcupine.CheckOperationsTimeout(keyModel, byKey[k], timeout)
		if result == porcupine.Ok || verdict.Result == porcupine.Illegal ||
			result == verdict.Result { // keep the first of the worst
			continue
		}
		verdict = Verdict{Result: result, Key: k}
		if result == porcupine.Illegal {
			break
		}
	}
	if verdict.OK() {
		return verdict, nil
	}
	path, err := visualize(byKey[verdict.Key], timeout, dir)
	verdict.Visualization = path
	return verdict, err
}

func visualize(ops []porcupine.Operation, timeout time.Duration, dir string) (string, error) {
	last := int64(0)
	for _, op := range ops {
		last = max(last, op.Call)
		if op.Return != int64(Forever) {
			last = max(last, op.Return)
		}
	}
	ops = slices.Clone(ops)
	slices.SortStableFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	for i := range ops { // draw open ends just behind the rest
		ops[i].Return = min(ops[i].Return, last+1)
	}
	_, info := porcupine.CheckOperationsVerbose(keyModel, ops, timeout)
	f, err := os.CreateTemp(dir, "lincheck-*.html")
	if err != nil {
		return "", err
	}
	if err := porcupine.Visualize(keyModel, info, f); err != nil {
		f.Close()
		return "", err
	}
	return f.Name(), f.Close()
}

// keyModel is one key as a register. An operation of unknown outcome that never took
// effect can always be placed at the end of the history, since it returns Forever and
// its answer says nothing.
var keyModel = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, output any) (bool, any) {
		return step(state.(register), input.(Input), output.(Output))
	},
	DescribeOperation: func(input, output any) string { return describe(input.(Input), output.(Output)) },
	DescribeState:     func(state any) string { return state.(register).String() },
}

func step(r register, in Input, out Output) (bool, register) {
	switch in.Op {
	case Get:
		return out == Output{Present: r.present, Value: r.value}, r
	case Put:
		return true, register{present: true, value: in.Value}
	case Delete:
		return out.Unknown || out.Present == r.present, register{}
	case CompareSwap:
		holds := r == register{present: !in.Absent, value: in.Expect}
		if !out.Unknown && out.Swapped != holds {
			return false, r
		}
		if holds {
			r = register{present: true, value: in.Value}
		}
		return true, r
	}
	return false, r
}

func describe(in Input, out Output) string {
	var call, answer string
	switch in.Op {
	case Get:
		call, answer = "get", register{present: out.Present, value: out.Value}.String()
	case Put:
		call, answer = fmt.Sprintf("put %q", in.Value), "ok"
	case Delete:
		call, answer = "delete", fmt.Sprintf("found %v", out.Present)
	case CompareSwap:
		expect := register{present: !in.Absent, value: in.Expect}
		call, answer = fmt.Sprintf("if %v put %q", expect, in.Value), fmt.Sprintf("swapped %v", out.Swapped)
	default:
		call = fmt.Sprintf("operation %d", in.Op)
	}
	if out.Unknown {
		answer = "unknown"
	}
	return call + " → " + answer
}
