//go:build linux && amd64

package chaos

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/proctest"
)

var (
	duration = flag.Duration("duration", 75*time.Second, "how long TestChaos goes on striking")
	seed     = flag.Uint64("seed", 0, "seed of the schedule; 0: a random one")
	nodes    = flag.Int("nodes", 3, "nodes of the cluster")
)

// workVar names the run's directory for what runs inside the namespace.
const workVar = "ALMANAC_CHAOS_WORK"

// work is the run's directory, with the program under test in it.
func work() string { return os.Getenv(workVar) }

func binary() string { return filepath.Join(work(), "almanac") }

func enabled() bool { return os.Getenv("ALMANAC_CHAOS") == "1" }

// needChaos skips the test unless it was asked for.
func needChaos(t *testing.T) {
	t.Helper()
	if !enabled() {
		t.Skip("real processes in network namespaces: needs root and the Debian packages iproute2 and nftables; " +
			"run with ALMANAC_CHAOS=1 go test ./internal/chaos -v -timeout 0 -duration 2m")
	}
}

// TestMain builds the program, then starts itself again in a network namespace that
// nothing else uses. What it makes there has no names: the kernel takes all of it away
// with the last process, however the run ends.
func TestMain(m *testing.M) {
	flag.Parse()
	if !enabled() {
		os.Exit(m.Run())
	}
	if work() == "" {
		err := prepare()
		fmt.Fprintln(os.Stderr, "chaos:", err) // prepare returns only if it failed
		os.Exit(1)
	}
	if *seed == 0 {
		*seed = 1 + rand.Uint64N(1_000_000)
	}
	code := m.Run()
	if os.Getenv(childVar) == "" {
		_ = os.RemoveAll(work())
	}
	os.Exit(code)
}

// prepare builds the program and becomes this test in a namespace of its own.
func prepare() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	for program, debian := range map[string]string{"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("there is no %s: install the Debian package %s", program, debian)
		}
	}
	removeStale()
	dir, err := os.MkdirTemp("", workPrefix)
	if err != nil {
		return err
	}
	if _, err := lock(dir); err != nil {
		return err
	}
	if _, err := proctest.Build(dir); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		return fmt.Errorf("a network namespace: %w", err)
	}
	return syscall.Exec(self, os.Args, append(os.Environ(), workVar+"="+dir))
}

const workPrefix = "almanac-chaos-run-"

// lock marks a directory as in use until this process and its nodes have ended: the
// descriptor stays open in all of them.
func lock(dir string) (fd int, err error) {
	fd, err = syscall.Open(filepath.Join(dir, "lock"), syscall.O_CREAT|syscall.O_RDWR, 0o644)
	if err != nil {
		return -1, err
	}
	if err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return -1, errors.Join(err, syscall.Close(fd))
	}
	return fd, nil
}

// removeStale removes what killed runs left on disk.
func removeStale() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), workPrefix+"*"))
	for _, dir := range dirs {
		if fd, err := lock(dir); err == nil {
			fmt.Println("chaos: removing what a killed run left in", dir)
			_ = os.RemoveAll(dir)
			_ = syscall.Close(fd)
		}
	}
}
