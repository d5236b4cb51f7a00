package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

// binary is the program under test, built once.
var binary string

func enabled() bool { return os.Getenv("ALMANAC_E2E") == "1" }

func TestMain(m *testing.M) {
	if !enabled() {
		os.Exit(m.Run()) // every test skips
	}
	dir, err := os.MkdirTemp("", "almanac-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := 1
	if binary, err = proctest.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// needE2E skips the test unless end-to-end tests were asked for.
func needE2E(t *testing.T) {
	t.Helper()
	if !enabled() {
		t.Skip("real processes; run with ALMANAC_E2E=1 go test ./internal/e2e/ -v -timeout 10m")
	}
}

// cluster is a cluster of processes and a client of all its nodes.
type cluster struct {
	*proctest.Cluster
	t    *testing.T
	seen map[string]bool // stores set aside, see damage_test.go
}

// layOut prepares a cluster of n nodes; none runs yet.
func layOut(t *testing.T, n int, args ...string) *cluster {
	t.Helper()
	needE2E(t)
	return &cluster{t: t, seen: make(map[string]bool), Cluster: proctest.LayOut(t, localcluster.Options{Binary: binary, Dir: t.TempDir(), Nodes: n, Args: args})}
}

// start runs n nodes, forms a cluster of them and waits until it is well.
func start(t *testing.T, n int) *cluster {
	t.Helper()
	c := layOut(t, n)
	c.Form()
	return c
}

// answer is how a command line ended.
type answer struct {
	out, err string
	code     int
	took     time.Duration
}

// run runs a program to its end.
func run(t *testing.T, limit time.Duration, in, program string, args ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = strings.NewReader(in)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	began := time.Now()
	err := cmd.Run()
	a := answer{out: out.String(), err: errOut.String(), took: time.Since(began)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Fatalf("%s %s did not end within %v\n%s%s", filepath.Base(program), strings.Join(args, " "), limit, a.out, a.err)
	case errors.As(err, &exit):
		a.code = exit.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	return a
}

// cli runs the program's command line against the cluster.
func (c *cluster) cli(args ...string) answer {
	c.t.Helper()
	return run(c.t, time.Minute, "", binary, append([]string{"--endpoints", c.Endpoints()}, args...)...)
}
