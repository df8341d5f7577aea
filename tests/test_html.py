"""The text of the page by hand: scores, marks, attention, and how images were chosen."""

import json
import re

import numpy as np

from src.evaluation.gallery import Gallery, Picture, ScoredCaption
from src.evaluation.html import label, listed, packed, render_page
from src.evaluation.report_tables import ReportTable


def picture(name="1.png", chosen="even", greedy=0.5, text="a dog"):
    words = text.split()
    looks = np.full((len(words), 4), 0.25)
    captions = {
        "ce": [ScoredCaption(text, 0.25, words, looks)],
        "grpo": [ScoredCaption(text, c, words, looks) for c in (greedy, 0.75)],
    }
    return Picture(name, "data:image/jpeg;base64,AAAA", (text,), chosen, captions)


def page(*pictures, title="CE and GRPO", tables=(), images=100):
    return render_page(title, "", tables, {}, [], Gallery(pictures, images))


def test_json_cannot_end_its_script_and_says_the_same():
    words = ["</script>", "<!--", "\u2028x", "ä"]
    (island,) = re.findall(r'id="looks">(.*?)</script>', page(picture(text=" ".join(words))), re.DOTALL)
    assert "<" not in island and island.isascii()
    assert [[word for word, *_ in row] for row in json.loads(island)] == [["</script>", "<!--", "x", "ä"]] * 3


def test_no_address_in_the_page():
    text = page(picture())
    assert not re.search(r"https?:|//[a-z]|url\(|@import|src=\"(?!data:)|href=\"(?!#|data:)", text)


def test_attention_by_hand():
    # 63 levels of the largest: 0.5 -> 63 "/", 0.25 -> 31.5 rounds to even 32 "g", 0 -> "A"
    assert packed("dog", np.array([0.5, 0.25, 0.25, 0.0])) == ["dog", 50.0, "/ggA"]
    assert packed("a", np.zeros(3)) == ["a", 0.0, "AAA"]
    looks = re.search(r'id="looks">(.*?)</script>', page(picture())).group(1)
    assert json.loads(looks) == [[["a", 25.0, "////"], ["dog", 25.0, "////"]]] * 3  # three captions of two words


def test_scores_and_gains_are_on_the_scale_of_papers():
    text = page(picture(greedy=0.5))
    assert "CIDEr 25.0" in text and 'CIDEr 50.0</span> <span class="gain up">+25.0' in text
    assert "1 samples: CIDEr 75.0 to 75.0" in text and 'data-values="0.25"' in text
    assert '<span class="gain down">-15.0' in page(picture(greedy=0.1))


def test_best_cells_are_marked_for_eye_and_ear():
    text = page(
        picture(),
        tables=[ReportTable("t", ["CIDEr"], {"CE": ["1.0"], "GRPO": ["2.0"]}, frozenset([("GRPO", "CIDEr")]))],
    )
    assert "<td>1.0</td>" in text
    assert '<td class="marked"><strong>2.0</strong><span class="unseen"> (best)</span></td>' in text


def test_the_page_says_how_images_were_chosen():
    pictures = [picture(chosen=kind) for kind in ("highest", "lowest", "even", "even")]
    chosen = "the 1 with the highest and the 1 with the lowest gain in CIDEr (GRPO minus CE)"
    text = " ".join(page(*pictures, images=1234).split())
    assert f"<p>4 of the 1,234 images of the split: {chosen}, and 2 evenly spaced among the others in dataset" in text
    assert f"All 4 images of the split; labels mark {chosen}." in page(*pictures, images=4)
    three = [one._replace(captions=one.captions | {"scst_leave_one_out": one.captions["ce"]}) for one in pictures]
    assert "gain in CIDEr (mean of GRPO and SCST leave one out minus CE), and" in page(*three)
    alone = [one._replace(captions={"ce": one.captions["ce"]}) for one in pictures]
    assert "the 1 with the lowest CIDEr, and" in page(*alone) and "Highest CIDEr first" in page(*alone)


def test_labels():
    names = [label(name) for name in ("ce", "scst_leave_one_out", "caprl")]
    assert names == ["CE", "SCST leave one out", "caprl"]
    assert [listed(names[:count]) for count in (1, 2, 3)] == [
        "CE",
        "CE and SCST leave one out",
        "CE, SCST leave one out and caprl",
    ]
