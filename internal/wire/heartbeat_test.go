package wire

import "testing"

func TestReserve(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for total, want := range map[uint64]uint64{
		0: 0, 100 * mib: 25 * mib, gib: 64 * mib, 10 * gib: 512 * mib, 1000 * gib: gib,
	} {
		c := Capacity{DiskTotal: total, DiskFree: want}
		if c.Reserve() != want || c.Scarce() {
			t.Errorf("of %d MiB %d are kept; scarce: %v", total/mib, c.Reserve()/mib, c.Scarce())
		}
		if c.DiskFree--; total > 0 && !c.Scarce() {
			t.Errorf("of %d MiB the reserve is touched, and that is not scarce", total/mib)
		}
	}
}
