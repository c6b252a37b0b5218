#!/bin/sh
# Builds the parts of Windows that a Go COM server needs and Wine lacks, from src/ next to this script:
#
#   bcryptprimitives.dll   ProcessPrng, for Go's runtime
#   ccgplugins.dll         proxy and stub of ICcgDomainAuthCredentials, with the class that Windows uses
#   dllhost.exe            the surrogate
#
# usage: build.sh DIRECTORY
set -eu
src=$(cd "$(dirname "$0")" && pwd)/src
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cc=x86_64-w64-mingw32-gcc
compile() { "$cc" -O2 -s -Wall -Wextra -Werror "$@"; }
widl=x86_64-w64-mingw32-widl

compile -shared -o "$out/bcryptprimitives.dll" "$src/bcryptprimitives.c" -ladvapi32
compile -municode -o "$out/dllhost.exe" "$src/surrogate.c" -lole32 -luuid -ladvapi32

cp "$src/ccgplugins.idl" "$src/unknwn.idl" "$work"
cd "$work"
$widl -m64 -h -o ccgplugins.h ccgplugins.idl
$widl -m64 -u -o ccgplugins_i.c ccgplugins.idl
$widl -m64 --dlldata-only -o dlldata.c ccgplugins
$widl -m64 -p -Oicf -o ccgplugins_p.c ccgplugins.idl

# widl 7 and 8 write a wrong type offset for [out] LPWSTR * in the -Oi modes: the offset of the inner string pointer,
# not of the FC_RP 4 bytes before it. Calls then succeed with NULL strings. In the method's format string, the three
# wrong parameters have "srv size=8".
awk '
	/srv size=8/ { out = 1 }
	out && /type offset = / {
		offset = $0
		sub(/.*type offset = /, "", offset)
		sub(/0x[0-9a-f]+/, sprintf("0x%x", offset - 4))
		out = 0
		fixed++
	}
	{ print }
	END { if (fixed != 3) { print "build.sh: fixed " fixed + 0 " parameters of widl, want 3" > "/dev/stderr"; exit 1 } }
' ccgplugins_p.c >fixed_p.c

"$cc" -O2 -s -shared -o "$out/ccgplugins.dll" -I. -include "$src/proxystub.h" \
	-DWIN32 -DREGISTER_PROXY_DLL -DENTRY_PREFIX= \
	'-DPROXY_CLSID_IS={0xA6FF50C0,0x56C0,0x71CA,{0x57,0x32,0xBE,0xD3,0x03,0xA5,0x96,0x28}}' \
	fixed_p.c ccgplugins_i.c dlldata.c "$src/proxystub.def" -lrpcrt4 -lole32 -loleaut32
