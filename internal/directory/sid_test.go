package directory

import (
	"encoding/hex"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSIDsAndGUIDsAreDecoded(t *testing.T) {
	for in, want := range map[string]string{
		"010500000000000515000000010000000200000003000000f4010000": "S-1-5-21-1-2-3-500",
		"01020000000000052000000020020000":                         "S-1-5-32-544",
		"010100000000000512000000":                                 "S-1-5-18",
		"0101ffffffffffff00000000":                                 "S-1-281474976710655-0",
		"0100000000000005":                                         "S-1-5",
	} {
		if got, err := sidString(unhex(t, in)); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %s", in, got, err, want)
		}
	}
	for _, bad := range []string{
		"",
		"01",
		"0105000000000005",
		"020100000000000512000000",
		"01010000000000051200000000",
		"0110000000000005" + hex.EncodeToString(make([]byte, 64)),
	} {
		if got, err := sidString(unhex(t, bad)); err == nil {
			t.Errorf("%s was accepted as %s", bad, got)
		}
	}
	const guid = "f532d181-90f7-4730-9b6e-3eb0a6190845"
	if got, err := guidString(unhex(t, "81d132f5f79030479b6e3eb0a6190845")); err != nil || got != guid {
		t.Errorf("GUID: %q, %v", got, err)
	}
	for _, n := range []int{0, 15, 17} {
		if got, err := guidString(make([]byte, n)); err == nil {
			t.Errorf("%d bytes were accepted as GUID %s", n, got)
		}
	}
}

// descriptor returns a security descriptor with one entry for each given type and SID.
func descriptor(t testing.TB, entries ...string) []byte {
	var aces []byte
	for _, e := range entries {
		sid := unhex(t, e[2:])
		n := 8 + len(sid)
		aces = append(aces, unhex(t, e[:2])[0], 0, byte(n), byte(n>>8), 0xff, 1, 15, 0)
		aces = append(aces, sid...)
	}
	n := 8 + len(aces)
	sd := unhex(t, "0100048014000000000000000000000014000000")
	sd = append(sd, 4, 0, byte(n), byte(n>>8), byte(len(entries)), 0, 0, 0)
	return append(sd, aces...)
}

func TestReadersAreTheAllowedSIDs(t *testing.T) {
	const system, users = "010100000000000512000000", "01020000000000052000000021020000"
	sids, err := allowedSIDs(descriptor(t, "00"+system, "01"+users, "00"+users))
	if err != nil || len(sids) != 2 {
		t.Fatalf("%x, %v", sids, err)
	}
	for i, want := range []string{"S-1-5-18", "S-1-5-32-545"} {
		if got, _ := sidString(sids[i]); got != want {
			t.Errorf("reader %d is %s, want %s", i, got, want)
		}
	}
	if sids, err := allowedSIDs(unhex(t, "0100008014000000000000000000000000000000")); err != nil || sids != nil {
		t.Errorf("without a DACL: %v, %v", sids, err)
	}
	whole := descriptor(t, "00"+system)
	for n := range whole {
		if sids, err := allowedSIDs(whole[:n]); err == nil {
			t.Errorf("truncated at %d: %x", n, sids)
		}
	}
}

// A SID must not extend into the next entry or beyond the end.
func TestASIDLongerThanItsEntryIsRejected(t *testing.T) {
	const system = "010100000000000512000000"
	for _, sd := range [][]byte{descriptor(t, "00"+system), descriptor(t, "00"+system, "00"+system)} {
		sd[20+8+8+1] = 3 // the number of sub-authorities, in the first entry's SID
		if sids, err := allowedSIDs(sd); err == nil {
			t.Errorf("%x", sids)
		}
	}
}

func FuzzSecurityDescriptor(f *testing.F) {
	f.Add(descriptor(f, "00010100000000000512000000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		sids, err := allowedSIDs(b)
		if err != nil {
			return
		}
		for _, sid := range sids {
			_, _ = sidString(sid)
		}
	})
}

func FuzzSIDAndGUID(f *testing.F) {
	f.Add(unhex(f, "010100000000000512000000"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = sidString(b)
		_, _ = guidString(b)
	})
}
