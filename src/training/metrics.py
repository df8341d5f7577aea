"""metrics.jsonl: one JSON object per logged step, with `step`, `stage` and slash-separated names; and TensorBoard's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.config.schema import Config
from src.data.locate import find_images
from src.data.records import Record
from src.runtime.files import whole_file
from src.training.panel import Panel


class MetricsWriter:
    """Appends to metrics.jsonl and to the event files beside it, which also show the captions of `panel`'s images.

    Entries of steps from `first_step` on are dropped, because the run repeats these steps.
    """

    def __init__(self, folder: Path, stage: str, first_step: int, panel: Panel) -> None:
        from src.training.events import EventFile  # takes a second, which readers of metrics.jsonl need not wait

        path = folder / "metrics.jsonl"
        self.stage = stage
        self.panel = panel
        kept = [line for line in read_lines(path) if line["step"] < first_step]
        with whole_file(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self.events = EventFile(folder, first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line; floats keep all their digits."""
        scalars = {key: float(value) for key, value in values.items()}
        self.file.write(json.dumps({"step": step, "stage": self.stage} | scalars) + "\n")
        self.file.flush()
        self.events.write_scalars(step, scalars)

    def write_captions(self, step: int, captions: Sequence[str]) -> None:
        """Show the captions of the panel's images. captions: of all validation images."""
        self.events.write_captions(step, *self.panel.draw(captions))


def open_metrics(config: Config, records: Sequence[Record], first_step: int) -> MetricsWriter:
    """Open the metrics of a run that resumes at `first_step`. records: of the validation split.

    Errors: InputError naming an image file that the panel cannot show.
    """
    panel = Panel(records, find_images(config, [record.file for record in records]))
    return MetricsWriter(config.run_folder, config.stage, first_step, panel)


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
