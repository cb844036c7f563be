#!/usr/bin/env bash
# Build an image of hpc_molgen from this checkout, and beside it a lock file that says what is in it.
#   containers/build.sh [train|farm|base] [cpu|cuda] [--base debootstrap|docker] [--from IMAGE] [--mpi mpich|openmpi]
#                       [--out FILE.sif] [--packages "gromacs ..."] [--torch-index URL] [--no-test]
# Without a name both are built, as train.sif and farm.sif (train-cuda.sif, farm-openmpi.sif, ...) in the current folder.
# debootstrap, the default where it is installed, takes Debian from the mirror that this machine uses; docker takes
# debian:bookworm-slim, or --from, from a registry. Wheels come from the index that this machine's pip uses, with the pins of
# constraints.txt; --torch-index is for torch alone. Debian's base is kept in ~/.cache/hpc-molgen and shared by all images;
# `base` makes it alone.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
python=${PYTHON:-python3}
PATH=$PATH:/usr/sbin:/sbin # where debootstrap is, and where an ordinary user of Debian does not look
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hpc-molgen

fail() {
  printf 'build.sh: %s\n' "$*" >&2
  exit 2
}
say() { printf '%(%H:%M:%S)T %s\n' -1 "$*"; }
help() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

arguments() {
  kinds=() device=cpu base='' from=debian:bookworm-slim mpi=mpich out='' packages='' torch_index='' test=()
  while [ $# -gt 0 ]; do
    case $1 in
      train | farm | base) kinds+=("$1") ;;
      cpu | cuda) device=$1 ;;
      --no-test) test=(--notest) ;;
      --base | --from | --mpi | --out | --packages | --torch-index)
        [ $# -gt 1 ] || fail "$1 wants a value"
        declare -g "$(tr - _ <<<"${1#--}")=$2"
        shift
        ;;
      -h | --help) help && exit 0 ;;
      *) fail "there is no option '$1'"$'\n'"$(help)" ;;
    esac
    shift
  done
  if [ -z "$base" ]; then base=$(command -v debootstrap >/dev/null && echo debootstrap || echo docker); fi
  case $base in debootstrap | docker) ;; *) fail "--base is debootstrap or docker, not '$base'" ;; esac
  case $mpi in mpich | openmpi) ;; *) fail "--mpi is mpich or openmpi, not '$mpi'" ;; esac
  if [ ${#kinds[@]} = 0 ]; then kinds=(farm train); fi
  if [ "$device" = cuda ] && [ ${#kinds[@]} -gt 1 ]; then
    fail "say which image for cuda: farm takes torch for processors, train takes torch for CUDA, and pip's index has one of them"
  fi
  [[ $packages =~ ^[a-z0-9.+:=~\ -]*$ ]] || fail "--packages takes names of Debian packages with spaces between, not '$packages'"
  if [ -n "$out" ] && [ ${#kinds[@]} -gt 1 ]; then fail "--out names one image: say train or farm too"; fi
}

# what this machine has: an engine, pip, Debian's mirror, room, and ids for fakeroot
look() {
  engine=$(command -v apptainer || command -v singularity) || fail "no engine: neither apptainer nor singularity is on PATH." \
    "Load its module, install your distribution's package, or on Debian 12 run python3 containers/get_apptainer.py FOLDER"
  "$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip, which fetches the wheels: PYTHON=... names another"
  mirror=${MIRROR:-}
  if [ "$base" = debootstrap ]; then
    command -v debootstrap >/dev/null || fail "debootstrap is not installed: install it, or say --base docker"
    if [ -z "$mirror" ] && command -v apt-get >/dev/null; then
      # shellcheck disable=SC2016 # the words are apt's
      mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' \
        'Origin: Debian' 'Component: main' | head -n 1) || true
    fi
    [ -n "$mirror" ] || fail "apt here knows no mirror of Debian bookworm: apt-get update, or set MIRROR to the address of" \
      "one, or say --base docker"
  fi
  local need=5 free
  if [ "$device" = cuda ]; then need=25; fi
  tmp=${APPTAINER_TMPDIR:-${TMPDIR:-/tmp}}
  # a file system in memory is several times as fast, where there is memory to spare
  if [ -z "${APPTAINER_TMPDIR:-}" ] && [ -w /dev/shm ] && [ "$(free_gib /dev/shm)" -ge $((2 * need)) ] &&
    [ "$(awk '/^MemAvailable/ {print int($2 / 2 ^ 20)}' /proc/meminfo)" -ge $((2 * need)) ]; then
    tmp=/dev/shm
  fi
  [ -d "$tmp" ] || fail "there is no folder $tmp, where an image is made: set APPTAINER_TMPDIR to another"
  case $tmp in *[\ ,:]*) fail "the folder $tmp has a space, a comma or a colon in its name: set APPTAINER_TMPDIR to another" ;; esac
  free=$(free_gib "$tmp")
  [ "$free" -ge $need ] || fail "no space: $tmp has $free GiB free and an image is made in $need;" \
    "set APPTAINER_TMPDIR to another folder"
  local folder=.
  if [ -n "$out" ]; then folder=$(dirname "$out"); fi
  mkdir -p "$folder" "$cache" || fail "$folder or $cache cannot be written"
  free=$(free_gib "$folder")
  [ "$free" -ge $((need / 4)) ] || fail "no space: $folder, where the image goes, has $free GiB free"
}
free_gib() { df -Pk "$1" | awk 'NR == 2 {print int($4 / 2 ^ 20)}'; }

# The engine builds as fakeroot, with a range of ids that /etc/subuid gives the user. Root often has none and may lack rights
# itself (in a virtual machine, in a container): it gets one for this build alone, in a mount namespace of its own.
fakeroot() {
  local me file
  me=$(id -un) as=()
  command -v newuidmap >/dev/null || fail "no fakeroot: newuidmap is missing (Debian's package uidmap, or shadow-utils)"
  for file in /etc/subuid /etc/subgid; do
    if grep -qsE "^($me|$(id -u)):" "$file"; then continue; fi
    if [ "$(id -u)" != 0 ] || ! unshare --mount true 2>/dev/null; then
      fail "no fakeroot: $file has no line for $me; an administrator adds '$me:100000:65536' to /etc/subuid and /etc/subgid"
    fi
    # shellcheck disable=SC2016
    as=(unshare --mount bash -c 'for name in subuid subgid; do
        touch "/etc/$name" && { cat "/etc/$name" && echo root:100000:65536; } >"$0/$name" && mount --bind "$0/$name" "/etc/$name"
      done && exec "$@"' "$stage")
    break
  done
}

# build IMAGE DEFINITION OPTION...: from the staged sources; what the engine and the definition say of their progress is shown
build() {
  local image=$1 definition=$2 packing=()
  shift 2
  if [[ $("$engine" build --help) == *mksquashfs-args* ]]; then packing=(--mksquashfs-args "-comp zstd -Xcompression-level 6"); fi
  if (cd "$stage/source" && "${as[@]}" "$engine" build --force --fakeroot "${packing[@]}" "$@" "$image" "$definition") \
    </dev/null 2>&1 | tee "$stage/log" | sed -u -n 's/^INFO: */         /p'; then
    return
  fi
  { grep -v '^INFO' "$stage/log" || true; } | tail -n 40 >&2
  if grep -q 'No space left on device' "$stage/log"; then fail "no space: the disk under $tmp or the image is full"; fi
  if grep -qiE 'newuidmap|user namespace|fakeroot.*(fail|error)' "$stage/log"; then
    fail "the engine could not become fakeroot (see above): does this system allow user namespaces?"
  fi
  fail "$definition could not be built (see above)"
}

# the sources: what git tracks, so that the image of a commit is an image of that commit
sources() {
  local of=(setup.py pyproject.toml constraints.txt hpc_molgen containers)
  mkdir "$stage/source" "$stage/wheels"
  commit=unknown
  local file
  if [ -n "$(git -C "$root" ls-files containers 2>/dev/null)" ]; then
    commit=$(git -C "$root" describe --always --dirty --abbrev=12)
    git -C "$root" ls-files -z -- "${of[@]}" | while IFS= read -r -d '' file; do
      if [ -e "$root/$file" ]; then printf '%s\0' "$file"; fi
    done | tar -C "$root" --null -T - -cf - | tar -C "$stage/source" -xf -
  else
    (cd "$root" && cp -r "${of[@]}" "$stage/source")
  fi
}

# Debian with Python, made once for each base
base_image() {
  local name=$base
  if [ "$base" = docker ]; then name+=-${from//[^A-Za-z0-9.]/_}; fi
  base_sif=$cache/base-$name-$(sha256sum "$stage/source/containers/base.def" | cut -c 1-8).sif
  if [ -f "$base_sif" ]; then return; fi
  say "base: Debian bookworm by $base"
  build "$stage/base.sif" containers/base.def --build-arg "BOOTSTRAP=$base" --build-arg "FROM=$from" \
    --build-arg "MIRROR=${mirror:-none}"
  cp "$stage/base.sif" "$base_sif.part-$$" && mv "$base_sif.part-$$" "$base_sif" && rm "$stage/base.sif"
}

# wheels OPTION|PACKAGE...: fetch them for the Python and the C library of the base, whatever this machine has
wheels() {
  local platforms=() tag
  for tag in 1 2010 2014 _2_{5..36}; do platforms+=(--platform "manylinux${tag}_$(uname -m)"); done
  if ! "$python" -m pip download -q --disable-pip-version-check --dest "$stage/wheels" --find-links "$stage/wheels" \
    --only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 --abi abi3 --abi none "${platforms[@]}" \
    -c "$stage/source/constraints.txt" "$@" 2>"$stage/pip"; then
    { grep -v ^WARNING "$stage/pip" || true; } | tail -n 20 >&2
    fail "the wheels could not be fetched (see above)"
  fi
}

# fetch KIND: the wheels of an image, unless those of the last one are the same
fetch() {
  local kind=$1 torch built wanted=cpu # a farm's torch is of processors in either case
  if [ "$kind" = train ]; then wanted=$device; fi
  if [ "${fetched:-}" = "$wanted" ]; then return; fi
  if [ "$wanted" = cuda ]; then sed -i /^nvidia-/d "$stage/source/constraints.txt"; fi # torch names the versions that it was built with
  torch=$(grep ^torch== "$stage/source/constraints.txt")
  extras=$mpi,slurm
  if [ "$device" = cuda ]; then extras=$extras,cuda; fi
  rm -f "$stage"/wheels/*
  say "wheels: pinned by constraints.txt"
  wheels --no-deps ${torch_index:+--index-url "$torch_index"} "$torch"
  built=$("$python" - "$stage"/wheels/torch-*.whl <<'PYTHON'
import sys, zipfile

wheel = zipfile.ZipFile(sys.argv[1])
text = wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))).decode()
print("cuda" if "Requires-Dist: nvidia" in text or "Requires-Dist: cuda" in text else "cpu")
PYTHON
)
  [ "$built" = "$wanted" ] || fail "pip's index has $torch for $built, and the image $kind ($device) wants it for $wanted:" \
    "give --torch-index with the address of an index that has it (PyTorch's page on installation lists them)"
  wheels setuptools ${torch_index:+--extra-index-url "$torch_index"} "$torch" "hpc-molgen[$extras] @ file://$stage/source"
  fetched=$wanted
}

# lock IMAGE KIND: what is in an image; a second build of a commit is compared with the first
lock() {
  local image=$1 kind=$2 file=$1.lock new=$stage/lock
  sum=$(sha256sum "$image" | cut -d ' ' -f 1)
  printf '%s  %s\n' "$sum" "$(basename "$image")" >"$image.sha256"
  {
    echo "# what $(basename "$image") is made of; containers/build.sh wrote it"
    echo "image $kind $device $mpi"
    echo "commit $commit"
    echo "base $base $(sha256sum "$base_sif" | cut -d ' ' -f 1)"
    echo "engine $("$engine" --version)"
    echo "build $("$engine" exec "$image" cat /usr/share/hpc-molgen/image.json | sed 's/.*"build": "\([^"]*\)".*/\1/')"
    echo "sha256 $sum"
    "$engine" exec "$image" cat /usr/share/hpc-molgen/packages.txt
    (cd "$stage/wheels" && sha256sum -- *.whl | awk '{print "wheel", $2, $1}')
  } >"$new"
  if [ -f "$file" ] && [ "$commit" != unknown ] && grep -qx "commit $commit" "$file" &&
    ! diff <(grep -E '^(debian|python|wheel) ' "$file") <(grep -E '^(debian|python|wheel) ' "$new") >"$stage/diff"; then
    say "note: the packages differ from those of the earlier build of this commit:"
    grep '^[<>]' "$stage/diff"
  fi
  mv "$new" "$file"
}

main() {
  local kind image
  arguments "$@"
  look
  stage=$(mktemp -d "$tmp/hpc-molgen-build.XXXXXX")
  trap 'rm -rf "$stage"' EXIT
  fakeroot
  export APPTAINER_TMPDIR=$stage SINGULARITY_TMPDIR=$stage
  export APPTAINER_CACHEDIR=${APPTAINER_CACHEDIR:-$cache/layers} SINGULARITY_CACHEDIR=${SINGULARITY_CACHEDIR:-$cache/layers}
  # root of a virtual machine may lack a right that the engine hands on
  if [ "$(id -u)" = 0 ] && ! ((0x$(awk '/^CapEff/ {print $2}' /proc/self/status) >> 24 & 1)); then
    export APPTAINER_DROP_CAPS=${APPTAINER_DROP_CAPS:-CAP_SYS_RESOURCE}
    export SINGULARITY_DROP_CAPS=$APPTAINER_DROP_CAPS
  fi
  sources
  base_image
  for kind in "${kinds[@]}"; do
    if [ "$kind" = base ]; then
      say "base: $base_sif"
      continue
    fi
    image=$kind
    if [ "$device" != cpu ]; then image+=-$device; fi
    if [ "$mpi" != mpich ]; then image+=-$mpi; fi
    image=$(realpath -m "${out:-$image.sif}")
    fetch "$kind"
    say "$kind: $device, $mpi, commit $commit"
    build "$stage/image.sif" "containers/$kind.def" "${test[@]}" --bind "$stage/wheels:/mnt" \
      --build-arg BOOTSTRAP=localimage --build-arg "FROM=$base_sif" --build-arg "DEVICE=$device" --build-arg "MPI=$mpi" \
      --build-arg "PACKAGES=$packages" --build-arg "COMMIT=$commit"
    cp "$stage/image.sif" "$image.part-$$" && mv "$image.part-$$" "$image" && rm "$stage/image.sif"
    lock "$image" "$kind"
    say "$kind: $image, $(($(stat -c %s "$image") / 1000000)) MB, sha256 $sum, packages in $image.lock"
  done
}
main "$@"
exit # whatever has been written into this file meanwhile
