#!/usr/bin/env bash
# Make questions about images, by a vision-language server: bash scripts/make_questions.sh --config FILE [--split train] [--questions 5] [--base_url URL --model NAME | key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.commands.make_questions "$@"
