package main

import "os"

func main() { up(os.Args[1:]) }
