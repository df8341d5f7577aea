"""Reads event files by their format alone (TFRecord, and Event of TensorFlow's event.proto), as TensorBoard does."""

import json
import struct
from pathlib import Path

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, bit by bit (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def read_records(path: Path) -> list[bytes]:
    """Records of a TFRecord file (size uint64, its masked CRC, bytes, their masked CRC); one cut off is left out."""
    data, records, start = path.read_bytes(), [], 0
    while start + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, start)
        end = start + 12 + size
        if end + 4 > len(data):
            break
        for part, place in ((data[start : start + 8], start + 8), (data[start + 12 : end], end)):
            crc = crc32c(part)
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack_from("<I", data, place) == (masked,), path
        records.append(data[start + 12 : end])
        start = end + 4
    return records


def read_events(folder: Path) -> list[Event]:
    """All events of a run, in order of time; a restart drops what was there from its step on."""
    events: list[Event] = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in read_records(path):
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                events = [earlier for earlier in events if earlier.step < event.step]
            events.append(event)
    return events


def read_scalars(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, values by name) of every event that has any."""
    rows = [(event.step, {v.tag: v.simple_value for v in event.summary.value if v.HasField("simple_value")})
            for event in read_events(folder)]  # fmt: skip
    return [(step, values) for step, values in rows if values]


def read_pictures(folder: Path) -> list[tuple[int, dict[str, bytes]]]:
    """(step, image files by name) of every event that has any."""
    rows = [(event.step, {v.tag: v.image.encoded_image_string for v in event.summary.value if v.HasField("image")})
            for event in read_events(folder)]  # fmt: skip
    return [(step, pictures) for step, pictures in rows if pictures]


def read_texts(folder: Path) -> list[tuple[int, dict[str, str]]]:
    """The texts of every step that has any, in order."""
    rows = [
        (event.step, {v.tag: v.tensor.string_val[0].decode() for v in event.summary.value if v.HasField("tensor")})
        for event in read_events(folder)
    ]
    return [row for row in rows if row[1]]


def logged_scalars(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What metrics.jsonl says that `read_scalars` must be: the same numbers as float32."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["step"], {name: float(np.float32(value)) for name, value in line.items() if "/" in name})
        for line in lines
    ]
