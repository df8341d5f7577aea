"""The scripts' program as its user runs it, on 64 scenes: stages and outputs."""

import json
import re

import numpy as np
import pytest
import yaml
from event_reader import logged_scalars, read_pictures, read_scalars
from safetensors.numpy import load_file
from tiny import TINY, documented, messages, run, tiny_data

import src.commands.pipeline
from src import __version__
from src.commands.pipeline import main
from src.config.load import load_config
from src.data.dataset import load_dataset
from src.data.words import ENGLISH
from src.evaluation.gallery import look
from src.evaluation.report import System
from src.models.checkpoint import read_state
from src.runtime.errors import InputError

METRICS = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Outputs of the whole GRPO pipeline, with the settings that made them."""
    root = tmp_path_factory.mktemp("outputs")
    settings = [*TINY, f"output_root={root}", f"data.root={tiny_data()}"]
    result = run("-m", "src.commands.pipeline", "grpo", *settings)
    assert result.returncode == 0, result.stderr
    return root, settings, result


def test_the_pipeline_leaves_what_the_contract_names(outputs):
    root, _, result = outputs
    for name in ("demo-ce", "demo-grpo"):
        folder = root / name
        assert {"config.yaml", "metrics.jsonl", "checkpoints", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
        assert {"last", "best"} <= {p.name for p in (folder / "checkpoints").iterdir()}
        assert read_state(folder / "checkpoints/best")["version"] == __version__
        captions = json.loads((folder / "captions_test.json").read_text())
        assert len({row["image_id"] for row in captions}) == 16 and all(
            set(row) == {"image_id", "caption"} for row in captions
        )
        scores = json.loads((folder / "eval_test.json").read_text())
        assert [name for name in scores["metrics"] if name != "SPICE"] == METRICS and scores["num_images"] == 16
        assert "decoding:greedy" in scores["signature"] and "images:16" in scores["signature"]
    assert yaml.safe_load((root / "demo-grpo/config.yaml").read_text())["rl"]["group_size"] == 3
    report = (root / "demo-grpo/report.md").read_text()
    assert "| CE |" in report and "| GRPO |" in report and "Signature" in report
    assert report.strip() in result.stdout


def test_the_page_shows_all_captions_with_their_cider_and_attention(outputs):
    root, _, result = outputs
    path = root / "demo-grpo/report.html"
    text = path.read_text()
    assert str(path) in result.stdout and text.count('<article class="card"') == 16 and "GRPO minus CE" in text
    captions = []
    for stage in ("ce", "grpo"):
        ciders = np.load(root / f"demo-{stage}/segments_test.npz")["CIDEr"]
        shown = re.findall(rf'<h4>{stage.upper()} <span class="score">CIDEr ([\d.]+)<', text)
        assert shown == [f"{100 * cider:.1f}" for cider in ciders]
        captions.append([row["caption"] for row in json.loads((root / f"demo-{stage}/captions_test.json").read_text())])
    in_order = [caption for pair in zip(*captions) for caption in pair]
    looks = json.loads(re.search(r'id="looks">(.*?)</script>', text).group(1))
    assert [len(words) for words in looks] == [len(caption.split()) for caption in in_order]
    assert all(
        len(levels) == 16 and "/" in levels for words in looks for _, _, levels in words
    )  # 64 pixels: a grid of 4 x 4
    assert text.count("data:image/png") == 1  # the histories; there are no samples


@pytest.mark.parametrize("stage", ["ce", "grpo"])  # whose inputs are pixels, and cached features
def test_every_image_of_a_batch_is_looked_at_itself(outputs, stage):
    root, settings, _ = outputs
    config = load_config(f"configs/demo/{stage}.yaml", settings)
    system = System(config, config.run_folder, config.result_checkpoint)
    records = load_dataset(config).records["test"]
    groups = [["a red circle", "a star"], ["a blue star", "a red circle"], ["a red circle", "two stars"]]
    together = look(system, records, "test", np.array([9, 2, 5]), groups, ENGLISH)
    alone = look(system, records, "test", np.array([2]), groups[1:2], ENGLISH)
    for ours, theirs in zip(together[1], alone[0], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(together[1][0].sum(1), 1, atol=1e-5)
    assert np.abs(together[0][0] - together[1][1]).max() > 1e-4  # the same caption of another image


def test_grpo_logs_every_statistic(outputs):
    root, _, _ = outputs
    lines = [json.loads(line) for line in (root / "demo-grpo/metrics.jsonl").read_text().splitlines()]
    assert {"step", "stage"} <= lines[0].keys()
    names = set().union(*lines)
    known = documented("metrics.jsonl")
    assert names - {"step", "stage"} <= known
    off = {f"rollout/reward_{name}_{part}" for name in ("caprl", "length", "repetition") for part in ("mean", "std")}
    off |= {"train/token_accuracy", "train/loss_scale", "rollout/greedy_reward_mean", "rollout/caprl_failed"}
    assert known - names <= off
    parts = ("time/rollout_s", "time/reward_s", "time/update_s")
    spent = sum(line.get(part, 0) for line in lines for part in parts)
    assert lines[-1]["time/total_s"] == pytest.approx(spent, rel=1e-6)
    first = next(line for line in lines if line["step"] == 1)
    assert first["train/ratio_mean"] == pytest.approx(1, abs=1e-4) and first["train/kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("stage", ["ce", "grpo"])
def test_tensorboard_is_given_the_metrics_and_captions_of_every_validation(outputs, stage):
    folder = outputs[0] / f"demo-{stage}"
    assert read_scalars(folder) == logged_scalars(folder)
    pictures = read_pictures(folder)
    assert [step for step, _ in pictures] == [step for step, values in read_scalars(folder) if "val/CIDEr" in values]
    assert len(pictures) == 3 and all(len(shown) == 8 for _, shown in pictures)


def test_a_completed_run_is_not_run_again_and_another_configuration_is_refused(outputs):
    root, settings, _ = outputs
    again = run("train.py", "--config", "configs/demo/ce.yaml", *settings)
    assert again.returncode == 0 and "complete" in again.stdout
    other = run("train.py", "--config", "configs/demo/ce.yaml", *settings, "ce.epochs=4", "decoder.dropout=0.2")
    words = (
        f"ce.epochs, decoder.dropout; pass output_root=NEW (for scripts/run_ce.sh, name=NEW), or delete {root}/demo-ce"
    )
    assert other.returncode == 2 and words in other.stderr


def test_scoring_a_file_of_captions_gives_the_same_numbers(outputs):
    root, settings, _ = outputs
    file = root / "demo-grpo/captions_test.json"
    result = run("eval.py", "--config", "configs/demo/grpo.yaml", "--captions", str(file), *settings)
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout.splitlines()[-1])
    assert scores["metrics"] == json.loads((root / "demo-grpo/eval_test.json").read_text())["metrics"]
    result = run(
        "eval.py", "--config", "configs/demo/grpo.yaml", "--captions", str(file), "--images", str(file), *settings
    )
    assert result.returncode == 2 and "--captions scores a file as is" in result.stderr


def test_bad_checkpoints_are_one_line_and_status_2(outputs, tmp_path):
    """All kinds of damage are in test_checkpoint.py; here is what the user sees."""
    root, settings, _ = outputs
    best = root / "demo-ce/checkpoints/best"
    (tmp_path / "tokenizer.json").write_bytes((root / "demo-ce/tokenizer.json").read_bytes())
    (tmp_path / "truncated").write_bytes(best.read_bytes()[:-1000])
    for path, word, extra in ((tmp_path / "truncated", "damaged", []), (best, "another model", ["decoder.width=64"])):
        result = run("eval.py", "--config", "configs/demo/ce.yaml", *settings, *extra, "--checkpoint", str(path))
        errors = messages(result.stderr)
        assert result.returncode == 2 and len(errors) == 1, result.stderr
        assert str(path) in errors[0] and word in errors[0]


def test_a_checkpoint_of_another_vocabulary_is_refused(outputs, tmp_path):
    root, settings, _ = outputs
    (tmp_path / "best").write_bytes((root / "demo-ce/checkpoints/best").read_bytes())
    text = (root / "demo-ce/tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"circle"', '"disk"'))  # as many words, one of them another
    result = run("eval.py", "--config", "configs/demo/ce.yaml", *settings, "--checkpoint", str(tmp_path / "best"))
    assert result.returncode == 2 and "the vocabulary does not match" in result.stderr, result.stderr


def test_grpo_from_a_given_checkpoint_trains_the_encoder_where_asked(outputs, tmp_path):
    root, settings, _ = outputs
    init = root / "demo-ce/checkpoints/best"
    extra = [f"init_checkpoint={init}", "encoder.trainable=true", "rl.rollouts=1", f"output_root={tmp_path}"]
    result = run("-m", "src.commands.pipeline", "grpo", *settings, *extra)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "demo-ce").exists()
    report = (tmp_path / "demo-grpo/report.md").read_text().splitlines()
    ce_row = next(line for line in report if line.startswith("| CE |"))
    assert (
        ce_row in (root / "demo-grpo/report.md").read_text()
    )  # the given checkpoint's scores, as the run that owns it
    before, after = load_file(init), load_file(tmp_path / "demo-grpo/checkpoints/last")
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert any(name.startswith("model.encoder.") for name in changed)
    frozen = load_file(root / "demo-grpo/checkpoints/last")
    assert all((before[name] == frozen[name]).all() for name in before if name.startswith("model.encoder."))


def test_evaluation_of_a_given_checkpoint_writes_where_it_lies(outputs, tmp_path):
    root, settings, _ = outputs
    checkpoint = root / "demo-ce/checkpoints/last"
    command = ["eval", "--config", "configs/demo/ce.yaml", "--checkpoint", str(checkpoint), "--split", "val"]
    result = run("-m", "src.commands.pipeline", *command, *settings, f"output_root={tmp_path}", "eval.beams=2")
    assert result.returncode == 0, result.stderr
    scores = json.loads((root / "demo-ce/eval_val_beam2-lp1.json").read_text())
    assert scores["num_images"] == 16 and "decoding:beam2-lp1" in scores["signature"]
    assert "# CE on the val split" in result.stdout and scores["signature"] in result.stdout


@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluation_again_is_of_the_same_stages(outputs, split, monkeypatch, capsys):
    """The CE model beside the RL one, as after training; the report of another split stands beside the first."""
    root, settings, _ = outputs
    evaluated = []
    monkeypatch.setattr("sys.argv", ["pipeline", "eval", "--split", split, *settings])
    monkeypatch.setattr(src.commands.pipeline, "run_program_of", lambda stage, *words: evaluated.append(words[-1]))
    monkeypatch.setattr(
        src.commands.pipeline, "write_report", lambda folders, path, name: f"{' '.join(folders)}: {path.name}"
    )
    monkeypatch.setattr("src.evaluation.report_page.write_stages_page", lambda *page: None)
    main()
    assert evaluated == [f"{root}/demo-{stage}/checkpoints/best" for stage in ("ce", "grpo")]
    stem = {"test": "report", "val": "report_val"}[split]
    assert capsys.readouterr().out == f"CE GRPO: {stem}.md\n{root}/demo-grpo/{stem}.html\n"


@pytest.mark.parametrize(
    "words, trained",
    [
        (["ce", "fresh=true"], {"ce": True}),
        (["grpo", "fresh=true"], {"ce": False, "grpo": True}),
        (["scst", "fresh=true", "name=mine"], {"ce": False, "scst": True}),
        (["grpo", "fresh=true", "init_checkpoint=INIT"], {"grpo": True}),
    ],
)
def test_fresh_restarts_only_what_the_script_is_about(words, trained, tmp_path, monkeypatch):
    init = tmp_path / "best"
    init.touch()
    runs = {}

    def record(stage, cluster, program, *rest):
        if program == "train.py":
            given = load_config(stage.file, stage.overrides)
            assert given == stage.config
            runs[given.stage] = given.fresh

    monkeypatch.setattr("sys.argv", ["pipeline", *[word.replace("INIT", str(init)) for word in words]])
    monkeypatch.setattr(src.commands.pipeline, "run_program_of", record)
    monkeypatch.setattr(src.commands.pipeline, "write_report", lambda folders, path, name: "")
    monkeypatch.setattr("src.evaluation.report_page.write_stages_page", lambda *page: None)
    main()
    assert runs == trained


def test_no_stage_is_trained_that_a_later_one_of_the_command_cannot_follow(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pipeline", "grpo", "--devices", "3", "ce.batch_images=30", "ce.micro_batches=1"])
    monkeypatch.setattr(src.commands.pipeline, "run_program_of", lambda *words: pytest.fail("trained"))
    with pytest.raises(InputError, match=r"rl\.sample_images"):
        main()


@pytest.mark.parametrize(
    "words, message",
    [
        (["grpo", "init_checkpoint=absent/best"], "init_checkpoint=absent/best: no such checkpoint"),
        (["grpo", "--images", "x.jpg"], "are for scripts/run_eval.sh"),
        (["eval", "output_root=nowhere"], "nowhere/demo-grpo holds no result: train it first"),
    ],
)
def test_flags_that_do_not_go_with_the_goal_are_refused(words, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pipeline", *words])
    with pytest.raises(InputError, match=message):
        main()
