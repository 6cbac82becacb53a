#!/bin/sh
# The suite on every supported Python that this machine has.
set -eu
cd "$(dirname "$0")/.."

failed=
for version in 3.11 3.12 3.13; do
    if ! python=$(scripts/find-python.sh "$version" 2>/dev/null); then
        echo "== Python $version: not on this machine, skipped"
        continue
    fi
    echo "== Python $version: $python"
    scripts/venv.sh dev ".venv-$version" "$version"
    ".venv-$version/bin/python" -m pytest -n 4 --dist worksteal "$@" || failed="$failed $version"
done
if [ -n "$failed" ]; then
    echo "failed on:$failed" >&2
    exit 1
fi
