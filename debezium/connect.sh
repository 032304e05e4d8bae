#!/usr/bin/env bash
# Starts the Connect worker in a container: worker.properties and the addresses of this place.
set -euo pipefail
: "${CONNECT_BOOTSTRAP_SERVERS:?set it to the brokers, host:port}"
{
  cat /opt/connect/worker.properties
  printf '\nbootstrap.servers=%s\nlisteners=http://0.0.0.0:8083\nrest.advertised.host.name=%s\nplugin.path=/opt/connect/plugins\n' \
    "$CONNECT_BOOTSTRAP_SERVERS" "${CONNECT_ADVERTISED_HOST:-$(hostname)}"
} >/tmp/worker.properties
exec /opt/kafka/bin/connect-distributed.sh /tmp/worker.properties
