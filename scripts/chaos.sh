#!/usr/bin/env bash
# Shoots at the system under load and proves that it loses nothing: faults of every kind by a seeded schedule, the time
# until orders flow again after each, then quiet, then the audit. It builds, and starts a stack of its own on free ports
# that is gone at the end. Exit code 1: something was violated, or what was asked for was missed: so many faults, with
# --strict the bars of the times. The report, chaos-SEED.json, is left in chaos-results, which git ignores, or DIR.
#
#   scripts/chaos.sh [--seed N] [--minutes 5] [--rate 50] [--strict] [--min-faults N] [--out DIR] [...]
#
# All options: go run ./cmd/outboxctl chaos --help. What is injected and what it shows: docs/operations.md, "Chaos".
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

with_services chaos "$@"
