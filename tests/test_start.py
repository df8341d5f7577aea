"""How a run starts, in this process: from which weights, vocabulary and data, and what is refused before it writes."""

import signal
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import TINY, tiny_data, tiny_mixture

import train
from src.config.load import load_config
from src.data.dataset import build_tokenizer, load_dataset
from src.models.captioner.policy import build_captioner
from src.models.checkpoint import read_state
from src.runtime.errors import InputError
from src.runtime.files import file_digest
from src.runtime.workers import Workers
from src.training.checkpoint import save_checkpoint
from src.training.run import start_run
from src.training.run_folder import claim_run_folder


@pytest.fixture(autouse=True)
def signals():
    """A run takes SIGTERM and Ctrl-C for itself, and TensorBoard's file stays open; the tests want them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings of every run here; the encoder is trained, so that no features are computed."""
    tiny_mixture()  # writes questions
    cache = tmp_path_factory.mktemp("start")
    (cache / "cache").mkdir()
    return [*TINY, f"data.root={tiny_data()}", "encoder.trainable=true", f"output_root={cache}"]


@pytest.fixture(scope="module")
def given(settings, tmp_path_factory):
    """A checkpoint of another run, with random weights and the words that occur twice."""
    config = load_config("configs/demo/ce.yaml", [*settings, "tokenizer.min_count=2"])
    folder = tmp_path_factory.mktemp("given")
    tokenizer = build_tokenizer(config, load_dataset(config))
    tokenizer.save(folder / "tokenizer.json")
    (folder / "checkpoints").mkdir()
    captioner = build_captioner(config, tokenizer.token_ids, cached=False)
    rng = np.random.default_rng(0)
    for parameter in captioner.get_parameters():
        parameter.set_data(type(parameter)(rng.normal(size=parameter.shape).astype(np.float32)))
    save_checkpoint(folder / "checkpoints/best", captioner, {"step": 9, "tokenizer": tokenizer.fingerprint})
    return folder / "checkpoints/best"


def start(settings, *more, stage="ce", init=None):
    config = load_config(f"configs/demo/{stage}.yaml", [*settings, *more])
    claim_run_folder(config, init)
    return start_run(config, config.run_folder, init, Workers())


def weights(run):
    return {f"model.{name}": value.asnumpy() for name, value in run.policy.parameters_and_names()}


def test_ce_from_a_checkpoint_and_resumed(settings, given, monkeypatch, capsys):
    """By train.py, whose loop is left out; with words that occur once, which the checkpoint's vocabulary lacks."""
    runs = []

    def train_by(*more):
        words = [*settings, "name=tuned", "tokenizer.min_count=1", *more]
        monkeypatch.setattr("src.training.loop.train", lambda run, objective: runs.append(run))
        monkeypatch.setattr(sys, "argv", ["train.py", "--config", "configs/demo/ce.yaml", *words])
        monkeypatch.setattr(
            "src.runtime.device.setup_device", lambda config: "CPU"
        )  # this process has its device already
        monkeypatch.setattr("src.training.run.Run.complete", lambda run: run.save("last"))
        train.main()

    train_by(f"init_checkpoint={given}")
    (run,) = runs
    held = load_file(given)
    assert weights(run).keys() == held.keys() and all((weights(run)[name] == held[name]).all() for name in held)
    assert run.tokenizer.fingerprint == read_state(given)["tokenizer"]
    assert run.tokenizer.fingerprint != build_tokenizer(run.config, run.dataset).fingerprint
    assert f"weights and vocabulary of {given}" in capsys.readouterr().out
    run.state.step = 3
    run.save("last")
    for again in ([f"init_checkpoint={given}"], []):  # as run_grpo.sh resumes its CE stage
        train_by(*again)
        assert run.state == runs[-1].state and run.state.init == file_digest(given)
        assert runs[-1].resumed and runs[-1].tokenizer.fingerprint == run.tokenizer.fingerprint
    assert "started from init_checkpoint=" in capsys.readouterr().out


def test_other_captions_are_refused_when_a_run_resumes(settings, monkeypatch):
    """Whatever the vocabulary: with word pieces nothing else would tell."""
    run = start(settings, "name=shrunk")
    run.state.step = 3
    run.save("last")
    kept = (run.folder / "metrics.jsonl").stat()
    dataset = load_dataset(run.config)
    for split in ("records", "ground_truths"):
        getattr(dataset, split)["train"] = getattr(dataset, split)["train"][:30]
    monkeypatch.setattr("src.training.run.load_dataset", lambda config: dataset)
    with pytest.raises(InputError, match="trained on 64 train, 16 val images, not the 30 train, 16 val images"):
        start(settings, "name=shrunk")
    assert (run.folder / "metrics.jsonl").stat() == kept and run.resumed is None


@pytest.mark.parametrize(
    "more, words",
    [
        ("rl.rollout_images=72", "rl.rollout_images=72 must be at most 64, the training images"),
        ("rl.top_k=999", "rl.top_k=999 must be at most"),
        ("rewards.caprl=1 caprl.questions=absent.jsonl", "absent.jsonl: no such file of questions"),
        (
            "rewards.caprl=1 caprl.questions=questions_train.jsonl caprl.answerer=server caprl.model=m caprl.retries=0 "
            "caprl.base_url=http://127.0.0.1:9/v1",
            "start the server",
        ),
        ("data.annotations=absent_{split}.json", "absent_train.json"),
        ("decoder.width=64", "belongs to another model"),
    ],
)
def test_what_is_wrong_is_found_before_a_run_is_deleted(settings, given, more, words):
    folder = load_config("configs/demo/grpo.yaml", [*settings, "name=finished"]).run_folder
    folder.mkdir(exist_ok=True)
    files = [folder / "config.yaml", folder / "completed", folder / "eval_test.json"]
    for file in files:
        file.write_text("{}")
    with pytest.raises(InputError, match=words):
        start(settings, "name=finished", "fresh=true", *more.split(), stage="grpo", init=given)
    assert sorted(folder.iterdir()) == sorted(files)


def test_fresh_replaces_a_run(settings, given):
    first = start(settings, "name=again", stage="grpo", init=given)
    first.state.step = 3
    first.log({"train/loss": 1.0})
    first.save("last")
    assert start(settings, "name=again", stage="grpo", init=given).resumed is not None
    again = start(settings, "name=again", "fresh=true", "rl.group_size=4", stage="grpo", init=given)
    assert again.resumed is None and again.state.step == 0 and not list((again.folder / "checkpoints").iterdir())
    assert (again.folder / "metrics.jsonl").read_text() == ""
