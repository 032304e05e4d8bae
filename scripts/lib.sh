# shellcheck shell=bash
# Shared by the scripts; sourced, not run. Installs what is missing with the system's package
# manager where it may, else says what to install.

umask 022 # PostgreSQL may run as another user
export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}" NO_PROXY="127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}"

die() { printf '%s\n' "$*" >&2; exit 1; }

need_go() {
  command -v go >/dev/null || die "Go is not installed: install the version that go.mod names, or a later one (https://go.dev/doc/install)"
}

# java_ok: a Java of 17 or later is there.
java_ok() {
  local java=java version
  [ -z "${JAVA_HOME:-}" ] || java=$JAVA_HOME/bin/java
  version=$("$java" -version 2>&1 | sed -n 's/.*version "\(1\.\)\{0,1\}\([0-9]*\).*/\2/p' | head -1)
  [ -n "$version" ] && [ "$version" -ge 17 ]
}

# brew_java finds the JDK that Homebrew leaves out of the PATH.
brew_java() {
  local home
  if command -v brew >/dev/null && ! java_ok; then
    home=$(brew --prefix)/opt/openjdk@21/libexec/openjdk.jdk/Contents/Home
    [ ! -d "$home" ] || export JAVA_HOME="$home"
  fi
}

# has TOOL: of jdk, maven, or a command.
has() {
  case $1 in
    jdk) java_ok ;;
    maven) command -v mvn >/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

# as_root COMMAND...
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi }
may_be_root() { [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }

# need_tools NAME...: of jdk, maven, jq, curl, gcc. Each is there afterwards.
need_tools() {
  want_tools "$@"
  local tool missing=
  for tool in "$@"; do has "$tool" || missing="$missing $tool"; done
  [ -z "$missing" ] || die "install by hand, then try again:$missing (jdk: version 17 or later${JAVA_HOME:+; JAVA_HOME is $JAVA_HOME})"
}

# want_tools NAME...: like need_tools, but goes on without what cannot be had.
# shellcheck disable=SC2046,SC2086 # lists of words
want_tools() {
  local tool missing=
  brew_java
  for tool in "$@"; do has "$tool" || missing="$missing $tool"; done
  # Only once: what failed before fails again.
  [ -n "$missing" ] && [ -z "${tools_tried:-}" ] || return 0
  tools_tried=1
  local manager
  for manager in apt-get dnf apk brew none; do command -v $manager >/dev/null && break; done
  if [ "$manager" = none ]; then echo "missing:$missing" >&2; return 0; fi
  if [ "$manager" != brew ] && ! may_be_root; then
    echo "missing:$missing; to have it: sudo $manager $(install_words $manager) $(packages $manager $missing)" >&2
    return 0
  fi
  local log
  log=$(mktemp)
  if [ "$manager" = apt-get ]; then as_root apt-get update >"$log" 2>&1 || true; fi
  local packages
  packages=$(packages $manager $missing)
  [ -n "$packages" ] || { rm -f "$log"; return 0; }
  echo "installing with $manager: $packages"
  # One by one: a package that this system does not have must not keep the others away.
  local package
  for package in $packages; do
    case $manager in
      brew) brew install "$package" ;;
      *) as_root env DEBIAN_FRONTEND=noninteractive $manager $(install_words $manager) "$package" ;;
    esac >>"$log" 2>&1 </dev/null || { echo "  $package could not be installed: $(tail -1 "$log")" >&2; }
  done
  rm -f "$log"
  brew_java
}

# with_services COMMAND ARGUMENT...: builds outboxctl and the services, and runs outboxctl's command with them. A signal that
# ends the script ends the program first, which stops what it has started.
with_services() {
  need_go
  need_tools jdk maven
  local pid status=0
  bin=$(mktemp -d)
  trap 'rm -rf "$bin"' EXIT
  go build -trimpath -o "$bin/" ./cmd/outboxctl ./order-service ./stock-service ./payment-service
  "$bin/outboxctl" "$1" --bin "$bin" "${@:2}" &
  pid=$!
  trap 'kill -TERM "$pid" 2>/dev/null' HUP INT TERM
  wait "$pid" || status=$?
  while kill -0 "$pid" 2>/dev/null; do # it was the wait that a signal ended
    status=0
    wait "$pid" || status=$?
  done
  return "$status"
}

install_words() {
  case $1 in
    apt-get) echo "install -y --no-install-recommends -o DPkg::Lock::Timeout=120" ;;
    dnf) echo "install -y" ;;
    apk) echo add ;;
    *) echo install ;;
  esac
}

# packages MANAGER TOOL...: what the tools are called there.
packages() {
  local manager=$1 tool version
  shift
  for tool in "$@"; do
    case $manager-$tool in
      apt-get-jdk)
        for version in 21 25 17; do
          [ -z "$(apt-cache madison openjdk-$version-jdk-headless 2>/dev/null)" ] || break
        done
        echo "openjdk-$version-jdk-headless" ;;
      dnf-jdk) echo java-21-openjdk-headless ;;
      apk-jdk) echo openjdk21-jre-headless ;;
      brew-jdk) echo openjdk@21 ;;
      dnf-kcat) echo "kcat is in no repository of this system: https://github.com/edenhill/kcat says how to install it" >&2 ;;
      *) echo "$tool" ;;
    esac
  done | tr '\n' ' '
}

# stack_dir: STACK_DIR as an absolute path; a relative one is of the folder that the script was called in.
stack_dir() {
  case ${STACK_DIR:-} in
    '') printf '%s' "$PWD/.stack" ;;
    /*) printf '%s' "$STACK_DIR" ;;
    *) printf '%s' "$OLDPWD/$STACK_DIR" ;; # all scripts go to the project's root first
  esac
}
