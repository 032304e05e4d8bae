#!/usr/bin/env bash
# Runs every test: formatting, go vet, staticcheck, and all Go tests, with the race detector but for those of faults
# and times, on real PostgreSQL, Kafka and Debezium that the tests start themselves, on free ports, beside whatever runs already.
#
#   scripts/test.sh              everything (15 minutes on 2 slow cores, 9 on 4)
#   scripts/test.sh ./inbox/...  the tests of some packages only
#   TEST_STACK=docker scripts/test.sh    PostgreSQL, Kafka and Connect in containers, for the same tests
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_go
case "${TEST_STACK:-native}" in
  native) need_tools jdk maven jq kcat curl ;;
  docker)
    command -v docker >/dev/null && docker info >/dev/null 2>&1 ||
      die "TEST_STACK=docker: no Docker daemon answers: start one, say where it is with DOCKER_HOST, or leave TEST_STACK out: the tests then need no Docker"
    need_tools jq curl ;;
  *) die "TEST_STACK is $TEST_STACK: set it to native (PostgreSQL, Kafka and Connect as processes, the default) or docker (in containers)" ;;
esac
TEST_BIN=$(mktemp -d) # the services that the tests start, linked once for all packages
export TEST_BIN
trap 'rm -rf "$TEST_BIN"' EXIT
step() { printf '\n== %s\n' "$*"; }
# meanwhile NAME COMMAND...: runs it beside what follows. result NAME waits for it, and shows what it printed.
meanwhile() { "${@:2}" >"$TEST_BIN/$1.log" 2>&1 & eval "job_$1=$!"; }
result() { local status=0 job=job_$1; wait "${!job}" || status=$?; cat "$TEST_BIN/$1.log"; return $status; }
# idle COMMAND...: runs it with what others leave of the processors.
idle() { if chrt -i 0 true 2>/dev/null; then chrt -i 0 "$@"; else nice -n 19 "$@"; fi; }

step "format"
unformatted=$(git ls-files '*.go' | xargs gofmt -l)
[ -z "$unformatted" ] || { printf 'not formatted, run gofmt -w on:\n%s\n' "$unformatted" >&2; exit 1; }

step "go vet, while the stack is resolved"
if [ "${TEST_STACK:-native}" = native ]; then
  meanwhile stack go run ./cmd/outboxctl stack resolve
else
  meanwhile stack go test -count=1 -timeout 20m -run TestImages ./internal/dockerstack
fi
status=0
go vet ./... || status=1
result stack
[ $status = 0 ] || exit 1

race=-race
if [ "$(go env CGO_ENABLED)" != 1 ] || ! command -v "$(go env CC)" >/dev/null; then
  if [ -n "${CI:-}" ]; then need_tools gcc; else echo "no C compiler: the tests run without the race detector (install gcc to have it)" >&2; race=; fi
fi
timed='TestCluster|TestFaults'
model=./internal/modelcheck # computes for long, in one goroutine
if [ $# = 0 ]; then
  step "faults, and times that the race detector would spoil"
  go test -count=1 -timeout 25m -v -run "^($timed)\$" ./internal/systemtest | tee "$TEST_BIN/timed.log" | grep -v level= ||
    { status=1; grep level= "$TEST_BIN/timed.log" | tail -n 200 >&2 || true; }
  # The tests that come next often wait. Behind those of faults it would spoil their times.
  meanwhile checks idle bash -ec "go tool staticcheck ./...; go test -count=1 -v $model"
else
  step "staticcheck"
  go tool staticcheck ./...
fi

packages=("$@") skip=
if [ $# = 0 ]; then
  # shellcheck disable=SC2207 # a list of words, for bash 3.2 too
  packages=($(go list ./... | grep -v "${model#.}\$")) # done above
  skip=$timed
  # These test the native stack itself, and its scripts.
  [ "${TEST_STACK:-native}" = native ] || skip="$skip|TestLife|TestKilledProgram|TestSeveralOfEach|TestRefusals|TestScripts|TestUpWithTakenPort"
fi
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
tests() { go test $race -ldflags=-w -count=1 -timeout 25m ${skip:+-skip "^($skip)\$"} "$@" || status=1; }
if [ $# -gt 0 ] || [ "$cores" -ge 4 ]; then
  step "go test $race ${packages[*]}"
  tests -p $((cores < 4 ? 1 : 2)) "${packages[@]}"
else
  # Two stacks fit on fewer cores, but what comes late there is not the system's fault: beside the tests of the whole runs only
  # what does little. The supervisor's mostly wait, beside those that need no Connect.
  light='/(events|inbox|outbox|(order|stock|payment)-service|internal/(provision|service|stacktest))(/|$)|/supervisor$'
  step "go test $race, the supervisor and the packages that need no Connect"
  list() { printf '%s\n' "${packages[@]}"; }
  tests -p 3 ./internal/supervisor $(list | grep -E "$light")
  step "go test $race, the tools"
  # First those that take long, one of which mostly waits: else the last one runs alone.
  long='/(chaos|connect|devstack|outboxctl)$' little='/(audit|dockerstack|relay)$'
  tools=$(list | grep -vE "$light|/systemtest\$|$little")
  tests -p 2 $(grep -E "$long" <<<"$tools") $(grep -vE "$long" <<<"$tools")
  step "go test $race, the system, and the tools that do little"
  tests -p 2 ./internal/systemtest $(list | grep -E "$little")
fi
if [ $# = 0 ]; then
  step "staticcheck, and the model check (every reachable state of the saga)"
  result checks || status=1
fi
if [ $status = 0 ]; then step "passed"; else step "FAILED: see above"; fi
exit $status
