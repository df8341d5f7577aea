"""Words of captions with and without blanks between them, and scores over Chinese ones."""

import re
import sys
from functools import partial

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider
from tiny import ROOT

from src.config.load import load_config
from src.data import words as words_module
from src.data.tokenizer import build_word_tokenizer, build_wordpiece_tokenizer, decode_completions, load_tokenizer
from src.data.words import ENGLISH, build_chinese, choose_words, lost_letters, without_blanks
from src.evaluation.caption_metrics import compute_metrics
from src.rewards.cider import corpus_cider
from src.rewards.mixture import Rewards
from src.runtime.errors import InputError

CHARACTERS = {
    "一个黄色的箱子在草地上。": "一 个 黄 色 的 箱 子 在 草 地 上",
    "穿Ｔ恤的男人，拿着 iPhone １３！": "穿 t 恤 的 男 人 拿 着 iphone 13",
    "𠀀𪚥龍騎著紅色腳踏車": "𠀀 𪚥 龍 騎 著 紅 色 腳 踏 車",
    "1,000个3.5米的 T-shirt、café": "1,000 个 3.5 米 的 t-shirt café",
    "A red ball，在草地上": "a red ball 在 草 地 上",
    "。！?": "",
}
UNSPACED = {
    "Thai": "หมาวิ่งบนหญ้า",
    "Lao": "ໝາແລ່ນຢູ່ເທິງຫຍ້າ",
    "Khmer": "ឆ្កែរត់លើស្មៅ",
    "Burmese": "ခွေးတစ်ကောင် မြက်ခင်းပေါ်မှာ ပြေးနေသည်",
    "Tibetan": "ཁྱི་ཞིག་རྩྭ་ཐང་སྟེང་རྒྱུག་གི་འདུག",
    "Japanese": "赤い箱が草の上にあります",
    "Chinese": "狗在奔跑",
}


def config(*overrides, stage="ce"):
    return load_config(ROOT / f"configs/demo/{stage}.yaml", overrides)


def choose(captions, *overrides):
    return choose_words(config(*overrides).data, captions)


def unique_captions():
    """60 captions of 4 to 9 characters, no two alike."""
    return [
        "一二三四五六七八九十"[i % 10] + "红黄蓝绿紫白"[i // 10] + "猫狗鸟"[i % 3] + "在草地上跑"[: 1 + i % 5]
        for i in range(60)
    ]


def test_characters_of_all_kinds_by_hand():
    words = build_chinese("characters")
    assert words.tokenize(list(CHARACTERS)) == list(CHARACTERS.values())
    assert words.name == "zh-characters"


@pytest.mark.parametrize("segmentation", ["characters", "jieba"])
def test_a_decoded_caption_is_cut_as_its_ground_truth(segmentation):
    words = build_chinese(segmentation)
    for caption in [*CHARACTERS, "左边是手，机器在右边", "红色 的 球"]:
        cut = words.split(caption)
        shown = without_blanks(" ".join(cut))
        assert words.split(shown) == cut == words.spaced(shown).split()
        assert not re.search("[\u4e00-\u9fff] | [\u4e00-\u9fff]", shown)


def test_words_of_jieba_and_its_absence(monkeypatch):
    words = build_chinese("jieba")
    assert words.tokenize(["一个黄色的箱子，在草地上。"]) == ["一个 黄色 的 箱子 在 草地 上"]
    assert words.name == "zh-jieba0.42.1"
    words_module._jieba.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(InputError, match=r"data\.segmentation=jieba needs .*pip install -r scripts/extra_requirements"):
        choose(["一只狗在跑"], "data.segmentation=jieba")
    assert choose(["a dog runs"], "data.segmentation=jieba").language == "en"  # only Chinese needs it


@pytest.mark.parametrize("script", UNSPACED)
def test_captions_without_blanks_are_warned_of(script):
    captions = [UNSPACED[script]] * 3 + ["a dog runs"]
    words = choose(captions, "data.language=en")
    assert words.language == "en" and words.tokenize(["A dog."]) == ["a dog"]
    assert f"3 of 4 captions are written without blanks between words ({script})" in words.warning
    auto = choose(captions)
    assert auto.language == ("zh" if script == "Chinese" else "en") and bool(auto.warning) == (script != "Chinese")
    forced = choose(captions, "data.language=zh")  # another script has no blanks in zh either
    assert forced.language == "zh" and bool(forced.warning) == (script != "Chinese")


def test_letters_that_ptb_drops_are_told():
    """Burmese with blanks loses its vowel signs; Hindi and accents do not."""
    kept = ["एक लाल गेंद", "ein Café, schön", "A dog's 1/2 ball."]
    assert lost_letters(kept, ENGLISH.tokenize(kept)) == ""
    lost = ["မြက်ပေါ် တွင် ဘောလုံး", *kept]
    line = lost_letters(lost, ENGLISH.tokenize(lost))
    assert line.startswith("warning: the PTB tokenizer drops letters of 1 of 4 captions, such as 'မြက်ပေါ် တွင်")
    many = [lost[0], *["a red ball"] * 9]
    assert lost_letters(many, ["", *many[1:]]) == ""  # a tenth


def test_blanks_of_no_width_separate_words():
    assert choose(["ลูกบอล\u200bสีแดง\u200bบน\u200bหญ้า"]).warning == ""


def test_captions_with_blanks_are_not_warned_of_and_chinese_is_what_most_are():
    for captions in (
        ["개가 잔디에서 달린다", "a dog 犬", "một con chó", "ein Café"],
        ["หมา วิ่ง บน หญ้า", "犬 が 走る"],  # words that somebody has separated
        ["a dog runs"] * 19 + ["狗在草地上"],  # a twentieth
    ):
        assert choose(captions).language == "en" and choose(captions).warning == ""
    assert choose(["狗在草地上", "の店里有T恤", "a dog"]).language == "zh"
    assert choose(["狗在草地上", "a dog runs"]).language == "en"
    assert "data.language=zh" in choose(["狗在草地上", "a dog runs"]).warning
    with pytest.raises(InputError, match=r"data\.segmentation=jieba is for Chinese"):
        config("data.language=en", "data.segmentation=jieba")


@pytest.mark.parametrize("segmentation", ["characters", "jieba"])
def test_captions_equal_to_their_ground_truth_score_10_on_all_ways(segmentation, tmp_path):
    """As a metric, at validation, and as a reward through a tokenizer; and as pycocoevalcap has it of blanks."""
    captions = unique_captions()
    if segmentation == "jieba":  # of two words nothing has four
        captions = [f"{caption}，旁边有一个很大的黄色箱子" for caption in captions]
    words = build_chinese(segmentation)
    by_id = dict(enumerate(captions))
    truths = {image_id: [caption] for image_id, caption in by_id.items()}
    scores = compute_metrics(by_id, words.tokenize_images(truths), words)
    assert scores.metrics["CIDEr"] == pytest.approx(10) and scores.metrics["Bleu_4"] == pytest.approx(1)
    assert list(scores.metrics) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    assert scores.notes == ["METEOR and SPICE are left out: they are made for English"]
    cut = words.tokenize(captions)
    if segmentation == "characters":
        by_hand = {i: [" ".join(caption)] for i, caption in by_id.items()}
        assert Cider().compute_score(by_hand, by_hand)[0] == pytest.approx(10)
    tokenizer = build_word_tokenizer(cut, 1, chinese=True)
    rows = np.array([[*tokenizer.encode(line), tokenizer.eos_id] + [tokenizer.pad_id] * 40 for line in cut], object)
    ids = np.array([row[:40] for row in rows], np.int32)
    assert [tokenizer.decode(row) for row in ids] == [caption.replace("，", "") for caption in captions]
    shown = {i: " ".join(words.split(tokenizer.decode(row))) for i, row in enumerate(ids)}
    assert corpus_cider(shown, {i: [line] for i, line in enumerate(cut)}) == pytest.approx(10)
    settings = config("rewards.length=1", "length.most=40", stage="grpo")
    decode = partial(decode_completions, tokenizer, [tokenizer.eos_id])
    rewards = Rewards(settings, {i: [line] for i, line in enumerate(cut)}, decode, words.split_all, None)
    ended, found = rewards(0, np.arange(60), np.arange(60), ids, (ids > 0).astype(np.float32))
    assert ended.all()
    np.testing.assert_allclose(found[:, 0], 10, rtol=1e-6)
    lengths = np.array([len(line.split()) for line in cut])
    np.testing.assert_allclose(found[:, 1], -np.minimum(1, np.maximum(0, 6 - lengths) / 4), rtol=1e-6)


def test_word_pieces_are_decoded_without_blanks_and_kept_so(tmp_path):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "一", "个", "恤", "t", "##shirt", "red", "，"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    tokenizer = build_wordpiece_tokenizer(tmp_path / "vocab.txt", chinese=True)
    tokenizer.save(tmp_path / "tokenizer.json")
    words = build_chinese("characters")
    for copy in (tokenizer, load_tokenizer(tmp_path / "tokenizer.json")):
        assert copy.chinese
        text = copy.decode(copy.encode("一个 T恤，red tshirt 一"))
        assert text == "一个t恤，red tshirt一"
        assert words.split(text) == ["一", "个", "t", "恤", "red", "tshirt", "一"]
        spaced = words.spaced(text)
        assert spaced.split() == ["一", "个", "t", "恤", "，", "red", "tshirt", "一"]
        assert copy.words_of_tokens(spaced) == [0, 1, 2, 3, 4, 5, 6, 6, 7]
    assert not build_wordpiece_tokenizer(tmp_path / "vocab.txt").chinese
