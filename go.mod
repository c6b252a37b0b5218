module github.com/ccgrkc/ccgrkc

go 1.26.0
