// Command gmsactl is the operator's tool. It creates credential specs from Active Directory, manages the Secrets of
// impersonation accounts, verifies the credential path, and diagnoses an installation. Under the name kubectl-gmsa it
// is a kubectl plugin.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/ccgrkc/ccgrkc/internal/cli"
	"github.com/ccgrkc/ccgrkc/internal/escape"
)

func main() {
	disableCoreDumps()
	// client-go logs with klog, and its texts can contain those of an API server.
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(escape.LogWriter(os.Stderr), nil)))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first Ctrl-C cancels ctx. The second one has the system's default action, for code that does not watch ctx.
	context.AfterFunc(ctx, stop)
	code := cli.Run(ctx, os.Args, cli.Streams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr})
	stop()
	os.Exit(code)
}
