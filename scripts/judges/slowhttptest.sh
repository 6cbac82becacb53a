#!/bin/sh
# slowhttptest (of Debian) against a server with a tunnel: slow heads, bodies and readers lose, others do not notice.
# JUDGE_CONNECTIONS attackers each. Installs it where that is possible, else says that it did not run.
set -eu
cd "$(dirname "$0")/../.."

if ! command -v slowhttptest >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends slowhttptest >/dev/null
    else
        echo "NOT JUDGED: slowhttptest is not on this machine (Debian: apt-get install slowhttptest)" >&2
        exit 0
    fi
fi
exec .venv/bin/python -m tests.lanes.slowhttp "${JUDGE_CONNECTIONS:-300}"
