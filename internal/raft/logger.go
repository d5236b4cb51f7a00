package raft

import (
	"context"
	"fmt"
	"log/slog"

	etcdraft "go.etcd.io/raft/v3"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// logger routes upstream's log. What upstream calls panic or fatal is a broken
// invariant and stays a panic, with an error that says where; of kind Corrupt if the log
// that it read is damaged.
type logger struct {
	to      *slog.Logger // may be nil
	rangeID base.RangeID
	replica base.ReplicaID
}

var _ etcdraft.Logger = (*logger)(nil)

func (l *logger) write(level slog.Level, format string, v []any) {
	ctx := context.Background()
	if l.to == nil || !l.to.Enabled(ctx, level) {
		return
	}
	l.to.Log(ctx, level, text(format, v), "range", uint64(l.rangeID), "replica", uint64(l.replica))
}

func (l *logger) broken(format string, v []any) {
	kind := fault.Internal
	for _, a := range v {
		if err, ok := a.(error); ok {
			kind = fault.KindOf(err) // of the log that upstream could not read
		}
	}
	panic(fault.New(kind, "raft, replica %d: %s", l.replica, text(format, v)).OnRange(l.rangeID))
}

func text(format string, v []any) string {
	if format == "" {
		return fmt.Sprint(v...)
	}
	return fmt.Sprintf(format, v...)
}

// Upstream's informational lines describe every vote and every election timeout of
// every range; they are debugging output here.

func (l *logger) Debug(v ...any)                   { l.write(slog.LevelDebug, "", v) }
func (l *logger) Debugf(format string, v ...any)   { l.write(slog.LevelDebug, format, v) }
func (l *logger) Info(v ...any)                    { l.write(slog.LevelDebug, "", v) }
func (l *logger) Infof(format string, v ...any)    { l.write(slog.LevelDebug, format, v) }
func (l *logger) Warning(v ...any)                 { l.write(slog.LevelWarn, "", v) }
func (l *logger) Warningf(format string, v ...any) { l.write(slog.LevelWarn, format, v) }
func (l *logger) Error(v ...any)                   { l.write(slog.LevelError, "", v) }
func (l *logger) Errorf(format string, v ...any)   { l.write(slog.LevelError, format, v) }
func (l *logger) Fatal(v ...any)                   { l.broken("", v) }
func (l *logger) Fatalf(format string, v ...any)   { l.broken(format, v) }
func (l *logger) Panic(v ...any)                   { l.broken("", v) }
func (l *logger) Panicf(format string, v ...any)   { l.broken(format, v) }
