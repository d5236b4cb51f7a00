// Package wallclock moves the wall clock that one running process sees, as a broken time
// service would move a whole node's: CLOCK_REALTIME alone, monotonic time goes on. The
// process is not modified but for its private copy of the kernel's vDSO, through which
// Go reads clocks. Linux on amd64, with the right to write the process's memory. Tests
// only.
package wallclock
