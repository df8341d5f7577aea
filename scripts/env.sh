# Sourced by all scripts. Chooses the Python, puts its folder first on PATH (where msrun looks for `python`), and changes to
# the root of the repository, where Python finds the modules. Programs return to the caller's folder
# (src/runtime/environment.py).
#
# The Python is the first of:
#   1. $PYTHON, if set. Nothing is installed into it; missing packages are named and the status is 2.
#   2. `python` or `python3` on PATH, if it satisfies requirements.txt (for example an Ascend server's own MindSpore).
#   3. .venv at the root, created on the first run and updated when requirements.txt changes.

unset CDPATH # with it, cd prints and may find other folders
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
REQUIREMENTS="$ROOT/requirements.txt"
VENV="$ROOT/.venv"
VENV_STAMP="$VENV/.made-from" # written last: the root (environments cannot be moved) and the requirements
VENV_LOG="$VENV/setup.log"
VENV_LOCK="$VENV/.lock"

say() { echo "environment: $*" >&2; }
fail() {
    echo "error: $*" >&2
    exit 2
}

# check PYTHON [REQUIREMENTS]: prints the interpreter's path, or fails and prints the problem (see check_python.py).
# It runs the interpreter, because pyenv puts programs on PATH that only print "command not found".
check() { PYTHONIOENCODING=utf-8:surrogateescape "$1" "$ROOT/scripts/check_python.py" "${@:2}" 2>/dev/null; }

use_given_python() {
    local report
    report="$(check "$PYTHON" "$REQUIREMENTS")" ||
        fail "PYTHON=$PYTHON: ${report:-it does not start}; fix it, or unset PYTHON to use .venv"
    PYTHON="$report"
}

use_active_python() {
    local name report
    for name in python python3; do
        if report="$(check "$name" "$REQUIREMENTS")"; then
            PYTHON="$report"
            return 0
        fi
        case "$report" in
        "" | *"missing: mindspore,"* | "Python "*) ;; # no MindSpore there (first in requirements.txt): nothing to explain
        *) say "the active $name does not satisfy requirements.txt, using .venv: $report" ;;
        esac
    done
    return 1
}

wanted_stamp() {
    echo "$ROOT"
    sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$REQUIREMENTS"
}

venv_is_complete() {
    [ "$(cat "$VENV_STAMP" 2>/dev/null)" = "$(wanted_stamp)" ] && "$VENV/bin/python" -c "" 2>/dev/null
}

use_venv() {
    if ! venv_is_complete; then
        if [ -e "$VENV/bin/python" ] && [ ! -e "$VENV_STAMP" ]; then # created by the user: never deleted or changed
            check "$VENV/bin/python" "$REQUIREMENTS" >/dev/null ||
                fail "$VENV was not created by these scripts: $(check "$VENV/bin/python" "$REQUIREMENTS"); fix it, or remove it"
        else
            make_venv_locked
        fi
    fi
    PYTHON="$VENV/bin/python"
}

make_venv_locked() {
    { mkdir -p "$VENV" && true >>"$VENV_LOCK"; } 2>/dev/null ||
        fail "cannot write $VENV: make the folder writable, or set PYTHON to a Python that satisfies requirements.txt"
    exec 9>>"$VENV_LOCK"
    if command -v flock >/dev/null && ! flock -n 9; then
        say "another run is setting up .venv: waiting for it"
        flock 9
    fi
    venv_is_complete || make_venv # the other run may have created it meanwhile
    exec 9>&-
}

make_venv() {
    local stamp started=$SECONDS
    stamp="$(cat "$VENV_STAMP" 2>/dev/null || true)"
    if [[ "$stamp" == "$ROOT"$'\n'* ]] && "$VENV/bin/python" -c "" 2>/dev/null; then
        say "requirements.txt has changed: updating .venv"
        echo unfinished >"$VENV_STAMP"
        install_requirements >"$VENV_LOG" 2>&1 || fail_setup
    else
        local builder
        find_builder
        say "setting up .venv with $builder (about 3 minutes and 3.5 GB, once)"
        echo unfinished >"$VENV_STAMP"
        find "$VENV" -mindepth 1 -maxdepth 1 ! -path "$VENV_STAMP" ! -path "$VENV_LOCK" -exec rm -rf {} +
        { "$builder" -m venv "$VENV" && install_requirements; } >"$VENV_LOG" 2>&1 || fail_setup
    fi
    wanted_stamp >"$VENV_STAMP.new" && mv "$VENV_STAMP.new" "$VENV_STAMP"
    say ".venv is ready after $((SECONDS - started)) s"
}

find_builder() {
    local name report found=""
    for name in python3.11 python3.12 python3.10 python3 python; do
        if report="$(check "$name")"; then
            builder="$report"
            return
        fi
        found="${report:-$found}"
    done
    fail "no Python on PATH can create .venv: ${found:-none starts}; install Python 3.10 to 3.12 and put it on PATH"
}

# For speed: a new pip needs a third of the time to resolve, and modules are compiled when they are first imported.
install_requirements() {
    "$VENV/bin/python" -m pip install -qq --upgrade pip &&
        "$VENV/bin/python" -m pip install -qq --prefer-binary --no-compile -r "$REQUIREMENTS" &&
        check "$VENV/bin/python" "$REQUIREMENTS"
}

fail_setup() {
    local reason
    reason="$(grep -i error "$VENV_LOG" | tail -n 1 || true)"
    fail "setting up .venv failed: ${reason:-$(tail -n 1 "$VENV_LOG")} (log: $VENV_LOG);" \
        "without network, point pip to a mirror, or set PYTHON to a Python that satisfies requirements.txt"
}

# require_more FILE: packages that a script needs in addition to requirements.txt; installed into .venv only.
require_more() {
    local report
    if report="$(check "$PYTHON" "$1")"; then return; fi
    [ "$PYTHON" = "$VENV/bin/python" ] && [ -e "$VENV_STAMP" ] || fail "$PYTHON: $report"
    say "installing ${1#"$ROOT/"} into .venv"
    (
        ! command -v flock >/dev/null || flock 9
        check "$PYTHON" "$1" || "$PYTHON" -m pip install -qq --prefer-binary --no-compile -r "$REQUIREMENTS" -r "$1"
    ) 9>>"$VENV_LOCK" >"$VENV_LOG" 2>&1 || fail_setup
}

if [ -n "${PYTHON:-}" ]; then
    use_given_python
else
    use_active_python || use_venv
fi
export PYTHON PATH="$(dirname "$PYTHON"):$PATH" CAPTIONER_CALLER="$PWD"
export PYTHONUTF8=1 # file names and contents are UTF-8 in every locale
cd "$ROOT"
