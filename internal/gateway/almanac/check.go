package almanac

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/router"
)

// Names of the keyspaces. Users write the default one; the system's is shown only.
const (
	defaultKeyspace = "default"
	systemKeyspace  = "system"
)

func checkKeyspace(name string) error {
	if name == "" || name == defaultKeyspace {
		return nil
	}
	return fault.New(fault.NotFound, "keyspace %q does not exist", name).
		WithRemedy("use the keyspace %q; others are not built yet", defaultKeyspace)
}

func (s *Server) checkKey(key []byte) error {
	if len(key) == 0 {
		return fault.New(fault.Invalid, "the key is empty").WithRemedy("name a key")
	}
	return s.checkKeySize(key)
}

func (s *Server) checkKeySize(key []byte) error {
	if len(key) > s.limits.KeyBytes {
		return fault.New(fault.TooLarge, "a key of %d bytes is above the limit of %d", len(key), s.limits.KeyBytes).
			WithRemedy("use a shorter key, and put the rest into the value")
	}
	return nil
}

func (s *Server) checkBytes(n int) error {
	if n > s.limits.RequestBytes {
		return fault.New(fault.TooLarge, "a request of %d bytes is above the limit of %d", n, s.limits.RequestBytes).
			WithRemedy("split it")
	}
	return nil
}

func (s *Server) checkRequest(r proto.Message) error { return s.checkBytes(proto.Size(r)) }

// spanned is how requests name spans.
type spanned interface {
	GetKey() []byte
	GetEnd() []byte
	GetPrefix() bool
	GetToEnd() bool
}

// span returns the logical span that a request names.
func (s *Server) span(r spanned) (base.Span, error) {
	key, end := r.GetKey(), r.GetEnd()
	if err := s.checkKeySize(key); err != nil {
		return base.Span{}, err
	}
	if err := s.checkKeySize(end); err != nil {
		return base.Span{}, err
	}
	named := 0
	for _, set := range [...]bool{len(end) > 0, r.GetPrefix(), r.GetToEnd()} {
		if set {
			named++
		}
	}
	if named > 1 {
		return base.Span{}, fault.New(fault.Invalid, "of end, prefix and to_end more than one is set").WithRemedy("set one of them")
	}
	switch {
	case r.GetPrefix():
		return keys.UserSpan(base.DefaultKeyspace, key, base.PrefixEnd(key)), nil
	case r.GetToEnd():
		return keys.UserSpan(base.DefaultKeyspace, key, nil), nil
	case len(end) > 0:
		if bytes.Compare(end, key) <= 0 {
			return base.Span{}, fault.New(fault.Invalid, "the span's end is not above its first key").
				WithRemedy("swap key and end, or leave end empty for key alone")
		}
		return keys.UserSpan(base.DefaultKeyspace, key, end), nil
	case len(key) == 0:
		return base.Span{}, fault.New(fault.Invalid, "the key is empty").
			WithRemedy("name a key, or set prefix for all keys")
	}
	return userPoint(key), nil
}

func userPoint(key []byte) base.Span { return base.PointSpan(keys.User(base.DefaultKeyspace, key)) }

// mode is how a read is done.
type mode struct {
	consistency router.Consistency // Fresh is not among them: it is Newest with a timestamp
	at          base.Timestamp     // with router.At
}

// consistent is how reads say what they may return.
type consistent interface {
	GetConsistency() almanacv1.Consistency
	GetRevision() uint64
	GetMaxStalenessMs() int64
}

func readMode(r consistent) (mode, error) {
	c, revision, staleness := r.GetConsistency(), r.GetRevision(), r.GetMaxStalenessMs()
	if c == almanacv1.Consistency_CONSISTENCY_UNSPECIFIED && revision != 0 {
		c = almanacv1.Consistency_CONSISTENCY_AT
	}
	if revision != 0 && c != almanacv1.Consistency_CONSISTENCY_AT {
		return mode{}, fault.New(fault.Invalid, "a revision is set, and the read is not at a revision").
			WithRemedy("use CONSISTENCY_AT, or leave revision 0")
	}
	if staleness != 0 && c != almanacv1.Consistency_CONSISTENCY_BOUNDED {
		return mode{}, fault.New(fault.Invalid, "max_staleness_ms is set, and the read is not bounded").
			WithRemedy("use CONSISTENCY_BOUNDED, or leave max_staleness_ms 0")
	}
	switch c {
	case almanacv1.Consistency_CONSISTENCY_UNSPECIFIED, almanacv1.Consistency_CONSISTENCY_LINEARIZABLE:
		return mode{consistency: router.Newest}, nil
	case almanacv1.Consistency_CONSISTENCY_AT:
		if revision == 0 {
			return mode{}, fault.New(fault.Invalid, "a read at a revision names none").WithRemedy("set revision")
		}
		return mode{consistency: router.At, at: base.Timestamp(revision)}, nil
	case almanacv1.Consistency_CONSISTENCY_LOCAL:
		return mode{consistency: router.Local}, nil
	case almanacv1.Consistency_CONSISTENCY_BOUNDED:
		switch {
		case staleness < 0:
			return mode{}, fault.New(fault.Invalid, "max_staleness_ms is negative")
		case staleness == 0:
			return mode{consistency: router.Newest}, nil
		}
		return mode{}, fault.New(fault.Unimplemented, "bounded reads are not built yet").
			WithRemedy("read linearizably, or locally if staleness does not matter")
	}
	return mode{}, fault.New(fault.Invalid, "consistency %d is unknown", c)
}
