#!/bin/sh
# Installs what the lab and the DLL's build need beside Go, on Debian 12. It says what and why before it does anything, and
# nothing if all is there.
set -eu

# package, and what it is for
needed='wine                        runs the Windows binaries
wine64                      the 64-bit part of it
gcc-mingw-w64-x86-64        compiles the C that is in a Windows DLL
binutils-mingw-w64-x86-64   compiles the event messages and the version resource
mingw-w64-tools             widl, for the proxy and stub that Windows has and Wine has not
osslsigncode                signs the Windows programs of a release'

missing= reasons=
while read -r package reason; do
	state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$state" = installed ] && continue
	missing="$missing $package"
	reasons="$reasons$(printf '\n  %-27s %s' "$package" "$reason")"
done <<EOF2
$needed
EOF2
[ -z "$missing" ] && exit 0

echo "Missing Debian packages:$reasons"
if ! command -v apt-get >/dev/null; then
	echo "There is no apt-get here; install the counterparts of these packages by hand." >&2
	exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "Only root can install them: run  sudo apt-get install --no-install-recommends$missing" >&2
	exit 1
fi

# With lists that are too old or absent apt-get knows no package, or one that the mirror has no more; then they are fetched.
install() {
	echo "Running apt-get install --no-install-recommends$missing"
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
}
for package in $missing; do
	[ -n "$(apt-cache madison "$package" 2>/dev/null)" ] && continue
	echo "Running apt-get update, because $package is not in apt's lists"
	apt-get update -qq
	break
done
install || {
	echo "Running apt-get update, because the installation failed"
	apt-get update -qq
	install
}
