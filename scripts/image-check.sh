#!/bin/sh
# Builds the image of ./Dockerfile and runs it, without an engine and without an image registry: Debian's buildah in a
# chroot, over a stand-in for the base image (debootstrap, and the CPython of this machine), under the name of the FROM
# line. Then the image's command is started in it and its own health check asked. Needs root on Debian.
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
    echo "image-check needs root (buildah in a chroot, debootstrap)" >&2
    exit 1
fi
if ! command -v buildah >/dev/null || ! command -v debootstrap >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends buildah debootstrap >/dev/null
fi

base=$(sed -n 's/^FROM \([^ ]*\).*/\1/p' Dockerfile | head -n 1)
version=$(printf '%s' "$base" | sed -n 's/^python:\([0-9.]*\)-.*/\1/p')
python=$(scripts/find-python.sh "$version")
work=$(mktemp -d "${TMPDIR:-/tmp}/image-check.XXXXXX")
server=
# buildah passes no signals on: the command is the innermost process below it.
innermost() {
    inner=$1
    while child=$(pgrep -P "$inner" | head -n 1) && [ -n "$child" ]; do
        inner=$child
    done
    echo "$inner"
}
finish() {
    [ -z "$server" ] || kill "$(innermost "$server")" 2>/dev/null || true
    buildah --root "$work/storage" --runroot "$work/run" rm --all >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM

b() {
    command=$1
    shift
    buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$command" "$@"
}

echo "== the stand-in for $base, with $python"
. /etc/os-release
debootstrap --variant=minbase \
    --include=ca-certificates,libbz2-1.0,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,libuuid1,zlib1g \
    "$VERSION_CODENAME" "$work/base" >"$work/debootstrap.log" 2>&1 || {
    tail -n 20 "$work/debootstrap.log" >&2
    exit 1
}
library=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir -p "$work/base/usr/local/bin" "$work/base/usr/local/lib"
cp "$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')" "$work/base/usr/local/bin/python$version"
cp -r "$library" "$work/base/usr/local/lib/"
shared=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
cp "$shared/libpython$version.so"* "$work/base/usr/local/lib/" 2>/dev/null || true # none where it is built in
chroot "$work/base" ldconfig
rm -rf "$work/base/usr/local/lib/python$version/site-packages" "$work/base/usr/local/lib/python$version/test"
mkdir "$work/base/usr/local/lib/python$version/site-packages"
ln -s "python$version" "$work/base/usr/local/bin/python3"
ln -s "python$version" "$work/base/usr/local/bin/python"
# The packages come the way they come to this machine.
cp /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/ca-certificates.crt"
index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
{
    echo "[global]"
    echo "cert = /etc/ssl/certs/ca-certificates.crt"
    [ -z "$index" ] || echo "index-url = $index"
} >"$work/base/etc/pip.conf"

container=$(b from scratch)
b copy "$container" "$work/base" / >/dev/null
b config --cmd python3 "$container"
b commit --quiet "$container" "$base" >/dev/null
b rm "$container" >/dev/null
rm -rf "$work/base"

echo "== the image"
b bud --isolation chroot --pull-never --format docker --quiet --tag rustunnel-py . >"$work/build.log" 2>&1 || {
    tail -n 40 "$work/build.log" >&2
    exit 1
}

echo "== its command"
container=$(b from --pull-never rustunnel-py)
# A chroot has this machine's network, where low ports belong to root.
for setting in HTTP_PORT=18080 HTTPS_PORT=18443 CONTROL_PORT=14040 DASHBOARD_PORT=14041; do
    b config --env "RUSTUNNEL_SERVER__$setting" "$container"
done
inspected() {
    b inspect --type container --format "{{range .Docker.Config.$1}}{{.}} {{end}}" "$container"
}
command="$(inspected Entrypoint)$(inspected Cmd)"
health=$(b inspect --type image --format '{{range .Docker.Config.Healthcheck.Test}}{{.}} {{end}}' rustunnel-py | sed 's/^CMD //')
echo "   command: $command; health check: $health"
[ "$(b inspect --type container --format '{{.Docker.Config.User}}' "$container")" = rustunnel ]
# shellcheck disable=SC2086  # words of a command
b run --isolation chroot "$container" -- $command >"$work/server.log" 2>&1 &
server=$!

healthy=
for _ in $(seq 60); do
    # shellcheck disable=SC2086
    if b run --isolation chroot "$container" -- $health >"$work/health.log" 2>&1; then
        healthy=yes
        break
    fi
    kill -0 "$server" 2>/dev/null || break
    sleep 1
done
if [ -z "$healthy" ]; then
    cat "$work/server.log" "$work/health.log" >&2
    exit 1
fi

echo "== SIGTERM"
kill -TERM "$(innermost "$server")"
code=0
wait "$server" || code=$?
server=
if [ "$code" != 0 ]; then
    cat "$work/server.log" >&2
    echo "the server ended with $code" >&2
    exit 1
fi
echo "the image is built, healthy, and stops when asked to"
