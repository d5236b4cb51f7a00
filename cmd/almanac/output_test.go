package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestRecordJSON(t *testing.T) {
	r := &record{}
	r.str("s", "<a>\n\u2028").bytes("b", []byte("ok")).bytes("c", []byte{0xff}).revision("r", 1<<63-1)
	r.node("n", 0).node("m", 4).list("l", nil).flag("f", true).float("x", 1.5, 3)
	line := string(r.appendJSON(nil))
	const want = `{"s":"<a>\n\u2028","b":"ok","c_base64":"/w==","r":9223372036854775807,"r_str":"9223372036854775807",` +
		`"n":null,"m":4,"l":[],"f":true,"x":1.500}` + "\n"
	if line != want {
		t.Errorf("got  %s\nwant %s", line, want)
	}
	if !json.Valid([]byte(line)) {
		t.Error("it is no JSON")
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain ü": "plain ü", "a\nb": `"a\nb"`, "\x1b[31m": `"\x1b[31m"`, "\xff": `"\xff"`, "": "",
	} {
		if got := printable([]byte(in)); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func TestTables(t *testing.T) {
	records := []*record{(&record{}).num("id", 1).str("name", "first"), (&record{}).num("id", 22).str("name", "x")}
	table := drawn(records)
	for _, text := range []string{"ID", "NAME", "22", "first", "╭"} {
		if !strings.Contains(table, text) {
			t.Errorf("no %q in\n%s", text, table)
		}
	}
}

func TestByteCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 3 << 20: "3.0 MiB", 5 << 40: "5.0 TiB", 5 << 50: "5120.0 TiB"} {
		if got := byteCount(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}
