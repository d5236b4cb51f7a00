//go:build !nosync

package engine

// syncs says that synced commits are. A build with the tag nosync, which tests of power cuts
// use to see that they would notice, takes that away.
const syncs = true
