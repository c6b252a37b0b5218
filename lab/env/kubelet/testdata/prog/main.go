// Command prog is what the tests' containers run, on Windows and Linux.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func serve(answer http.HandlerFunc) {
	l, err := net.Listen("tcp", os.Getenv("SERVE"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go http.Serve(l, answer)
}

func main() {
	args := os.Args[1:]
	for len(args) > 0 {
		var operand string
		if len(args) > 1 {
			operand = args[1]
		}
		switch args[0] {
		case "cat":
			content, err := os.ReadFile(operand)
			if err != nil {
				content = []byte("cannot read")
			}
			fmt.Printf("%s: %s\n", operand, content)
		case "test": // fails where the file is not there
			if _, err := os.Stat(operand); err != nil {
				fmt.Println("missing:", operand)
				os.Exit(1)
			}
		case "write":
			if err := os.WriteFile(operand, []byte("written"), 0o644); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		case "env":
			fmt.Printf("%s=%s\n", operand, os.Getenv(operand))
		case "echo":
			fmt.Println(operand)
		case "stderr":
			fmt.Fprintln(os.Stderr, operand)
		case "stdin":
			content, _ := io.ReadAll(os.Stdin)
			fmt.Printf("%s read %q\n", operand, content)
		case "wd":
			wd, err := os.Getwd()
			fmt.Println(operand, wd, err)
		case "exit":
			code, _ := strconv.Atoi(operand)
			os.Exit(code)
		case "serve": // 200 while the file is there
			serve(func(w http.ResponseWriter, _ *http.Request) {
				if _, err := os.Stat(operand); err != nil {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
		case "say": // this, and from which address, to whoever asks
			serve(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, operand, " at ", os.Getenv("ADDRESS")) })
		case "api":
			client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
			answer, err := client.Get("https://" + net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")) + operand)
			if err != nil {
				fmt.Println(err)
				break
			}
			fmt.Println("the API server answered", answer.Status)
		case "wait": // until it is asked to end; an operand makes it deaf to that
			signals := make(chan os.Signal, 1)
			signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
			fmt.Println("waiting")
			for {
				select {
				case <-signals:
					fmt.Println("asked to end")
					if operand == "" {
						return
					}
				case <-time.After(time.Hour):
				}
			}
		}
		args = args[min(2, len(args)):]
	}
}
