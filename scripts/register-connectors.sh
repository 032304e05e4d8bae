#!/usr/bin/env bash
# Registers the connectors in connectors/*.json with Kafka Connect, or changes them to what the files say,
# and waits until every one streams: its tasks are RUNNING and its replication slot is active.
# What has failed, or whose slot is missing, is started again; it fails with the connector's own error otherwise.
# It may be run at any time.
#
#   CONNECT_URL=http://127.0.0.1:8083 scripts/register-connectors.sh
#
# CONNECT_URL (the first of several) or CONNECT_PORT is the worker; the databases and brokers that must fit are those at
# ADMIN_DATABASE_URL or ORDER_, STOCK_, PAYMENT_DATABASE_URL, and at KAFKA_BROKERS, else those of the local stack (where the worker is at a
# loopback address).
# REGISTER_TIMEOUT is how long it waits, in seconds (60).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_tools curl
url=${CONNECT_URL:-http://127.0.0.1:${CONNECT_PORT:-8083}}
url=${url%%,*}
url=${url%/}
timeout=${REGISTER_TIMEOUT:-60}
STACK_DIR=$(stack_dir)
export STACK_DIR
# That of this checkout: an older one does not know what must be so.
if command -v go >/dev/null || [ ! -x "$STACK_DIR/bin/outboxctl" ]; then
  need_go
  go build -trimpath -o "$STACK_DIR/bin/" ./cmd/outboxctl
fi
deadline=$((SECONDS + timeout))

curl -s -o /dev/null --max-time 5 "$url/" || die "Kafka Connect does not answer at $url: start it (scripts/up.sh), or set CONNECT_PORT or CONNECT_URL"

# A worker that starts knows no path for a moment.
while [ "$(curl -s -o /dev/null -w '%{http_code}' --max-time 5 "$url/connector-plugins")" = 404 ] && [ $SECONDS -lt $deadline ]; do sleep 0.2; done

# What no connector could work with is said at once, not after a minute of trying.
CONNECT_URL=$url "$STACK_DIR/bin/outboxctl" check
env -u CONNECTOR_DATABASE_URL "$STACK_DIR/bin/outboxctl" connectors register --timeout "$((deadline > SECONDS ? deadline - SECONDS : 1))s"
