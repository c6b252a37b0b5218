package directory

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// sidString decodes a SID ([MS-DTYP] 2.4.2.2) to S-1-5-21-….
func sidString(b []byte) (string, error) {
	if len(b) < 8 || b[0] != 1 || b[1] > 15 || len(b) != 8+4*int(b[1]) {
		return "", fmt.Errorf("%d bytes that are not a SID", len(b))
	}
	authority := uint64(binary.BigEndian.Uint16(b[2:]))<<32 | uint64(binary.BigEndian.Uint32(b[4:]))
	var s strings.Builder
	fmt.Fprintf(&s, "S-1-%d", authority)
	for i := 8; i < len(b); i += 4 {
		fmt.Fprintf(&s, "-%d", binary.LittleEndian.Uint32(b[i:]))
	}
	return s.String(), nil
}

// guidString decodes a GUID ([MS-DTYP] 2.3.4.2) to lower case without braces.
func guidString(b []byte) (string, error) {
	if len(b) != 16 {
		return "", fmt.Errorf("%d bytes that are not a GUID", len(b))
	}
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:]), nil
}

// allowedSIDs returns the binary SIDs of the access-allowed entries in a self-relative security descriptor ([MS-DTYP]
// 2.4.6, 2.4.5, 2.4.4.2). In msDS-GroupMSAMembership, each such entry grants permission to read the password.
func allowedSIDs(sd []byte) ([][]byte, error) {
	const (
		headerLength  = 20
		daclPresent   = 0x0004
		accessAllowed = 0x00
	)
	if len(sd) < headerLength {
		return nil, fmt.Errorf("security descriptor has only %d bytes", len(sd))
	}
	le := binary.LittleEndian
	offset := int64(le.Uint32(sd[16:]))
	if le.Uint16(sd[2:])&daclPresent == 0 || offset == 0 {
		return nil, nil
	}
	if offset < headerLength || offset+8 > int64(len(sd)) {
		return nil, fmt.Errorf("security descriptor of %d bytes has its DACL at %d", len(sd), offset)
	}
	acl := sd[offset:]
	size, count := int(le.Uint16(acl[2:])), int(le.Uint16(acl[4:]))
	if size < 8 || size > len(acl) {
		return nil, fmt.Errorf("DACL has a length of %d bytes, but only %d follow", size, len(acl))
	}
	aces := acl[8:size]
	var sids [][]byte
	for range count {
		if len(aces) < 4 {
			return nil, fmt.Errorf("DACL ends before its last entry")
		}
		length := int(le.Uint16(aces[2:]))
		if length < 4 || length > len(aces) {
			return nil, fmt.Errorf("DACL entry has a length of %d bytes, but only %d follow", length, len(aces))
		}
		if aces[0] == accessAllowed {
			if length < 16 || length < 16+4*int(aces[9]) {
				return nil, fmt.Errorf("DACL entry has a truncated SID")
			}
			sids = append(sids, aces[8:16+4*int(aces[9])])
		}
		aces = aces[length:]
	}
	return sids, nil
}
