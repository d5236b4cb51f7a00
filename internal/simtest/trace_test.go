package simtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// trace hashes all that happens and keeps the last lines.
type trace struct {
	hash hash.Hash64
	last [400]string
	n    int
	to   func(string)
}

func (t *trace) line(s string) {
	_, _ = t.hash.Write([]byte(s))
	t.last[t.n%len(t.last)] = s
	t.n++
	if t.to != nil {
		t.to(s)
	}
}

// note adds a number to the hash alone.
func (t *trace) note(n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	_, _ = t.hash.Write(b[:])
}

func (t *trace) tail() []string {
	var out []string
	for i := max(0, t.n-len(t.last)); i < t.n; i++ {
		out = append(out, t.last[i%len(t.last)])
	}
	return out
}

// tracef adds a line.
func (w *World) tracef(format string, args ...any) {
	w.trace.line(fmt.Sprintf("%11.6f ", time.Duration(w.mono()).Seconds()) + fmt.Sprintf(format, args...))
}

// traceMessage adds a network's step: to the hash always, as a line if all are wanted.
func (w *World) traceMessage(e transport.TraceEvent) {
	if e.Kind == transport.TraceDelivered {
		w.count.Messages++
	}
	if w.trace.to != nil {
		w.trace.to(fmt.Sprintf("%11.6f   %v", time.Duration(w.mono()).Seconds(), e))
	}
	var b [40]byte
	binary.LittleEndian.PutUint64(b[0:], uint64(e.At))
	binary.LittleEndian.PutUint64(b[8:], e.Seq)
	b[16], b[17], b[18], b[19] = byte(e.Kind), byte(e.From), byte(e.To), byte(e.Class)
	if e.Message != nil {
		binary.LittleEndian.PutUint64(b[20:], uint64(wire.Size(e.Message)))
	}
	_, _ = w.trace.hash.Write(b[:])
}

// logger returns a node's logger, which writes into the trace.
func (w *World) logger(n base.NodeID) *slog.Logger { return slog.New(&logHandler{w: w, node: n}) }

type logHandler struct {
	w    *World
	node base.NodeID
}

// Enabled implements slog.Handler.
func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool {
	return l >= slog.LevelInfo || h.w.trace.to != nil
}

// Handle implements slog.Handler.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "node %d: %s", h.node, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	if r.Message == "installed a snapshot" {
		h.w.count.Installs++
	}
	if r.Level < slog.LevelInfo {
		// Not wanted in every run, so not in the hash either.
		h.w.trace.to(fmt.Sprintf("%11.6f   %s", time.Duration(h.w.mono()).Seconds(), b.String()))
		return nil
	}
	h.w.tracef("%s", b.String())
	return nil
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(string) slog.Handler { return h }

func stack() []byte { return debug.Stack() }
