package directory

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
)

// blobFile reads a blob from a Samba domain controller, for a gMSA of a deleted domain.
func blobFile(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/managed-password-" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestManagedPasswordsAreDecoded(t *testing.T) {
	for name, want := range map[string]struct {
		current, previous string // RC4 keys; the domain's KDC accepted the current ones
		query, unchanged  time.Duration
	}{
		"one": {"7ea74e498e84dd8053bb7752b337c204", "", 718*time.Hour + 32*time.Minute, 718*time.Hour + 27*time.Minute},
		"two": {
			"ef793e63786b6c925305dc657053131b", "c03751021cfc07b127a15f5fa55d507a",
			688*time.Hour + 32*time.Minute, 688*time.Hour + 27*time.Minute,
		},
	} {
		blob := blobFile(t, name)
		m, err := ParseManagedPassword(blob)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		clear(blob) // the passwords are copies
		rc4 := func(b []byte) string {
			if len(b) == 0 {
				return ""
			}
			k, err := managedKey(b)(etypeID.RC4_HMAC, "", "")
			if err != nil {
				t.Fatal(err)
			}
			return hex.EncodeToString(k)
		}
		if got := rc4(m.Current.Reveal()); got != want.current {
			t.Errorf("%s: current %s", name, got)
		}
		if got := rc4(m.Previous.Reveal()); got != want.previous {
			t.Errorf("%s: previous %s", name, got)
		}
		if m.Query.Truncate(time.Minute) != want.query || m.Unchanged.Truncate(time.Minute) != want.unchanged {
			t.Errorf("%s: query in %s, unchanged for %s", name, m.Query, m.Unchanged)
		}
		held := m.Current.Reveal()
		m.Wipe()
		zeros := make([]byte, 256)
		if previous := m.Previous.Reveal(); !bytes.Equal(held, zeros) ||
			len(previous) > 0 && !bytes.Equal(previous, zeros) {
			t.Errorf("%s: Wipe did not overwrite all bytes", name)
		}
	}
}

func TestBlobsOfWrongLengthAreRejected(t *testing.T) {
	for _, name := range []string{"one", "two"} {
		blob := blobFile(t, name)
		for n := range blob {
			if m, err := ParseManagedPassword(bytes.Clone(blob[:n])); err == nil {
				t.Errorf("%s truncated at %d: %v", name, n, m)
			}
			// The same with a matching length field.
			cut := bytes.Clone(blob[:n])
			if n >= 8 {
				binary.LittleEndian.PutUint32(cut[4:], uint32(n))
			}
			if m, err := ParseManagedPassword(cut); err == nil {
				t.Errorf("%s truncated at %d, with matching length field: %v", name, n, m)
			}
		}
		if _, err := ParseManagedPassword(append(bytes.Clone(blob), 0)); err == nil {
			t.Errorf("%s with an additional byte was accepted", name)
		}
	}
}

func TestDamagedBlobsAreRejectedAndNotShown(t *testing.T) {
	whole := blobFile(t, "two")
	for name, c := range map[string]struct {
		at   int
		put  uint16
		want string
	}{
		"version":                  {0, 2, "version 2"},
		"length":                   {4, 0xffff, "length field is 65535"},
		"current in the header":    {8, 15, "current password is at 15"},
		"current missing":          {8, 0, "current password is at 0"},
		"current beyond the end":   {8, 548, "current password is at 548"},
		"current at the last byte": {8, 547, "not terminated"},
		"previous in the header":   {10, 2, "previous password is at 2"},
		"previous beyond the end":  {10, 0xffff, "previous password is at 65535"},
		"query beyond the end":     {12, 541, "query interval is at 541"},
		"query in the header":      {12, 8, "query interval is at 8"},
		"unchanged missing":        {14, 0, "unchanged interval is at 0"},
		"unchanged in a password":  {14, 20, "longer than 292 years"},
		"current empty":            {8, 272, "empty"},
		"current starts with NUL":  {16, 0, "empty"},
	} {
		blob := bytes.Clone(whole)
		binary.LittleEndian.PutUint16(blob[c.at:], c.put)
		_, err := ParseManagedPassword(blob)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}

// An unpaired surrogate becomes U+FFFD, as on Windows. Otherwise the AES keys of one password in eight would be wrong.
func TestKeysOfPasswordsThatAreNotUnicode(t *testing.T) {
	lone := []byte{0x00, 0xd8, 'a', 0} // U+D800 alone, then a
	got, err := managedKey(lone)(etypeID.AES256_CTS_HMAC_SHA1_96, "salt", "00001000")
	if err != nil {
		t.Fatal(err)
	}
	want, err := passwordKey([]byte("\uFFFDa"))(etypeID.AES256_CTS_HMAC_SHA1_96, "salt", "00001000")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, want %x, %v", got, want, err)
	}
}

func FuzzParseManagedPassword(f *testing.F) {
	for _, name := range []string{"one", "two"} {
		f.Add(blobFile(f, name))
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		before := bytes.Clone(blob)
		m, err := ParseManagedPassword(blob)
		if !bytes.Equal(before, blob) {
			t.Error("the blob was changed")
		}
		if err != nil {
			return
		}
		for _, p := range [][]byte{m.Current.Reveal(), m.Previous.Reveal()} {
			if len(p)%2 != 0 || !bytes.Contains(blob, p) {
				t.Errorf("a password of %d bytes that is not in the blob", len(p))
			}
		}
		if len(m.Current.Reveal()) == 0 || m.Query < 0 || m.Unchanged < 0 {
			t.Errorf("%d bytes, %s, %s", len(m.Current.Reveal()), m.Query, m.Unchanged)
		}
		m.Wipe()
	})
}
