package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// logged is a log's destination that several goroutines may write.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// says waits for a text in the log.
func (l *logged) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, "a line with "+text, func(context.Context) error {
		if s := l.String(); !strings.Contains(s, text) {
			return errors.New(s)
		}
		return nil
	})
}

// bounded serves a port that takes limit connections and echoes what they send.
func bounded(t *testing.T, limit int) (addr string, l *connections, log *logged) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log = &logged{}
	l = &connections{port: "client", limit: limit, refusal: []byte("full"), log: slog.New(slog.NewTextHandler(log, nil))}
	b := l.listener(inner)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = b.Close()
		serving.Wait()
	})
	return inner.Addr().String(), l, log
}

func dialTo(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// echoes says whether a connection is served.
func echoes(c net.Conn) bool {
	if _, err := c.Write([]byte("x")); err != nil {
		return false
	}
	var b [1]byte
	_, err := io.ReadFull(c, b[:])
	return err == nil && b[0] == 'x'
}

// ended waits for a connection's end and returns what came before.
func ended(t *testing.T, c net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open")
	}
	return string(b)
}

func TestQuietConnectionMakesRoom(t *testing.T) {
	addr, l, log := bounded(t, 3)
	spoken := dialTo(t, addr)
	if !echoes(spoken) {
		t.Fatal("not served")
	}
	first, second := dialTo(t, addr), dialTo(t, addr)
	eventually(t, "three are open", func(context.Context) error {
		if n := l.count(); n != 3 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if fourth := dialTo(t, addr); !echoes(fourth) {
		t.Error("no quiet connection made room")
	}
	if got := ended(t, first); got != "" {
		t.Errorf("the oldest quiet connection got %q", got)
	}
	if !echoes(second) || !echoes(spoken) {
		t.Error("another one was closed")
	}
	log.says(t, "port=client silent=1 refused=0")
}

func TestConnectionsAboveTheLimitAreRefused(t *testing.T) {
	addr, _, log := bounded(t, 2)
	one, two := dialTo(t, addr), dialTo(t, addr)
	if !echoes(one) || !echoes(two) {
		t.Fatal("not served")
	}
	if got := ended(t, dialTo(t, addr)); got != "full" {
		t.Errorf("the third was told %q", got)
	}
	_ = ended(t, dialTo(t, addr))
	log.says(t, "refused=1")
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d lines: %s", n, log)
	}
	_ = one.Close()
	eventually(t, "a closed one makes room", func(ctx context.Context) error {
		if !echoes(dialTo(t, addr)) {
			return errors.New("refused")
		}
		return nil
	})
}

func TestQuietConnectionIsClosed(t *testing.T) {
	addr, l, log := bounded(t, 10)
	began := time.Now()
	_ = ended(t, dialTo(t, addr))
	if took := time.Since(began); took < speakWithin {
		t.Errorf("closed after %v", took)
	}
	log.says(t, "silent=1 refused=0 open=0")
	if l.count() != 0 {
		t.Errorf("%d are open", l.count())
	}
}
