"""Pictures of a few validation images, the same at every validation, with their captions."""

import io
from collections.abc import Sequence

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
_SIGNS = set("©«°±´·»‘’“”…‹›⁄™")  # what Pillow's own font has beyond ASCII
_ELSEWHERE = "(its caption is listed under TEXT)"
_FONT_SIZE, _SPACING = 15, 5  # pixels


class Panel:
    """IMAGES of `records`, spread evenly over them.

    Captions with characters that Pillow's own font lacks, such as Chinese, are shown as texts.
    """

    def __init__(self, records: Sequence[Record], images: ImageFiles | ShardImages) -> None:
        """images: of the records, row by row. Errors: InputError naming a file that cannot be decoded."""
        count = min(IMAGES, len(records))
        rows = [place * len(records) // count for place in range(count)]
        self._names = {f"captions/{records[row].image_id}": row for row in rows}
        self._images = []
        for file, load in images.stream(rows):
            try:
                self._images.append(ImageOps.contain(decode(load()), (_SIDE, _SIDE)))
            except UnusableImage as reason:
                raise InputError(f"{file}: {reason}; restore the file or remove it from the data set") from None
        self._font = ImageFont.load_default(_FONT_SIZE)

    def draw(self, captions: Sequence[str]) -> tuple[dict[str, bytes], dict[str, str]]:
        """By name, JPEG files of the images with their captions at the right, and the captions that cannot be drawn.

        captions: of all records.
        """
        shown = {name: captions[row] for name, row in self._names.items()}
        texts = {name: text for name, text in shown.items() if not "".join(set(text) - _SIGNS).isascii()}
        drawn = (shown | dict.fromkeys(texts, _ELSEWHERE)).items()
        return {name: self._picture(image, text) for (name, text), image in zip(drawn, self._images)}, texts

    def _picture(self, image: Image.Image, caption: str) -> bytes:
        picture = Image.new("RGB", (_WIDTH, _SIDE), "white")
        picture.paste(image, ((_SIDE - image.width) // 2, (_SIDE - image.height) // 2))
        text, place = "\n".join(self._lines(caption)[:_LINES]), (_SIDE + _GAP, _SIDE / 2)
        ImageDraw.Draw(picture).multiline_text(place, text, "black", self._font, anchor="lm", spacing=_SPACING)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90, subsampling=0)  # colours at full resolution keep letters sharp
        return file.getvalue()

    def _lines(self, caption: str) -> list[str]:
        """The caption, wrapped between words at the picture's edge."""
        lines: list[str] = []
        for word in caption.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self._font.getlength(longer) <= _WIDTH - _SIDE - _GAP:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines
