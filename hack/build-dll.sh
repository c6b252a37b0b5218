#!/bin/sh
# Builds ccg-plugin.dll with its message table and version resource.
# Arguments: output path, version. Needs gcc-mingw-w64-x86-64 and binutils-mingw-w64-x86-64 (windmc, windres).
set -eu
output=$(realpath -m "$1")
version=$2
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go run ./hack/messages -dir "$work" -version "$version"
(
	cd "$work"
	x86_64-w64-mingw32-windmc messages.mc
	x86_64-w64-mingw32-windres plugin.rc resources.o
)

# The build is reproducible, because the installer derives the file name from the hash. It therefore has no build ID, which
# depends on the temporary path of the resources, and a fixed image base, which ld otherwise derives from the temporary output
# path. (Windows relocates the DLL anyway.) The external linker gets the resources, so that the source tree has no built files.
GOOS=windows GOARCH=amd64 CGO_ENABLED=1 CC=x86_64-w64-mingw32-gcc go build -buildmode=c-shared -trimpath -buildvcs=false \
	-ldflags "-s -w -buildid= -X 'github.com/ccgrkc/ccgrkc/internal/version.version=$version' \
		'-extldflags=-Wl,--image-base,0x180000000 $work/resources.o'" \
	-o "$work/ccg-plugin.dll" ./cmd/ccg-plugin
mkdir -p "$(dirname "$output")"
mv "$work/ccg-plugin.dll" "$output" # without the C header that Go also writes
