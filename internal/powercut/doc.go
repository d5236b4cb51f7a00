// Package powercut cuts the power of real nodes: each has its data directory on a file
// system of its own, in a loop-mounted image, which is shut down without a flush before the
// process is killed. What was acknowledged must be there when they come back; a build
// that does not sync must be caught. It also gives nodes disks whose syncs fail. Tests only.
package powercut
