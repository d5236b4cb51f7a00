package mvcc

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// Transcripts of transactions. A txn command's lines are compares and operations, under
// "then:" and "else:"; those nested deeper are indented by two spaces more.
//
//	if mod(a) = 3           compare; targets version create mod value lease
//	put a 1 lease=2 prev    flags: lease=N prev ignore-value ignore-lease
//	del a z prev            one key, or [a, z); "*" is the end of the keyspace
//	get a z at=3 limit=2    flags: at limit count keys sort=TARGET desc min-mod ...
//	txn                     nested; its parts follow, indented
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		v := newView()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var at, horizon uint64
			d.MaybeScanArgs(t, "at", &at)
			d.MaybeScanArgs(t, "horizon", &horizon)
			var out strings.Builder
			switch d.Cmd {
			case "txn":
				p := parser{t: t, lines: strings.Split(strings.TrimRight(d.Input, "\n"), "\n")}
				txn := p.txn(0)
				if err := Validate(txn); err != nil {
					return fmt.Sprintf("invalid: %v\n", err)
				}
				res, err := Apply(v, txn, base.Timestamp(at), base.Timestamp(horizon), true)
				if err != nil {
					return fmt.Sprintf("refused, %v: %v\n", fault.KindOf(err), err)
				}
				writeTxn(&out, res, "")
			case "get":
				p := parser{t: t}
				op := p.op(strings.Fields("get "+strings.TrimSpace(d.Input)), 0)
				res, err := Range(v, op.Span, op.Range)
				if err != nil {
					return err.Error()
				}
				writeRange(&out, res, "")
			default:
				d.Fatalf(t, "unknown command")
			}
			return out.String()
		})
	})
}

type parser struct {
	t     *testing.T
	lines []string
}

func (p *parser) txn(depth int) *Txn {
	txn := &Txn{}
	ops := &txn.Then
	for len(p.lines) > 0 {
		line := strings.TrimPrefix(p.lines[0], strings.Repeat("  ", depth))
		if strings.HasPrefix(line, " ") || len(line) == len(p.lines[0]) && depth > 0 {
			break
		}
		p.lines = p.lines[1:]
		switch f := strings.Fields(line); f[0] {
		case "if":
			txn.Compares = append(txn.Compares, p.compare(f[1:]))
		case "then:":
			ops = &txn.Then
		case "else:":
			ops = &txn.Else
		default:
			*ops = append(*ops, p.op(f, depth))
		}
	}
	return txn
}

func (p *parser) compare(f []string) Compare {
	target, rest, _ := strings.Cut(f[0], "(")
	c := Compare{
		Span:     p.span(strings.Split(strings.TrimSuffix(rest, ")"), ",")),
		Target:   map[string]Target{"version": TargetVersion, "create": TargetCreate, "mod": TargetMod, "value": TargetValue, "lease": TargetLease}[target],
		Relation: map[string]Relation{"=": Equal, ">": Greater, "<": Less, "!=": NotEqual}[f[1]],
	}
	if c.Target == TargetValue {
		c.Value = []byte(f[2])
	} else {
		c.Number = p.number(f[2])
	}
	return c
}

func (p *parser) number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

func (p *parser) span(f []string) base.Span {
	switch {
	case len(f) == 1:
		return point(f[0])
	case f[1] == "*":
		return span(f[0], "")
	}
	return span(f[0], f[1])
}

func (p *parser) op(f []string, depth int) Op {
	op := Op{Kind: map[string]OpKind{"get": OpRange, "put": OpPut, "del": OpDelete, "txn": OpTxn}[f[0]]}
	names := 1
	for names < len(f) && !flags[strings.SplitN(f[names], "=", 2)[0]] {
		names++
	}
	switch op.Kind {
	case OpTxn:
		op.Txn = p.txn(depth + 1)
		return op
	case OpPut:
		op.Span = point(f[1])
		if names > 2 {
			op.Value = []byte(f[2])
		}
	default:
		op.Span = p.span(f[1:names])
	}
	for _, flag := range f[names:] {
		p.flag(&op, flag)
	}
	return op
}

var flags = map[string]bool{
	"lease": true, "prev": true, "ignore-value": true, "ignore-lease": true, "at": true, "limit": true,
	"count": true, "keys": true, "sort": true, "desc": true,
	"min-mod": true, "max-mod": true, "min-create": true, "max-create": true,
}

func (p *parser) flag(op *Op, flag string) {
	name, arg, _ := strings.Cut(flag, "=")
	o := &op.Range
	times := map[string]*base.Timestamp{
		"at": &o.At, "min-mod": &o.MinMod, "max-mod": &o.MaxMod, "min-create": &o.MinCreate, "max-create": &o.MaxCreate,
	}
	switch name {
	case "lease":
		op.Lease = p.number(arg)
	case "prev":
		op.PrevKV = true
	case "ignore-value":
		op.IgnoreValue = true
	case "ignore-lease":
		op.IgnoreLease = true
	case "limit":
		o.Limit = p.number(arg)
	case "count":
		o.CountOnly = true
	case "keys":
		o.KeysOnly = true
	case "sort":
		o.Sort = map[string]SortTarget{"key": SortKey, "version": SortVersion, "create": SortCreate, "mod": SortMod, "value": SortValue}[arg]
		o.Order = max(o.Order, SortAscend)
	case "desc":
		o.Order = SortDescend
	default:
		*times[name] = base.Timestamp(p.number(arg))
	}
}

func writeTxn(b *strings.Builder, r *TxnResult, indent string) {
	fmt.Fprintf(b, "%ssucceeded: %v\n", indent, r.Succeeded)
	for _, op := range r.Ops {
		switch op.Kind {
		case OpRange:
			writeRange(b, op.Range, indent)
		case OpPut:
			fmt.Fprintf(b, "%sput\n", indent)
		case OpDelete:
			fmt.Fprintf(b, "%sdeleted: %d\n", indent, op.Deleted)
		case OpTxn:
			writeTxn(b, op.Txn, indent+"  ")
		}
		for _, kv := range op.Prev {
			fmt.Fprintf(b, "%s  prev %s\n", indent, showKV(kv))
		}
	}
}

func writeRange(b *strings.Builder, r RangeResult, indent string) {
	fmt.Fprintf(b, "%scount: %d", indent, r.Count)
	if r.More {
		fmt.Fprint(b, " more")
	}
	fmt.Fprintln(b)
	for _, kv := range r.KVs {
		fmt.Fprintf(b, "%s  %s\n", indent, showKV(kv))
	}
}

func showKV(kv KeyValue) string {
	_, k, _ := keys.DecodeUser(kv.Key)
	s := fmt.Sprintf("%s=%q create %d mod %d version %d", k, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
	if kv.Lease != 0 {
		s += fmt.Sprintf(" lease %d", kv.Lease)
	}
	return s
}
