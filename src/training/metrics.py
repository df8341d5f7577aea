"""Read metrics.jsonl: one JSON object per logged step, with `step`, `stage` and slash-separated names."""

import json
from pathlib import Path


def read_lines(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl up to the first one that a crash cut off."""
    lines: list[dict] = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
        try:
            line = json.loads(text)
            lines.append(line | {"step": line["step"]})
        except (json.JSONDecodeError, KeyError, TypeError):
            break
    return lines
