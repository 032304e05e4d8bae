#!/usr/bin/env bash
# Measures the system under open-loop load, beside what people would pick instead, on stacks of its own that it starts on free
# ports, one after the other, and stops at the end. Nothing else should run on the machine meanwhile.
#
#   scripts/bench.sh [--out DIR]                the product alone: fixed rates, and the highest that holds
#   scripts/bench.sh --quick [--out DIR]        the product and the best polling relay: up to 8 minutes
#   scripts/bench.sh --full [--out DIR]         everything: hours
#   scripts/bench.sh --only NAME [--out DIR]    one part; --quick with it makes it short
#
# All options and parts: scripts/bench.sh --help. What is measured, and how: docs/benchmarks.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

with_services bench "$@"
