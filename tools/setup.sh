#!/bin/bash
# Make this checkout ready to run and to test: Debian packages, the virtual environment, the
# package with its compiled part, the guest images. Does only what is missing, and says what.
set -euo pipefail
cd "$(dirname "$0")/.."

# Two runs at once would trample on each other's half-made environment.
exec 9< tools/setup.sh
flock 9

PACKAGES=(
    # the program and its compiled part
    ca-certificates python3 python3-venv python3-dev gcc libc6-dev make
    # cutting kernels out of their images, listing their modules
    kmod lz4 zstd
    # the nested host: the libraries of QEMU, virtiofsd, its root image
    e2fsprogs mmdebstrap qemu-system-common qemu-system-x86 qemu-utils
    # the root disk: user namespaces for those who are not root
    uidmap
    # tests: the ACPI compiler, another reader of archives, a debugger, taps; the reference VMM is QEMU
    acpica-tools busybox-static gdb iproute2
)
readonly PACKAGES
readonly PYTHON=.venv/bin/python

say() { printf 'setup: %s\n' "$*"; }

install_debian_packages() {
    local missing=() package
    for package in "${PACKAGES[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2> /dev/null) == ?i* ]] ||
            missing+=("$package")
    done
    (( ${#missing[@]} )) || return 0
    if (( EUID != 0 )); then
        say "these Debian packages are missing; install them, then run this again:" >&2
        say "  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends "${missing[@]}" > /dev/null
}

# Whether a step's input has changed since the step last ended well.
is_stale() { # name, digest
    [[ $(cat ".venv/.setup-$1" 2> /dev/null) != "$2" ]]
}

digest() { sha256sum "$@" | sha256sum | cut -d ' ' -f 1; }

install_python_packages() {
    local lock
    if [[ ! -x $PYTHON ]]; then
        say "making the virtual environment .venv"
        /usr/bin/python3 -m venv .venv
    fi
    lock=$(digest requirements.lock)
    is_stale lock "$lock" || return 0
    say "installing the locked Python packages"
    # --no-deps: the lock names everything, so nothing is resolved here.
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
        --requirement requirements.lock
    echo "$lock" > .venv/.setup-lock
}

install_package() {
    local sources build
    mapfile -t sources < <(find vmm/kvm_cffi -name '*.[ch]' ! -name '_kvm.c' | sort)
    build=$(digest pyproject.toml setup.py requirements.lock vmm/kvm_cffi/*.py "${sources[@]}")
    if is_stale package "$build" || ! compgen -G 'vmm/kvm_cffi/_kvm*.so' > /dev/null; then
        say "building the compiled part and installing the package into .venv"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps \
            --no-build-isolation --editable .
        # An older build under another name would be imported in place of this one.
        find vmm/kvm_cffi -name '_kvm.*.so' -printf '%T@ %p\n' | sort -rn | tail -n +2 |
            cut -d ' ' -f 2- | xargs --no-run-if-empty rm --
        echo "$build" > .venv/.setup-package
    fi
    "$PYTHON" -m compileall -q vmm tools
}

# What the cache has is not fetched again, so this takes no time when there is nothing to do.
fetch_guest_images() {
    [[ -d ${TRIO_VMM_CACHE:-$HOME/.cache/trio-vmm}/kernels ]] ||
        say "fetching guest kernels, firmware and QEMU from Debian's mirror"
    "$PYTHON" -m tools.images all > /dev/null
}

install_debian_packages
install_python_packages
install_package
fetch_guest_images
say "ready"
