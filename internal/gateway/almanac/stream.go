package almanac

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/admission"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/router"
)

// A frame of replies takes this many, or this many bytes.
const (
	frameReplies = 512
	frameBytes   = 1 << 20
)

// kvStream is one KV stream. One goroutine reads frames. It only begins the calls that can
// be answered without anybody waiting for them, gets and puts as a rule, and hands the
// others to workers, of which there are never more than calls in flight; a worker stays for
// the next call, its stack grown. A call is in flight until its reply is sent: when there
// are too many, or they weigh too much, nothing more is read, and flow control tells the
// client. Who finds replies waiting and nobody sending sends them, and what others finish
// meanwhile, on a goroutine that may be blocked.
type kvStream struct {
	kv     *kvServer
	stream almanacv1.KV_StreamServer
	intake *admission.Intake // its part of the node's
	work   chan *almanacv1.StreamCall

	mu      sync.Mutex
	room    sync.Cond // calls or bytes fell, or err or ending was set
	replies []reply   // waiting to be sent
	sending bool
	calls   int   // in flight
	bytes   int   // that these weigh, with their replies
	idle    int   // workers that wait for a call
	err     error // the stream is broken: replies are dropped
	ending  bool  // no further call is begun
}

// reply is a finished call with what it weighs.
type reply struct {
	message *almanacv1.StreamReply
	own     int // of the reply itself
	held    int // with its request
	call    *admission.Call
}

// Stream implements almanacv1.KVServer.
func (s *kvServer) Stream(stream almanacv1.KV_StreamServer) error {
	k := &kvStream{kv: s, stream: stream, intake: s.intake.Part(), work: make(chan *almanacv1.StreamCall, s.limits.StreamCalls)}
	k.room.L = &k.mu
	stop := context.AfterFunc(stream.Context(), func() { k.fail(stream.Context().Err()) })
	defer stop()
	read := make(chan error, 1)
	go func() {
		defer close(k.work)
		read <- k.read()
	}()
	select {
	case err := <-read:
		k.drain()
		if err == nil {
			err = k.failure()
		}
		return s.status(err)
	case <-s.stopping.Done():
		k.drain()
		return s.status(errStopping())
	}
}

// drain begins no further call, and returns when those in flight are answered or nobody
// wants their answers.
func (k *kvStream) drain() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ending = true
	k.room.Broadcast()
	for k.calls > 0 {
		k.room.Wait()
	}
}

// read hands calls to workers until the client half-closes, which is nil, or the stream
// breaks.
func (k *kvStream) read() error {
	for {
		frame, err := k.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			k.fail(err)
			return err
		}
		for _, call := range frame.GetCalls() {
			if err := k.admit(weight(call)); err != nil {
				return err
			}
			if !k.begin(call) {
				k.hand(call)
			}
		}
	}
}

// admit waits until there is room for a call.
func (k *kvStream) admit(weight int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	limits := &k.kv.limits
	for k.err == nil && !k.ending && k.calls > 0 && (k.calls >= limits.StreamCalls || k.bytes+weight > limits.StreamBytes) {
		k.room.Wait()
	}
	if k.err != nil {
		return k.err
	}
	if k.ending {
		return errStopping()
	}
	k.calls++
	k.bytes += weight
	return nil
}

// begin has a call answered without a worker; false if a worker has to do it.
func (k *kvStream) begin(call *almanacv1.StreamCall) bool {
	timeout := callTimeout(call)
	if timeout < router.ShortestBegun {
		return false
	}
	admitted := k.intake.Begin()
	if err := admitted.Hold(callBytes + 2*weight(call)); err != nil {
		k.complete(call, admitted, &almanacv1.StreamReply{}, err)
		return true
	}
	ctx, begun := admission.With(k.stream.Context(), admitted), false
	switch r := call.GetRequest().(type) {
	case *almanacv1.StreamCall_Get:
		begun = k.kv.beginGet(ctx, timeout, r.Get, func(resp *almanacv1.GetResponse, err error) {
			k.complete(call, admitted, &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Get{Get: resp}}, err)
		})
	case *almanacv1.StreamCall_Put:
		begun = k.kv.beginPut(ctx, timeout, r.Put, func(resp *almanacv1.PutResponse, err error) {
			k.complete(call, admitted, &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Put{Put: resp}}, err)
		})
	case *almanacv1.StreamCall_Publish:
		begun = k.kv.beginPublish(ctx, timeout, r.Publish, func(resp *almanacv1.PublishResponse, err error) {
			k.complete(call, admitted, &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Publish{Publish: resp}}, err)
		})
	}
	if !begun {
		admitted.Leave()
	}
	return begun
}

// complete queues the reply to a call that was begun. It does not block.
func (k *kvStream) complete(call *almanacv1.StreamCall, admitted *admission.Call, m *almanacv1.StreamReply, err error) {
	if err != nil {
		m.Response = &almanacv1.StreamReply_Error{Error: k.kv.message(err)}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.queue(call, admitted, m) {
		go func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.send()
		}()
	}
}

// hand gives a call to a worker.
func (k *kvStream) hand(call *almanacv1.StreamCall) {
	k.mu.Lock()
	spawn := k.idle == 0
	if !spawn {
		k.idle--
	}
	k.mu.Unlock()
	k.work <- call // has room for every call in flight
	if spawn {
		go k.serve()
	}
}

// serve answers calls until there are no more.
func (k *kvStream) serve() {
	for call := range k.work {
		admitted := k.intake.Begin()
		k.finish(call, admitted, k.kv.answer(k.stream.Context(), admitted, call))
	}
}

// finish queues a worker's reply, and sends what is queued unless somebody does.
func (k *kvStream) finish(call *almanacv1.StreamCall, admitted *admission.Call, m *almanacv1.StreamReply) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.queue(call, admitted, m) {
		k.send()
	}
	k.idle++
}

// queue adds a reply to those that wait to be sent. True says that the caller has to send.
// Called with mu held.
func (k *kvStream) queue(call *almanacv1.StreamCall, admitted *admission.Call, m *almanacv1.StreamReply) bool {
	m.Id = call.GetId()
	own := replyWeight(m)
	k.replies = append(k.replies, reply{message: m, own: own, held: own + weight(call), call: admitted})
	k.bytes += own
	if k.sending {
		return false
	}
	k.sending = true
	return true
}

// send sends replies until none wait. Called with mu held, by who was told to.
func (k *kvStream) send() {
	k.mu.Unlock()
	runtime.Gosched() // let calls that are about to finish join the frame
	k.mu.Lock()
	for len(k.replies) > 0 {
		batch := k.take()
		if k.err == nil {
			k.mu.Unlock()
			frame := &almanacv1.StreamResponse{Replies: make([]*almanacv1.StreamReply, len(batch))}
			for i := range batch {
				frame.Replies[i] = batch[i].message
			}
			err := k.stream.Send(frame)
			k.mu.Lock()
			if k.err == nil {
				k.err = err
			}
		}
		for i := range batch {
			k.bytes -= batch[i].held
			batch[i].call.Leave()
		}
		k.calls -= len(batch)
		k.room.Broadcast()
	}
	k.sending = false
}

// take takes a frame's worth of replies. Called with mu held.
func (k *kvStream) take() []reply {
	n, size := 0, 0
	for n < len(k.replies) && n < frameReplies && (n == 0 || size+k.replies[n].own <= frameBytes) {
		size += k.replies[n].own
		n++
	}
	batch := k.replies[:n:n]
	if k.replies = k.replies[n:]; len(k.replies) == 0 {
		k.replies = nil
	}
	return batch
}

func (k *kvStream) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.err = err
	}
	k.room.Broadcast()
}

func (k *kvStream) failure() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// maxTimeout keeps a call's timeout a duration.
const maxTimeout = 24 * time.Hour

// callTimeout returns for how long a call may take.
func callTimeout(call *almanacv1.StreamCall) time.Duration {
	if ms := call.GetTimeoutMs(); ms > 0 && ms < maxTimeout.Milliseconds() {
		return time.Duration(ms) * time.Millisecond
	}
	return maxTimeout
}

// answer does one call.
func (s *kvServer) answer(ctx context.Context, admitted *admission.Call, call *almanacv1.StreamCall) *almanacv1.StreamReply {
	if err := admitted.Hold(callBytes + 2*weight(call)); err != nil {
		return &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Error{Error: s.message(err)}}
	}
	ctx = admission.With(ctx, admitted)
	if timeout := callTimeout(call); timeout < maxTimeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	reply := &almanacv1.StreamReply{}
	var err error
	switch r := call.GetRequest().(type) {
	case *almanacv1.StreamCall_Get:
		var resp *almanacv1.GetResponse
		resp, err = s.get(ctx, r.Get)
		reply.Response = &almanacv1.StreamReply_Get{Get: resp}
	case *almanacv1.StreamCall_Range:
		var resp *almanacv1.RangeResponse
		resp, err = s.scan(ctx, r.Range)
		reply.Response = &almanacv1.StreamReply_Range{Range: resp}
	case *almanacv1.StreamCall_Put:
		var resp *almanacv1.PutResponse
		resp, err = s.put(ctx, r.Put)
		reply.Response = &almanacv1.StreamReply_Put{Put: resp}
	case *almanacv1.StreamCall_Delete:
		var resp *almanacv1.DeleteResponse
		resp, err = s.delete(ctx, r.Delete)
		reply.Response = &almanacv1.StreamReply_Delete{Delete: resp}
	case *almanacv1.StreamCall_Txn:
		var resp *almanacv1.TxnResponse
		resp, err = s.txn(ctx, r.Txn)
		reply.Response = &almanacv1.StreamReply_Txn{Txn: resp}
	case *almanacv1.StreamCall_Publish:
		var resp *almanacv1.PublishResponse
		resp, err = s.publish(ctx, r.Publish)
		reply.Response = &almanacv1.StreamReply_Publish{Publish: resp}
	default:
		err = fault.New(fault.Invalid, "the call has no request that this version knows")
	}
	if err != nil {
		reply.Response = &almanacv1.StreamReply_Error{Error: s.message(err)}
	}
	return reply
}

// callBytes is about what a worker takes.
const callBytes = 8 << 10

// callWeight is about what a call takes beside its contents.
const callWeight = 256

// eventWeight is about what an event, or the answer to one, takes beside its contents.
const eventWeight = 64

// weight returns about how many bytes of memory a call takes.
func weight(call *almanacv1.StreamCall) int {
	switch r := call.GetRequest().(type) {
	case *almanacv1.StreamCall_Get:
		return callWeight + len(r.Get.GetKey())
	case *almanacv1.StreamCall_Put:
		return callWeight + len(r.Put.GetKey()) + len(r.Put.GetValue())
	case *almanacv1.StreamCall_Publish:
		n := callWeight
		for _, e := range r.Publish.GetEvents() {
			n += eventWeight + len(e.GetPayload()) + len(e.GetMessageId()) + len(e.GetOrderingKey())
			for _, h := range e.GetHeaders() {
				n += eventWeight + len(h.GetName()) + len(h.GetValue())
			}
		}
		return n
	}
	return callWeight + proto.Size(call)
}

// replyWeight returns about how many bytes a reply takes, in memory and in a frame.
func replyWeight(m *almanacv1.StreamReply) int {
	switch r := m.GetResponse().(type) {
	case *almanacv1.StreamReply_Get:
		return callWeight + len(r.Get.GetKv().GetKey()) + len(r.Get.GetKv().GetValue())
	case *almanacv1.StreamReply_Put:
		if r.Put.GetPrevKv() == nil {
			return callWeight
		}
	case *almanacv1.StreamReply_Publish:
		failed := 0
		for _, p := range r.Publish.GetResults() {
			failed += proto.Size(p.GetError())
		}
		return callWeight + eventWeight*len(r.Publish.GetResults()) + failed
	}
	return callWeight + proto.Size(m)
}
