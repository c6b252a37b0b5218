package main

import (
	"encoding/binary"
	"time"
	"unicode/utf16"
)

// hive returns a registry hive with an empty root key: one base block and one hive bin, 4 KiB each.
//
// The format is that of github.com/msuhanov/regf, "Windows registry file format specification", whose names are used
// here.
func hive(name string) []byte {
	const (
		page = 4096
		none = 0xFFFFFFFF // no offset

		// Offsets of cells are relative to the first hive bin, whose header has 32 bytes.
		rootCell = 32
		// A cell consists of its size (4 bytes) and its data, in multiples of 8 bytes. 76 is the fixed part of a key
		// node.
		maxName      = 12
		rootCellSize = 4 + 76 + maxName + 4
		securityCell = rootCell + rootCellSize
	)
	le := binary.LittleEndian
	written := uint64(filetime(epoch))
	h := make([]byte, 2*page)

	base := h[:page]
	copy(base, "regf")
	le.PutUint32(base[4:], 1) // primary and secondary sequence number are equal: the hive is clean, no log is needed
	le.PutUint32(base[8:], 1)
	le.PutUint64(base[12:], written)
	le.PutUint32(base[20:], 1) // version 1.3, which every Windows since XP reads
	le.PutUint32(base[24:], 3)
	le.PutUint32(base[28:], 0) // a primary file
	le.PutUint32(base[32:], 1) // direct memory load
	le.PutUint32(base[36:], rootCell)
	le.PutUint32(base[40:], page) // size of all hive bins
	le.PutUint32(base[44:], 1)    // clustering factor
	for i, u := range utf16.Encode([]rune(name)) {
		le.PutUint16(base[48+2*i:], u)
	}
	var sum uint32
	for i := 0; i < 508; i += 4 {
		sum ^= le.Uint32(base[i:])
	}
	le.PutUint32(base[508:], sum)

	bin := h[page:]
	copy(bin, "hbin")
	le.PutUint32(bin[8:], page)
	le.PutUint64(bin[20:], written)

	root := bin[rootCell : rootCell+rootCellSize]
	le.PutUint32(root, inUse(rootCellSize))
	nk := root[4:]
	copy(nk, "nk")
	le.PutUint16(nk[2:], 0x04|0x08|0x20) // KEY_HIVE_ENTRY, KEY_NO_DELETE, KEY_COMP_NAME
	le.PutUint64(nk[4:], written)
	for _, offset := range []int{28, 32, 40, 48} { // lists of subkeys, volatile subkeys and values; class name
		le.PutUint32(nk[offset:], none)
	}
	le.PutUint32(nk[44:], securityCell)
	le.PutUint16(nk[72:], uint16(len(name)))
	copy(nk[76:76+maxName], name)

	const keyAllAccess, keyRead, containerInherit = 0xF003F, 0x20019, 0x02
	sd := securityDescriptor(containerInherit, keyAllAccess, keyRead)
	securityCellSize := (4 + 20 + len(sd) + 7) / 8 * 8
	security := bin[securityCell : securityCell+securityCellSize]
	le.PutUint32(security, inUse(securityCellSize))
	sk := security[4:]
	copy(sk, "sk")
	le.PutUint32(sk[4:], securityCell) // the only one in its list: previous and next are itself
	le.PutUint32(sk[8:], securityCell)
	le.PutUint32(sk[12:], 1) // used by one key
	le.PutUint32(sk[16:], uint32(len(sd)))
	copy(sk[20:], sd)

	free := securityCell + securityCellSize
	le.PutUint32(bin[free:], uint32(page-free))
	return h
}

// inUse returns the size field of a cell that is in use: the size, negative.
func inUse(size int) uint32 { return uint32(-int32(size)) }

// filetime returns t in units of 100 ns since 1601.
func filetime(t time.Time) int64 {
	return t.UnixNano()/100 + 116444736000000000
}
