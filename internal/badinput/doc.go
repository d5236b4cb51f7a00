// Package badinput gives Almanac what it must refuse: wrong command lines, requests above
// its limits, garbage on its ports, nodes of other clusters, damaged files, a full disk. Each
// must end in an error that says what is wrong and what helps, lose nothing that was
// acknowledged, and never end a process with a trace. Tests only.
package badinput
