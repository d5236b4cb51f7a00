package node

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

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

// checkAddress says whether addr has the form HOST:PORT. One that others are told must
// name both.
func checkAddress(flag, addr string, told bool) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "--%s %q", flag, addr).WithRemedy("write it as HOST:PORT")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil:
		return fault.New(fault.Invalid, "--%s %q: %q is not a port", flag, addr, port).WithRemedy("use a number up to 65535")
	case told && (host == "" || n == 0):
		return fault.New(fault.Invalid, "--%s %q names no host or no port", flag, addr).
			WithRemedy("write HOST:PORT as the other nodes reach it")
	case strings.ContainsAny(host, " /\t\n"):
		return fault.New(fault.Invalid, "--%s %q: %q is not a host", flag, addr, host).WithRemedy("write it as HOST:PORT")
	}
	return nil
}

// listen binds the address of a flag. A non-loopback one is refused unless insecure was
// asked for, because nothing is encrypted or authenticated yet.
func listen(flag, addr string, insecure bool) (keptListener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return keptListener{}, fault.Wrap(fault.Invalid, err, "--%s %q", flag, addr).WithRemedy("write it as HOST:PORT")
	}
	if !insecure && !isLoopback(host) {
		return keptListener{}, fault.New(fault.Invalid, "--%s %q is not a loopback address, and connections are not encrypted yet", flag, addr).
			WithRemedy("listen on 127.0.0.1, or pass --insecure if everything that reaches this address is trusted")
	}
	l, err := net.Listen("tcp", addr)
	switch {
	case err == nil:
		return keptListener{l.(*net.TCPListener)}, nil
	case errors.Is(err, unix.EADDRINUSE):
		return keptListener{}, fault.Wrap(fault.Unavailable, err, "--%s %s is in use", flag, addr).
			WithRemedy("stop the process that uses the port, or choose another with --%s", flag)
	}
	return keptListener{}, fault.Wrap(fault.Unavailable, err, "cannot listen on --%s %s", flag, addr).
		WithRemedy("use an address of this machine, and a port that this user may open")
}

// reachable returns what was asked for, else the address that is listened on, which
// must then be one that other nodes can use, if there are any.
func reachable(flag, asked string, addr net.Addr, joins bool) (string, error) {
	if asked != "" {
		return asked, nil
	}
	if tcp, ok := addr.(*net.TCPAddr); ok && joins && tcp.IP.IsUnspecified() {
		return "", fault.New(fault.Invalid, "other nodes cannot reach this one at %s", addr).
			WithRemedy("say with --%s HOST:PORT how they do", flag)
	}
	return addr.String(), nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
