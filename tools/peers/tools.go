//go:build tools

// Package peers pins the systems that Almanac is compared with end to end: etcd's
// server and its command line client, and NATS.
package peers

import (
	_ "github.com/nats-io/nats-server/v2"
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/server/v3"
)
