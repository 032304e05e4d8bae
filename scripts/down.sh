#!/usr/bin/env bash
# Stops what scripts/up.sh started. With --wipe it removes the data too.
#
#   scripts/down.sh [--wipe]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

case "${1:-}" in
  --wipe | "") ;;
  *) die "usage: scripts/down.sh [--wipe]" ;;
esac
STACK_DIR=$(stack_dir)
export STACK_DIR
[ -d "$STACK_DIR" ] || { echo "nothing runs: there is no $STACK_DIR"; exit 0; }
[ -e "$STACK_DIR/.shape" ] || [ -e "$STACK_DIR/.new" ] || { echo "nothing runs, and nothing is removed: $STACK_DIR is not the folder of a stack"; exit 0; }
if [ ! -x "$STACK_DIR/bin/outboxctl" ]; then
  need_go
  mkdir -p "$STACK_DIR/bin"
  go build -trimpath -o "$STACK_DIR/bin/" ./cmd/outboxctl
fi
"$STACK_DIR/bin/outboxctl" stack down "$@"
