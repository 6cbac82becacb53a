#!/bin/sh
# Writes requirements/*.txt from pyproject.toml: one universal lock with hashes and without addresses.
# Versions already in a lock stay unless `--upgrade` is given.
set -eu
cd "$(dirname "$0")/.."

uv=$(command -v uv || true)
if [ -z "$uv" ] && [ -x .venv/bin/uv ]; then
    uv=.venv/bin/uv
fi
if [ -z "$uv" ]; then
    echo "uv is needed to write the locks: pip install uv" >&2
    exit 1
fi

compile() {
    out=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url "$@" -o "requirements/$out.txt" >/dev/null
}
compile build --group build "$@"
compile run pyproject.toml "$@"
compile dev pyproject.toml --group build --group dev -c requirements/run.txt "$@"
