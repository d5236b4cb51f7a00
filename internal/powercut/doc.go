// Package powercut cuts the power of real nodes: each has its data directory on a file
// system of its own, in a loop-mounted image. The process is frozen, the file system shut
// down without a flush, and only then the process killed, so that nobody hears what a dying
// disk says. What was acknowledged must be there when they come back; a build that does not
// sync must be caught. It also gives nodes disks whose syncs fail. Tests only.
package powercut
