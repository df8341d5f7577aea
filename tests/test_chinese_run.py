"""Chinese captions through the programs: CE learns them, GRPO's groups differ, and what people see has no blanks."""

import json
import re

import pytest
from event_reader import read_texts
from tiny import TINY, chinese_data, messages, run

from src.data.words import build_chinese
from src.training.metrics import read_lines

SETTINGS = [*TINY, "data.dataset=mine", "tokenizer.min_count=1", "ce.tokens=10", "eval.tokens=6", "ce.epochs=6"]
HAN = "[\u4e00-\u9fff]"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One command: CE, GRPO, both evaluated, the report; what it has said, and its folder."""
    folder = tmp_path_factory.mktemp("chinese")
    data = chinese_data(folder / "data")
    settings = [*SETTINGS, f"data.root={data}", f"output_root={folder / 'out'}"]
    result = run("-m", "src.commands.pipeline", "grpo", "--config", "configs/demo/grpo.yaml", *settings)
    assert result.returncode == 0, result.stderr
    return folder / "out", result


def test_the_language_is_said_once_a_program(done):
    _, result = done
    said = [line for line in result.stdout.splitlines() if line.startswith("captions are Chinese")]
    assert said == [build_chinese("characters").note] * 2  # CE and GRPO
    limits = tuple(f"warning: {key}=" for key in ("ce.tokens", "rl.tokens", "eval.tokens"))  # tiny ones
    said = [line for line in messages(result.stderr) if not line.startswith(limits)]
    assert said == ["METEOR and SPICE are left out: they are made for English"]  # once, of two evaluations


def test_captions_are_scored_and_groups_differ(done):
    out, _ = done
    scores = [line["val/CIDEr"] for line in read_lines(out / "mine-ce/metrics.jsonl") if "val/CIDEr" in line]
    assert max(scores) > 0
    rollouts = [line for line in read_lines(out / "mine-grpo/metrics.jsonl") if "rollout/reward_std" in line]
    assert len(rollouts) == 2
    for line in rollouts:
        assert line["rollout/reward_std"] > 0 and line["rollout/zero_spread_groups"] < 8
        assert line["rollout/length_mean"] > 2  # characters, not whole captions


def test_results_name_the_words_and_leave_out_what_is_english(done):
    out, _ = done
    result = json.loads((out / "mine-grpo/eval_test.json").read_text())
    assert list(result["metrics"]) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    assert result["signature"].startswith("tok:zh-characters|df:test|") and list(result["endings"]) == ["truncated"]
    assert result["metrics"]["Bleu_1"] > 0 and "left_out" not in result
    report = (out / "mine-grpo/report.md").read_text()
    assert "METEOR and SPICE are left out: they are made for English." in report


def test_what_people_see_has_no_blanks(done):
    out, _ = done
    captions = [row["caption"] for row in json.loads((out / "mine-grpo/captions_test.json").read_text())]
    assert any(len(re.findall(HAN, caption)) > 3 for caption in captions)
    assert not any(re.search(f"{HAN} | {HAN}", caption) for caption in captions)
    texts = read_texts(out / "mine-grpo")
    assert texts and not any(re.search(f"{HAN} | {HAN}", text) for _, rows in texts for text in rows.values())
    page = (out / "mine-grpo/report.html").read_text()
    assert all(caption in page for caption in captions)  # 16 images, all in the gallery
    words = [[word for word, *_ in caption] for caption in json.loads(re.search(r'id="looks">(.*?)</script>', page)[1])]
    assert {"".join(row) for row in words} >= {caption.replace(" ", "") for caption in captions}
    assert max(map(len, words)) > 3


def test_the_check_says_the_language_and_warns_of_other_scripts(tmp_path):
    settings = [*SETTINGS, f"output_root={tmp_path}"]
    found = {}
    for name, translate in (("chinese", str), ("thai", lambda caption: "หมาวิ่งบนหญ้า" * len(caption))):
        data = chinese_data(tmp_path / name, translate)
        result = run("-m", "src.commands.check", "--config", "configs/demo/ce.yaml", *settings, f"data.root={data}")
        assert result.returncode == 0, result.stderr
        found[name] = (build_chinese("characters").note in result.stdout, messages(result.stderr))
    said, (warning,) = found["thai"]
    assert not said and warning.startswith(
        "warning: 288 of 288 captions are written without blanks between words (Thai)"
    )
    assert found["chinese"] == (True, [])
