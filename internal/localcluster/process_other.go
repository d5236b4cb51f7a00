//go:build !linux

package localcluster

import "syscall"

// processAttributes puts a node in a group of its own, so that an interrupt at the
// terminal reaches only us.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
