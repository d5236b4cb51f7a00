package node

import (
	"net"
	"sync"
	"time"

	"github.com/almanacdb/almanac/internal/fault"
)

// keptListener is a listener that several servers use one after another: closing it
// only ends the accepting of the one that uses it now, and the port is never given up
// in between.
type keptListener struct {
	*net.TCPListener
}

// Close implements net.Listener for the server that uses it now.
func (l keptListener) Close() error { return l.SetDeadline(time.Unix(1, 0)) }

// reuse makes the listener ready for the next server.
func (l keptListener) reuse() net.Listener {
	_ = l.SetDeadline(time.Time{})
	return &once{keptListener: l, done: make(chan struct{})}
}

// once is one server's use of a keptListener.
type once struct {
	keptListener
	closing sync.Once
	done    chan struct{}
}

// Close implements net.Listener.
func (o *once) Close() (err error) {
	o.closing.Do(func() {
		close(o.done)
		err = o.keptListener.Close()
	})
	return err
}

// listen binds an address. A non-loopback one is refused unless insecure was asked
// for, because nothing is encrypted or authenticated yet.
func listen(what, addr string, insecure bool) (keptListener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return keptListener{}, fault.Wrap(fault.Invalid, err, "%s address %q", what, addr).WithRemedy("write it as HOST:PORT")
	}
	if !insecure && !isLoopback(host) {
		return keptListener{}, fault.New(fault.Invalid, "%s address %q is not a loopback address, and connections are not encrypted yet", what, addr).
			WithRemedy("listen on 127.0.0.1, or pass --insecure if everything that reaches this address is trusted")
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return keptListener{}, fault.Wrap(fault.Unavailable, err, "cannot listen for %s connections on %s", what, addr).
			WithRemedy("stop the process that uses the port, or choose another with --%s", map[string]string{
				"client": "listen", "peer": "peer", "HTTP": "http"}[what])
	}
	return keptListener{l.(*net.TCPListener)}, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
