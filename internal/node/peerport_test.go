package node

import (
	"io"
	"net"
	"testing"

	"github.com/almanacdb/almanac/internal/transport"
)

// What begins as a peer's connection goes to the transport, anything else to gRPC, whole;
// who says nothing keeps nobody waiting and is closed with the port.
func TestPeerPortSorts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	toTransport := make(chan string, 1)
	p := newPeerPort(l, func(c net.Conn) {
		defer c.Close()
		b, _ := io.ReadAll(c)
		toTransport <- string(b)
	})
	dial := func(says string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(says)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	silent := dial("")
	defer silent.Close()
	dial(transport.Preface + "hello").Close()
	if got := <-toTransport; got != "hello" {
		t.Errorf("the transport reads %q", got)
	}
	const other = "PRI * HTTP/2.0"
	dial(other).Close()
	conn, err := p.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); string(got) != other {
		t.Errorf("gRPC reads %q, %v", got, err)
	}
	conn.Close()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("a silent connection outlives the port")
	}
	if _, err := p.Accept(); err == nil {
		t.Error("accepts after Close")
	}
	p.work.Wait()
}
