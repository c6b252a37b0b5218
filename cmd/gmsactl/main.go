// Command gmsactl is the operator's tool: it makes credential specs from Active Directory, keeps the impersonation
// accounts' Secrets, verifies the way of a credential, and tells what is wrong with an installation. Under the name
// kubectl-gmsa it is a plugin of kubectl.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/ccgrkc/ccgrkc/internal/cli"
)

func main() {
	noCore()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first Ctrl-C asks what runs to end. The next one is the system's own again, for what cannot be asked.
	context.AfterFunc(ctx, stop)
	code := cli.Run(ctx, os.Args, cli.Streams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr})
	stop()
	os.Exit(code)
}
