//go:build nosync

package engine

const syncs = false
