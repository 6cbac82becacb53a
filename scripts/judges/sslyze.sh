#!/bin/sh
# sslyze against the HTTPS edge and the control port, in a virtual environment of its own (.tools/sslyze): it pulls other
# versions of what we depend on.
set -eu
cd "$(dirname "$0")/../.."

judge=.tools/sslyze
if [ ! -x "$judge/bin/sslyze" ]; then
    "$(scripts/find-python.sh "")" -m venv "$judge"
    "$judge/bin/python" -m pip --disable-pip-version-check --quiet install 'sslyze>=6.1,<7'
fi
exec .venv/bin/python -m tests.lanes.tls_judged "$judge/bin/sslyze"
