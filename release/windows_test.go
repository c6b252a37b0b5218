package main

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"path"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"www.velocidex.com/golang/regparser"
)

// What Windows itself makes of O:BAG:SYD:(A;;FA;;;BA)(A;;FA;;;SY)(A;;0x1200a9;;;BU).
const fileDescriptor = "AQAEgBQAAAAkAAAAAAAAADAAAAABAgAAAAAABSAAAAAgAgAAAQEAAAAAAAUSAAAAAgBMAAMAAAAAABgA/wEfAAECAAAAAAAFIAAAACACAAAAABQA/wEfAAEBAAAAAAAFEgAAAAAAGACpABIAAQIAAAAAAAUgAAAAIQIAAA=="

func TestEntriesOfWindowsLayers(t *testing.T) {
	t.Parallel()
	base, err := windowsBase()
	if err != nil {
		t.Fatal(err)
	}
	own, err := windowsLayer([]file{{"b/c.exe", []byte("c")}, {"a.exe", []byte("a")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, all := range [][]entry{entries(t, base), entries(t, own)} {
		seen := map[string]bool{".": true}
		for _, e := range all {
			h := e.header
			name := path.Clean(h.Name)
			if !seen[path.Dir(name)] {
				t.Errorf("%s comes before its directory", h.Name)
			}
			seen[name] = true
			attributes, descriptor := "32", fileDescriptor
			if h.Typeflag == tar.TypeDir {
				attributes = "16"
				// The same with (A;OICI;…): the flags are the second byte of each entry.
				raw, err := base64.StdEncoding.DecodeString(fileDescriptor)
				if err != nil {
					t.Fatal(err)
				}
				for _, ace := range []int{56, 80, 100} {
					raw[ace+1] = 3
				}
				descriptor = base64.StdEncoding.EncodeToString(raw)
			}
			if name == "Files" || name == "Hives" {
				descriptor = ""
			}
			if h.PAXRecords["MSWINDOWS.fileattr"] != attributes || h.PAXRecords["MSWINDOWS.rawsd"] != descriptor {
				t.Errorf("%s: %v", h.Name, h.PAXRecords)
			}
			for _, at := range []time.Time{h.ModTime, h.AccessTime, h.ChangeTime} {
				if !at.Equal(epoch) {
					t.Errorf("%s: time %s", h.Name, at)
				}
			}
			if h.PAXRecords["LIBARCHIVE.creationtime"] != "315532800.0" {
				t.Errorf("%s: created %s", h.Name, h.PAXRecords["LIBARCHIVE.creationtime"])
			}
		}
		if !seen["Files"] {
			t.Error("no directory Files")
		}
	}
	if n := strings.Join(names(entries(t, base)), " "); strings.Contains(n, "Hives") {
		t.Errorf("the base has a directory Hives, which Microsoft's has not: %s", n)
	}
}

// Reads a hive by the format's description, and refuses what is not exactly as it says.
func TestHiveIsComplete(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"DEFAULT", "SAM", "SECURITY", "SOFTWARE", "SYSTEM"} {
		h := hive(name)
		le := binary.LittleEndian
		u32 := func(b []byte, at int) uint32 { return le.Uint32(b[at:]) }
		if len(h) != 8192 || string(h[:4]) != "regf" {
			t.Fatalf("%s: %d bytes beginning with %q", name, len(h), h[:4])
		}
		if u32(h, 4) != u32(h, 8) {
			t.Errorf("%s: dirty: sequence numbers %d and %d", name, u32(h, 4), u32(h, 8))
		}
		if u32(h, 20) != 1 || u32(h, 24) < 3 || u32(h, 24) > 5 || u32(h, 28) != 0 || u32(h, 32) != 1 ||
			u32(h, 44) != 1 {
			t.Errorf("%s: version, type, format or clustering factor: %v", name, h[20:48])
		}
		if u32(h, 40) != uint32(len(h)-4096) {
			t.Errorf("%s: size of hive bins %d", name, u32(h, 40))
		}
		var label []uint16
		for at := 48; at < 112 && le.Uint16(h[at:]) != 0; at += 2 {
			label = append(label, le.Uint16(h[at:]))
		}
		if got := string(utf16.Decode(label)); got != name {
			t.Errorf("%s: file name %q", name, got)
		}
		var sum uint32
		for at := 0; at < 512; at += 4 {
			sum ^= u32(h, at)
		}
		if sum != 0 {
			t.Errorf("%s: checksum is off by %x", name, sum)
		}

		bin := h[4096:]
		if string(bin[:4]) != "hbin" || u32(bin, 4) != 0 || u32(bin, 8) != 4096 || !bytes.Equal(bin[20:28], h[12:20]) {
			t.Errorf("%s: header of the hive bin: %v", name, bin[:32])
		}
		// Cells fill the bin to its last byte.
		used := map[uint32][]byte{}
		free := 0
		for at := uint32(32); at < 4096; {
			size := int32(u32(bin, int(at)))
			length := uint32(max(size, -size))
			if length < 8 || length%8 != 0 || at+length > 4096 {
				t.Fatalf("%s: cell at %d has the size %d", name, at, size)
			}
			if size < 0 {
				used[at] = bin[at+4 : at+length]
			} else {
				free++
			}
			at += length
		}
		if len(used) != 2 || free != 1 {
			t.Fatalf("%s: %d cells in use, %d free, want 2 and 1", name, len(used), free)
		}
		root := used[u32(h, 36)]
		if root == nil || string(root[:2]) != "nk" || le.Uint16(root[2:]) != 0x2C {
			t.Fatalf("%s: root cell %v", name, root)
		}
		for _, count := range []int{20, 24, 36} {
			if u32(root, count) != 0 || le.Uint16(root[74:]) != 0 {
				t.Errorf("%s: the root key is not empty", name)
			}
		}
		for _, list := range []int{28, 32, 40, 48} {
			if u32(root, list) != 0xFFFFFFFF {
				t.Errorf("%s: offset at %d of the root key points to %x", name, list, u32(root, list))
			}
		}
		if n := int(le.Uint16(root[72:])); string(root[76:76+n]) != name {
			t.Errorf("%s: name of the root key %q", name, root[76:76+n])
		}
		offset := u32(root, 44)
		sk := used[offset]
		if sk == nil || string(sk[:2]) != "sk" || u32(sk, 4) != offset || u32(sk, 8) != offset || u32(sk, 12) != 1 {
			t.Fatalf("%s: security cell %v", name, sk)
		}
		// O:BAG:SYD:(A;CI;KA;;;BA)(A;CI;KA;;;SY)(A;CI;KR;;;BU): that of files with other masks and flags.
		want, _ := base64.StdEncoding.DecodeString(fileDescriptor)
		for i, ace := range []int{56, 80, 100} {
			want[ace+1] = 2
			le.PutUint32(want[ace+4:], []uint32{0xF003F, 0xF003F, 0x20019}[i])
		}
		if got := sk[20 : 20+u32(sk, 16)]; !bytes.Equal(got, want) {
			t.Errorf("%s: security descriptor\n%x, want\n%x", name, got, want)
		}
	}
}

// The same by a reader that others wrote.
func TestRegparserReadsTheHive(t *testing.T) {
	t.Parallel()
	r, err := regparser.NewRegistry(bytes.NewReader(hive("SOFTWARE")))
	if err != nil {
		t.Fatal(err)
	}
	root := r.OpenKey("")
	if root == nil || root.Name() != "SOFTWARE" || len(root.Subkeys()) != 0 || len(root.Values()) != 0 {
		t.Fatalf("root key %v", root)
	}
	if !root.LastWriteTime().UTC().Equal(epoch) {
		t.Errorf("last written %s", root.LastWriteTime())
	}
}
