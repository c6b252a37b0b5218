package logonce

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

func TestAnErrorIsNewIfItsCauseIs(t *testing.T) {
	full := func(name string) error {
		return fmt.Errorf("publish: %w", &fs.PathError{Op: "write", Path: name, Err: syscall.ENOSPC})
	}
	reset := func(port int) error {
		at := &net.TCPAddr{Port: port}
		return fmt.Errorf("API server: %w",
			&net.OpError{Op: "read", Net: "tcp", Source: at, Err: os.NewSyscallError("read", syscall.ECONNRESET)})
	}
	damaged := errors.New("damaged")
	var log Errors
	for i, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{full("g-1"), true},
		{full("g-2"), false},
		{errors.Join(full("g-3"), errors.New("close")), false},
		{reset(1), true},
		{reset(2), false},
		{nil, true},
		{nil, false},
		{reset(3), true},
		{fmt.Errorf("%w: g-1", damaged), true},
		{fmt.Errorf("%w: g-2: %w", damaged, syscall.EIO), false},
		{errors.New("another"), true},
		{context.DeadlineExceeded, true},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), false},
		{x509.CertificateInvalidError{Reason: x509.Expired, Detail: "it is 10:00:00"}, true},
		{x509.CertificateInvalidError{Reason: x509.Expired, Detail: "it is 10:00:05"}, false},
		{&kube.StatusError{Code: 500, Message: "request 1"}, true},
		{&kube.StatusError{Code: 500, Message: "request 2"}, false},
		{&kube.StatusError{Code: 403, Message: "request 3"}, true},
	} {
		if got := log.New(c.err); got != c.want {
			t.Errorf("%d: %v is new: %t", i, c.err, got)
		}
	}
}
