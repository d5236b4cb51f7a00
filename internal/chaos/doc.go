// Package chaos runs clusters of the almanac binary, each node in a network namespace of
// its own, and does to them what machines and networks do: processes are killed and
// frozen, links are cut both ways or one way or lose packets, wall clocks step, while
// clients of both APIs work. It demands proof that each fault fired, work in every
// healed window, and a history that package lincheck accepts. It owns the faults and the
// load; it refuses to know how the product copes. Tests only; they run as root on Linux
// with ALMANAC_CHAOS=1.
package chaos
