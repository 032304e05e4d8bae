#!/usr/bin/env bash
# Starts the whole system, without containers, and shows it working: installs what is missing, resolves
# PostgreSQL, Kafka and Debezium, builds and starts the services, registers the connectors, puts goods and money
# in, and places a few orders. What runs already is left alone; what has died is started again.
#
#   scripts/up.sh [--no-demo] [--brokers 1|3|5] [--workers N] [--replicas N]
#
# --no-demo places no orders; the goods and the money are there, for orders of your own.
#
# --brokers 3 --workers 2 --replicas 2: Kafka with three copies of everything, two Connect workers, two instances of
# each service; any one process but PostgreSQL may then be gone. Numbers that are not given stay as they were, at first 1.
#
# STACK_DIR (.stack) holds all state. Ports: POSTGRES_PORT 5432, KAFKA_PORT 9092, KAFKA_CONTROLLER_PORT 9093, CONNECT_PORT 8083,
# ORDER_PORT 8080, STOCK_PORT 8081, PAYMENT_PORT 8082, SUPERVISOR_PORT (the one after CONNECT_PORT, or any that
# is free); the second of a kind is 10 above (ORDER_2_PORT 8090), the third 20. Other variables reach the services,
# for example ORDER_TIMEOUT=5s; those that say where a system is (CONNECT_URL, KAFKA_BROKERS, ADMIN_DATABASE_URL, …) do nothing here.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

usage() { die "usage: scripts/up.sh [--no-demo] [--brokers 1|3|5] [--workers N] [--replicas N]"; }
demo=1
shape=()
while [ $# -gt 0 ]; do
  case $1 in
    --no-demo) demo= ;;
    --brokers=* | --workers=* | --replicas=*) shape+=("$1") ;;
    --brokers | --workers | --replicas)
      [ $# -gt 1 ] || usage
      shape+=("$1=$2")
      shift
      ;;
    *) usage ;;
  esac
  shift
done

need_go
want_tools jdk maven jq kcat curl # kcat is for tail-topics.sh only
need_tools jdk maven jq curl
STACK_DIR=$(stack_dir)
export STACK_DIR
mkdir -p "$STACK_DIR/bin" 2>/dev/null && [ -w "$STACK_DIR/bin" ] || die "cannot write in $STACK_DIR: choose another folder with STACK_DIR"

[ -e "$STACK_DIR/kafka" ] || touch "$STACK_DIR/.new" # until its goods are in

echo "building"
go build -trimpath -o "$STACK_DIR/bin/" ./cmd/outboxctl ./order-service ./stock-service ./payment-service

# ours CMD...: runs it for this stack. Variables that say where another system is are not for it.
ours() { env -u CONNECT_URL -u KAFKA_BROKERS -u ADMIN_DATABASE_URL -u CONNECTOR_DATABASE_URL -u ORDER_DATABASE_URL -u STOCK_DATABASE_URL -u PAYMENT_DATABASE_URL -u ORDER_URL -u STOCK_URL -u PAYMENT_URL "$@"; }

shown=${STACK_DIR#"$PWD"/} # like scripts/, from here
echo "starting (logs are in $shown/logs)"
"$STACK_DIR/bin/outboxctl" stack up ${shape[@]+"${shape[@]}"}
ours scripts/register-connectors.sh

# Without the demo only into a new system: another one has goods of its own.
if [ ! -e "$STACK_DIR/.goods" ] && [ ! -e "$STACK_DIR/.demo" ] && { [ -n "$demo" ] || [ -e "$STACK_DIR/.new" ]; }; then
  ours "$STACK_DIR/bin/outboxctl" demo --orders=false
  touch "$STACK_DIR/.goods"
fi
rm -f "$STACK_DIR/.new"
if [ -n "$demo" ] && [ ! -e "$STACK_DIR/.demo" ]; then
  ours "$STACK_DIR/bin/outboxctl" demo --goods=false
  touch "$STACK_DIR/.demo"
fi
cat <<END
The system runs: order-service http://127.0.0.1:${ORDER_PORT:-8080}, stock-service :${STOCK_PORT:-8081}, payment-service :${PAYMENT_PORT:-8082}
  scripts/place-order.sh    place an order
  scripts/tail-topics.sh    watch the topics
  $shown/bin/outboxctl status    see all of it
  scripts/down.sh [--wipe]  stop it [and remove its data]
END
