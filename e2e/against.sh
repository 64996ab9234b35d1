#!/usr/bin/env bash
# Runs the tests of the store and of faults with another server than the PATH's redis-server:
#
#   e2e/against.sh /path/to/redis-server            (or valkey-server)
#   e2e/against.sh /path/to/redis-server '^TestStore'
set -euo pipefail
server=$(realpath "$1")
cd "$(dirname "$0")/.."
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
ln -s "$server" "$bin/redis-server"
export PATH=$bin:$PATH REQUIRE_REDIS=1
redis-server --version
go test -tags e2e -count=1 -p 1 -timeout 10m -run "${2:-^Test(Store|Fault)}" . ./e2e
