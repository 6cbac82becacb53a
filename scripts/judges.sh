#!/bin/sh
# Runs judges from package registries against this program: schemathesis on the OpenAPI document, har-validator on
# an export. They live in .judges, apart from our own environment. JUDGE_EXAMPLES and JUDGE_SEED are bounds of chance.
set -eu
cd "$(dirname "$0")/.."

judges=.judges
wanted=$(cat requirements/judges.txt scripts/judges.sh | cksum)
if [ "$(cat "$judges/installed" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$judges"
    "$(scripts/find-python.sh "")" -m venv "$judges/venv"
    "$judges/venv/bin/python" -m pip --disable-pip-version-check --quiet install -r requirements/judges.txt
    if command -v npm >/dev/null; then
        npm install --silent --no-fund --no-audit --prefix "$judges" har-validator@5.1.5 >/dev/null
    fi
    echo "$wanted" >"$judges/installed"
fi
code=0
.venv/bin/python scripts/judges.py "$judges" || code=$?
PYTHONPATH=. .venv/bin/python scripts/judge_rs_tunnel.py "$judges/venv/bin/schemathesis" || code=$?
for judge in scripts/judges/*.sh; do
    echo "== $judge"
    "$judge" || code=$?
done
exit "$code"
