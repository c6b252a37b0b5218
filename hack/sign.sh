#!/bin/sh
# Signs one Windows program in place, with Authenticode (SHA-256).
# Argument: the program. Environment variables (none of them is secret):
#   SIGN_CERT           PEM file with the certificate, followed by the intermediate ones
#   SIGN_KEY            PEM file with its private key
#   SIGN_PASS_FILE      optional: file with the key's password
#   SIGN_TIMESTAMP_URL  optional: RFC 3161 server; without one, the signature expires with the certificate
set -eu
program=$1

fail() {
	echo "$program is not signed: $1" >&2
	exit 1
}
[ -n "${SIGN_CERT:-}" ] || fail "SIGN_CERT is not set: set it to the PEM file with the code-signing certificate"
[ -n "${SIGN_KEY:-}" ] || fail "SIGN_KEY is not set: set it to the PEM file with the certificate's key"
for file in "$program" "$SIGN_CERT" "$SIGN_KEY" ${SIGN_PASS_FILE:+"$SIGN_PASS_FILE"}; do
	[ -r "$file" ] || fail "$file cannot be read"
done
command -v osslsigncode >/dev/null || fail "osslsigncode is missing: run make deps"

work=$(mktemp -d "$program.XXXXXX") # in the same directory, so that the last step is a rename
trap 'rm -rf "$work"' EXIT
# If the key has a password and SIGN_PASS_FILE is not set, OpenSSL prompts on the terminal, or fails without one.
osslsigncode sign -h sha256 -certs "$SIGN_CERT" -key "$SIGN_KEY" ${SIGN_PASS_FILE:+-readpass "$SIGN_PASS_FILE"} \
	${SIGN_TIMESTAMP_URL:+-ts "$SIGN_TIMESTAMP_URL"} -n CCGRKC -i https://github.com/ccgrkc/ccgrkc \
	-in "$program" -out "$work/signed" </dev/null >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	fail "osslsigncode failed, see above"
}
chmod --reference="$program" "$work/signed"
mv "$work/signed" "$program"
echo "sign   $program"
