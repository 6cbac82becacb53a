#!/bin/sh
# Makes a virtual environment, or does nothing if it is up to date: venv.sh run|dev [FOLDER [VERSION]]
# `run` has what the program needs, `dev` what its tests need as well. Everything comes with its hash.
set -eu
cd "$(dirname "$0")/.."

kind=$1
venv=${2:-.venv}
version=${3:-}
stamp=$venv/installed

wanted=$(cat requirements/build.txt "requirements/$kind.txt" pyproject.toml | cksum)
if [ -x "$venv/bin/rustunnel-py" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    # What the tests need includes what the program needs.
    for line in "$kind" dev; do
        have=$(cat requirements/build.txt "requirements/$line.txt" pyproject.toml | cksum)
        if grep -qx "$line $have $(pwd)" "$stamp" 2>/dev/null; then
            exit 0
        fi
    done
else
    python=$(scripts/find-python.sh "$version")
    echo "setting up $venv with $python" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"
}
rm -f "$stamp"
pip install --require-hashes -r requirements/build.txt -r "requirements/$kind.txt"
pip install --no-deps --no-build-isolation --no-index -e .
echo "$kind $wanted $(pwd)" >"$stamp"
