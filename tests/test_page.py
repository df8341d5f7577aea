"""What the page shows of a photograph, as HTML."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from src.captioning.captions import DecodedCaption
from src.captioning.page import PARTS, Shown, attention_strip, choices, picture_url, shade, small_picture, where

CAPTIONS = {
    "CE": [DecodedCaption("greedy", "a dog", -1.5), DecodedCaption("sample", "<b>a</b> cat", -3.25)],
    "A & B": [DecodedCaption("greedy", "a brown dog", -2.25), DecodedCaption("sample", "", -9.0)],
}


def words_of(row):
    return row.caption.split()


def shown(side=2):
    looks = {
        name: [(words, np.full((len(words), side**2), 1 / side**2, np.float32)) for words in map(words_of, rows)]
        for name, rows in CAPTIONS.items()
    }
    return Shown(np.full((30, 40, 3), 200, np.uint8), CAPTIONS, looks)


def pictures(html):
    data = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(part)))).astype(int) for part in data]


def test_captions_stand_side_by_side_and_are_escaped():
    table = PARTS.captions_table(CAPTIONS)
    rows = [re.sub(r"<[^>]+>", "|", row) for row in table.split("<tr>")[1:]]
    cells = [[cell.strip() for cell in row.split("|") if cell.strip()] for row in rows]
    assert cells == [
        ["CE", "A &amp; B"],
        ["greedy", "a dog", "-1.5", "a brown dog", "-2.2"],
        ["sample", "&lt;b&gt;a&lt;/b&gt; cat", "-3.2", "-9.0"],
    ]
    assert "<script>" not in PARTS.failure("<script>") and "&lt;script&gt;" in PARTS.failure("<script>")


def test_every_caption_can_be_chosen_and_has_a_picture_for_each_word():
    texts = ["CE, greedy: a dog", "CE, sample: <b>a</b> cat", "A & B, greedy: a brown dog", "A & B, sample: "]
    assert choices(CAPTIONS) == [(text, number) for number, text in enumerate(texts)]
    for number, words in enumerate((["a", "dog"], ["&lt;b&gt;a&lt;/b&gt;", "cat"], ["a", "brown", "dog"], [])):
        strip = attention_strip(shown(), number)
        assert re.findall(r"<figcaption>(.*?)</figcaption>", strip) == words
        assert [picture.shape for picture in pictures(strip)] == [(30, 40, 3)] * len(words)


def test_shade_by_hand():
    """Of a grid of 2 x 2 on 4 x 6 pixels: all light at the largest weight, a fifth at 0, evenly between."""
    weights = np.array([0.5, 0.0, 0.25, 0.25])
    light = np.array([[1.0, 0.2], [0.6, 0.6]]).repeat(2, 0).repeat(3, 1)
    got = shade(np.full((4, 6, 3), 100, np.uint8), weights)
    np.testing.assert_allclose(got, 100 * light[..., None].repeat(3, 2), atol=1)
    nowhere = shade(np.full((4, 6, 3), 100, np.uint8), np.zeros(4, np.float32))  # a word without attention
    np.testing.assert_allclose(nowhere, 20, atol=1)
    assert where(weights) == "most in row 1, column 1 of 2 x 2: 50 % (uniform: 25.0 %)"
    assert where(np.array([0, 0, 0, 0.1, 0, 0.8, 0.1, 0, 0])).startswith("most in row 2, column 3 of 3 x 3: 80 %")


@pytest.mark.parametrize("size, want", [((640, 320), (160, 320)), ((1, 5000), (320, 1)), ((1, 1), (320, 320))])
def test_pictures_keep_their_shape(size, want):
    small = small_picture(np.zeros((size[1], size[0], 3), np.uint8))
    assert small.shape == (*want, 3)
    (picture,) = pictures(PARTS.photograph(picture_url(small)))
    assert picture.shape == (*want, 3)
    assert shade(small, np.full(196, 1 / 196)).shape == (*want, 3)
