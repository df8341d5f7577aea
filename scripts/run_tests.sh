#!/usr/bin/env bash
# Run the tests except the slow ones: bash scripts/run_tests.sh [pytest arguments]; slow tests: -m slow; all tests: -m ""
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
caller="$CAPTIONER_CALLER" && unset CAPTIONER_CALLER
for word; do # a file in the caller's folder
    shift
    [[ "$word" = [-/]* || "$caller" = "$ROOT" || ! -e "$caller/${word%%::*}" ]] || word="$caller/$word"
    set -- "$@" "$word"
done
exec "$PYTHON" -m pytest "$@"
