"""Write metrics.jsonl and TensorBoard's event files: one for every start of a run.

tensorboardX takes a second to import, so readers of metrics.jsonl import src.training.metrics instead.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import text

from src.config.schema import Config
from src.data.locate import find_images
from src.data.records import Record
from src.runtime.files import whole_file
from src.training.metrics import read_lines
from src.training.panel import Panel


class MetricsWriter:
    """Appends to metrics.jsonl and to the event files beside it, which also show the captions of `panel`'s images.

    Entries of steps from `first_step` on are dropped, because the run repeats these steps. Events are written
    immediately: SummaryWriter's queue would lose the last seconds of a run that is killed.
    """

    def __init__(self, folder: Path, stage: str, first_step: int, panel: Panel) -> None:
        path = folder / "metrics.jsonl"
        self.stage = stage
        self.panel = panel
        kept = [line for line in read_lines(path) if line["step"] < first_step]
        with whole_file(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self.events = EventsWriter(str(folder / "events"), f".from{first_step}")
        self._write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line; floats keep all their digits. TensorBoard's curves get float32."""
        scalars = {key: float(value) for key, value in values.items()}
        self.file.write(json.dumps({"step": step, "stage": self.stage} | scalars) + "\n")
        self.file.flush()
        points = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write_event(Event(step=step, summary=Summary(value=points)))

    def write_captions(self, step: int, captions: Sequence[str]) -> None:
        """Show the captions of the panel's images. captions: of all validation images."""
        pictures, texts = self.panel.draw(captions)
        images = {name: Summary.Image(encoded_image_string=jpeg) for name, jpeg in pictures.items()}
        values = [Summary.Value(tag=name, image=image) for name, image in images.items()]
        values += [value for name, line in texts.items() for value in text(name, line).value]
        self._write_event(Event(step=step, summary=Summary(value=values)))

    def _write_event(self, event: Event) -> None:
        event.wall_time = time.time()
        self.events.write_event(event)
        self.events.flush()


def open_metrics(config: Config, records: Sequence[Record], first_step: int) -> MetricsWriter:
    """Open the metrics of a run that resumes at `first_step`. records: of the validation split.

    Errors: InputError naming an image file that the panel cannot show.
    """
    panel = Panel(records, find_images(config, [record.file for record in records]))
    return MetricsWriter(config.run_folder, config.stage, first_step, panel)
