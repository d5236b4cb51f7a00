package wallclock

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be the process whose clock is moved: it answers each
// line with its wall clock and its monotonic time, while other goroutines read the
// clock without pause.
func TestMain(m *testing.M) {
	if os.Getenv("WALLCLOCK_ANSWER") == "" {
		os.Exit(m.Run())
	}
	began := time.Now()
	for range 4 {
		go func() {
			for {
				_ = time.Now()
			}
		}()
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(time.Now().UnixNano(), time.Since(began).Nanoseconds())
	}
}

func TestSet(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "WALLCLOCK_ANSWER=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	answers := bufio.NewReader(out)
	// ask returns how far the process's wall clock is ahead, and its monotonic time.
	ask := func() (ahead, since time.Duration) {
		t.Helper()
		if _, err := io.WriteString(in, "\n"); err != nil {
			t.Fatal(err)
		}
		var wall, mono int64
		if _, err := fmt.Fscanln(answers, &wall, &mono); err != nil {
			t.Fatal(err)
		}
		return time.Duration(wall - time.Now().UnixNano()), time.Duration(mono)
	}
	const close = 500 * time.Millisecond // the process is one of many
	if ahead, _ := ask(); ahead.Abs() > close {
		t.Fatalf("before any step the clock is %v ahead", ahead)
	}
	for _, offset := range []time.Duration{time.Hour, -5 * time.Second, 1500*time.Millisecond + 1, -48 * time.Hour, 0} {
		_, before := ask()
		began := time.Now()
		err := Set(cmd.Process.Pid, offset)
		if errors.Is(err, os.ErrPermission) {
			t.Skip("may not write another process's memory; run as root: ", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		ahead, after := ask()
		if (ahead - offset).Abs() > close {
			t.Errorf("clock set %v ahead: the process is %v ahead", offset, ahead)
		}
		if passed := after - before; passed < 0 || passed > time.Since(began)+close {
			t.Errorf("monotonic time went on by %v", passed)
		}
	}
}

func TestSetOfNoProcess(t *testing.T) {
	if err := Set(1<<22+1, time.Second); err == nil {
		t.Error("a process that does not exist has a clock")
	}
}
