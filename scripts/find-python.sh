#!/bin/sh
# Prints the path of a Python that can run this project: find-python.sh [VERSION]
# Every folder of PATH is tried, not only the first: a pyenv shim may stand there and fail. One that was built with
# optimizations comes before newer ones without: it is a sixth faster. Distributions build theirs so, and do not say it.
set -eu

works() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info)' >/dev/null 2>&1
}
has_venv() {
    "$1" -c 'import ensurepip, sqlite3, ssl, venv' >/dev/null 2>&1
}
is_optimized() {
    "$1" -c 'import sys, sysconfig
said = sysconfig.get_config_var("CONFIG_ARGS") or ""
sys.exit(sys.base_prefix != "/usr" and "--enable-optimizations" not in said)' >/dev/null 2>&1
}

wanted=${1:-}
names=${wanted:+python$wanted}
names=${names:-python3.13 python3.12 python3.11 python3}
folders=$(printf '%s' "$PATH" | tr ':' '\n')
for version in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin; do
    folders="$folders
$version"
done

usable=
without_venv=
for name in $names; do
    while IFS= read -r folder; do
        python=$folder/$name
        if [ -x "$python" ] && works "$python"; then
            if ! has_venv "$python"; then
                without_venv=${without_venv:-$python}
            elif is_optimized "$python"; then
                printf '%s\n' "$python"
                exit 0
            else
                usable=${usable:-$python}
            fi
        fi
    done <<LIST
$folders
LIST
done

if [ -n "$usable" ]; then
    printf '%s\n' "$usable"
    exit 0
fi
if [ -n "$without_venv" ]; then
    version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$without_venv cannot make virtual environments: install the package python$version-venv" \
        "(Debian, Ubuntu: apt install python$version-venv)" >&2
elif [ -n "$wanted" ]; then
    echo "no Python $wanted here" >&2
else
    echo "Python 3.11 or newer is needed, and none was found: install the packages python3 and python3-venv" >&2
fi
exit 1
