# Shared by the scripts; sourced, not run. Installs what is missing with the system's package
# manager where it may, else says what to install.

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

# need_tools NAME...: of jdk, maven, jq, kcat, curl, gcc.
need_tools() {
  local tool missing=()
  for tool in "$@"; do
    case $tool in
      jdk) java_ok || missing+=(jdk) ;;
      maven) command -v mvn >/dev/null || missing+=(maven) ;;
      *) command -v "$tool" >/dev/null || missing+=("$tool") ;;
    esac
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "missing: ${missing[*]}"
  local sudo=()
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo=(sudo -n); else sudo=(none); fi
  fi
  local packages=() manager=
  for manager in apt-get dnf apk brew none; do command -v $manager >/dev/null && break; done
  for tool in "${missing[@]}"; do
    case $manager-$tool in
      apt-get-jdk) packages+=(openjdk-17-jdk-headless) ;;
      dnf-jdk) packages+=(java-17-openjdk-headless) ;;
      apk-jdk) packages+=(openjdk17-jre-headless) ;;
      brew-jdk) packages+=(openjdk@17) ;;
      dnf-kcat) die "kcat is in no repository of this system: install it by hand (https://github.com/edenhill/kcat)" ;;
      *) packages+=("$tool") ;;
    esac
  done
  local command=
  case $manager in
    apt-get) command="apt-get install -y --no-install-recommends ${packages[*]}" ;;
    dnf) command="dnf install -y ${packages[*]}" ;;
    apk) command="apk add ${packages[*]}" ;;
    brew) command="brew install ${packages[*]}"; sudo=() ;;
    *) die "install them, then try again: ${missing[*]} (jdk: version 17 or later)" ;;
  esac
  [ "${sudo[0]:-}" != none ] || die "install them, then try again: sudo $command"
  echo "installing: $command"
  local log
  log=$(mktemp)
  if [ $manager = apt-get ]; then "${sudo[@]}" apt-get update >"$log" 2>&1 || true; fi
  # shellcheck disable=SC2086
  if ! DEBIAN_FRONTEND=noninteractive "${sudo[@]}" $command >>"$log" 2>&1; then
    tail -3 "$log" >&2
    die "that failed (all of it: $log): install them by hand, then try again"
  fi
  rm -f "$log"
  if [[ " ${missing[*]} " == *" jdk "* ]] && ! java_ok; then
    die "Java is still older than 17 (JAVA_HOME=${JAVA_HOME:-not set}): make a JDK 17 or later the default, or set JAVA_HOME to it"
  fi
}

stack_dir() { printf '%s' "${STACK_DIR:-$PWD/.stack}"; }
