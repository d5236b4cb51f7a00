package almanac

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

func TestEveryKindHasACode(t *testing.T) {
	for k := fault.Internal; k <= fault.Cancelled; k++ {
		code := codeOf(k)
		if code == codes.OK || (code == codes.Internal) != (k == fault.Internal) {
			t.Errorf("kind %s has code %s", k, code)
		}
	}
	if codeOf(0) != codes.Internal || codeOf(250) != codes.Internal {
		t.Error("an unknown kind is not internal")
	}
	// gRPC may repeat what is Unavailable by itself.
	for _, k := range []fault.Kind{fault.UnknownOutcome, fault.Deadline, fault.Internal} {
		if codeOf(k) == codes.Unavailable {
			t.Errorf("%s, which leaves a write in doubt, is Unavailable", k)
		}
	}
}

func TestErrorsCarryWhatClientsMatchOn(t *testing.T) {
	a := addresses(node{}.ClientAddress)
	f := fault.NotLeaderOf(7, 2).WithRemedy("ask node 2")
	for name, err := range map[string]error{"itself": f, "wrapped": fmt.Errorf("while asking: %w", f)} {
		st := a.status(err)
		d := detail(t, st)
		if status.Code(st) != codes.Unavailable || d.Reason != "not_leader" || d.Remedy != "ask node 2" ||
			d.LeaderAddress != "two:7400" || d.RangeId != 7 {
			t.Errorf("%s: %v with %v", name, st, d)
		}
	}
	if d := detail(t, a.status(fault.NotLeaderOf(7, 3))); d.LeaderAddress != "" {
		t.Errorf("an unknown leader has the address %q", d.LeaderAddress)
	}
	if a.status(nil) != nil {
		t.Error("no error became one")
	}
}

func TestForeignErrors(t *testing.T) {
	a := addresses(nil)
	for _, c := range []struct {
		err  error
		want fault.Kind
	}{
		{fmt.Errorf("surprise"), fault.Internal},
		{context.Canceled, fault.Cancelled},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), fault.Deadline},
		// What a fault was caused by does not hide the fault.
		{fault.Wrap(fault.UnknownOutcome, status.Error(codes.Unavailable, "gone"), "no answer"), fault.UnknownOutcome},
		{fault.Wrap(fault.UnknownOutcome, context.DeadlineExceeded, "no answer"), fault.UnknownOutcome},
	} {
		wantReason(t, a.status(c.err), c.want)
	}
	st := status.Error(codes.Canceled, "the stream broke")
	if a.status(st) != st {
		t.Error("a status did not stay one")
	}
	odd := fault.New(fault.Invalid, "key \xff").WithRemedy("not \xfe").OnRange(base.RangeID(1))
	if m := a.message(odd); strings.Contains(m.Message, "\xff") || strings.Contains(m.Detail.Remedy, "\xfe") {
		t.Errorf("%q and %q cannot be sent as strings", m.Message, m.Detail.Remedy)
	}
}
