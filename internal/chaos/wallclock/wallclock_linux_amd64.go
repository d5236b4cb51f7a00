package wallclock

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The code that takes the place of the vDSO's clock_gettime, in the unused end of its
// last page: it asks the kernel, and adds the offset, one word of nanoseconds, to
// CLOCK_REALTIME. One word, so that changing it later needs no stop.
var code = []byte{
	0xb8, 0xe4, 0x00, 0x00, 0x00, // mov  eax, 228 (clock_gettime)
	0x0f, 0x05, // syscall
	0x85, 0xc0, // test eax, eax
	0x75, 0x29, // jne  done
	0x85, 0xff, // test edi, edi (CLOCK_REALTIME is 0)
	0x75, 0x25, // jne  done
	0x48, 0x69, 0x06, 0x00, 0xca, 0x9a, 0x3b, // imul rax, [rsi], 1000000000
	0x48, 0x03, 0x46, 0x08, // add  rax, [rsi+8]
	0x48, 0x03, 0x05, 0, 0, 0, 0, // add  rax, [rip+offset]
	0x48, 0x99, // cqo
	0xb9, 0x00, 0xca, 0x9a, 0x3b, // mov  ecx, 1000000000
	0x48, 0xf7, 0xf9, // idiv rcx
	0x48, 0x89, 0x06, // mov  [rsi], rax
	0x48, 0x89, 0x56, 0x08, // mov  [rsi+8], rdx
	0x31, 0xc0, // xor  eax, eax
	0xc3, // done: ret
}

const (
	offsetRef  = 29 // where code refers to the offset, relative to the byte after
	offsetWord = 64 // where the offset stands, from the code's start
	roomNeeded = offsetWord + 8
	jumpLen    = 5
)

// Set makes the process's wall clock stand at true time plus the offset, from now until
// it ends or Set is called again. The process may be stopped for some milliseconds.
func Set(pid int, offset time.Duration) error {
	v, err := open(pid)
	if err != nil {
		return fmt.Errorf("wall clock of process %d: %w", pid, err)
	}
	defer v.mem.Close()
	if err := v.set(offset); err != nil {
		return fmt.Errorf("wall clock of process %d: %w", pid, err)
	}
	return nil
}

// vdso is a process's private copy of the kernel's shared object.
type vdso struct {
	pid   int
	mem   *os.File
	start uint64 // address of its first byte
	image []byte
	entry int // of clock_gettime, from start
	place int // of our code, from start
}

func open(pid int) (*vdso, error) {
	start, end, err := mapping(pid)
	if err != nil {
		return nil, err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	v := &vdso{pid: pid, mem: mem, start: start, image: make([]byte, end-start)}
	if err := v.read(); err != nil {
		mem.Close()
		return nil, err
	}
	return v, nil
}

func mapping(pid int) (start, end uint64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasSuffix(s.Text(), "[vdso]") {
			_, err := fmt.Sscanf(s.Text(), "%x-%x", &start, &end)
			return start, end, err
		}
	}
	return 0, 0, errors.New("it has no vDSO")
}

// read finds clock_gettime and room for our code.
func (v *vdso) read() error {
	if _, err := v.mem.ReadAt(v.image, int64(v.start)); err != nil {
		return err
	}
	file, err := elf.NewFile(bytes.NewReader(v.image))
	if err != nil {
		return err
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return err
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			v.entry = int(s.Value)
		}
	}
	if v.entry <= 0 || v.entry+jumpLen > len(v.image) {
		return errors.New("its vDSO has no clock_gettime")
	}
	v.place = (len(v.image) - roomNeeded) &^ 63
	if v.patched() {
		return nil
	}
	for _, b := range v.image[v.place:] {
		if b != 0 {
			return errors.New("its vDSO has no room at its end")
		}
	}
	return nil
}

func (v *vdso) patched() bool { return bytes.HasPrefix(v.image[v.place:], code[:offsetRef]) }

func (v *vdso) set(offset time.Duration) error {
	if err := v.write(v.place+offsetWord, binary.LittleEndian.AppendUint64(nil, uint64(offset))); err != nil || v.patched() {
		return err
	}
	ours := bytes.Clone(code)
	binary.LittleEndian.PutUint32(ours[offsetRef:], offsetWord-(offsetRef+4))
	if err := v.write(v.place, ours); err != nil {
		return err
	}
	jump := binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(int32(v.place-(v.entry+jumpLen))))
	return v.whileOutside(v.entry, jumpLen, func() error { return v.write(v.entry, jump) })
}

func (v *vdso) write(at int, b []byte) error {
	_, err := v.mem.WriteAt(b, int64(v.start)+int64(at))
	return err
}

// whileOutside stops the process and calls do while no thread stands amid the bytes that
// are replaced. A thread further on in the old code may finish there: once more it gets
// the true time.
func (v *vdso) whileOutside(at, length int, do func() error) error {
	for range 100 {
		if err := syscall.Kill(v.pid, syscall.SIGSTOP); err != nil {
			return err
		}
		clear, err := v.outside(v.start+uint64(at), length)
		if err == nil && clear {
			err = do()
		}
		if err := errors.Join(err, syscall.Kill(v.pid, syscall.SIGCONT)); err != nil || clear {
			return err
		}
	}
	return errors.New("a thread was never seen outside clock_gettime")
}

// outside waits until every thread has stopped and says whether none of them would go on
// behind the first and before the last of the bytes.
func (v *vdso) outside(at uint64, length int) (bool, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", v.pid))
	if err != nil {
		return false, err
	}
	for _, task := range tasks {
		pc, err := stoppedAt(task)
		if errors.Is(err, os.ErrNotExist) { // the thread has ended
			continue
		}
		if err != nil || pc > at && pc < at+uint64(length) {
			return false, err
		}
	}
	return true, nil
}

// stoppedAt waits until a thread has stopped and returns where it will go on.
func stoppedAt(task string) (pc uint64, err error) {
	for range 1000 { // the kernel tells nobody but a parent or a debugger when it has
		stat, err := os.ReadFile(task + "/stat")
		if err != nil {
			return 0, err
		}
		_, state, _ := bytes.Cut(stat, []byte(") ")) // the name, in parentheses, comes before
		if bytes.HasPrefix(state, []byte("T")) {
			b, err := os.ReadFile(task + "/syscall") // ends with stack pointer and program counter
			if err != nil {
				return 0, err
			}
			f := strings.Fields(string(b))
			_, err = fmt.Sscanf(f[len(f)-1], "0x%x", &pc)
			return pc, err
		}
		<-time.After(time.Millisecond)
	}
	return 0, errors.New("a thread does not stop")
}
