"""TensorBoard's view of a run: one event file for every start of it, beside metrics.jsonl."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import text


class EventFile:
    """Written immediately: SummaryWriter's queue would lose the last seconds of a run that is killed."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """first_step: readers drop what earlier files of the folder hold from this step on."""
        self._file = EventsWriter(str(folder / "events"), f".from{first_step}")
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point, float32, to the curve of each name."""
        self._write_summary(step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def write_captions(self, step: int, pictures: Mapping[str, bytes], texts: Mapping[str, str]) -> None:
        """Add a picture, a JPEG file, or a text to the series of each name."""
        images = {name: Summary.Image(encoded_image_string=jpeg) for name, jpeg in pictures.items()}
        values = [Summary.Value(tag=name, image=image) for name, image in images.items()]
        self._write_summary(step, values + [value for name, line in texts.items() for value in text(name, line).value])

    def _write_summary(self, step: int, values: list[Summary.Value]) -> None:
        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
        self._file.flush()
