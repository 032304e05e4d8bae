#!/usr/bin/env bash
# Places an order and shows what became of it.
#
#   scripts/place-order.sh [CUSTOMER [SKU [QUANTITY [UNIT_PRICE]]]]     (alice book 2 1500)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_tools curl jq
url=http://127.0.0.1:${ORDER_PORT:-8080}
body=$(jq -cn --arg c "${1:-alice}" --arg s "${2:-book}" --arg q "${3:-2}" --arg p "${4:-1500}" \
  '{customer_id: $c, items: [{sku: $s, quantity: ($q | tonumber), unit_price: ($p | tonumber)}]}') ||
  die "usage: scripts/place-order.sh [CUSTOMER [SKU [QUANTITY [UNIT_PRICE]]]] (quantity and price are numbers)"
answer=$(curl -sS --max-time 15 -X POST -H 'Content-Type: application/json' -H 'Prefer: wait=10' -d "$body" "$url/orders") ||
  die "order-service does not answer at $url: start the system with scripts/up.sh, or set ORDER_PORT"
jq . <<<"$answer"
jq -e 'has("id")' <<<"$answer" >/dev/null
