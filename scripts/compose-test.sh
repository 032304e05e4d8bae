#!/usr/bin/env bash
# Tests docker-compose.yaml on a Docker daemon, with a project and ports of its own, beside whatever runs
# already, and removes everything that it made. It builds the images and then checks
#
#   images    small, labelled, with a health check; every container an ordinary user, confined, with a memory limit
#   start     from no containers to settled orders with compensation within 60 s, as the README has it:
#             outboxctl demo, and kcat on the published port
#   health    what depends on PostgreSQL, Kafka or Connect is unhealthy within 15 s of its stop, healthy
#             within 30 s of its start, and all else stays healthy
#   kill      under load, the first process of each container is killed with -9: its policy starts it again; then
#             each container with docker kill, and started by hand; in the end the audit is clean
#   end       all ends by itself on SIGTERM, and down -v leaves nothing
#
#   scale     the profile scale: brokers, a worker and an instance of each service are killed, and
#             orders go on through the balancer (only if asked for: it needs 6 GB of memory)
#
#   scripts/compose-test.sh               all but scale, about 8 minutes
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
need_tools curl jq kcat
parts=" ${*:-health kill} "

# The whole run is bounded: what hangs is a failure.
limit=${COMPOSE_TEST_LIMIT:-1800}
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
  printf '  %-64s %6.1f s  (<= %s s) %s\n' "$1" "$2" "$3" "$verdict"
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
printf '  %-64s %6.1f s\n' "images built (from Docker's cache where it can)" "$(since "$begin")"

echo "== images"
for image in order-service stock-service payment-service supervisor outboxctl; do
  size=$(docker image inspect -f '{{.Size}}' "outbox-saga/$image")
  printf '  %-20s %5.1f MB\n' "$image" "$(awk -v s="$size" 'BEGIN { print s / 1e6 }')"
  [ "$size" -le 30000000 ] || wrong "outbox-saga/$image has $size bytes, more than 30 MB"
done
for image in order-service stock-service payment-service supervisor outboxctl connect; do
  [ "$image" = outboxctl ] || [ "$(docker image inspect -f '{{json .Config.Healthcheck}}' "outbox-saga/$image")" != null ] || wrong "outbox-saga/$image has no health check"
  for label in title version revision; do
    [ -n "$(docker image inspect -f "{{index .Config.Labels \"org.opencontainers.image.$label\"}}" "outbox-saga/$image")" ] || wrong "outbox-saga/$image has no label $label"
  done
  [ "$(docker image inspect -f '{{index .Config.Labels "org.opencontainers.image.revision"}}' "outbox-saga/$image")" = "$REVISION" ] || wrong "outbox-saga/$image is not of revision $REVISION"
done

echo "== start"
up=(up -d)
if [ "${compose[0]}" = docker ]; then up+=(--wait); fi # docker-compose 1.29 does not know it
begin=$(now)
dc "${up[@]}" >"$work/up" 2>&1 || { tail -20 "$work/up" >&2; die "up failed"; }
until_health healthy 90 "${long[@]}" >/dev/null
bar "from no containers to all healthy" "$(since "$begin")" 60
"$work/outboxctl" demo >"$work/demo" || wrong "outboxctl demo fails"
bar "from no containers to settled orders, compensated" "$(since "$begin")" 60
sed 's/^/    /' "$work/demo"
while read -r order; do
  grep -Eq "^$order +[0-9]+ ms" "$work/demo" || wrong "the demo has no order like: $order"
done <<'ORDERS'
alice buys 2 books +[0-9a-f-]{36} +SUCCESS +SUCCESS +SUCCESS
bob cannot pay: .* +FAILED +FAILED +COMPENSATED
too few lamps: .* +FAILED +COMPENSATED +FAILED
bob can pay for nothing .* +FAILED +FAILED +FAILED
ORDERS
kcat -b "localhost:$KAFKA_PORT" -t payment.success -C -o beginning -e -q -f '%t  key=%k  %h\n    %s\n' >"$work/kcat" || wrong "kcat cannot read from localhost:$KAFKA_PORT"
sed 's/^/    /' "$work/kcat"
grep -q "^payment.success  key=$(sed -nE 's/^alice buys.* ([0-9a-f-]{36}) .*/\1/p' "$work/demo")  id=.*type=payment.succeeded" "$work/kcat" ||
  wrong "kcat does not show the payment of alice"

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

are() { local want=$1 one; shift; for one in "$@"; do [ "$(health "$one")" = "$want" ] || return 1; done; }
# stopped SERVICE DEPENDENT...: these and the supervisor must notice within 15 s, and all else must stay healthy for as long.
stopped() {
  local service=$1 begin took noticed="" looked="" one stays=()
  shift
  for one in "${long[@]}"; do [[ " $service supervisor $* " == *" $one "* ]] || stays+=("$one"); done
  begin=$(now)
  dc stop "$service" >/dev/null 2>&1
  took=$(since "$begin")
  begin=$(now)
  while awk -v s="$(since "$begin")" -v n="$noticed" -v l="$looked" 'BEGIN { exit !(s < 15 || (n == "" || l == "") && s < 30) }'; do
    for one in "${!stays[@]}"; do
      are healthy "${stays[one]}" || { wrong "$service is stopped, and ${stays[one]} is $(health "${stays[one]}")"; unset "stays[one]"; }
    done
    if [ -z "$noticed" ] && are unhealthy "$@"; then noticed=$(since "$begin"); fi
    if [ -z "$looked" ] && are unhealthy supervisor; then looked=$(since "$begin"); fi
    sleep 0.2
  done
  if [ $# -gt 0 ]; then bar "$service stopped (took $took s): unhealthy are $(echo "$@" | sed 's/-service//g')" "${noticed:-$(since "$begin")}" 15
  else printf '  %s stopped (took %s s)\n' "$service" "$took"; fi
  bar "  and the supervisor" "${looked:-$(since "$begin")}" 15
  echo "    healthy stay ${stays[*]}" | sed 's/-service//g'
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
run_audit() { ADMIN_DATABASE_URL="postgres://postgres:$POSTGRES_PASSWORD@127.0.0.1:$POSTGRES_PORT/postgres" "$work/outboxctl" audit "$@"; }
# audit: every order that was accepted is there and settled, no rule of outboxctl audit is violated, nothing was put aside.
audit() {
  local open
  echo "== audit"
  for _ in $(seq 30); do
    open=$({ run_audit --grace 1s --json 2>"$work/audit" || true; } | jq .open_orders) || open= # what it finds is judged below
    [ "$open" != 0 ] || break
    sleep 1
  done
  [ "$open" = 0 ] || wrong "orders that are not settled after 30 s and more: ${open:-not known} $(cat "$work/audit")"
  sleep 5 # what is younger than --grace is not judged
  run_audit --grace 5s >"$work/audit" 2>&1 || wrong "outboxctl audit is not clean"
  sed 's/^/  /' "$work/audit"
  dc exec -T -e PGPASSWORD="$POSTGRES_PASSWORD" postgres psql -h 127.0.0.1 -U postgres -d orderdb -qtAc 'SELECT id FROM orders' </dev/null | sort >"$work/known"
  sort -u "$work/accepted" | comm -23 - "$work/known" >"$work/lost"
  [ ! -s "$work/lost" ] || wrong "$(wc -l <"$work/lost") orders were accepted and are not there, the first: $(head -1 "$work/lost")"
  "$work/outboxctl" dead-letters list --status any >"$work/letters" 2>&1 || true
  grep -qx 'no dead letters' "$work/letters" || wrong "dead letters: $(cat "$work/letters")"
  printf '  all %d accepted orders are there, no dead letters\n' "$(sort -u "$work/accepted" | wc -l)"
}
stop_load() {
  kill "$load_pid" 2>/dev/null || true
  wait "$load_pid" 2>/dev/null || true
  load_pid=
}
# killed HOW SERVICE: under load. Its policy, or after docker kill this script, starts it again.
killed() {
  local how=$1 service=$2 was before begin settled
  sleep 2
  was=$(docker inspect -f '{{.RestartCount}}' "$(container "$service")")
  before=$(wc -l <"$work/accepted")
  begin=$(now)
  if [ "$how" = "with -9" ]; then
    signal KILL "$service"
    while [ "$(docker inspect -f '{{.RestartCount}}' "$(container "$service")")" = "$was" ]; do
      awk -v s="$(since "$begin")" 'BEGIN { exit !(s > 30) }' && { wrong "$service was killed and its policy does not start it"; break; }
      sleep 0.1
    done
  else
    docker kill "$(container "$service")" >/dev/null
    docker start "$(container "$service")" >/dev/null
  fi
  until_health healthy 90 "${long[@]}" >/dev/null || failed=1
  bar "$service killed $how: all healthy again" "$(since "$begin")" 60
  begin=$(now)
  settled=$(order alice book 1 | jq -r '.settled | tostring' 2>/dev/null || echo "no answer")
  [ "$settled" = true ] || wrong "after $service was killed an order is not settled within 20 s: $settled"
  printf '    accepted meanwhile: %d; an order placed then settles within %.1f s\n' "$(($(wc -l <"$work/accepted") - before))" "$(since "$begin")"
}
if [[ $parts == *" kill "* ]]; then
  echo "== kill"
  put_in
  : >"$work/accepted"
  place "$work/accepted" &
  load_pid=$!
  for service in "${long[@]}"; do killed "with -9" "$service"; done
  for service in "${long[@]}"; do killed "with docker kill" "$service"; done
  stop_load
  audit
fi

# ends WANTED SECONDS SERVICE...: they end by themselves on SIGTERM, with this exit code. Force would be 137.
ends() {
  local want=$1 most=$2 service code begin
  shift 2
  begin=$(now)
  dc stop "$@" >/dev/null 2>&1
  for service in "$@"; do
    code=$(docker inspect -f '{{.State.ExitCode}}' "$(container "$service")")
    [ "$code" = "$want" ] || wrong "$service ends with $code, want $want"
  done
  bar "$(echo "$@" | sed 's/-service//g') end by themselves" "$(since "$begin")" "$most"
}
connects=(connect) kafkas=(kafka)
end() {
  echo "== end"
  ends 0 10 "${services[@]}" supervisor
  ends 143 15 "${connects[@]}" # how Java ends on SIGTERM
  ends 143 15 "${kafkas[@]}"
  ends 0 15 postgres
  begin=$(now)
  dc down -v >"$work/down" 2>&1 || { cat "$work/down" >&2; wrong "down -v failed"; }
  for kind in container network volume; do
    left=$(docker $kind ls -q $([ $kind != container ] || echo -a) --filter "label=com.docker.compose.project=$project")
    [ -z "$left" ] || wrong "down -v left a $kind: $left"
  done
  printf '  %-64s %6.1f s\n' "down -v, nothing is left" "$(since "$begin")"
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
  dc "${up[@]}" >"$work/up" 2>&1 || { tail -20 "$work/up" >&2; die "up of the profile scale failed"; }
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
  connects+=(connect-2) kafkas+=(kafka-2 kafka-3)
  end
fi
[ $failed = 0 ] || { trap - EXIT; kill "$guard_pid" 2>/dev/null || true; rm -rf "$work"; die "some bars were missed"; }
echo "all bars are met"
