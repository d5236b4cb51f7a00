package localcluster

import "syscall"

// processAttributes puts a node in a group of its own, so that an interrupt at the
// terminal reaches only us, and has it end with us, however we end.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
