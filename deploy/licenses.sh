#!/bin/sh
# Copies the licences and notices of everything in the binary, Go's own and ours included, into a directory. A module
# without any is an error.
set -eu
cd "$(dirname "$0")/.."
out=$1
mkdir -p "$out/go" "$out/authsession"
cp LICENSE "$out/authsession/"
cp "$(go env GOROOT)/LICENSE" "$out/go/"
go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}' . | sort -u >"$out/modules"
while read -r path dir; do
  mkdir -p "$out/$path"
  find "$dir" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \) \
    -exec cp {} "$out/$path/" \;
  rmdir "$out/$path" 2>/dev/null && echo "no licence in $path" >&2 && exit 1
done <"$out/modules"
rm "$out/modules"
chmod -R u+w,a+rX "$out"
