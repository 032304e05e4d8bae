#!/usr/bin/env bash
# Measures the system under open-loop load, and its rivals: latency and CPU at fixed rates, then the highest
# rate that holds. It starts a stack of its own for each on free ports and stops it at the end; nothing else
# should run on the machine meanwhile.
#
#   scripts/bench.sh --quick [--out DIR]    the product and the best polling relay, about 8 minutes
#   scripts/bench.sh --full  [--out DIR]    all systems, 30 s a point, three times; hours
#   scripts/bench.sh [--systems cdc,poller] [--rates 200,500,2000] [--duration 20s] [--repeats 3] [--max=false] [...]
#
# All options: go run ./cmd/outboxctl bench --help. What is measured, and how: internal/bench/bench.go.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_go
need_tools jdk maven
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -trimpath -o "$bin/" ./cmd/outboxctl ./order-service ./stock-service ./payment-service
"$bin/outboxctl" bench --bin "$bin" "$@"
