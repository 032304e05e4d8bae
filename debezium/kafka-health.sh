#!/usr/bin/env bash
# Succeeds if the broker of this container serves clients: it asks for metadata (Kafka protocol, request 3,
# version 1, of no topic) and wants at least one broker in the answer. A broker that is not registered with
# the controller answers too, with none. Kafka's own tools would start a JVM at every check.
exec 3<>/dev/tcp/localhost/19092 || exit 1
printf '\0\0\0\016\0\003\0\001\0\0\0\001\377\377\0\0\0\0' >&3
brokers=$(head -c 12 <&3 | tail -c 1 | od -An -tu1)
[ "${brokers:-0}" -gt 0 ]
