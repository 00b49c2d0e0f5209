#!/bin/sh
# Installs the agent from this kit: needs Python of the right version, no network, no compiler, no pip, no venv package.
#
#   sudo ./install.sh                          install beside what is there, switch to it, set up the service
#   sudo ./install.sh --device kitchen-1       other arguments go to `edge-agent setup`
#   PREFIX=/srv/edge-agent NO_SETUP=1 ./install.sh     elsewhere, and only the files
#
# An older version stays beside; to go back: ln -sfn OLD_VERSION /opt/edge-agent/current && systemctl restart edge-agent
set -eu
cd "$(dirname "$0")"
prefix=${PREFIX:-/opt/edge-agent}

fail() { echo "install.sh: $*" >&2; exit 1; }
fact() { sed -n "s/^ \"$1\": \"\(.*\)\",\{0,1\}$/\1/p" kit.json; }

version=$(fact version) arch=$(fact arch) wanted=$(fact python)
[ -n "$version" ] || fail "kit.json is damaged: copy the kit again"
sha256sum --check --quiet --strict SHA256SUMS || fail "files of the kit are damaged: copy it again"
[ "$(uname -m)" = "$arch" ] || fail "this kit is for $arch, this machine is $(uname -m): make a kit with --arch $(uname -m)"

python=
for candidate in "python$wanted" python3; do
    found=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if [ "$found" = "$wanted" ]; then python=$candidate; break; fi
done
[ -n "$python" ] || fail "Python $wanted is not here (python3 is ${found:-missing}): make a kit with --python ${found:-VERSION}"

target=$prefix/$version
mkdir -p "$prefix" || fail "$prefix cannot be made: run this as root, or set PREFIX"
if [ ! -e "$target/.complete" ]; then
    echo "Installing the agent $version into $target"
    # Left over from an interrupted installation; a complete one is never touched.
    rm -rf "$target"
    "$python" -m venv --without-pip "$target"
    # pip runs out of its own wheel: Debian ships Python without it.
    pip=$(echo wheels/pip-*.whl)
    "$target/bin/python" "$pip/pip" install --quiet --no-index --find-links wheels --no-cache-dir \
        --disable-pip-version-check --root-user-action ignore "edge-bundle[agent]==$version"
    "$target/bin/edge-agent" --help >/dev/null
    touch "$target/.complete"
    sync
fi

if [ -z "${NO_SETUP:-}" ]; then
    # The old agent goes on running until setup restarts the service.
    "$target/bin/edge-agent" setup --yes --link "$prefix/current" --config agent.toml --root-json root.json "$@"
else
    ln -sfn "$version" "$prefix/current"
fi
