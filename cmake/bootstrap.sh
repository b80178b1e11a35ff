#!/usr/bin/env bash
# cmake/bootstrap.sh demo      installs what is missing, builds, trains, compares the strategies
# cmake/bootstrap.sh test      installs what is missing, builds, passes all tests
# cmake/bootstrap.sh packages  only installs; afterwards the CMake presets work in this checkout
#
# For Debian and what descends from it. Installs packages with apt; Catch2 3, where the release has an
# older one, is unpacked from its backports into build/packages. Edits no source.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

apt_packages=(g++ clang-14 libclang-rt-14-dev cmake ninja-build python3 libfmt-dev librapidcheck-dev
  libeigen3-dev libcli11-dev nlohmann-json3-dev libxxhash-dev libdlib-dev libyaml-cpp-dev
  libopenmpi-dev openmpi-bin libmpich-dev mpich spin strace iproute2 libtorch-dev pkgconf doxygen)

say() { printf '%s\n' "$*"; }
complain() {
  printf 'bootstrap: %s\n' "$*" >&2
  return 1
}

# apt_install PACKAGE...: as root, else by sudo (which may ask on a terminal), else says what to run.
apt_install() {
  local run=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
      run=(sudo)
    else
      complain "packages are missing and this is not root; as root run:
  apt-get update && apt-get install -y --no-install-recommends $*"
      return 1
    fi
  fi
  say "bootstrap: installing $*"
  "${run[@]}" env DEBIAN_FRONTEND=noninteractive sh -c '
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null' sh "$@" ||
    complain "apt-get could not install: $*"
}

install_packages() {
  local missing=() package state
  for package in "${apt_packages[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)
    [ "$state" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}" || return 1
  [ -f build/packages/usr/include/catch2/catch_all.hpp ] && return 0
  [ -f /usr/include/catch2/catch_all.hpp ] && return 0
  unpack_catch2 && return 0
  say "bootstrap: no Catch2 3 in the backports of this release; CMake will fetch it"
  command -v git >/dev/null || apt_install git ca-certificates
}

# mirror_of CODENAME [APT_OPTION...]
mirror_of() {
  local codename=$1
  shift
  apt-get "$@" indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
    awk -v release="$codename" '$2 == release {print $1; exit}'
}

# Catch2 3 out of the release's backports, through a view of apt that is this checkout's own.
unpack_catch2() {
  local apt=$PWD/build/apt codename mirror
  codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  rm -rf "$apt" && mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" build/packages
  mirror=$(mirror_of "$codename")
  if [ -z "$mirror" ]; then # apt names a mirror only where its lists are: images come without them
    local own=(-o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
    apt-get "${own[@]}" -qq update
    mirror=$(mirror_of "$codename" "${own[@]}")
  fi
  [ -n "$codename" ] && [ -n "$mirror" ] || return 1
  say "bootstrap: unpacking Catch2 3 from $codename-backports into build/packages"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s-backports main\n' \
    "$mirror" "$codename" >"$apt/sources.list"
  local view=(-o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
  apt-get "${view[@]}" -qq update &&
    (cd "$apt" && apt-get "${view[@]}" -qq download "libcatch2-dev/$codename-backports") &&
    rm -rf build/packages.part && mkdir build/packages.part &&
    dpkg-deb -x "$apt"/libcatch2-dev_*.deb build/packages.part &&
    rm -rf build/packages && mv build/packages.part build/packages
}

# failed_tests LOG: each with the beginning of what it wrote, which is far up where many follow.
failed_tests() {
  awk '/^ *[0-9]+\/[0-9]+ Test .*\*\*\*/ && !/\*\*\*Skipped/ {left = 30; print; next}
       /^ *(Start +[0-9]+:|[0-9]+\/[0-9]+ Test )/ {left = 0}
       left > 0 && NF > 0 {print "    " $0; --left}' "$1"
}

# One workflow; its CTest summary is added to the totals.
passed=0 failed=0 skipped=0 stages=() reasons=() failures=()
stage() {
  local name=$1 log=build/log-$1.txt begin=$SECONDS status
  say "== $name"
  cmake --workflow --preset "$name" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  local summary of_total lost
  summary=$(grep -E '^[0-9]+% tests passed, [0-9]+ tests failed out of [0-9]+' "$log" | tail -n 1)
  if [ -n "$summary" ]; then
    lost=$(sed -E 's/.*, ([0-9]+) tests failed out of .*/\1/' <<<"$summary")
    of_total=$(sed -E 's/.* out of ([0-9]+).*/\1/' <<<"$summary")
    local skips
    skips=$(grep -cE '^ *[0-9]+/[0-9]+ Test .*\*\*\*Skipped' "$log")
    passed=$((passed + of_total - lost - skips)) failed=$((failed + lost)) skipped=$((skipped + skips))
    [ "$lost" -eq 0 ] || failures+=("$(failed_tests "$log")")
    [ "$skips" -eq 0 ] || reasons+=("$(grep -E '\*\*\*Skipped|SKIPPED|skipped:' "$log")")
  elif [ "$status" -ne 0 ]; then
    failed=$((failed + 1)) # it did not come to its tests
  fi
  [ "$status" -eq 0 ] || [ -z "$summary" ] || [ "$lost" -gt 0 ] || failed=$((failed + 1))
  stages+=("$(printf '%-12s %5d s  exit %d' "$name" $((SECONDS - begin)) "$status")")
}

case "${1:-}" in
  packages)
    install_packages
    ;;
  demo)
    install_packages || exit 1
    exec cmake --workflow --preset demo
    ;;
  test)
    begin=$SECONDS
    mkdir -p build
    install_packages
    status=$?
    stages+=("$(printf '%-12s %5d s  exit %d' packages $((SECONDS - begin)) $status)")
    if [ $status -eq 0 ]; then
      for preset in test test-mpich test-tsan test-asan; do stage "$preset"; done
    else
      failed=1
    fi
    say "== seconds per stage"
    printf '%s\n' "${stages[@]}"
    [ ${#failures[@]} -eq 0 ] || printf 'failed: %s\n' "${failures[@]}"
    [ ${#reasons[@]} -eq 0 ] || printf 'skipped: %s\n' "${reasons[@]}"
    say "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
    ;;
  *)
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
