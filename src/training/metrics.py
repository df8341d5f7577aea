"""metrics.jsonl: one JSON object per logged step, with `step`, `stage` and slash-separated names."""

import json
from pathlib import Path

from src.files import whole_file


class MetricsWriter:
    """Appends to metrics.jsonl. Lines of steps after `resume_step` are dropped: they will be written again."""

    def __init__(self, folder: Path, stage: str, resume_step: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.stage = stage
        kept = [line for line in read_lines(self.path) if line["step"] <= resume_step]
        with whole_file(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one line; floats keep all their digits."""
        line = {"step": step, "stage": self.stage} | {key: float(value) for key, value in values.items()}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


def read_lines(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl; one cut off by a crash is left out, with all behind it."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            if not isinstance(line, dict) or "step" not in line:
                break
            lines.append(line)
    return lines
