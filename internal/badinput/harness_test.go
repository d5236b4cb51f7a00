package badinput

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/node"
)

// binary builds the command once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "badinput")
	if err != nil {
		return "", err
	}
	built = dir
	path := filepath.Join(dir, "almanac")
	out, err := exec.Command("go", "build", "-o", path, "../../cmd/almanac").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return path, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

var built string // where the binary is; empty if no test needed it

// shell runs command lines with -o json.
type shell struct{ endpoints string }

type outcome struct {
	code   int
	stdout string
	stderr string
	failure
}

// failure is an error as programs read it.
type failure struct {
	Error, Reason, Remedy string
}

func (s shell) run(t *testing.T, in string, args ...string) outcome {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append(args, "-o", "json")...)
	cmd.Env = append(os.Environ(), "ALMANAC_ENDPOINTS="+s.endpoints)
	cmd.Stdin = strings.NewReader(in)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%v: %v", args, err)
	}
	o := outcome{code: cmd.ProcessState.ExitCode(), stdout: out.String(), stderr: errOut.String()}
	wantNoTrace(t, o.stderr)
	lines := strings.Split(strings.TrimSpace(o.stderr), "\n")
	if o.code != 0 {
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &o.failure); err != nil {
			t.Errorf("%.200v: exit %d, and stderr is no JSON: %.500s", args, o.code, o.stderr)
		}
	}
	return o
}

// refused runs a command line that must fail with a code and a reason, and say what is
// wrong and what helps.
func (s shell) refused(t *testing.T, code int, reason, says, in string, args ...string) {
	t.Helper()
	o := s.run(t, in, args...)
	if o.code != code || o.Reason != reason || o.Error == "" || o.Remedy == "" {
		t.Errorf("%.200v: exit %d, %.300s; want exit %d, reason %s and a remedy", args, o.code, o.stderr, code, reason)
	}
	if !strings.Contains(o.Error+" "+o.Remedy, says) {
		t.Errorf("%.200v: %.300s does not say %q", args, o.stderr, says)
	}
}

func (s shell) ok(t *testing.T, args ...string) string {
	t.Helper()
	o := s.run(t, "", args...)
	if o.code != 0 {
		t.Fatalf("%v: exit %d: %s", args, o.code, o.stderr)
	}
	return o.stdout
}

var trace = regexp.MustCompile(`(?m)^panic:|^fatal error:|^goroutine \d+ `)

func wantNoTrace(t *testing.T, output string) {
	t.Helper()
	if at := trace.FindStringIndex(output); at != nil {
		t.Errorf("the process crashed: %.3000s", output[at[0]:])
	}
}

// processes runs nodes as processes; their logs must show no crash in the end.
func processes(t *testing.T, nodes int) *localcluster.Cluster {
	t.Helper()
	return processesWithin(t, "1GiB", nodes)
}

func processesWithin(t *testing.T, memory string, nodes int) *localcluster.Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("runs processes")
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	c, err := localcluster.New(localcluster.Options{Binary: path, Dir: t.TempDir(), Nodes: nodes, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		c.StopAll(ctx)
		for _, n := range c.Nodes {
			wantNoTrace(t, n.LogTail(1<<20))
		}
	})
	return c
}

// single runs one node that serves.
func single(t *testing.T) (*localcluster.Node, shell) {
	t.Helper()
	return only(t, processes(t, 1))
}

// frugal runs one node that serves, with a budget small enough that garbage is collected
// soon: what such a node grows by is held, not left over.
func frugal(t *testing.T) (*localcluster.Node, shell) {
	t.Helper()
	return only(t, processesWithin(t, "256MiB", 1))
}

func only(t *testing.T, c *localcluster.Cluster) (*localcluster.Node, shell) {
	t.Helper()
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	s := shell{c.Endpoints()}
	s.ok(t, "kv", "put", "witness", "unharmed")
	return c.Nodes[0], s
}

// unharmed checks that a node still is what it was.
func unharmed(t *testing.T, n *localcluster.Node, s shell) {
	t.Helper()
	if !n.Running() {
		t.Fatalf("the node is gone: %s", n.LogTail(4096))
	}
	if out := s.ok(t, "kv", "get", "witness"); !strings.Contains(out, "unharmed") {
		t.Errorf("the node answers %q", out)
	}
}

// quick are the options of a node in this process, on free ports.
func quick(dir string) node.Options {
	return node.Options{
		DataDir: dir, Listen: "127.0.0.1:0", Peer: "127.0.0.1:0", HTTP: "127.0.0.1:0",
		Memory: 128 << 20, Tick: 20 * time.Millisecond,
	}
}

func stop(n *node.Node) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	n.Stop(ctx)
}

func connect(t *testing.T, o client.Options, addresses ...string) *client.Client {
	t.Helper()
	o.Endpoints = addresses
	c, err := client.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
