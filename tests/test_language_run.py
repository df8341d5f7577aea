"""Whole programs with tiny pretrained policies: CE, GRPO, resuming, several workers, evaluation, captioning, export."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from test_policy import resume_from_previous
from tiny import TINY, WORLD, free_port, run, tiny_data
from tiny_models import tiny_folder

pytestmark = pytest.mark.slow  # programs that compile graphs of their own: minutes

SETTINGS = [setting for setting in TINY if not setting.startswith(("tokenizer", "decoder", "ce.tokens", "ce.epochs"))]
SETTINGS += ["ce.tokens=12", "ce.epochs=2", "ce.save_steps=1", "data.dataset=demo", "data.format=coco"]
SETTINGS += ["data.annotations=annotations/captions_{split}.json", "data.images=images/{split}"]
LANGUAGE = ["policy.kind=prefix_lm", "encoder.kind=cnn", "encoder.variant=cnn", "encoder.checkpoint=null"]
LANGUAGE += ["data.image_size=64", "encoder.trainable=false", "lora.rank=2", "lora.dropout=0.1"]
LANGUAGE += ["ce.optimizer.projector_lr=1e-2", "ce.optimizer.adapter_lr=1e-3"]
SEEING = [
    "policy.kind=qwen2_5_vl",
    "data.image_size=56",
    "data.dataset=mine",
    "init_config=null",
    "select=last",
    "policy.recompute=true",
    "rl.micro_batches=2",  # the reference scores parts of a batch
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_folder(kind, root / kind) for kind in ("llama", "qwen2_5_vl")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Configurations of the two stages, in a folder whose name is part of the run folders' names."""
    folder = tmp_path_factory.mktemp("configs") / "tiny"
    folder.mkdir()
    (folder / "ce.yaml").write_text(f"base: {WORLD}/configs/base.yaml\nstage: ce\n")
    (folder / "grpo.yaml").write_text("base: ce.yaml\nstage: grpo\n")
    return folder


def program(name, file, folder, root, *more):
    settings = [*SETTINGS, f"policy.path={folder}", f"data.root={tiny_data()}", f"output_root={root}"]
    done = run(f"{name}.py", "--config", str(file), *settings, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(files, folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("first")
    for stage in ("ce", "grpo"):
        program("train", files / f"{stage}.yaml", folders["llama"], root, *LANGUAGE)
    return root


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_it_is_trained_and_resumed_with_the_same_bits(trained, files, folders, tmp_path):
    for stage in ("ce", "grpo"):
        folder = trained / f"demo-tiny-{stage}"
        assert len(losses(folder)) >= 4 and np.isfinite(losses(folder)).all()
        resume_from_previous(folder, tmp_path / folder.name)
        init = [] if stage == "ce" else [f"init_checkpoint={trained}/demo-tiny-ce/checkpoints/best"]
        said = program("train", files / f"{stage}.yaml", folders["llama"], tmp_path, *LANGUAGE, *init)
        assert "is complete" not in said
        one, other = (load_file(root / folder.name / "checkpoints/last") for root in (trained, tmp_path))
        assert one.keys() == other.keys() and any("lora_up" in name for name in one)
        assert not any("embedding" in name for name in one)  # the pretrained weights are in their folder
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{stage} {name}")


@pytest.mark.parametrize("stage", ["ce", "grpo"])
def test_two_workers_train_as_one(trained, files, folders, tmp_path, stage):
    settings = [*SETTINGS, *LANGUAGE, f"policy.path={folders['llama']}", f"data.root={tiny_data()}"]
    if stage == "grpo":
        settings.append(f"init_checkpoint={trained}/demo-tiny-ce/checkpoints/best")
    workers = ["--devices", "2", "--master", f"127.0.0.1:{free_port()}"]
    command = ["-m", "src.commands.pipeline", stage, "--config", str(files / f"{stage}.yaml"), *workers]
    done = run(*command, *settings, f"output_root={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    name = f"demo-tiny-{stage}"
    np.testing.assert_allclose(losses(tmp_path / name), losses(trained / name), rtol=1e-4, atol=1e-5)


def test_methods_are_compared(files, folders, tmp_path):
    advantage = "advantage: {baseline: leave_one_out, scale: none}"
    (files / "scst.yaml").write_text(f"base: grpo.yaml\nstage: scst\n{advantage}\n")
    plan = {"ce": "ce.yaml", "systems": {"scst": "scst.yaml", "grpo": "grpo.yaml"}, "captions": 48, "updates": 0}
    plan |= {"validations": 2, "samples": 2, "seeds": 1, "resamples": 50}
    (files / "comparison.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    settings = [one for one in SETTINGS if not one.startswith(("rl.rollouts", "rl.group_size", "eval.samples"))]
    settings += [*LANGUAGE, f"policy.path={folders['llama']}", f"data.root={tiny_data()}", f"output_root={tmp_path}"]
    done = run("-m", "src.commands.comparison", "--config", str(files / "comparison.yaml"), *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = tmp_path.glob("*/report.json")
    assert set(json.loads(report.read_text())["budget"]) == {"scst", "grpo"}
    page = report.with_suffix(".html").read_text()
    assert page.count('class="words"') > 0  # with the attention of each word


def test_a_time_limit_saves_and_the_run_goes_on(trained, files, folders, tmp_path):
    settings = [*SETTINGS, *LANGUAGE, f"policy.path={folders['llama']}", f"data.root={tiny_data()}"]
    settings += [f"output_root={tmp_path}"]
    done = run("train.py", "--config", str(files / "ce.yaml"), *settings, "stop_after_minutes=0.0001")
    assert done.returncode == 5, done.stdout + done.stderr
    program("train", files / "ce.yaml", folders["llama"], tmp_path, *LANGUAGE)
    one, other = (load_file(root / "demo-tiny-ce/checkpoints/last") for root in (trained, tmp_path))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_it_is_evaluated_and_captions_photographs(trained, files, folders, tmp_path):
    best = ["--checkpoint", str(trained / "demo-tiny-grpo/checkpoints/best")]
    samples = ["eval.samples=2", "eval.top_p=0.9", "eval.temperature=0.8"]
    said = program("eval", files / "grpo.yaml", folders["llama"], trained, *best, *LANGUAGE, *samples)
    assert "CIDEr" in said
    samples = json.loads((trained / "demo-tiny-grpo/samples_test.json").read_text())
    assert len(samples) == 16 and {len(row["captions"]) for row in samples} == {2}
    beams = ["eval.beams=2", "eval.block_trigrams=true"]
    assert "CIDEr" in program("eval", files / "grpo.yaml", folders["llama"], trained, *best, *LANGUAGE, *beams)
    photograph = next(Path(tiny_data(), "images/test").iterdir())
    output = tmp_path / "captions.jsonl"
    images = ["--images", str(photograph), "--output", str(output)]
    program("eval", files / "grpo.yaml", folders["llama"], trained, *best, *LANGUAGE, *images)
    assert json.loads(output.read_text().splitlines()[-1])


def test_rl_starts_from_the_pretrained_model(files, folders, tmp_path):
    program("train", files / "grpo.yaml", folders["qwen2_5_vl"], tmp_path, *SEEING)
    folder = tmp_path / "mine-tiny-grpo"
    assert np.isfinite(losses(folder)).all()
    shutil.rmtree(folder / "logs", ignore_errors=True)
    resume_from_previous(folder, tmp_path / "again/mine-tiny-grpo")
    program("train", files / "grpo.yaml", folders["qwen2_5_vl"], tmp_path / "again", *SEEING)
    one, other = (load_file(root / "mine-tiny-grpo/checkpoints/last") for root in (tmp_path, tmp_path / "again"))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_the_trained_model_is_exported(trained, files, folders, tmp_path):
    best = ["--checkpoint", str(trained / "demo-tiny-grpo/checkpoints/best")]
    settings = [*SETTINGS, *LANGUAGE, f"policy.path={folders['llama']}", f"data.root={tiny_data()}"]
    for form, file in (("huggingface", "model.safetensors"), ("peft", "adapter_model.safetensors")):
        words = ["--config", str(files / "grpo.yaml"), *best, "--format", form, "--output", str(tmp_path / form)]
        done = run("-m", "src.export", *words, *settings)
        assert done.returncode == 0, done.stderr
        assert "; the encoder is in the checkpoint alone" in done.stdout  # random here, and thus in no file
        assert (tmp_path / form / file).is_file() and (tmp_path / form / "projector.safetensors").is_file()
    done = run("-m", "src.export", *words[:-1], str(tmp_path / "mindir"), *settings, "--format", "mindir")
    assert done.returncode == 0, done.stderr
    assert "prefill.mindir with step.mindir captions 16 test images as" in done.stdout
    facts = json.loads((tmp_path / "mindir/export.json").read_text())
    assert list(facts["step"]["inputs"]) == ["token", "position", "prefix", "cache"]
    photograph = str(next(Path(tiny_data(), "images/test").iterdir()))
    output = tmp_path / "captions.jsonl"
    images = ["--images", photograph, "--output", str(output)]
    done = run("eval.py", "--checkpoint", str(tmp_path / "mindir"), *images)  # with its own configuration
    assert done.returncode == 0 and json.loads(output.read_text())["captions"], done.stderr


def test_adapters_of_another_base_are_refused(trained, files, folders, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folders["llama"], other)
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(0.5).tobytes())
    best = str(trained / "demo-tiny-grpo/checkpoints/best")
    settings = [*SETTINGS, *LANGUAGE, f"policy.path={other}", f"data.root={tiny_data()}", f"output_root={tmp_path}"]
    done = run("eval.py", "--config", str(files / "grpo.yaml"), "--checkpoint", best, *settings)
    assert done.returncode == 2 and "was trained with other pretrained files (policy.path," in done.stderr
