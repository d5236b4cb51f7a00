// Package proctest is what tests of real processes share: a cluster of almanac binaries
// that is started, watched, killed and found well again, and stores of keys behind both
// of its APIs. It owns waiting and the words of its failures; it refuses to know what a
// test tries or how a history is judged. Tests only.
package proctest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Build builds the program under test into dir, with flags of go build, and returns its
// path.
func Build(dir string, flags ...string) (string, error) {
	binary := filepath.Join(dir, "almanac")
	args := append([]string{"build", "-o", binary}, flags...)
	build := exec.Command("go", append(args, "github.com/almanacdb/almanac/cmd/almanac")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as README says: all memory is under Go's limit
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("building the program: %w", err)
	}
	return binary, nil
}

// Within returns a context that ends after d, or with the test.
func Within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// Pause waits for d or the end of ctx; it says whether there is more time.
func Pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Until polls a condition, which says what is still missing; "" means it holds.
func Until(t *testing.T, limit time.Duration, what string, missing func(ctx context.Context) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	last := "never asked"
	for {
		now := missing(ctx)
		if now == "" {
			return
		}
		if ctx.Err() == nil || last == "never asked" {
			last = now
		}
		if !Pause(ctx, 50*time.Millisecond) {
			t.Fatalf("after %v still waiting for %s: %s", limit, what, last)
		}
	}
}

// Clock returns the time of day as logs of tests show it.
func Clock() string { return time.Now().Format("15:04:05.000") }
