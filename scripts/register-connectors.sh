#!/usr/bin/env bash
# Registers the connectors in connectors/*.json with Kafka Connect, or changes them to what the files say,
# and waits until every one streams: its tasks are RUNNING and its replication slot is active.
# Fails with the connector's own error otherwise. It may be run at any time.
#
#   CONNECT_URL=http://127.0.0.1:8083 scripts/register-connectors.sh
#
# CONNECT_URL (the first of several) or CONNECT_PORT is the worker; the databases and brokers that must fit are those at
# ADMIN_DATABASE_URL or ORDER_, STOCK_, PAYMENT_DATABASE_URL, and at KAFKA_BROKERS, else those of the local stack.
# REGISTER_TIMEOUT is how long it waits, in seconds (60).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_tools curl jq
url=${CONNECT_URL:-http://127.0.0.1:${CONNECT_PORT:-8083}}
url=${url%%,*}
url=${url%/}
timeout=${REGISTER_TIMEOUT:-60}
STACK_DIR=$(stack_dir)
export STACK_DIR
answer=$(mktemp)
trap 'rm -f "$answer"*' EXIT
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
CONNECT_URL=$url "$STACK_DIR/bin/outboxctl" check || exit 1

# register NAME: 409 means that the worker rebalances, 404 that it starts; both pass.
register() {
  local code
  while :; do
    code=$(curl -s -o "$answer" -w '%{http_code}' --max-time 30 -X PUT -H 'Content-Type: application/json' \
      --data @"connectors/$1.json" "$url/connectors/$1/config") || code=000
    case $code in
      200 | 201) return ;;
      409 | 404 | 000) [ $SECONDS -lt $deadline ] || die "connector $1: $url still answers $code after $timeout s: Kafka Connect is busy, or that is another program" ; sleep 0.2 ;;
      *) ! grep -q "Failed to find any class" "$answer" ||
        die "connector $1: the Connect worker at $url does not have the Debezium plugin: unpack debezium-connector-postgres into a folder of its plugin.path and restart it"
        local advice=""
        ! grep -qE "'(poll\.interval\.ms|max\.batch\.size)' value is invalid" "$answer" || # the worker left ${env:…} as it is
          advice="; set CDC_POLL_INTERVAL_MS=20 and CDC_MAX_BATCH_SIZE=1 in the environment of every Connect worker, or start them by outboxctl connectors worker, which sets them; and restart them"
        die "connector $1: Kafka Connect answers $code: $(jq -r '.message // .' "$answer" 2>/dev/null || cat "$answer")$advice" ;;
    esac
  done
}

# slot NAME KEY: what PostgreSQL knows of the connector's slot.
slot() { "$STACK_DIR/bin/outboxctl" slots --json | jq -r --arg n "$1" --arg k "$2" '.[] | select(.connector == $n)[$k]'; }

# restart NAME ONLY_FAILED starts the connector again, or what of it has failed; it fails if that was done before.
restart() {
  [ ! -e "$answer.$1" ] || return 1
  local wal code
  wal=$(slot "$1" wal)
  [ "$wal" -gt 0 ] || die "connector $1: PostgreSQL does not tell the end of its log"
  code=$(curl -s -o /dev/null -w '%{http_code}' --max-time 10 -X POST "$url/connectors/$1/restart?includeTasks=true&onlyFailed=$2") || code=000
  case $code in
    409 | 000) return ;; # busy, as after a change of the connector: once more
  esac
  echo "$wal" >"$answer.$1"
  sleep 1 # until the state says so
}

# waiting NAME: prints what the connector waits for; nothing once it streams.
waiting() {
  local code
  code=$(curl -s -o "$answer" -w '%{http_code}' --max-time 10 "$url/connectors/$1/status") || code=000
  if [ "$code" != 200 ]; then echo "no status yet ($code)"; return; fi
  if jq -e '[.connector, .tasks[]] | any(.state == "FAILED")' "$answer" >/dev/null; then
    # It may have failed long ago. Connect never starts a failed task again by itself.
    if restart "$1" true; then echo "it was FAILED and starts again"; return; fi
    die "connector $1 FAILED: $(jq -r '[.connector, .tasks[]] | map(select(.state == "FAILED"))[0].trace' "$answer" |
      grep -E '^(Caused by: )?[a-zA-Z.]+(Exception|Error)' | tail -1 | sed 's/^Caused by: //')"
  fi
  jq -r --arg resume "curl -X PUT $url/connectors/$1/resume" '([.connector, .tasks[]] | map(select(.state != "RUNNING"))) as $rest
         | if .connector.state == "STOPPED" or .connector.state == "PAUSED" then "it is \(.connector.state), as somebody wanted it, or a resend that was interrupted left it; to start it: \($resume)"
           elif ($rest | length) > 0 then "it is " + $rest[0].state elif (.tasks | length) == 0 then "it has no task yet" else "" end' "$answer"
}

for file in connectors/*.json; do register "$(basename "$file" .json)"; done
for file in connectors/*.json; do
  name=$(basename "$file" .json)
  begun=$SECONDS
  while :; do
    missing=$(waiting "$name") || exit 1
    if [ -z "$missing" ]; then
      # Connect says RUNNING also while nothing flows: only PostgreSQL knows whether the slot is used.
      if [ "$(slot "$name" active)" != true ]; then
        state=$(slot "$name" wal_status)
        missing="its slot $(slot "$name" slot) is not active ($state)"
        # A slot that is gone is made by a start; one that runs without it would try to read it for half an hour.
        if [ "$state" = missing ] && [ $((SECONDS - begun)) -ge 5 ]; then restart "$name" false || true; fi
      elif [ -e "$answer.$name" ] && [ "$(slot "$name" confirmed)" -lt "$(cat "$answer.$name")" ]; then
        # One that had failed runs for some seconds before it fails again on the same record.
        missing="it has not yet sent what was written before its restart"
      else
        break
      fi
    fi
    if [ $SECONDS -ge $deadline ]; then
      # A connector that tries again and again says nothing in its status; the worker's log does.
      cause='' log="the worker's log has more"
      if [ -z "${CONNECT_URL:-}" ] && [ -e "$STACK_DIR/connect.pid" ]; then # it is the native stack's
        log="log: $STACK_DIR/logs/connect.log"
        cause=$(grep -h '^Caused by: ' "$STACK_DIR"/logs/connect*.log 2>/dev/null | tail -1) || true
      fi
      die "connector $name does not stream after $timeout s: $missing${cause:+; the worker says: ${cause#Caused by: }} ($log)"
    fi
    sleep 0.1
  done
  echo "  connector $name streams"
done
