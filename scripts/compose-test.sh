#!/usr/bin/env bash
# Tests docker-compose.yaml on a Docker daemon, with a project and ports of its own, beside whatever runs
# already, and removes everything that it made. It builds the images and then checks
#
#   images    small, labelled; every container an ordinary user, confined, with a memory limit
#   start     from no containers to a settled order with compensation within 60 s
#   health    what depends on PostgreSQL, Kafka or Connect is unhealthy within 15 s of its stop, healthy
#             within 30 s of its start
#   kill      the first process of each container killed with -9 under load: its policy starts it again,
#             and in the end no order is open, no event lost, no money charged wrongly
#   end       services end by themselves on SIGTERM, and down -v leaves nothing
#
#   scale     the profile scale: brokers, a worker and an instance of each service are killed or stopped, and
#             orders go on through the balancer (only if asked for: it needs 6 GB of memory)
#
#   scripts/compose-test.sh               all but scale, about 5 minutes
#   scripts/compose-test.sh kill scale    some of health, kill, scale; images, start and end always run
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

command -v docker >/dev/null || die "docker is not installed: scripts/up.sh runs the system without it"
docker info >/dev/null 2>&1 || die "no Docker daemon answers: start one, or say where it is with DOCKER_HOST (scripts/up.sh runs the system without it)"
if docker compose version >/dev/null 2>&1; then compose=(docker compose)
elif command -v docker-compose >/dev/null; then compose=(docker-compose) DOCKER_BUILDKIT=${DOCKER_BUILDKIT:-0}; export DOCKER_BUILDKIT
else die "docker compose is not installed: install the package docker-compose-plugin"; fi
need_go
need_tools curl jq
parts=" ${*:-health kill} "

# The whole run is bounded: what hangs is a failure.
limit=${COMPOSE_TEST_LIMIT:-1200}
project=outbox-saga-test-$$
work=$(mktemp -d)
go build -trimpath -o "$work/" ./cmd/outboxctl

# Ports that nobody listens on.
port=$((20000 + RANDOM % 8000))
free_port() {
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  printf -v "$1" '%s' "$port"
  export "${1?}"
  port=$((port + 1))
}
for name in POSTGRES_PORT KAFKA_PORT CONNECT_PORT ORDER_PORT STOCK_PORT PAYMENT_PORT SUPERVISOR_PORT \
  KAFKA_2_PORT KAFKA_3_PORT BALANCER_ORDER_PORT BALANCER_STOCK_PORT BALANCER_PAYMENT_PORT; do free_port $name; done
VERSION=test REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)
export VERSION REVISION

dc() { "${compose[@]}" -p "$project" "$@"; }
load_pid=
clean() {
  local code=$?
  trap - EXIT INT TERM
  if [ -n "$load_pid" ]; then kill "$load_pid" 2>/dev/null || true; fi
  if [ $code != 0 ]; then
    echo "FAILED; the containers:" >&2
    docker ps -a --filter "label=com.docker.compose.project=$project" --format '  {{.Names}}  {{.Status}}' >&2
    dc logs --tail 8 --no-color >&2 2>/dev/null || true
  fi
  dc down -v --remove-orphans >"$work/down" 2>&1 || true
  kill "$guard_pid" 2>/dev/null || true
  rm -rf "$work"
  exit $code
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
(
  sleep "$limit" >/dev/null 2>&1 & # it must not keep the output of this script open
  trap 'kill $!' TERM
  wait $!
  echo "not done after $limit s" >&2
  kill -TERM $$
  pkill -TERM -P $$ # what it waits for: it acts on the signal only then
) &
guard_pid=$!

now() { case $(date +%N) in *N*) date +%s000000000 ;; *) date +%s%N ;; esac; } # macOS knows no %N
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", (b - a) / 1e9 }'; }
failed=0
bar() { # bar WHAT SECONDS LIMIT
  local verdict=ok
  if awk -v s="$2" -v l="$3" 'BEGIN { exit !(s > l) }'; then verdict="TOO LONG"; failed=1; fi
  printf '  %-52s %6.1f s  (<= %s s) %s\n' "$1" "$2" "$3" "$verdict"
}
wrong() { printf '  WRONG: %s\n' "$*" >&2; failed=1; }

# The services that run, without those that run once.
long=(postgres kafka connect order-service stock-service payment-service supervisor)
container() { docker ps -aq --no-trunc --filter "label=com.docker.compose.project=$project" --filter "label=com.docker.compose.service=$1"; }
health() { docker inspect -f '{{if .State.Running}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}' "$(container "$1")" 2>/dev/null || echo missing; }
# until_health WANTED SECONDS SERVICE...: waits for all of them; prints the seconds it took.
until_health() {
  local want=$1 most=$2 begin service all
  begin=$(now)
  shift 2
  while :; do
    all=1
    for service in "$@"; do [ "$(health "$service")" = "$want" ] || { all=; break; }; done
    if [ -n "$all" ]; then since "$begin"; return; fi
    if awk -v s="$(since "$begin")" -v m="$most" 'BEGIN { exit !(s > m) }'; then
      echo "after $most s $service is $(health "$service"), not $want" >&2
      return 1
    fi
    sleep 0.2
  done
}
order() { # order CUSTOMER SKU QUANTITY: places an order and prints it once it is settled
  curl -sS --max-time 30 -X POST -H 'Content-Type: application/json' -H 'Prefer: wait=20' \
    -d "{\"customer_id\":\"$1\",\"items\":[{\"sku\":\"$2\",\"quantity\":$3,\"unit_price\":100}]}" "http://127.0.0.1:${orders:-$ORDER_PORT}/orders"
}
put_in() { # put_in: goods and money
  curl -sSf -o /dev/null -X POST -H 'Content-Type: application/json' -d '{"amount":100000000}' "http://127.0.0.1:$PAYMENT_PORT/accounts/alice/deposits"
  curl -sSf -o /dev/null -X POST -H 'Content-Type: application/json' -d '{"amount":10}' "http://127.0.0.1:$PAYMENT_PORT/accounts/bob/deposits"
  curl -sSf -o /dev/null -X POST -H 'Content-Type: application/json' -d '{"quantity":100000}' "http://127.0.0.1:$STOCK_PORT/items/book/receipts"
}

echo "== build"
begin=$(now)
dc build >"$work/build" 2>&1 || { tail -20 "$work/build" >&2; die "the images cannot be built"; }
printf '  %-52s %6.1f s\n' "images built (from Docker's cache where it can)" "$(since "$begin")"

echo "== images"
for image in order-service stock-service payment-service outboxctl; do
  size=$(docker image inspect -f '{{.Size}}' "outbox-saga/$image")
  printf '  %-20s %5.1f MB\n' "$image" "$(awk -v s="$size" 'BEGIN { print s / 1e6 }')"
  [ "$size" -le 30000000 ] || wrong "outbox-saga/$image has $size bytes, more than 30 MB"
done
for image in order-service stock-service payment-service outboxctl connect; do
  for label in title version revision; do
    [ -n "$(docker image inspect -f "{{index .Config.Labels \"org.opencontainers.image.$label\"}}" "outbox-saga/$image")" ] || wrong "outbox-saga/$image has no label $label"
  done
  [ "$(docker image inspect -f '{{index .Config.Labels "org.opencontainers.image.revision"}}' "outbox-saga/$image")" = "$REVISION" ] || wrong "outbox-saga/$image is not of revision $REVISION"
done

echo "== start"
begin=$(now)
dc up -d >"$work/up" 2>&1 || { tail -20 "$work/up" >&2; die "up failed"; }
until_health healthy 90 "${long[@]}" >/dev/null
bar "from no containers to all healthy" "$(since "$begin")" 60
put_in
compensated=$(order bob book 1 | jq -r '.status + " " + .payment.status + " " + .stock.status + " " + (.settled | tostring)')
bar "from no containers to a settled order, compensated" "$(since "$begin")" 60
[ "$compensated" = "FAILED FAILED COMPENSATED true" ] || wrong "the order of bob, who cannot pay, is: $compensated"
paid=$(order alice book 1 | jq -r .status)
[ "$paid" = SUCCESS ] || wrong "the order of alice is: $paid"

for service in "${long[@]}"; do
  read -r user readonly memory caps < <(docker inspect -f '{{printf "%q" .Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}} {{.HostConfig.CapDrop}}' "$(container "$service")")
  [ "$memory" -gt 0 ] || wrong "$service has no memory limit"
  [ "$caps" = "[ALL]" ] || wrong "$service keeps capabilities: $caps"
  docker inspect -f '{{.HostConfig.SecurityOpt}}' "$(container "$service")" | grep -q no-new-privileges || wrong "$service may gain privileges"
  uid=$(docker top "$(container "$service")" -eo pid,uid | awk 'NR == 2 { print $2 }')
  [ "$uid" != 0 ] || wrong "$service runs as root"
  if [ "$service" != postgres ]; then
    [[ $user =~ ^\"[1-9][0-9]*:[1-9][0-9]*\"$ ]] || wrong "$service has no user by number: $user"
    [ "$readonly" = true ] || wrong "$service has a writable root file system"
  fi
  docker inspect -f '{{range $p, $to := .NetworkSettings.Ports}}{{range $to}}{{.HostIp}} {{end}}{{end}}' "$(container "$service")" | tr ' ' '\n' | grep -v '^$' | grep -vqx 127.0.0.1 && wrong "$service publishes a port to the world"
  true
done

# stopped SERVICE DEPENDENT...: the ones that must notice.
stopped() {
  local service=$1 begin
  shift
  begin=$(now)
  dc stop -t 20 "$service" >/dev/null 2>&1
  local took
  took=$(since "$begin")
  begin=$(now)
  if [ $# -gt 0 ]; then
    until_health unhealthy 30 "$@" >/dev/null || failed=1
    bar "$service stopped (took $took s): unhealthy are $(echo "$@" | sed 's/-service//g')" "$(since "$begin")" 15
  fi
  begin=$(now)
  dc start "$service" >/dev/null 2>&1
  until_health healthy 60 "${long[@]}" >/dev/null || failed=1
  bar "$service started: all healthy" "$(since "$begin")" 30
}
# signal SIGNAL SERVICE: to the first process of its container, from the host. For Docker, docker kill is a stop
# by hand, whatever the signal, and after the end of that container no policy starts it again.
signal() {
  local pid
  pid=$(docker inspect -f '{{.State.Pid}}' "$(container "$2")")
  if [ "$(id -u)" = 0 ] && [ -d "/proc/$pid" ]; then kill "-$1" "$pid"
  else docker run --rm --privileged --pid=host --entrypoint bash postgres:18 -c "kill -$1 $pid"; fi
}
# hung SERVICE: its first process is there and does nothing.
hung() {
  local begin
  signal STOP "$1"
  begin=$(now)
  until_health unhealthy 30 "$1" >/dev/null || failed=1
  bar "$1 hangs: it is unhealthy" "$(since "$begin")" 15
  signal CONT "$1"
  begin=$(now)
  until_health healthy 60 "${long[@]}" >/dev/null || failed=1
  bar "$1 goes on: all healthy" "$(since "$begin")" 30
}
services=(order-service stock-service payment-service)
if [[ $parts == *" health "* ]]; then
  echo "== health"
  stopped postgres connect "${services[@]}"
  stopped kafka connect "${services[@]}"
  # Without Connect the services do their work: they take orders, and wait for what it brings.
  stopped connect
  for service in postgres kafka connect; do hung "$service"; done
fi

sql() { dc exec -T -e PGPASSWORD="$POSTGRES_PASSWORD" postgres psql -h 127.0.0.1 -U postgres -d "$1" -v ON_ERROR_STOP=1 -qtAc "$2" </dev/null; }
# empty WHAT DATABASE QUERY: the query must find nothing.
empty() {
  local found
  found=$(sql "$2" "$3")
  [ -z "$found" ] || wrong "$1: $(echo "$found" | wc -l) found, the first: $(echo "$found" | head -1)"
}
place() { # places orders until it is killed; the ids of those that were accepted go to $1
  local i=0 customer
  trap 'exit 0' TERM
  while :; do
    i=$((i + 1))
    customer=alice
    if [ $((i % 5)) = 0 ]; then customer=bob; fi
    curl -s --max-time 5 -X POST -H 'Content-Type: application/json' \
      -d "{\"customer_id\":\"$customer\",\"items\":[{\"sku\":\"book\",\"quantity\":1,\"unit_price\":100}]}" "http://127.0.0.1:${orders:-$ORDER_PORT}/orders" |
      jq -r '.id // empty' >>"$1" 2>/dev/null || true
    sleep 0.01
  done
}
POSTGRES_PASSWORD=${POSTGRES_PASSWORD:-$(sed -n 's/^POSTGRES_PASSWORD=//p' .env)}
# audit: no accepted order is lost or open, no event lost, no money or goods made or gone.
audit() {
  local open from to topics charged earned database
  echo "== audit"
  open="SELECT id FROM orders WHERE payment_status IN ('IN_PROGRESS', 'COMPENSATING') OR stock_status IN ('IN_PROGRESS', 'COMPENSATING')"
  for _ in $(seq 60); do [ -n "$(sql orderdb "$open LIMIT 1")" ] || break; sleep 1; done
  empty "orders not settled after 60 s" orderdb "$open"
  sql orderdb "SELECT id FROM orders" | sort >"$work/known"
  sort -u "$work/accepted" | comm -23 - "$work/known" >"$work/lost"
  [ ! -s "$work/lost" ] || wrong "$(wc -l <"$work/lost") orders were accepted and are not there, the first: $(head -1 "$work/lost")"
  # Every event is in the inbox of whom it was for.
  while read -r from to topics; do
    for _ in $(seq 30); do
      sql "$from" "SELECT id FROM outbox WHERE topic IN ($topics)" | sort >"$work/sent"
      sql "$to" "SELECT event_id FROM inbox" | sort >"$work/seen"
      comm -23 "$work/sent" "$work/seen" >"$work/lost"
      [ -s "$work/lost" ] || break
      sleep 1
    done
    [ ! -s "$work/lost" ] || wrong "$(wc -l <"$work/lost") events from $from are not in the inbox of $to, the first: $(head -1 "$work/lost")"
    printf '  %-10s > %-10s %6d events, none lost\n' "$from" "$to" "$(wc -l <"$work/sent")"
  done <<'ROUTES'
orderdb paymentdb 'payment','payment.compensation'
orderdb stockdb 'stock','stock.compensation'
paymentdb orderdb 'payment.success','payment.failed','payment.compensated','payment.dlt'
stockdb orderdb 'stock.success','stock.failed','stock.compensated','stock.dlt'
ROUTES
  charged=$(sql paymentdb "SELECT coalesce(sum(charged), 0) FROM accounts")
  earned=$(sql orderdb "SELECT coalesce(sum(amount), 0) FROM orders WHERE status = 'SUCCESS'")
  [ "$charged" = "$earned" ] || wrong "$charged is charged, and the orders that succeeded amount to $earned"
  printf '  charged %s = sum of the orders that succeeded; %s\n' "$charged" "$(sql orderdb "SELECT string_agg(status || ' ' || n, ', ' ORDER BY status) FROM (SELECT status, count(*) n FROM orders GROUP BY status) s")"
  empty "accounts not conserved" paymentdb "SELECT customer_id FROM accounts WHERE deposited <> balance + charged OR balance < 0"
  empty "items not conserved" stockdb "SELECT sku FROM items WHERE received <> available + reserved OR available < 0"
  for database in orderdb stockdb paymentdb; do empty "dead letters in $database" "$database" "SELECT id FROM dead_letters"; done
}
stop_load() {
  kill "$load_pid" 2>/dev/null || true
  wait "$load_pid" 2>/dev/null || true
  load_pid=
}
if [[ $parts == *" kill "* ]]; then
  echo "== kill"
  put_in
  : >"$work/accepted"
  place "$work/accepted" &
  load_pid=$!
  for service in "${long[@]}"; do
    sleep 2
    was=$(docker inspect -f '{{.RestartCount}}' "$(container "$service")")
    before=$(wc -l <"$work/accepted")
    begin=$(now)
    signal KILL "$service"
    while [ "$(docker inspect -f '{{.RestartCount}}' "$(container "$service")")" = "$was" ]; do
      awk -v s="$(since "$begin")" 'BEGIN { exit !(s > 30) }' && { wrong "$service was killed and its policy does not start it"; break; }
      sleep 0.1
    done
    until_health healthy 90 "${long[@]}" >/dev/null || failed=1
    bar "$service killed: all healthy again" "$(since "$begin")" 60
    begin=$(now)
    settled=$(order alice book 1 | jq -r '.settled | tostring' 2>/dev/null || echo "no answer")
    [ "$settled" = true ] || wrong "after $service was killed an order is not settled within 20 s: $settled"
    printf '    accepted meanwhile: %d; an order placed then settles within %.1f s\n' "$(($(wc -l <"$work/accepted") - before))" "$(since "$begin")"
  done
  stop_load
  audit
fi

end() {
  echo "== end"
  begin=$(now)
  dc stop "${services[@]}" supervisor >/dev/null 2>&1
  for service in "${services[@]}" supervisor; do
    code=$(docker inspect -f '{{.State.ExitCode}}' "$(container "$service")")
    [ "$code" = 0 ] || wrong "$service ends with $code after SIGTERM, want 0"
  done
  bar "services and supervisor end by themselves on SIGTERM" "$(since "$begin")" 10
  begin=$(now)
  dc down -v >"$work/down" 2>&1 || { cat "$work/down" >&2; wrong "down -v failed"; }
  for kind in container network volume; do
    left=$(docker $kind ls -q $([ $kind != container ] || echo -a) --filter "label=com.docker.compose.project=$project")
    [ -z "$left" ] || wrong "down -v left a $kind: $left"
  done
  printf '  %-52s %6.1f s\n' "down -v, nothing is left" "$(since "$begin")"
}
end

if [[ $parts == *" scale "* ]]; then
  echo "== scale"
  set -a
  . ./scale.env
  set +a
  long+=(kafka-2 kafka-3 connect-2 order-service-2 stock-service-2 payment-service-2)
  orders=$BALANCER_ORDER_PORT
  begin=$(now)
  dc up -d >"$work/up" 2>&1 || { tail -20 "$work/up" >&2; die "up of the profile scale failed"; }
  until_health healthy 150 "${long[@]}" >/dev/null
  bar "three brokers, two workers, two of each: all healthy" "$(since "$begin")" 120
  put_in
  : >"$work/accepted"
  place "$work/accepted" &
  load_pid=$!
  for service in kafka-2 connect order-service stock-service payment-service kafka; do
    sleep 3
    before=$(wc -l <"$work/accepted")
    begin=$(now)
    docker kill "$(container "$service")" >/dev/null # a stop by hand: it stays away
    settled=
    while [ "$settled" != true ] && awk -v s="$(since "$begin")" 'BEGIN { exit !(s < 60) }'; do
      settled=$(order alice book 1 2>/dev/null | jq -r '.settled | tostring' 2>/dev/null || true)
    done
    bar "$service gone: an order is settled" "$(since "$begin")" 60
    printf '    accepted meanwhile: %d\n' "$(($(wc -l <"$work/accepted") - before))"
    dc start "$service" >/dev/null 2>&1
    until_health healthy 90 "${long[@]}" >/dev/null || failed=1
  done
  stop_load
  audit
  services+=(order-service-2 stock-service-2 payment-service-2)
  end
fi
[ $failed = 0 ] || { trap - EXIT; kill "$guard_pid" 2>/dev/null || true; rm -rf "$work"; die "some bars were missed"; }
echo "all bars are met"
