package directory

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/directory/srv"
)

// fakeDNS answers each query with the SRV records, or with the response code (RFC 1035 4.1.1) if it is not 0. Each host
// has the address 127.0.0.1. It is a fake because a real server does not send wrong answers.
func fakeDNS(t *testing.T, code byte, records ...string) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buffer)
			if err != nil {
				return
			}
			if code == 255 { // no answer
				continue
			}
			end := 12 // of the question: name, type and class
			for end < n && buffer[end] != 0 {
				end += int(buffer[end]) + 1
			}
			end += 5
			a := slices.Clone(buffer[:end])
			a[2], a[3] = 0x84, 0x80|code
			binary.BigEndian.PutUint16(a[6:], uint16(len(records)))
			clear(a[8:12])
			if code == 0 && binary.BigEndian.Uint16(a[end-4:]) == 1 { // A
				binary.BigEndian.PutUint16(a[6:], 1)
				_, _ = c.WriteTo(append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1), from)
				continue
			}
			for _, r := range records {
				var priority, weight, port uint16
				var target string
				_, _ = fmt.Sscan(r, &priority, &weight, &port, &target)
				var data []byte
				for _, v := range []uint16{priority, weight, port} {
					data = binary.BigEndian.AppendUint16(data, v)
				}
				for label := range strings.SplitSeq(strings.TrimSuffix(target, "."), ".") {
					if label != "" {
						data = append(append(data, byte(len(label))), label...)
					}
				}
				data = append(data, 0)
				a = append(a, 0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 60) // the question's name, SRV, IN, 60 s
				a = append(binary.BigEndian.AppendUint16(a, uint16(len(data))), data...)
			}
			_, _ = c.WriteTo(a, from)
		}
	}()
	t.Cleanup(func() {
		_ = c.Close()
		<-done
	})
	return c.LocalAddr().String()
}

func TestDomainControllersAreOrderedByPriority(t *testing.T) {
	t.Parallel()
	dns := fakeDNS(t, 0,
		"20 100 389 dc3.corp.example.test.",
		"10 0 389 dc1.corp.example.test.",
		"15 0 389 dc2.corp.example.test.",
	)
	got, err := Locate(t.Context(), Config{Domain: "corp.example.test.", DNSServer: dns})
	want := []string{"dc1.corp.example.test", "dc2.corp.example.test", "dc3.corp.example.test"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	got, err = Locate(t.Context(), Config{Domain: "corp.example.test", DNSServer: dns, Servers: []string{"b", "a"}})
	if err != nil || !slices.Equal(got, []string{"b", "a"}) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTheNumberOfDomainControllersIsLimited(t *testing.T) {
	t.Parallel()
	var records []string
	for i := range srv.MaxServers + 4 {
		records = append(records, fmt.Sprintf("%d 0 389 dc%d.corp.example.test.", i, i))
	}
	got, err := Locate(t.Context(), Config{Domain: "corp.example.test", DNSServer: fakeDNS(t, 0, records...)})
	if err != nil || len(got) != srv.MaxServers || got[0] != "dc0.corp.example.test" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestDNSAnswersWithoutADomainControllerHaveACause(t *testing.T) {
	t.Parallel()
	closed, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for name, c := range map[string]struct {
		dns  string
		want *Cause
	}{
		"empty":       {fakeDNS(t, 0), DNSNotFound},
		"NXDOMAIN":    {fakeDNS(t, 3), DNSNotFound},
		"no service":  {fakeDNS(t, 0, "0 0 0 ."), DNSNotFound},
		"SERVFAIL":    {fakeDNS(t, 2), DNSUnreachable},
		"REFUSED":     {fakeDNS(t, 5), DNSUnreachable},
		"no answer":   {fakeDNS(t, 255), DNSUnreachable},
		"not running": {closed.LocalAddr().String(), DNSUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			config := Config{Domain: "corp.example.test", DNSServer: c.dns, Timeout: 500 * time.Millisecond}
			got, err := Locate(t.Context(), config)
			wantCause(t, err, c.want)
			if got != nil || time.Since(start) > 3*time.Second {
				t.Errorf("%q after %s", got, time.Since(start))
			}
			if err != nil && !strings.Contains(err.Error(), "corp.example.test") {
				t.Errorf("%v does not name the domain", err)
			}
		})
	}
}
