"""The former name of src/commands/check.py."""

import sys

if __name__ == "__main__":
    print(
        "error: src.data.check is now src.commands.check: python -m src.commands.check --config FILE", file=sys.stderr
    )
    sys.exit(2)
