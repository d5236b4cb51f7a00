package mvcc

import (
	"testing"

	"github.com/almanacdb/almanac/internal/fault"
)

func TestValidate(t *testing.T) {
	del := func(start, end string) Op { return Op{Kind: OpDelete, Span: span(start, end)} }
	sub := func(then, els []Op) Op { return Op{Kind: OpTxn, Txn: &Txn{Then: then, Else: els}} }
	many := make([]Op, MaxOps+1)
	for i := range many {
		many[i] = Op{Kind: OpRange, Span: point("a")}
	}
	deep := &Txn{}
	for range MaxDepth - 1 {
		deep = &Txn{Then: []Op{{Kind: OpTxn, Txn: deep}}}
	}
	tests := map[string]struct {
		txn  *Txn
		want fault.Kind
	}{
		"empty":                   {&Txn{}, 0},
		"different keys":          {&Txn{Then: []Op{put("a", ""), put("b", "")}}, 0},
		"same key in branches":    {&Txn{Then: []Op{put("a", "")}, Else: []Op{put("a", "")}}, 0},
		"put and read":            {&Txn{Then: []Op{put("a", ""), {Kind: OpRange, Span: point("a")}}}, 0},
		"same key twice":          {&Txn{Then: []Op{put("a", ""), put("a", "")}}, fault.Invalid},
		"same key twice, else":    {&Txn{Else: []Op{put("a", ""), put("a", "")}}, fault.Invalid},
		"deletes overlap":         {&Txn{Then: []Op{del("a", "c"), del("b", "d")}}, 0},
		"put before its delete":   {&Txn{Then: []Op{put("b", ""), del("a", "c")}}, fault.Invalid},
		"put after its delete":    {&Txn{Then: []Op{del("a", "c"), put("b", "")}}, fault.Invalid},
		"put at a delete's end":   {&Txn{Then: []Op{del("a", "c"), put("c", "")}}, 0},
		"inverted delete":         {&Txn{Then: []Op{del("c", "a"), put("b", "")}}, 0},
		"nested put":              {&Txn{Then: []Op{put("a", ""), sub([]Op{put("a", "")}, nil)}}, fault.Invalid},
		"nested else put":         {&Txn{Then: []Op{put("a", ""), sub(nil, []Op{put("a", "")})}}, fault.Invalid},
		"nested put under delete": {&Txn{Then: []Op{sub([]Op{put("b", "")}, nil), del("a", "c")}}, fault.Invalid},
		"nested delete over put":  {&Txn{Then: []Op{sub([]Op{del("a", "c")}, nil), put("b", "")}}, fault.Invalid},
		"nested branches":         {&Txn{Then: []Op{sub([]Op{put("a", "")}, []Op{put("a", ""), del("b", "c")})}}, 0},
		"nested siblings": {&Txn{Then: []Op{
			sub([]Op{put("a", "")}, nil), sub(nil, []Op{put("a", "")}),
		}}, fault.Invalid},
		"nested siblings, delete": {&Txn{Then: []Op{
			sub([]Op{put("b", "")}, nil), sub([]Op{del("a", "c")}, nil),
		}}, fault.Invalid},
		"nested itself": {&Txn{Then: []Op{sub([]Op{put("a", ""), put("a", "")}, nil)}}, fault.Invalid},
		"put of a span": {&Txn{Then: []Op{{Kind: OpPut, Span: span("a", "b")}}}, fault.Invalid},
		"ignored value": {&Txn{Then: []Op{{Kind: OpPut, Span: point("a"), IgnoreValue: true, Value: []byte("x")}}}, fault.Invalid},
		"ignored lease": {&Txn{Then: []Op{{Kind: OpPut, Span: point("a"), IgnoreLease: true, Lease: 1}}}, fault.Invalid},
		"target":        {&Txn{Compares: []Compare{{Target: TargetLease + 1}}}, fault.Invalid},
		"relation":      {&Txn{Compares: []Compare{{Relation: NotEqual + 1}}}, fault.Invalid},
		"sort target":   {&Txn{Then: []Op{{Kind: OpRange, Range: RangeOptions{Sort: SortValue + 1}}}}, fault.Invalid},
		"sort order":    {&Txn{Then: []Op{{Kind: OpRange, Range: RangeOptions{Order: SortDescend + 1}}}}, fault.Invalid},
		"kind":          {&Txn{Else: []Op{{Kind: OpTxn + 1}}}, fault.Invalid},
		"missing":       {&Txn{Else: []Op{{Kind: OpTxn}}}, fault.Invalid},
		"deepest":       {deep, 0},
		"too deep":      {&Txn{Then: []Op{{Kind: OpTxn, Txn: deep}}}, fault.Invalid},
		"most":          {&Txn{Then: many[:MaxOps]}, 0},
		"too many":      {&Txn{Then: many}, fault.TooLarge},
		"too many, in parts": {&Txn{Then: []Op{
			{Kind: OpTxn, Txn: &Txn{Then: many[:MaxOps/2]}}, {Kind: OpTxn, Txn: &Txn{Else: many[:MaxOps/2]}},
		}}, fault.TooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := Validate(tt.txn); fault.KindOf(err) != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}
