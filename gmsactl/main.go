package main

import (
	_ "github.com/ccgrkc/ccgrkc/internal/credspec"
	_ "github.com/ccgrkc/ccgrkc/internal/directory"
	_ "github.com/ccgrkc/ccgrkc/internal/version"
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/spf13/cobra"
	_ "golang.org/x/term"
	_ "k8s.io/cli-runtime/pkg/genericclioptions"
	_ "k8s.io/client-go/kubernetes"
	_ "k8s.io/client-go/tools/remotecommand"
	_ "k8s.io/client-go/dynamic"
	_ "sigs.k8s.io/yaml"
)

func main() {}
