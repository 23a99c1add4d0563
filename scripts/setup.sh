#!/bin/sh
# Makes the checkout ready: system packages where it may install them, a virtual environment, the compiled core.
# Usage: scripts/setup.sh run|dev|bench|cluster. Does nothing when everything is there and unchanged. Needs no standard input.
set -eu
cd "$(dirname "$0")/.."
want=${1:-run}
venv=.venv
# One at a time: `make run` and `make test` may be started together.
exec 9<scripts/setup.sh
if command -v flock >/dev/null 2>&1; then flock 9; fi

# What Debian 12 calls it : how to tell that it is there.
missing=""
need() { # PACKAGE TEST…
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
header() { echo "#include <$1>" | cc -E - ; }
softhsm() { ls /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so /usr/lib64/pkcs11/libsofthsm2.so 2>/dev/null | grep -q . ; }
softokn() { ls /usr/lib/*/nss/libsoftokn3.so /usr/lib64/libsoftokn3.so 2>/dev/null | grep -q . ; }
# Debian keeps them off the path. The services that come with these packages are neither used nor touched.
postgresql() { command -v initdb || ls /usr/lib/postgresql/*/bin/initdb ; }
python_header() { test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h" ; }
virtualenv() { python3 -c 'import venv, ensurepip' ; }

need gcc command -v cc
need libc6-dev header stdio.h
need libssl-dev header openssl/evp.h
need python3-dev python_header
[ -x $venv/bin/python ] || need python3-venv virtualenv
[ "${KMS_PKCS11_MODULE:-}" ] || need softhsm2 softhsm
if [ "$want" != run ]; then
    need postgresql postgresql
fi
if [ "$want" = cluster ] || [ "$want" = dev ]; then
    need redis-server command -v redis-server
fi
if [ "$want" = dev ] || [ "$want" = bench ]; then
    need strace command -v strace
    need nodejs command -v node # for the clients of the tests
    need npm command -v npm
    need opensc command -v pkcs11-tool
    need openssl command -v openssl
    need libnss3 softokn # the second token of the tests
    need libnss3-tools command -v certutil
fi

if [ -n "$missing" ]; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo -n"
    if command -v apt-get >/dev/null 2>&1 && $sudo true 2>/dev/null; then
        echo "installing$missing"
        $sudo apt-get update -qq
        # shellcheck disable=SC2086
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "these packages are needed (names of Debian 12):$missing" >&2
        echo "install them, for example with: apt-get install$missing" >&2
        exit 1
    fi
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; python3 is $(python3 --version 2>&1)" >&2
    exit 1
}

[ -x $venv/bin/python ] || {
    echo "making $venv"
    python3 -m venv $venv
}

extras=""
[ "$want" = dev ] && extras="[dev]"
[ "$want" = bench ] && extras="[dev,bench]"
[ "$want" = cluster ] && extras="[postgres,scheduler]"
stamp=$venv/.kmscore-$want
# Rebuilt whenever what is compiled, or what is installed, has changed.
state=$(cat pyproject.toml setup.py ext/* | cksum)
if [ "$(cat $stamp 2>/dev/null)" != "$state" ]; then
    echo "building the core and installing what it needs; this takes a minute the first time"
    # pip shows what the build backend thinks of editable installs; nobody who runs this needs it.
    PYTHONWARNINGS=ignore $venv/bin/python -m pip install -q --disable-pip-version-check -e ".$extras"
    echo "$state" >$stamp
fi
