package datadir

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/almanacdb/almanac/internal/fault"
)

const (
	identityFile  = "IDENTITY"
	damagedFile   = "DAMAGED"
	rebuildFile   = "REBUILDING"
	asideWord     = ".damaged-"
	identityWord  = "almanac identity, crc32c "
	asideTime     = "20060102T150405.000Z"
	identityStyle = identityWord + "%08x\n%s\n"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SaveIdentity keeps who the node is beside the stores, durably, so that it is known
// though both are lost.
func (d *Dir) SaveIdentity(record []byte) error {
	return d.writeFile(identityFile, fmt.Sprintf(identityStyle, crc32.Checksum(record, castagnoli), record))
}

// Identity returns what SaveIdentity kept; ok is false if there is none. The error is of
// kind Corrupt if the file is damaged.
func (d *Dir) Identity() (record []byte, ok bool, err error) {
	text, ok, err := d.readFile(identityFile)
	if err != nil || !ok {
		return nil, false, err
	}
	var sum uint32
	head, body, _ := strings.Cut(text, "\n")
	record = []byte(strings.TrimSuffix(body, "\n"))
	if n, err := fmt.Sscanf(head, identityWord+"%x", &sum); n != 1 || err != nil || sum != crc32.Checksum(record, castagnoli) {
		return nil, false, fault.New(fault.Corrupt, "data directory %s: its IDENTITY file is damaged", d.path).
			WithRemedy("restore %s from a copy", filepath.Join(d.path, identityFile))
	}
	return record, true, nil
}

// MarkDamaged notes, durably, that a store can't be used any more, and why: the next
// start sets both aside. The first word stands.
func (d *Dir) MarkDamaged(what string, now time.Time) error {
	if _, ok, err := d.Damaged(); ok || err != nil {
		return err
	}
	return d.writeFile(damagedFile, now.UTC().Format(asideTime)+"\n"+what+"\n")
}

// Damaged returns what MarkDamaged noted, while the stores have not been set aside.
func (d *Dir) Damaged() (what string, ok bool, err error) {
	text, ok, err := d.readFile(damagedFile)
	head, rest, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if _, err := time.Parse(asideTime, head); err != nil {
		rest = strings.TrimSpace(text) // written by hand
	}
	return rest, ok, err
}

// SetAside renames the stores that MarkDamaged was about, both, so that new ones can be
// made, and from then on the node is rebuilding. It may be cut off and called again.
// What was set aside for an earlier damage, and has been rebuilt since, is removed.
func (d *Dir) SetAside(now time.Time) (aside []string, err error) {
	text, ok, err := d.readFile(damagedFile)
	if err != nil || !ok {
		return nil, err
	}
	at, _, _ := strings.Cut(text, "\n")
	if _, err := time.Parse(asideTime, at); err != nil {
		// Written by hand. When it is cut off it must be called again with the same time.
		at = now.UTC().Format(asideTime)
		if err := d.writeFile(damagedFile, at+"\n"+text); err != nil {
			return nil, err
		}
	}
	if !d.Rebuilding() {
		if err := d.removeAside(at); err != nil {
			return nil, err
		}
	}
	for _, store := range []string{d.Log(), d.State()} {
		to := store + asideWord + at
		switch err := os.Rename(store, to); {
		case err == nil:
			aside = append(aside, to)
		case !errors.Is(err, os.ErrNotExist):
			return nil, ioFault(err, "cannot set %s aside", store)
		}
	}
	if err := syncDir(d.path); err != nil {
		return nil, err
	}
	if err := os.Rename(filepath.Join(d.path, damagedFile), filepath.Join(d.path, rebuildFile)); err != nil {
		return nil, ioFault(err, "cannot note in %s that its stores were set aside", d.path)
	}
	return aside, syncDir(d.path)
}

// removeAside removes stores that were set aside at another time.
func (d *Dir) removeAside(at string) error {
	for _, store := range []string{d.Log(), d.State()} {
		old, err := filepath.Glob(store + asideWord + "*")
		if err != nil {
			return ioFault(err, "cannot look for %s", store)
		}
		for _, path := range old {
			if strings.HasSuffix(path, asideWord+at) {
				continue
			}
			if err := os.RemoveAll(path); err != nil {
				return ioFault(err, "cannot remove %s", path)
			}
		}
	}
	return nil
}

// Rebuilding says that the stores were set aside and the new ones are not whole yet.
func (d *Dir) Rebuilding() bool {
	_, err := os.Stat(filepath.Join(d.path, rebuildFile))
	return err == nil
}

// Rebuilt notes, durably, that the stores are whole.
func (d *Dir) Rebuilt() error {
	if err := os.Remove(filepath.Join(d.path, rebuildFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return ioFault(err, "cannot note in %s that its stores are whole", d.path)
	}
	return syncDir(d.path)
}

func (d *Dir) readFile(name string) (text string, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(d.path, name))
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, ioFault(err, "cannot read %s of data directory %s", name, d.path)
	}
	return string(b), true, nil
}

// writeFile replaces a file at once, durably.
func (d *Dir) writeFile(name, text string) error {
	path := filepath.Join(d.path, name)
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err == nil {
		_, err = f.WriteString(text)
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return ioFault(err, "cannot write %s of data directory %s", name, d.path)
	}
	return syncDir(d.path)
}
