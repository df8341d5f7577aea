"""Which images a gallery shows, by hand; and captions of other images."""

import json

import numpy as np
import pytest

from src.config.load import load_config
from src.data.records import Record
from src.data.words import ENGLISH
from src.evaluation.gallery import Picture, ScoredCaption, choose_images, gains, read_groups, scored_groups
from src.evaluation.report import System
from src.rewards.cider import CiderD
from src.runtime.errors import InputError


def test_gains_by_hand():
    ciders = {"ce": np.array([1.0, 2.0]), "scst": np.array([2.0, 2.0]), "grpo": np.array([3.0, 0.0])}
    by_system = gains(ciders)
    assert {system: values.tolist() for system, values in by_system.items()} == {"scst": [1, 0], "grpo": [2, -2]}
    assert gains({"grpo": 3.0}) == {"grpo": 3.0}
    # gains 0, 4, 3, -9 and 0, -3, 2, 8, means 0, 0.5, 2.5, -0.5: each system alone has another highest
    three = {"ce": np.ones(4), "scst": np.array([1.0, 5, 4, -8]), "grpo": np.array([1.0, -2, 3, 9])}
    assert choose_images(three, most=3) == {2: "highest", 3: "lowest", 0: "even"}


def test_best_worst_and_an_even_sample_of_the_others():
    gain = np.array([0.0, 9.0, 1.0, -5.0, 2.0, 8.0, -4.0, 3.0, 0.5, 2.5])
    # a third of 6 is 2: highest 9 and 8, lowest -5 and -4; of the others 0, 2, 4, 7, 8, 9 the first and the fourth
    assert choose_images({"grpo": gain}, most=6) == {
        1: "highest",
        5: "highest",
        3: "lowest",
        6: "lowest",
        0: "even",
        7: "even",
    }


@pytest.mark.parametrize("images", [1, 2, 3, 5, 7, 59, 60, 61, 89, 500])
def test_no_image_twice_and_none_left_out_where_there_is_room(images):
    chosen = choose_images({"ce": np.random.default_rng(0).normal(size=images).round(1)}, most=60)  # ties
    assert len(chosen) == min(60, images) and set(chosen) <= set(range(images))


def test_what_pictures_are_sorted_by():
    def rows(cider):
        return [ScoredCaption("a", cider, ["a"], np.zeros((1, 4))), ScoredCaption("b", 9.0, ["b"], np.zeros((1, 4)))]

    captions = {"ce": rows(0.5), "scst": rows(0.25), "grpo": rows(1.5)}
    assert Picture("", "", ("",), "even", captions).sort_values() == {"scst": -0.25, "grpo": 1.0}
    assert Picture("", "", ("",), "even", {"ce": rows(0.5)}).sort_values() == {"ce": 0.5}


def test_samples_stand_behind_the_greedy_caption_best_first():
    truths = [["a dog runs"], ["a cat sits"]]
    groups = [["a cat", "a cat sits", "a dog runs", "a dog"], ["a dog", "two men", "a cat", "a cat sits"]]
    looks = [[np.full((1, 4), number) for number in range(4)]] * 2
    rows = scored_groups(groups, CiderD(truths, truths, eos=False), looks, ENGLISH)
    assert [row.text for row in rows[0]] == ["a cat", "a dog runs", "a dog", "a cat sits"]
    assert [row.text for row in rows[1]] == ["a dog", "a cat sits", "a cat", "two men"]
    assert [row.looks[0, 0] for row in rows[0]] == [0, 2, 3, 1]  # each with its own attention


def test_greedy_captions_stand_before_samples_and_other_images_are_refused(tmp_path):
    config = load_config("configs/demo/grpo.yaml", ["eval.samples=2"])
    system = System(config, tmp_path, tmp_path / "best")
    records = [Record(image_id, tmp_path / f"{image_id}.png", ("x",)) for image_id in (7, 3)]
    captions = [{"image_id": 7, "caption": "seven"}, {"image_id": 3, "caption": "three"}]
    (tmp_path / "captions_test.json").write_text(json.dumps(captions))
    samples = [{"image_id": 7, "captions": ["a", "b"]}, {"image_id": 3, "captions": ["c", "d"]}]
    (tmp_path / "samples_test.json").write_text(json.dumps(samples))
    assert read_groups(system, records, "test", "test") == [["seven", "a", "b"], ["three", "c", "d"]]
    with pytest.raises(InputError, match=r"captions_test\.json belongs to other images"):
        read_groups(system, records[::-1], "test", "test")
