// Command app is the application in the lab's gMSA pods. It logs its start and runs until it is stopped.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fmt.Println("the application is running")
	<-ctx.Done()
	fmt.Println("the application is stopping")
}
