"""The former name of src/commands/check.py."""

import sys

if __name__ == "__main__":
    new = "python -m src.commands.check --config FILE"
    print(f"error: src.data.check is now src.commands.check: {new}", file=sys.stderr)
    sys.exit(2)
