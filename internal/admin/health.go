package admin

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/wire"
)

const (
	// oracleWait bounds how long a readiness check waits for the oracle.
	oracleWait = time.Second
	// maxNamed is the number of ranges that a reason names.
	maxNamed = 10
)

func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	say(w, http.StatusOK, "almanac "+s.opts.Version, "", "/healthz", "/readyz", "/metrics", "/debug/pprof/")
}

// healthz answers 200 while the process can serve at all.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	if err := s.opts.Failed(); err != nil {
		say(w, http.StatusServiceUnavailable, failure(err))
		return
	}
	lines := []string{"ok"}
	if c := s.disk(); c.Scarce() {
		lines = append(lines, fmt.Sprintf("the disk of the data directory has %d MiB left and keeps %d MiB in reserve; the ranges led here take no new data until it has more",
			c.DiskFree>>20, c.Reserve()>>20))
	}
	say(w, http.StatusOK, lines...)
}

// disk returns what the data directory's disk has left; zeros if that is not known.
func (s *Server) disk() (c wire.Capacity) {
	if s.opts.Disk != nil {
		c.DiskTotal, c.DiskFree = s.opts.Disk()
	}
	return c
}

// readyz answers 200 when requests that reach this node have a chance.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	if why := s.unready(r.Context()); len(why) > 0 {
		say(w, http.StatusServiceUnavailable, why...)
		return
	}
	say(w, http.StatusOK, "ok")
}

// unready returns why the node is not ready, one sentence each; none if it is.
func (s *Server) unready(ctx context.Context) []string {
	if err := s.opts.Failed(); err != nil {
		return []string{failure(err)}
	}
	if s.stopping.Load() {
		return []string{"the node is shutting down"}
	}
	m := s.joined()
	if m == nil {
		return []string{"this node belongs to no cluster yet; form one with: almanac init --endpoints " + s.opts.Address}
	}
	var why []string
	if st, on := m.Rebuilding(); on {
		why = append(why, "the stores were damaged; rebuilding the replicas from other nodes: "+st.String())
	}
	why = append(why, leaderless(m.Replicas())...)
	if err := oracleIssues(ctx, m); err != nil {
		why = append(why, "the oracle issues no timestamps: "+explain(err))
	}
	return why
}

// leaderless says which ranges have no known leader. Of a system range that has no
// replica here, the oracle tells: it runs on that range's leader.
func leaderless(replicas []*replica.Visible) (why []string) {
	var others []string
	for _, v := range replicas {
		switch {
		case v.Leader != 0:
		case v.Descriptor.Range == base.SystemRange:
			why = append(why, "the system range has no known leader; a majority of its nodes must be up and reach one another")
		default:
			others = append(others, fmt.Sprint(v.Descriptor.Range))
		}
	}
	switch n := len(others); {
	case n == 1:
		why = append(why, fmt.Sprintf("range %s has no known leader", others[0]))
	case n > maxNamed:
		why = append(why, fmt.Sprintf("%d ranges have no known leader, among them %s", n, strings.Join(others[:maxNamed], ", ")))
	case n > 1:
		why = append(why, fmt.Sprintf("ranges %s have no known leader", strings.Join(others, ", ")))
	}
	return why
}

// oracleIssues fetches a timestamp; fetches at the same time share their way.
func oracleIssues(ctx context.Context, m Member) error {
	ctx, cancel := context.WithTimeout(ctx, oracleWait)
	defer cancel()
	answer := make(chan error, 1)
	m.FetchStamps(1, func(_ base.Timestamp, err error) { answer <- err })
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fault.New(fault.Deadline, "it did not answer within %v", oracleWait)
	}
}

// failure says why the node can't go on.
func failure(err error) string { return "the node has failed and must be restarted: " + explain(err) }

// explain returns an error together with its remedy.
func explain(err error) string {
	if f := fault.As(err); f.Remedy != "" {
		return err.Error() + "; " + f.Remedy
	}
	return err.Error()
}

// say answers with lines of plain text.
func say(w http.ResponseWriter, code int, lines ...string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = fmt.Fprintln(w, strings.Join(lines, "\n")) // the client may be gone
}
