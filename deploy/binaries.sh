#!/bin/sh
# binaries.sh VERSION DIRECTORY writes a release's archives for VMs and their checksums: for amd64 and arm64 a static
# binary, its systemd unit and its licences. A relative directory counts from the root of the repository.
set -eu
cd "$(dirname "$0")/.."
version=$1 out=$2
for arch in amd64 arm64; do
  name=authsession-$version-linux-$arch
  mkdir -p "$out/$name"
  CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -ldflags="-s -w -X main.version=$version" -o "$out/$name/" .
  cp deploy/authsession.service "$out/$name/"
  deploy/licenses.sh "$out/$name/licenses"
  tar -C "$out" --owner=0 --group=0 -czf "$out/$name.tar.gz" "$name"
  rm -r "${out:?}/$name"
done
cd "$out"
sha256sum -- *.tar.gz >SHA256SUMS
