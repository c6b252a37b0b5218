#!/bin/sh
# Builds what a Wine prefix lacks to be a Windows node for a Go COM server, from src/ beside this script:
#
#   bcryptprimitives.dll   ProcessPrng, for Go's runtime
#   ccgplugins.dll         proxy and stub of ICcgDomainAuthCredentials, under the class id that Windows uses
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
widl=x86_64-w64-mingw32-widl
flags="-O2 -s -Wall -Wextra -Werror"

$cc $flags -shared -o "$out/bcryptprimitives.dll" "$src/bcryptprimitives.c" -ladvapi32
$cc $flags -municode -o "$out/dllhost.exe" "$src/surrogate.c" -lole32 -luuid -ladvapi32

cp "$src/ccgplugins.idl" "$src/unknwn.idl" "$work"
cd "$work"
$widl -m64 -h -o ccgplugins.h ccgplugins.idl
$widl -m64 -u -o ccgplugins_i.c ccgplugins.idl
$widl -m64 --dlldata-only -o dlldata.c ccgplugins
$widl -m64 -p -Oicf -o ccgplugins_p.c ccgplugins.idl

# widl 7 and 8 write a wrong type offset for [out] LPWSTR * in the -Oi modes: that of the inner string pointer, where that
# of the FC_RP in front of it belongs, which is 4 less. The call then succeeds and its strings are NULL. In the method's
# format string the three wrong parameters are those with "srv size=8".
awk '
	/srv size=8/ { out = 1 }
	out && /type offset = / {
		offset = $0
		sub(/.*type offset = /, "", offset)
		sub(/0x[0-9a-f]+/, sprintf("0x%x", offset - 4))
		out = 0
		mended++
	}
	{ print }
	END { if (mended != 3) { print "build.sh: widl wrote " mended + 0 " parameters to mend, not 3" > "/dev/stderr"; exit 1 } }
' ccgplugins_p.c >mended_p.c

$cc -O2 -s -shared -o "$out/ccgplugins.dll" -I. -include "$src/proxystub.h" \
	-DWIN32 -DREGISTER_PROXY_DLL -DENTRY_PREFIX= \
	'-DPROXY_CLSID_IS={0xA6FF50C0,0x56C0,0x71CA,{0x57,0x32,0xBE,0xD3,0x03,0xA5,0x96,0x28}}' \
	mended_p.c ccgplugins_i.c dlldata.c "$src/proxystub.def" -lrpcrt4 -lole32 -loleaut32
