"""A few validation images, the same at every validation, drawn with what they are captioned."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from src.data.image_files import ImageFiles
from src.data.photographs import UnusableImage, decode
from src.data.records import Record
from src.data.shards import ShardImages
from src.runtime.errors import InputError

IMAGES = 8
_WIDTH, _SIDE = 350, 168  # pixels of a picture and of the image at its left: TensorBoard's cards show them unscaled
_GAP = 8  # pixels between image and caption
_LINES = 8  # of a caption
_NO_CHARACTER = "\uffff"
_ELSEWHERE = "(its caption stands under TEXT)"
_FONT_SIZE, _SPACING = 15, 5  # pixels


class Panel:
    """IMAGES of `records`, spread evenly over them.

    Pillow's own font has only few characters, no Chinese ones: captions with others are shown as texts.
    """

    def __init__(self, records: Sequence[Record], images: ImageFiles | ShardImages) -> None:
        """images: of the records, row by row. Errors: InputError naming a file that cannot be decoded."""
        count = min(IMAGES, len(records))
        self.rows = [place * len(records) // count for place in range(count)]
        self._names = [f"captions/{records[row].image_id}" for row in self.rows]
        self._images = [_load(file, load) for file, load in images.stream(self.rows)]
        self._font = ImageFont.load_default(_FONT_SIZE)
        self._missing = self._glyph(_NO_CHARACTER)

    def draw(self, captions: Sequence[str]) -> dict[str, bytes]:
        """JPEG files of the images, each with its caption at its right, by name. captions: of all records."""
        texts = self.texts(captions)
        return {
            name: self._picture(image, _ELSEWHERE if name in texts else captions[row])
            for name, image, row in zip(self._names, self._images, self.rows)
        }

    def texts(self, captions: Sequence[str]) -> dict[str, str]:
        """The captions that cannot be drawn, by name. captions: of all records."""
        shown = {name: captions[row] for name, row in zip(self._names, self.rows)}
        return {name: text for name, text in shown.items() if any(map(self._cannot_draw, set(text)))}

    def _cannot_draw(self, character: str) -> bool:
        return not character.isascii() and self._glyph(character) == self._missing

    def _glyph(self, character: str) -> bytes:
        return bytes(self._font.getmask(character))

    def _picture(self, image: Image.Image, caption: str) -> bytes:
        picture = Image.new("RGB", (_WIDTH, _SIDE), "white")
        picture.paste(image, ((_SIDE - image.width) // 2, (_SIDE - image.height) // 2))
        text = "\n".join(self._lines(caption)[:_LINES])
        ImageDraw.Draw(picture).multiline_text(
            (_SIDE + _GAP, _SIDE / 2), text, "black", self._font, anchor="lm", spacing=_SPACING
        )
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90, subsampling=0)  # colours at full resolution, for the letters' sake
        return file.getvalue()

    def _lines(self, caption: str) -> list[str]:
        """The caption broken between words where it would leave the picture."""
        lines: list[str] = []
        for word in caption.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self._font.getlength(longer) <= _WIDTH - _SIDE - _GAP:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines


def _load(file: Path, load: Callable[[], bytes]) -> Image.Image:
    """An image file in the size that it is drawn in."""
    try:
        return ImageOps.contain(decode(load()), (_SIDE, _SIDE))
    except UnusableImage as reason:
        raise InputError(f"{file}: {reason}; restore the file or remove it from the data set") from None
