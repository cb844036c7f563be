#!/bin/sh
# What the definition files do in %post, inside the image that is being built.
#   install.sh venv EXTRAS [TORCH_INDEX]   the package and its pinned dependencies into /opt/hpc-molgen
#   install.sh prune [headers]             remove what no run needs; with `headers` C++ headers too, which torch.compile needs
#   install.sh describe KIND DEVICE COMMIT leave word of what the image is and which packages it has
# Wheels in /mnt (containers/build.sh binds them there) are used alone; without them pip asks its index.
set -eu

VENV=/opt/hpc-molgen
WORD=/usr/share/hpc-molgen

pip_options() {
    if ls /mnt/*.whl >/dev/null 2>&1; then
        echo "--no-index --find-links /mnt"
    elif [ -f /mnt/ca-certificates.crt ]; then
        echo "--cert /mnt/ca-certificates.crt"
    fi
}

case $1 in
venv)
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates g++ python3-dev python3-venv \
        >/dev/null
    python3 -m venv "$VENV"
    pip="$VENV/bin/python -m pip --disable-pip-version-check --no-cache-dir -q install --root-user-action=ignore"
    options=$(pip_options)
    torch=$(grep '^torch==' /src/constraints.txt)
    # torch first and exactly, so that nothing below chooses another build of it
    # shellcheck disable=SC2086 # words
    $pip $options ${3:+--index-url "$3"} "$torch"
    # shellcheck disable=SC2086
    $pip $options -c /src/constraints.txt setuptools
    # shellcheck disable=SC2086
    $pip $options --no-build-isolation -c /src/constraints.txt "/src[$2]"
    ls "$VENV"/lib/python3*/site-packages/hpc_molgen/dynamics/kernel/*.so >/dev/null # it is optional elsewhere, not in an image
    ;;
prune)
    cd "$VENV"/lib/python3*/site-packages
    rm -rf torch/test torch/bin/test_* torch/bin/*_test pip pip-*.dist-info "$VENV"/bin/pip*
    # tables imports its own tests, and torch its testing
    find . -depth -type d -name tests -not -path './tables/*' -exec rm -rf {} +
    if [ "${2:-}" = headers ]; then
        rm -rf torch/include torch/share
        find . -depth -type d -name include -exec rm -rf {} +
    fi
    find . -name '*.a' -delete
    ;;
describe)
    mkdir -p "$WORD"
    build=$(cat /proc/sys/kernel/random/uuid)
    printf '{"kind": "%s", "device": "%s", "commit": "%s", "build": "%s"}\n' "$2" "$3" "$4" "$build" >"$WORD/image.json"
    {
        dpkg-query -W -f 'debian ${Package} ${Version}\n'
        "$VENV/bin/python" - <<'PYTHON'
from importlib import metadata

for found in metadata.distributions():
    print("python", found.metadata["Name"], found.version)
PYTHON
    } | LC_ALL=C sort -u >"$WORD/packages.txt"
    ;;
*)
    echo "install.sh: there is no '$1'" >&2
    exit 2
    ;;
esac
