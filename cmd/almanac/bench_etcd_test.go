package main

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// etcdServer answers what bench asks of an etcd, and counts.
type etcdServer struct {
	etcdserverpb.UnimplementedKVServer
	etcdserverpb.UnimplementedMaintenanceServer
	puts, gets, txns atomic.Int64
}

func (s *etcdServer) Put(context.Context, *etcdserverpb.PutRequest) (*etcdserverpb.PutResponse, error) {
	s.puts.Add(1)
	return &etcdserverpb.PutResponse{Header: &etcdserverpb.ResponseHeader{}}, nil
}

func (s *etcdServer) Range(context.Context, *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	s.gets.Add(1)
	return &etcdserverpb.RangeResponse{Header: &etcdserverpb.ResponseHeader{}}, nil
}

func (s *etcdServer) Txn(context.Context, *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	s.txns.Add(1)
	return &etcdserverpb.TxnResponse{Header: &etcdserverpb.ResponseHeader{}, Succeeded: true}, nil
}

func (s *etcdServer) Status(context.Context, *etcdserverpb.StatusRequest) (*etcdserverpb.StatusResponse, error) {
	return &etcdserverpb.StatusResponse{Header: &etcdserverpb.ResponseHeader{MemberId: 7}, Leader: 7}, nil
}

// TestBenchEtcd checks that bench speaks etcd's API, and finds the leader by it.
func TestBenchEtcd(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e, server := &etcdServer{}, grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, e)
	etcdserverpb.RegisterMaintenanceServer(server, e)
	go func() { _ = server.Serve(listener) }() // ends with Stop
	defer server.Stop()
	s := newShell(t)
	bench := func(line string) {
		t.Helper()
		args := append([]string{"bench", "kv", "--api", "etcd", "-o", "json", "--endpoints", listener.Addr().String()}, strings.Fields(line)...)
		var got struct{ Ops, Errors int }
		if err := json.Unmarshal([]byte(s.ok(args...)), &got); err != nil || got.Ops != 100 || got.Errors != 0 {
			t.Errorf("%s: %+v, %v", line, got, err)
		}
	}
	bench("--count 100 --target leader")
	if e.puts.Load() != 100 {
		t.Errorf("%d puts", e.puts.Load())
	}
	bench("--count 100 --op get --keys 10")
	if e.gets.Load() != 100 || e.puts.Load() != 110 {
		t.Errorf("%d gets, %d puts", e.gets.Load(), e.puts.Load())
	}
	bench("--count 100 --batch 30 --op mixed --keys 50")
	if e.txns.Load() != 4 {
		t.Errorf("%d transactions", e.txns.Load())
	}
}
