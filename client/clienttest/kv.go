package clienttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sort"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// Stream implements KV. Every call runs on a goroutine of its own.
func (s *Server) Stream(stream almanacv1.KV_StreamServer) error {
	broken := s.broken()
	requests := make(chan *almanacv1.StreamRequest)
	ended := make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	var sending sync.Mutex
	var working sync.WaitGroup
	for {
		select {
		case <-broken:
			return errBroken
		case err := <-ended:
			working.Wait()
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case r := <-requests:
			s.mu.Lock()
			s.frames++
			s.calls += len(r.GetCalls())
			s.mu.Unlock()
			for _, call := range r.GetCalls() {
				working.Go(func() {
					reply := s.answer(call)
					reply.Id = call.GetId()
					sending.Lock()
					defer sending.Unlock()
					// A broken stream is noticed by its receiver.
					_ = stream.Send(&almanacv1.StreamResponse{Replies: []*almanacv1.StreamReply{reply}})
				})
			}
		}
	}
}

func (s *Server) answer(call *almanacv1.StreamCall) *almanacv1.StreamReply {
	if s.Faults.Call != nil {
		if reply := s.Faults.Call(call); reply != nil {
			return reply
		}
	}
	if r := call.GetPublish(); r != nil {
		published, err := s.Publish(context.Background(), r)
		if err != nil {
			return statusReply(err)
		}
		return &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Publish{Publish: published}}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r := call.GetRequest().(type) {
	case *almanacv1.StreamCall_Get:
		get := &almanacv1.GetResponse{Kv: s.keys[string(r.Get.GetKey())], Revision: s.revision}
		return &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Get{Get: get}}
	case *almanacv1.StreamCall_Range:
		return &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Range{Range: s.scan(r.Range)}}
	case *almanacv1.StreamCall_Put:
		before := s.keys[string(r.Put.GetKey())]
		if r.Put.GetIfAbsent() && before != nil || r.Put.GetIfRevision() != 0 && r.Put.GetIfRevision() != before.GetModRevision() {
			return ErrorReply(codes.FailedPrecondition, "compare_failed", "the compare did not hold")
		}
		s.revision++
		put := s.put(r.Put)
		return &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Put{Put: put}}
	case *almanacv1.StreamCall_Delete:
		s.revision++
		return &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Delete{Delete: s.delete(r.Delete)}}
	case *almanacv1.StreamCall_Txn:
		s.revision++
		return &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Txn{Txn: s.txn(r.Txn)}}
	}
	return ErrorReply(codes.InvalidArgument, "invalid_argument", "the call has no request")
}

// ErrorReply returns a reply that is an error.
func ErrorReply(code codes.Code, reason, message string) *almanacv1.StreamReply {
	return &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Error{Error: Error(code, reason, message)}}
}

// statusReply returns a unary call's error as a reply.
func statusReply(err error) *almanacv1.StreamReply {
	st := status.Convert(err)
	e := &almanacv1.Error{Code: int32(st.Code()), Message: st.Message()}
	for _, d := range st.Details() {
		if detail, ok := d.(*almanacv1.ErrorDetail); ok {
			e.Detail = detail
		}
	}
	return &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Error{Error: e}}
}

func (s *Server) put(r *almanacv1.PutRequest) *almanacv1.PutResponse {
	before := s.keys[string(r.GetKey())]
	kv := &almanacv1.KeyValue{
		Key: r.GetKey(), Value: r.GetValue(),
		CreateRevision: s.revision, ModRevision: s.revision, Version: before.GetVersion() + 1,
	}
	if before != nil {
		kv.CreateRevision = before.GetCreateRevision()
	}
	s.keys[string(r.GetKey())] = kv
	return &almanacv1.PutResponse{Revision: s.revision}
}

// in says whether key lies in a span of the API.
func in(key string, start, end []byte, prefix, toEnd bool) bool {
	switch {
	case prefix:
		return strings.HasPrefix(key, string(start))
	case toEnd:
		return key >= string(start)
	case len(end) == 0:
		return key == string(start)
	}
	return key >= string(start) && key < string(end)
}

func (s *Server) scan(r *almanacv1.RangeRequest) *almanacv1.RangeResponse {
	out := &almanacv1.RangeResponse{Revision: s.revision}
	for key, kv := range s.keys {
		if in(key, r.GetKey(), r.GetEnd(), r.GetPrefix(), r.GetToEnd()) {
			out.Kvs = append(out.Kvs, kv)
		}
	}
	sort.Slice(out.Kvs, func(i, j int) bool { return bytes.Compare(out.Kvs[i].Key, out.Kvs[j].Key) < 0 })
	out.Count = int64(len(out.Kvs))
	if n := r.GetLimit(); n > 0 && n < out.Count {
		out.Kvs, out.More = out.Kvs[:n], true
	}
	return out
}

func (s *Server) delete(r *almanacv1.DeleteRequest) *almanacv1.DeleteResponse {
	out := &almanacv1.DeleteResponse{Revision: s.revision}
	for key := range s.keys {
		if in(key, r.GetKey(), r.GetEnd(), r.GetPrefix(), r.GetToEnd()) {
			delete(s.keys, key)
			out.Deleted++
		}
	}
	return out
}

// txn knows compares for equality of value and of numbers, which is enough for tests.
func (s *Server) txn(r *almanacv1.TxnRequest) *almanacv1.TxnResponse {
	out := &almanacv1.TxnResponse{Revision: s.revision, Succeeded: true}
	for _, c := range r.GetCompares() {
		kv := s.keys[string(c.GetKey())]
		switch c.GetTarget() {
		case almanacv1.Compare_TARGET_VALUE:
			out.Succeeded = out.Succeeded && kv != nil && bytes.Equal(kv.GetValue(), c.GetValue())
		case almanacv1.Compare_TARGET_MOD_REVISION:
			out.Succeeded = out.Succeeded && int64(kv.GetModRevision()) == c.GetNumber()
		case almanacv1.Compare_TARGET_CREATE_REVISION:
			out.Succeeded = out.Succeeded && int64(kv.GetCreateRevision()) == c.GetNumber()
		default:
			out.Succeeded = out.Succeeded && kv.GetVersion() == c.GetNumber()
		}
	}
	ops := r.GetThen()
	if !out.Succeeded {
		ops = r.GetElse()
	}
	for _, op := range ops {
		result := &almanacv1.OpResult{}
		switch o := op.GetOp().(type) {
		case *almanacv1.Op_Range:
			result.Result = &almanacv1.OpResult_Range{Range: s.scan(o.Range)}
		case *almanacv1.Op_Put:
			result.Result = &almanacv1.OpResult_Put{Put: s.put(o.Put)}
		case *almanacv1.Op_Delete:
			result.Result = &almanacv1.OpResult_Delete{Delete: s.delete(o.Delete)}
		case *almanacv1.Op_Txn:
			result.Result = &almanacv1.OpResult_Txn{Txn: s.txn(o.Txn)}
		}
		out.Results = append(out.Results, result)
	}
	return out
}
