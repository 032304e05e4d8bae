#!/usr/bin/env bash
# Measures the system under open-loop load: latency at 200, 500 and 2,000 orders/s, then the highest rate
# that holds. It starts a stack of its own on free ports and stops it at the end; nothing else should run
# on the machine meanwhile. About 7 minutes.
#
#   scripts/bench.sh [--out DIR] [--rates 200,500,2000] [--duration 20s] [--repeats 3] [--max=false] [...]
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
