package wine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// SurrogatePIDs returns the Unix process ids of the node's surrogates, dllhost.exe.
func (n *Node) SurrogatePIDs() ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range files {
		// A process that ends meanwhile is skipped.
		cmdline, _ := os.ReadFile(file)
		arg0, _, _ := bytes.Cut(cmdline, []byte{0})
		if !bytes.HasSuffix(bytes.ToLower(arg0), []byte(`\dllhost.exe`)) {
			continue
		}
		dir := filepath.Dir(file)
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if !bytes.Contains(append([]byte{0}, environ...), []byte("\x00WINEPREFIX="+n.dir+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Handles counts the open file descriptors of a process. Wine's server owns the handles, but a handle that a process
// uses for input or output has a descriptor, and a socket always has one.
func Handles(pid int) (int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries), err
}

// RSS is the resident memory of a process in bytes.
func RSS(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		rest, ok := strings.CutPrefix(line, "VmRSS:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		return kib << 10, err
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
