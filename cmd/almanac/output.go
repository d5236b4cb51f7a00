package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"charm.land/lipgloss/v2"
	"charm.land/lipgloss/v2/table"
	"github.com/charmbracelet/x/term"
)

// record is one result: named values in a fixed order, written as one JSON object, or
// as one row of text.
type record struct{ fields []field }

// field is one value. One field can be several JSON members, such as a revision with
// its string beside it.
type field struct {
	name string
	text string // as people read it
	json string // its members, encoded
}

func (r *record) add(name, text string, members ...string) *record {
	r.fields = append(r.fields, field{name, text, strings.Join(members, ",")})
	return r
}

func member(name, encoded string) string { return strconv.Quote(name) + ":" + encoded }

func (r *record) str(name, v string) *record {
	return r.add(name, printable([]byte(v)), member(name, jsonString(v)))
}

func (r *record) num(name string, v int64) *record {
	s := strconv.FormatInt(v, 10)
	return r.add(name, s, member(name, s))
}

func (r *record) float(name string, v float64, decimals int) *record {
	s := strconv.FormatFloat(v, 'f', decimals, 64)
	return r.add(name, s, member(name, s))
}

func (r *record) flag(name string, v bool) *record {
	s := strconv.FormatBool(v)
	return r.add(name, s, member(name, s))
}

// revision adds a number that may not fit a double, so its string stands beside it.
func (r *record) revision(name string, v uint64) *record {
	s := strconv.FormatUint(v, 10)
	return r.add(name, s, member(name, s), member(name+"_str", `"`+s+`"`))
}

// bytes adds a string, or <name>_base64 if v is not valid UTF-8.
func (r *record) bytes(name string, v []byte) *record {
	if utf8.Valid(v) {
		return r.add(name, printable(v), member(name, jsonString(string(v))))
	}
	encoded := `"` + base64.StdEncoding.EncodeToString(v) + `"`
	return r.add(name, printable(v), member(name+"_base64", encoded))
}

// reads sets how people read the value added last.
func (r *record) reads(text string) *record {
	r.fields[len(r.fields)-1].text = text
	return r
}

// node adds a node_id; 0 is null.
func (r *record) node(name string, id uint64) *record {
	if id == 0 {
		return r.add(name, "-", member(name, "null"))
	}
	return r.num(name, int64(id))
}

// list adds a list of numbers.
func (r *record) list(name string, ids []uint64) *record {
	parts := make([]string, len(ids))
	for i, id := range ids {
		parts[i] = strconv.FormatUint(id, 10)
	}
	return r.add(name, strings.Join(parts, " "), member(name, "["+strings.Join(parts, ",")+"]"))
}

func (r *record) appendJSON(b []byte) []byte {
	b = append(b, '{')
	for i, f := range r.fields {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, f.json...)
	}
	return append(b, '}', '\n')
}

// jsonString encodes a string; what is not UTF-8 in it is replaced.
func jsonString(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always encodes
	return strings.TrimSuffix(b.String(), "\n")
}

// printable returns v as it is if that is harmless on a terminal, else quoted.
func printable(v []byte) string {
	s := string(v)
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	return strconv.Quote(s)
}

// emit writes one result of a stream of results: JSON, or the text given.
func (a *app) emit(w io.Writer, r *record, text string) error {
	var line []byte
	if a.json() {
		line = r.appendJSON(nil)
	} else {
		line = append([]byte(text), '\n')
	}
	_, err := w.Write(line)
	return err
}

// list writes results that belong together: JSON lines, or a table.
func (a *app) list(records []*record) error {
	var b bytes.Buffer
	switch {
	case a.json():
		for _, r := range records {
			b.Write(r.appendJSON(nil))
		}
	case len(records) == 0:
	case isTerminal(a.out):
		b.WriteString(drawn(records))
		b.WriteByte('\n')
	default:
		aligned(&b, records)
	}
	_, err := a.out.Write(b.Bytes())
	return err
}

// sheet writes one result with many values: a JSON line, or one value a line.
func (a *app) sheet(r *record) error {
	var b bytes.Buffer
	if a.json() {
		b.Write(r.appendJSON(nil))
	} else {
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, f := range r.fields {
			_, _ = w.Write([]byte(strings.ReplaceAll(f.name, "_", " ") + "\t" + f.text + "\n"))
		}
		_ = w.Flush() // a buffer takes everything
	}
	_, err := a.out.Write(b.Bytes())
	return err
}

func heads(r *record) []string {
	names := make([]string, len(r.fields))
	for i, f := range r.fields {
		names[i] = strings.ToUpper(f.name)
	}
	return names
}

func cells(r *record) []string {
	texts := make([]string, len(r.fields))
	for i, f := range r.fields {
		texts[i] = f.text
	}
	return texts
}

// aligned writes a table in columns of spaces.
func aligned(b *bytes.Buffer, records []*record) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	_, _ = w.Write([]byte(strings.Join(heads(records[0]), "\t") + "\n"))
	for _, r := range records {
		_, _ = w.Write([]byte(strings.Join(cells(r), "\t") + "\n"))
	}
	_ = w.Flush() // a buffer takes everything
}

// drawn returns a table for a terminal.
func drawn(records []*record) string {
	head := lipgloss.NewStyle().Bold(true).Padding(0, 1)
	cell := lipgloss.NewStyle().Padding(0, 1)
	t := table.New().Border(lipgloss.RoundedBorder()).Headers(heads(records[0])...).
		StyleFunc(func(row, _ int) lipgloss.Style {
			if row == table.HeaderRow {
				return head
			}
			return cell
		})
	for _, r := range records {
		t.Row(cells(r)...)
	}
	return t.String()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(f.Fd())
}
