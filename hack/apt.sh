#!/bin/sh
# Installs the packages that the lab and the build of the DLL need in addition to Go, on Debian 12. It first prints the missing
# packages and their purpose, and nothing if none is missing.
set -eu

# package and purpose
needed='wine                        runs the Windows binaries
wine64                      the 64-bit part of it
gcc                         links test programs with the race detector
libc6-dev                   the C library for it
gcc-mingw-w64-x86-64        compiles the C that is in a Windows DLL
binutils-mingw-w64-x86-64   compiles the event messages and the version resource
mingw-w64-tools             widl, for the proxy and stub that Windows has and Wine has not
osslsigncode                signs the Windows programs of a release
shellcheck                  checks the shell scripts
libfaketime                 gives a domain controller of the lab a clock of its own'
# The lab'"'"'s Active Directory. Samba supports group managed service accounts since 4.21. Debian 12 has 4.17, its backports 4.22.
samba_version=2:4.22
samba='samba-ad-dc                 the lab'"'"'s Active Directory: a Samba domain controller
samba-ad-provision          makes its domains
python3-markdown            is imported by what makes them'

here=$(dirname "$0")
policy=/usr/sbin/policy-rc.d
policy_mark='# made by ccgrkc hack/apt.sh for the time of an installation'

installed() { # package [least version]
	state=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$1" 2>/dev/null) || return 1
	[ "${state%% *}" = installed ] || return 1
	[ -z "${2-}" ] || dpkg --compare-versions "${state#* }" ge "$2"
}

least() { # package: the least version of it that will do, if that matters
	case $1 in samba-*) echo "$samba_version" ;; esac
}

missing='' missing_samba='' reasons=''
while read -r package reason; do
	installed "$package" "$(least "$package")" && continue
	case $package in
	samba-* | python3-markdown) missing_samba="$missing_samba $package" ;;
	*) missing="$missing $package" ;;
	esac
	reasons="$reasons$(printf '\n  %-27s %s' "$package" "$reason")"
done <<EOF2
$needed
$samba
EOF2
[ -z "$missing$missing_samba" ] && exit 0

echo "Missing Debian packages:$reasons"
if ! command -v apt-get >/dev/null; then
	echo "apt-get is missing; install the corresponding packages of this system manually." >&2
	exit 1
fi

# offered reports whether any apt source has a sufficient Samba.
offered() {
	for version in $(apt-cache madison samba-ad-dc 2>/dev/null | awk '{ print $3 }'); do
		dpkg --compare-versions "$version" ge "$samba_version" && return 0
	done
	return 1
}

# backports prints an apt source for the backports of this Debian release, derived from the source of the release.
codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
backports() {
	set --
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
		[ -f "$file" ] && set -- "$@" "$file"
	done
	[ $# -gt 0 ] && [ -n "$codename" ] && awk -v codename="$codename" -f "$here/backports.awk" "$@"
}

# Without package lists, as in a container, apt does not know the content of its sources.
if [ -n "$missing_samba" ] && [ "$(id -u)" -eq 0 ] && [ -z "$(apt-cache madison samba-ad-dc 2>/dev/null)" ]; then
	echo "Running apt-get update, because samba-ad-dc is not in apt's lists"
	apt-get update -qq
fi
add='' text=''
if [ -n "$missing_samba" ] && ! offered; then
	text=$(backports) || text=
	case $text in
	"# sources"*) add=/etc/apt/sources.list.d/ccgrkc-backports.sources ;;
	"# list"*) add=/etc/apt/sources.list.d/ccgrkc-backports.list ;;
	*)
		echo "apt has no Samba $samba_version or later, and no source of $codename to derive a backports source from; add a source of ${codename:-this release}-backports." >&2
		exit 1
		;;
	esac
	text=$(echo "$text" | tail -n +2)
	echo "Samba ${samba_version#*:} is in $codename-backports, which is not among apt's sources. $add will contain:"
	echo "$text" | sed 's/^/  /'
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "root permission is required: run  sudo hack/apt.sh" >&2
	exit 1
fi

# Services must not start, neither now nor, with systemd, at the next boot. A file of an earlier run that was killed is removed
# too.
own_policy=
[ -f "$policy" ] && grep -qxF "$policy_mark" "$policy" && own_policy=yes
leave() { [ -z "$own_policy" ] || rm -f "$policy"; }
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
if [ ! -e "$policy" ]; then
	echo "Creating $policy until the packages are installed, so that no service starts"
	own_policy=yes
	printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" >"$policy"
	chmod 755 "$policy"
fi

if [ -n "$add" ]; then
	mkdir -p "${add%/*}"
	printf '# Samba with group managed service accounts, for the lab of ccgrkc\n%s\n' "$text" >"$add.new"
	mv "$add.new" "$add"
	echo "Running apt-get update, for $add"
	apt-get update -qq
	if ! offered; then
		rm -f "$add"
		echo "The archive of $codename has no Samba $samba_version or later in $codename-backports; $add was removed again." >&2
		exit 1
	fi
fi

# With old or missing lists, apt-get does not find a package, or the mirror no longer has it. Then update the lists.
apt_install() { # apt-get's arguments
	echo "Running apt-get install --no-install-recommends $*"
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"
}
fetch_and_install() {
	apt_install "$@" || {
		echo "Running apt-get update, because the installation failed"
		apt-get update -qq
		apt_install "$@"
	}
}
for package in $missing $missing_samba; do
	[ -n "$(apt-cache madison "$package" 2>/dev/null)" ] && continue
	echo "Running apt-get update, because $package is not in apt's lists"
	apt-get update -qq
	break
done
if [ -n "$missing" ]; then
	# shellcheck disable=SC2086
	fetch_and_install $missing
fi
[ -z "$missing_samba" ] && exit 0

# Services of these packages that start at boot. The lab starts its own instead.
new_units=
for unit in samba-ad-dc smbd nmbd winbind; do
	[ -e "/lib/systemd/system/$unit.service" ] || new_units="$new_units $unit.service"
done
release=
candidate=$(apt-cache policy samba-ad-dc | awk '$1 == "Candidate:" { print $2 }')
dpkg --compare-versions "$candidate" ge "$samba_version" || release="-t $codename-backports"
# shellcheck disable=SC2086
fetch_and_install $release $missing_samba
if command -v systemctl >/dev/null; then
	for unit in $new_units; do
		systemctl disable --quiet "$unit" 2>/dev/null || true
	done
fi
