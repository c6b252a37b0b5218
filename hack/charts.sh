#!/bin/sh
# Copies the templates in charts/shared into the charts, with the chart's name as the prefix of the template names: all charts of an
# umbrella chart share one set of template names. With --check, changes nothing and fails if a copy differs.
set -eu
cd "$(dirname "$0")/.."

case "${1-}" in
'' | --check) check=${1-} ;;
*) echo "usage: hack/charts.sh [--check]" >&2; exit 2 ;;
esac
generated=$(mktemp)
trap 'rm -f "$generated"' EXIT
differ=

copy() { # FILE CHART...
	file=$1
	shift
	for chart; do
		{
			echo "{{/* Generated from charts/shared/$file. Change that file, then run \"make charts\". */}}"
			sed "s/@chart@/$chart/g" "charts/shared/$file"
		} >"$generated"
		target=charts/$chart/templates/$file
		if cmp -s "$generated" "$target"; then
			continue
		elif [ -n "$check" ]; then
			differ="$differ $target"
		else
			cat "$generated" >"$target"
		fi
	done
}

copy _shared.tpl rancher-gmsa-plugin-installer rancher-gmsa-account-provider rancher-gmsa-webhook
copy _windows.tpl rancher-gmsa-plugin-installer rancher-gmsa-account-provider

if [ -n "$differ" ]; then
	echo "not generated from charts/shared:$differ; change the file in charts/shared, then run \"make charts\"" >&2
	exit 1
fi
