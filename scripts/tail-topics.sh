#!/usr/bin/env bash
# Shows the records of the saga's topics as they come: topic, key, headers, payload. Ctrl-C ends it. It is silent
# until there is a new one, for example of scripts/place-order.sh; what is there already is shown with FROM=beginning.
#
#   scripts/tail-topics.sh [TOPIC...]                 new records (of all topics of the saga)
#   FROM=beginning scripts/tail-topics.sh             what is there already, then new ones
#   FROM=beginning scripts/tail-topics.sh --exit      what is there already, then end
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_tools kcat jq
broker=127.0.0.1:${KAFKA_PORT:-9092}
options=()
if [ "${1:-}" = --exit ]; then options+=(-e); shift; fi
list=$(kcat -b "$broker" -L -J -m 5 2>/dev/null) || die "Kafka does not answer at $broker: start the system with scripts/up.sh, or set KAFKA_PORT"
if [ $# = 0 ]; then
  topics=()
  while read -r t; do topics+=("$t"); done < <(jq -r '.topics[].topic | select(test("^(order|payment|stock)($|\\.)"))' <<<"$list" | sort)
  [ ${#topics[@]} -gt 0 ] || die "the saga's topics are not there: make them with scripts/up.sh"
else
  topics=("$@")
fi
for t in "${topics[@]}"; do
  jq -e --arg t "$t" '.topics | any(.topic == $t)' <<<"$list" >/dev/null || die "there is no topic $t; there are: $(jq -r '[.topics[].topic | select(startswith("_") | not)] | sort | join(" ")' <<<"$list")"
done
# A consumer per topic (kcat reads one topic without a group); -u: lines come at once.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
[ "${FROM:-end}${options[*]-}" != end ] || echo "new records only (FROM=beginning shows older ones too); Ctrl-C ends it" >&2
for t in "${topics[@]}"; do
  kcat -b "$broker" -C -t "$t" -o "${FROM:-end}" -q -u ${options[@]+"${options[@]}"} -f '%t  key=%k  %h\n    %s\n' &
done
wait
