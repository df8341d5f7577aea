#!/usr/bin/env bash
# Have a vision-language server write questions about images: bash scripts/make_questions.sh --config FILE [--split train] [--questions 5] [--base_url URL --model NAME | key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.commands.make_questions "$@"
