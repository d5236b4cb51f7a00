package main

import (
	"os"
	"testing"
	"time"
)

func TestParseCPU(t *testing.T) {
	// The name holds a space and a parenthesis on purpose.
	const stat = "4711 (a) b) S 1 4711 4711 0 -1 4194560 1234 0 5 0 150 25 7 8 20 0 9 0 100 200 300"
	d, err := parseCPU(stat)
	if err != nil || d != 1750*time.Millisecond {
		t.Errorf("%v, %v", d, err)
	}
	for _, bad := range []string{"", "1 (x) S 1 2", "4711 (a) S 1 4711 4711 0 -1 4194560 1234 0 5 0 x 25 7 8"} {
		if _, err := parseCPU(bad); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

func TestParseResident(t *testing.T) {
	bytes, err := parseResident("5000 123 50 1 0 300 0\n", 4096)
	if err != nil || bytes != 123*4096 {
		t.Errorf("%v, %v", bytes, err)
	}
	for _, bad := range []string{"", "1", "1 x"} {
		if _, err := parseResident(bad, 4096); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

// What the kernel says of this process can be read.
func TestOwnProcess(t *testing.T) {
	if _, err := cpuTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	if bytes, err := residentMemory(os.Getpid()); err != nil || bytes < 1<<20 {
		t.Errorf("%d bytes, %v", bytes, err)
	}
}
