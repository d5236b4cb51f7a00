package client

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Errors that no server gave say what to do all the same.
func TestErrorsWithoutDetailHaveARemedy(t *testing.T) {
	for code, reason := range map[codes.Code]Reason{
		codes.Unavailable: ReasonUnavailable, codes.ResourceExhausted: ReasonTooLarge, codes.Unimplemented: ReasonUnimplemented,
	} {
		if e := fromStatus(status.Error(code, "connection refused")); e.Reason != reason || e.Remedy == "" {
			t.Errorf("%v: %+v", code, e)
		}
	}
}
