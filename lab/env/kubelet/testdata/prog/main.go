// Command prog runs in the tests' containers, on Windows and Linux.
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
		case "test": // fails if the file does not exist
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
		case "serve": // 200 while the file exists
			serve(func(w http.ResponseWriter, _ *http.Request) {
				if _, err := os.Stat(operand); err != nil {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
		case "say": // responds with the operand and the pod's address
			serve(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, operand, " at ", os.Getenv("ADDRESS")) })
		case "api":
			client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
			host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
			answer, err := client.Get("https://" + net.JoinHostPort(host, port) + operand)
			if err != nil {
				fmt.Println(err)
				break
			}
			fmt.Println("the API server answered", answer.Status)
		case "wait": // until a signal; with an operand it ignores signals
			signals := make(chan os.Signal, 1)
			signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
			fmt.Println("waiting")
			for {
				select {
				case <-signals:
					fmt.Println("told to exit")
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
