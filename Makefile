# make help lists the targets. V=1 prints the commands.

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME ?= 20s
REGISTRY ?=
PREFIX   ?= /usr/local

Q      := $(if $(V),,@)
LDFLAGS := -s -w -X github.com/ccgrkc/ccgrkc/internal/version.version=$(VERSION)
BUILD   := CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)"
WINDOWS := GOOS=windows GOARCH=amd64
# The same flags as for the control plane, so that shared packages are compiled once. See lab/env/tools.
LABGO   := -trimpath -gcflags=all=-dwarf=false
DLL     := internal/installer/dll/ccg-plugin.dll

# Command that signs a Windows program. Only make release signs; by default, the command does nothing.
SIGN    := :
IMAGES  := cd release && CGO_ENABLED=0 go run -trimpath .
TAG     := $(subst +,_,$(VERSION))
# Base of the Windows image. scratch needs no network and is the same everywhere. make release uses Microsoft's base
# image.
BASE    ?= scratch
CHARTS  := charts/rancher-gmsa-plugin-installer charts/rancher-gmsa-account-provider charts/rancher-gmsa-webhook

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

.PHONY: deps
deps: ## install the Debian packages that the lab and the DLL need
	@hack/apt.sh

.PHONY: build
build: deps ## build everything into dist/
	@echo "build  dist/ccg-plugin.dll"
	$(Q)hack/build-dll.sh dist/ccg-plugin.dll $(VERSION)
	$(Q)$(SIGN) dist/ccg-plugin.dll
	$(Q)cp dist/ccg-plugin.dll $(DLL)
	@echo "build  dist/ccg-plugin-installer.exe"
	$(Q)$(WINDOWS) $(BUILD) -o dist/ccg-plugin-installer.exe ./cmd/ccg-plugin-installer
	@echo "build  dist/container-probe.exe"
	$(Q)$(WINDOWS) $(BUILD) -o dist/container-probe.exe ./cmd/container-probe
	@echo "build  dist/gmsa-account-provider, .exe"
	$(Q)$(BUILD) -o dist/gmsa-account-provider ./cmd/gmsa-account-provider
	$(Q)$(WINDOWS) $(BUILD) -o dist/gmsa-account-provider.exe ./cmd/gmsa-account-provider
	$(Q)$(SIGN) dist/ccg-plugin-installer.exe
	$(Q)$(SIGN) dist/gmsa-account-provider.exe
	$(Q)$(SIGN) dist/container-probe.exe
	@echo "build  dist/gmsa-webhook"
	$(Q)$(BUILD) -o dist/gmsa-webhook ./cmd/gmsa-webhook
	@echo "build  dist/gmsactl"
	$(Q)$(BUILD) -o dist/gmsactl ./cmd/gmsactl
	@echo "build  dist/lab/"
	$(Q)cd lab && $(WINDOWS) $(BUILD) -o ../dist/lab/ ./cmd/ccg ./cmd/app

.PHONY: charts
charts: ## copy charts/shared into the charts
	$(Q)hack/charts.sh

# The same programs, built with fault points, where a test can stop a process: see package faultpoint. They are never
# released.
.PHONY: faultpoints
faultpoints: build
	@echo "build  dist/faultpoints/"
	$(Q)$(WINDOWS) $(BUILD) -tags faultpoints -o dist/faultpoints/ ./cmd/ccg-plugin-installer ./cmd/gmsa-account-provider
	$(Q)$(BUILD) -tags faultpoints -o dist/faultpoints/ ./cmd/gmsa-account-provider

# These checks need only Go. The caches of Go and staticcheck make a second run fast.
.PHONY: check
check: ## check format, vet, linters, charts and documentation, and run unit tests; needs only Go
	@begin=$$(date +%s); $(MAKE) --no-print-directory format vet staticcheck actionlint charts-lint unit && \
		echo "check  passed in $$(($$(date +%s) - begin)) s"

.PHONY: format
format:
	@echo "check  gofmt"
	$(Q)unformatted=$$(git ls-files -z '*.go' | xargs -0 gofmt -l) && \
		{ [ -z "$$unformatted" ] || { echo "run gofmt -w on: $$unformatted" >&2; exit 1; }; }

# cmd/ccg-plugin is the one package that needs a C compiler for Windows. make lint vets it.
.PHONY: vet
vet:
	@echo "check  go vet"
	$(Q)for os in linux darwin windows; do for tags in "" faultpoints; do \
		CGO_ENABLED=0 GOOS=$$os GOARCH=amd64 go vet -tags "$$tags" $$(CGO_ENABLED=0 GOOS=$$os GOARCH=amd64 go list ./... | grep -v /cmd/ccg-plugin$$) || exit; done; done
	$(Q)cd release && CGO_ENABLED=0 go vet ./...
	$(Q)cd lab && $(WINDOWS) CGO_ENABLED=0 go vet -trimpath ./cmd/ccg ./cmd/app

# The tools are built for this system, even if they analyze code for another one.
.PHONY: tools
tools:
	$(Q)go build -modfile=tools.mod -o dist/tools/ tool

.PHONY: staticcheck
staticcheck: tools
	@echo "check  staticcheck"
	$(Q)CGO_ENABLED=0 dist/tools/staticcheck -tags faultpoints ./...
	$(Q)CGO_ENABLED=0 dist/tools/staticcheck ./internal/faultpoint
	$(Q)$(WINDOWS) CGO_ENABLED=0 dist/tools/staticcheck -tags faultpoints $$($(WINDOWS) CGO_ENABLED=0 go list ./... | grep -v /cmd/ccg-plugin$$)
	$(Q)cd release && CGO_ENABLED=0 ../dist/tools/staticcheck ./...

.PHONY: actionlint
actionlint: tools
	@echo "check  actionlint"
	$(Q)dist/tools/actionlint -shellcheck= -pyflakes=

.PHONY: charts-lint
charts-lint:
	@echo "check  helm lint --strict"
	$(Q)hack/charts.sh --check
	$(Q)cd lab && CGO_ENABLED=0 GOFLAGS="$(LABGO)" go tool helm.sh/helm/v4/cmd/helm lint --strict --quiet $(CHARTS:%=../%)

.PHONY: unit
unit: ## run unit tests; needs only Go
	@begin=$$(date +%s); echo "unit   packages"; go test -timeout 5m ./... && (cd release && CGO_ENABLED=0 go test -timeout 5m ./...) && \
		echo "unit   passed in $$(($$(date +%s) - begin)) s"

# These checks also need a C compiler for Windows, shellcheck, or the lab's dependencies.
.PHONY: lint
lint: build check
	@echo "lint   shellcheck, the DLL, the lab"
	$(Q)shellcheck -x hack/*.sh .ci/run lab/env/wine/build.sh
	$(Q)$(WINDOWS) CGO_ENABLED=1 CC=x86_64-w64-mingw32-gcc go vet ./cmd/ccg-plugin
	$(Q)cd lab && CGO_ENABLED=0 go vet $(LABGO) ./...
	$(Q)cd lab && CGO_ENABLED=0 GOFLAGS="$(LABGO)" ../dist/tools/staticcheck ./...
	$(Q)cd lab && $(WINDOWS) CGO_ENABLED=0 GOFLAGS="$(LABGO)" ../dist/tools/staticcheck ./cmd/ccg ./cmd/app

.PHONY: lab-programs
lab-programs: deps
	$(Q)cd lab && CGO_ENABLED=0 go build $(LABGO) -o ../dist/lab/ ./cmd/lab-prepare ./cmd/lab-test ./cmd/demo

.PHONY: prepare
prepare: lab-programs
	@echo "lab    control plane and Wine prefix (the first run takes some minutes)"
	$(Q)cd lab && ../dist/lab/lab-prepare

# The race detector needs a C compiler. It makes a program slow and multiplies its memory, so load tests, and tests with
# Memory in their name, run without it.
.PHONY: packages
packages: ## run all tests of the packages, also load tests
	$(Q)CCGRKC_LAB=1 go test -count=1 -timeout 10m ./...
	$(Q)go test -count=1 -timeout 10m -tags faultpoints ./internal/endpoint

.PHONY: race
race: ## run the unit tests with the race detector, except tests of memory
	@echo "race   packages"
	$(Q)CGO_ENABLED=1 go test -race -skip Memory -timeout 20m ./...

# The linters and unit tests run in parallel with the lab's suites, which use little CPU. With -o build, make lint does
# not rebuild the programs that the suites test.
BESIDE = \
	-beside "lint=$(MAKE) --no-print-directory -C .. -o build lint" \
	-beside "packages=$(MAKE) --no-print-directory -C .. packages" \
	-beside "release=cd ../release && CCGRKC_LAB=1 CGO_ENABLED=0 go test -count=1 -timeout 10m ./..."

.PHONY: test
test: faultpoints images lab-programs ## run all tests, including the lab; T=TestName runs one test, S=webhook one suite
	$(Q)cd lab && ../dist/lab/lab-test $(if $(V),-v) -first ../dist/lab/lab-prepare $(if $(T)$(S),-run '$(if $(T),^$(T)$$)' -suite '$(S)',$(BESIDE))
	$(Q)$(if $(T)$(S),,$(MAKE) --no-print-directory race)

.PHONY: soak
soak: faultpoints images lab-programs ## repeat tests for hours to find rare faults: thousands of kills, rotations and restarts
	$(Q)CCGRKC_SOAK=1 go test -count=1 -timeout 0 $$(git grep -lF soak. -- 'cmd/*_test.go' 'internal/*_test.go' | xargs dirname | sort -u | sed 's|^|./|')
	$(Q)cd lab && ../dist/lab/lab-test $(if $(V),-v) -first ../dist/lab/lab-prepare -soak

.PHONY: clean-cache
clean-cache: ## delete the lab's cache, ~/.cache/ccgrkc
	$(Q)rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/ccgrkc"

.PHONY: demo
demo: images lab-programs ## install, use, upgrade and uninstall the three charts on a cluster on this machine
	$(Q)cd lab && ../dist/lab/lab-prepare -demo && ../dist/lab/demo

.PHONY: install
install: build ## install gmsactl, also as kubectl-gmsa, into PREFIX/bin (/usr/local)
	install -D -m 755 dist/gmsactl $(PREFIX)/bin/gmsactl
	ln -sf gmsactl $(PREFIX)/bin/kubectl-gmsa
	printf '#!/bin/sh\nexec kubectl-gmsa __complete "$$@"\n' >$(PREFIX)/bin/kubectl_complete-gmsa
	chmod 755 $(PREFIX)/bin/kubectl_complete-gmsa

.PHONY: lab-up
lab-up: images prepare ## start a cluster with three Windows nodes in the background, and print how to use it
	$(Q)cd lab && CGO_ENABLED=0 go build $(LABGO) -o ../dist/lab/lab ./cmd/lab
	$(Q)cd lab && ../dist/lab/lab up

.PHONY: lab-down
lab-down: ## stop the cluster that make lab-up started
	$(Q)dist/lab/lab down

.PHONY: bench
bench: images prepare ## measure latency, memory and size, next to a baseline from the same run
	$(Q)cd lab && CGO_ENABLED=0 go run $(LABGO) ./cmd/bench

.PHONY: images
images: build ## build the container images for Windows and Linux, as an OCI layout in dist/image
	@echo "build  dist/linux-amd64/, dist/linux-arm64/"
	$(Q)GOOS=linux GOARCH=amd64 $(BUILD) -o dist/linux-amd64/uninstall-hook ./cmd/uninstall-hook
	$(Q)GOOS=linux GOARCH=arm64 $(BUILD) -o dist/linux-arm64/uninstall-hook ./cmd/uninstall-hook
	$(Q)GOOS=linux GOARCH=amd64 $(BUILD) -o dist/linux-amd64/gmsa-webhook ./cmd/gmsa-webhook
	$(Q)GOOS=linux GOARCH=arm64 $(BUILD) -o dist/linux-arm64/gmsa-webhook ./cmd/gmsa-webhook
	$(Q)GOOS=linux GOARCH=amd64 $(BUILD) -o dist/linux-amd64/gmsactl ./cmd/gmsactl
	$(Q)GOOS=linux GOARCH=arm64 $(BUILD) -o dist/linux-arm64/gmsactl ./cmd/gmsactl
	@echo "image  dist/image"
	$(Q)$(IMAGES) build --version $(VERSION) --base $(BASE) --revision "$$(git rev-parse HEAD 2>/dev/null)"

# Pushes the existing dist/image. It does not rebuild, because a rebuild would replace the signed programs.
.PHONY: push
push: ## push dist/image to REGISTRY=host[:port] as ccgrkc/ccgrkc:VERSION
	$(Q)[ -n "$(REGISTRY)" ] || { echo "specify the registry: make push REGISTRY=host[:port]" >&2; exit 1; }
	$(Q)$(IMAGES) push --to $(REGISTRY)/ccgrkc/ccgrkc:$(TAG)

.PHONY: release
release: ## build images with signed Windows programs, and checksums: SIGN_CERT=cert.pem SIGN_KEY=key.pem
	$(Q)[ -r "$(SIGN_CERT)" ] && [ -r "$(SIGN_KEY)" ] || { echo "a release must be signed: make release SIGN_CERT=cert.pem SIGN_KEY=key.pem (see docs/images.md)" >&2; exit 1; }
	$(Q)for chart in $(CHARTS); do grep -qx 'appVersion: $(VERSION)' $$chart/Chart.yaml || \
		{ echo "appVersion of $$chart is not $(VERSION): set appVersion in its Chart.yaml, or set VERSION" >&2; exit 1; }; done
	$(Q)$(MAKE) --no-print-directory images SIGN=hack/sign.sh BASE=$(if $(filter file,$(origin BASE)),mcr.microsoft.com/oss/kubernetes/windows-host-process-containers-base-image:v1.0.0,$(BASE))
	@echo "build  dist/gmsactl-*"
	$(Q)rm -f dist/gmsactl-* && for platform in linux-amd64 linux-arm64 darwin-amd64 darwin-arm64 windows-amd64; do \
		os=$${platform%-*} arch=$${platform#*-}; exe=; [ $$os = windows ] && exe=.exe; \
		GOOS=$$os GOARCH=$$arch $(BUILD) -o dist/gmsactl-$$platform$$exe ./cmd/gmsactl || exit 1; done
	$(Q)hack/sign.sh dist/gmsactl-windows-amd64.exe
	$(Q)cd dist && sha256sum ccg-plugin.dll ccg-plugin-installer.exe gmsa-account-provider.exe container-probe.exe linux-*/uninstall-hook linux-*/gmsa-webhook gmsactl-* sbom/*.json image/index.json >SHA256SUMS
	@echo "sums   dist/SHA256SUMS"

# An input with new coverage is minimized once only. By default, this takes a minute for each, so that some targets run
# 8 inputs a minute. Inputs worth keeping are in testdata/fuzz; every run of the tests uses them.
.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (20s)
	$(Q)git ls-files '*_test.go' | xargs grep -H '^func Fuzz' | sed 's|^\(.*\)/[^/]*:func \(Fuzz[A-Za-z0-9_]*\).*|\1 \2|' | \
		while read -r package target; do \
			echo "fuzz   $$package $$target"; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x "./$$package" || exit 1; \
		done

.PHONY: clean
clean: ## delete build output; keeps the lab's cache, ~/.cache/ccgrkc
	$(Q)rm -rf dist $(DLL)
