"""What TensorBoard is given, read back by tests/event_reader.py."""

import io
import shutil

import numpy as np
import pytest
from event_reader import crc32c, logged_scalars, read_pictures, read_scalars, read_texts
from PIL import Image
from tiny import tiny_data

from src.data.image_files import ImageFiles
from src.data.records import Record
from src.runtime.errors import InputError
from src.training.events import MetricsWriter
from src.training.metrics import read_lines
from src.training.panel import IMAGES, Panel

FILES = sorted((tiny_data() / "images/val").iterdir())  # 16


def panel_of(files) -> Panel:
    return Panel([Record(100 + row, file, ("a caption",)) for row, file in enumerate(files)], ImageFiles(files))


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return image.convert("RGB")


def is_white(picture: Image.Image, x: int, y: int) -> bool:
    return min(picture.getpixel((x, y))) > 240


def test_the_reader_knows_its_checksum():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


def test_curves_and_captions_go_on_without_duplicates(tmp_path):
    first = MetricsWriter(tmp_path, "ce", 0, panel_of(FILES))
    for step in range(6):
        first.write(step, {"train/loss": 3.1 / (1 + step), "train/lr": 1e-4})
        first.write_captions(step, [f"first {step}"] * 16)
    second = MetricsWriter(tmp_path, "ce", 4, panel_of(FILES))  # a checkpoint of step 3
    for step in (4, 5):
        second.write(step, {"val/CIDEr": step / 3})
        second.write_captions(step, [f"second {step}"] * 16)
    scalars = read_scalars(tmp_path)
    assert scalars == logged_scalars(tmp_path)
    assert [(step, *values) for step, values in scalars] == [
        *((step, "train/loss", "train/lr") for step in range(4)),
        (4, "val/CIDEr"),
        (5, "val/CIDEr"),
    ]
    assert scalars[3][1]["train/loss"] == np.float32(3.1 / 4)
    assert [step for step, _ in read_pictures(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert len(list(tmp_path.glob("events*"))) == 2


def test_what_a_killed_run_has_half_written_is_no_event(tmp_path):
    writer = MetricsWriter(tmp_path, "ce", 0, panel_of(FILES))
    writer.write(1, {"train/loss": 1.0})
    writer.write(2, {"train/loss": 2.0})
    (file,) = tmp_path.glob("events*")
    file.write_bytes(file.read_bytes()[:-3])
    MetricsWriter(tmp_path, "ce", 2, panel_of(FILES)).write(2, {"train/loss": 2.5})
    assert read_scalars(tmp_path) == [(1, {"train/loss": 1.0}), (2, {"train/loss": 2.5})]
    assert [line["train/loss"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1.0, 2.5]


def test_a_panel_shows_some_images_with_their_captions():
    """Every second of 16, whole at the left, the caption in black on white at the right."""
    panel = panel_of(FILES)
    captions = [f"caption {row}" for row in range(16)]
    pictures = {name: opened(data) for name, data in panel.draw(captions)[0].items()}
    assert IMAGES == 8 and list(pictures) == [f"captions/{100 + row}" for row in range(0, 16, 2)]
    images = np.array([Image.open(file).convert("RGB") for file in FILES], float)  # 64 x 64
    for row, picture in enumerate(pictures.values()):
        shown = np.array(picture.crop((0, 0, 168, 168)).resize((64, 64)), float)
        assert picture.size == (350, 168) and abs(images - shown).mean((1, 2, 3)).argmin() == 2 * row
        text = np.asarray(picture)[:, 176:]
        assert text.min() < 40 and 0.9 < (text > 215).mean() < 1
    again, _ = panel.draw(["another", *captions[1:]])
    changed = [name for name, data in panel.draw(captions)[0].items() if data != again[name]]
    assert changed == ["captions/100"]


def test_a_small_split_is_shown_whole():
    assert list(panel_of(FILES[:3]).draw(["a", "b", "c"])[0]) == ["captions/100", "captions/101", "captions/102"]


@pytest.mark.parametrize("caption", ["word " * 100, "w" * 500, "", "été ∀ 猫"])
def test_no_caption_is_too_long_or_strange(caption):
    (picture,) = panel_of(FILES[:1]).draw([caption])[0].values()
    assert opened(picture).size == (350, 168)


def test_what_the_font_lacks_is_written_as_text(tmp_path):
    writer = MetricsWriter(tmp_path, "ce", 0, panel_of(FILES[:3]))
    writer.write_captions(4, ["一只猫", "a cat", "un café"])
    assert read_texts(tmp_path) == [
        (4, {"captions/100/text_summary": "一只猫", "captions/102/text_summary": "un café"}),
    ]
    first, second, third = read_pictures(tmp_path)[0][1].values()
    words = [np.asarray(opened(data))[:, 176:] for data in (first, second, third)]
    assert np.array_equal(words[0], words[2]) and not np.array_equal(words[0], words[1])  # both name the other place


def test_lines_break_between_words():
    panel = panel_of(FILES[:1])
    caption = "a large red circle is above a small blue square with stripes"
    lines = panel._lines(caption)
    assert " ".join(lines) == caption and len(lines) == 3
    assert all(panel._font.getlength(line) <= 350 - 168 - 8 for line in lines)


def test_large_photographs_and_transparent_pictures_are_shown(tmp_path):
    Image.new("RGB", (1200, 600), "red").save(tmp_path / "a.jpg")
    Image.new("RGBA", (20, 30), (0, 0, 255, 128)).save(tmp_path / "b.webp")
    wide, small = map(opened, panel_of([tmp_path / "a.jpg", tmp_path / "b.webp"]).draw(["", ""])[0].values())
    assert is_white(wide, 84, 32) and not is_white(wide, 84, 52)  # 168 x 84
    assert is_white(small, 18, 84) and not is_white(small, 38, 84)  # 112 x 168


def test_a_broken_image_is_named(tmp_path):
    file = shutil.copy(FILES[0], tmp_path / "broken.png")
    data = bytearray(file.read_bytes())
    data[60:90] = bytes(30)
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"broken\.png: truncated or broken"):
        panel_of([file])
