#!/usr/bin/env bash
# Starts the Connect worker in a container: worker.properties and the addresses of this place.
set -euo pipefail
: "${CONNECT_BOOTSTRAP_SERVERS:?set it to the brokers, host:port}"
{
  cat /opt/connect/worker.properties
  printf '\n%s\n' "bootstrap.servers=$CONNECT_BOOTSTRAP_SERVERS" "listeners=http://0.0.0.0:8083" \
    "rest.advertised.host.name=${CONNECT_ADVERTISED_HOST:-$(hostname)}" "plugin.path=/opt/connect/plugins"
  if [ "${CONNECT_REPLICATION_FACTOR:-1}" != 1 ]; then
    printf '%s.storage.replication.factor=%s\n' config "$CONNECT_REPLICATION_FACTOR" offset "$CONNECT_REPLICATION_FACTOR" status "$CONNECT_REPLICATION_FACTOR"
  fi
} >/tmp/worker.properties
exec /opt/connect/outboxctl connectors worker -- /opt/kafka/bin/connect-distributed.sh /tmp/worker.properties
