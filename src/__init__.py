"""Image captioning with GRPO on MindSpore."""

import sys
from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("mindspore") is None:  # here, which every program imports first: later it would be a traceback
    print("error: this Python has no MindSpore: 'source .venv/bin/activate' (scripts/*.sh make it)", file=sys.stderr)
    sys.exit(2)
