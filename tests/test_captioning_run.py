"""Captioning photographs with a tiny model: captions and log-probs, hostile files, kills, several workers."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections import Counter

import mindspore as ms
import numpy as np
import pytest
from hostile import BAD, GOOD, make_hostile
from mindspore import Tensor
from PIL import Image
from tiny import PYTHON, ROOT, TINY, WORLD, free_port, run

import src.runtime.device
from src.captioning.captioners import Captioners
from src.captioning.collection import caption_photographs
from src.captioning.page import attention_strip
from src.captioning.serve import PageModel
from src.config.load import load_config
from src.data.dataset import build_image_source
from src.data.image_files import ImageFiles
from src.data.photographs import UnusableImage, read_photograph
from src.data.tokenizer import build_word_tokenizer
from src.models.build import load_policy
from src.models.captioner.policy import build_captioner
from src.runtime.errors import InputError
from src.runtime.workers import Workers
from src.training.checkpoint import save_checkpoint

WORDS = "a dog cat runs on the green grass with red ball and blue sky under some tree"
TOKENS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Untrained checkpoints A and B with one encoder, and C with another; and the settings that they go with."""
    root = tmp_path_factory.mktemp("captioning")
    settings = [*TINY, "eval.batch_images=4", f"eval.tokens={TOKENS}", f"output_root={root}"]
    config = load_config(ROOT / "configs/demo/grpo.yaml", settings)
    tokenizer = build_word_tokenizer([WORDS], 1)
    for name, encoder_seed, decoder_seed in (("A", 1, 1), ("B", 1, 2), ("C", 2, 3)):
        captioner = build_captioner(config, tokenizer.token_ids, cached=False)
        for cell, seed in ((captioner.encoder, encoder_seed), (captioner.decoder, decoder_seed)):
            rng = np.random.default_rng(seed)
            for parameter in cell.trainable_params():
                if parameter.ndim > 1:
                    parameter.set_data(Tensor(rng.normal(0, 0.5, parameter.shape).astype(np.float32)))
        (root / name / "checkpoints").mkdir(parents=True)
        save_checkpoint(root / name / "checkpoints/best", captioner, {"tokenizer": tokenizer.fingerprint})
        tokenizer.save(root / name / "tokenizer.json")
    return root, settings


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of 11 pictures that all differ."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(11):
        colours = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number:02d}.png")
    return folder


def captioners(runs, names, *settings):
    root, common = runs
    config = load_config(ROOT / "configs/demo/grpo.yaml", [*common, *settings])
    return Captioners(config, {name: root / name / "checkpoints/best" for name in names}, Workers()), config


def prepared(model, folder):
    return [model.prepare(read_photograph(str(file))) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("trainable", ["false", "true"])
def test_logprobs_are_those_of_teacher_forcing(runs, photographs, trainable):
    """Every caption's log-prob, token by token with the EOS, by the decoder's other path and a float64 softmax."""
    model, config = captioners(runs, "AC", "eval.samples=3", "eval.beams=2", f"encoder.trainable={trainable}")
    results = model(prepared(model, photographs)[:4])
    source = build_image_source(config, ImageFiles(sorted(photographs.iterdir())))
    (pixels,) = source.batches([np.arange(4)])
    for name in "AC":
        captioner, tokenizer = load_policy(config, runs[0] / name / "checkpoints/best", cached=False)
        features = captioner.encoder(Tensor(pixels)).asnumpy()
        features = features if trainable == "true" else features.astype(np.float16)
        for image, captions in enumerate(result[name] for result in results):
            assert [row.decoding for row in captions] == ["greedy", "beam2-lp1", *["sample"] * 3]
            for row in captions:
                ids = tokenizer.encode(row.caption)
                ids += [tokenizer.eos_id] if len(ids) < TOKENS else []
                inputs = Tensor(np.array([[tokenizer.bos_id, *ids[:-1]]], np.int32))
                hidden = captioner.decoder.hidden(inputs, captioner.decoder.memory(Tensor(features[image : image + 1])))
                logits = captioner.decoder.logits(hidden).asnumpy()[0].astype(np.float64)
                logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
                assert row.logprob == pytest.approx(logprobs[np.arange(len(ids)), ids].sum(), abs=2e-3), row
        assert len({captions[0].caption for captions in (result[name] for result in results)}) > 1


def test_captions_depend_on_checkpoint_and_photograph_alone(runs, photographs):
    """Not on the batch, its order, the other checkpoints or their order, nor on a cache of graphs made in another."""
    model, _ = captioners(runs, "ABC", "eval.samples=2")
    inputs = prepared(model, photographs)
    straight = model(inputs[:4]) + model(inputs[4:8])
    mixed = model([inputs[place] for place in (6, 1, 1, 3)])
    assert mixed == [straight[place] for place in (6, 1, 1, 3)]
    other, _ = captioners(runs, "CA", "eval.samples=2")
    assert other(inputs[:4]) == [{name: captions[name] for name in "CA"} for captions in straight[:4]]
    assert all(captions["A"] != captions["B"] != captions["C"] for captions in straight)
    assert len({captions["A"][1].caption for captions in straight}) > 3  # samples of other photographs are others


def test_equal_encoders_run_once(runs, photographs):
    model, _ = captioners(runs, "ABC")
    calls = Counter()
    for digest, encode in model._encoders.items():
        model._encoders[digest] = lambda pixels, digest=digest, encode=encode: calls.update([digest]) or encode(pixels)
    model(prepared(model, photographs)[:4])
    assert sorted(calls.values()) == [1, 1]


def words(runs, names="A"):
    """The arguments that all commands begin with, and the settings that they end with: two samples an image."""
    root, settings = runs
    checkpoints = [f"{name}={root}/{name}/checkpoints/best" for name in names]
    return ["--config", "configs/demo/grpo.yaml", "--checkpoint", *checkpoints], [*settings, "eval.samples=2"]


def test_hostile_files(runs, tmp_path):
    """All that can be captioned is, in one table; all else has one line and its reason."""
    folder = tmp_path / "files"
    folder.mkdir()
    make_hostile(folder)
    begin, settings = words(runs, "AB")
    settings += ["eval.samples=0"]
    missing = tmp_path / "gone.jpg"
    images = [str(folder), str(folder / "folder.jpg"), str(folder / "camera.raf"), str(missing)]
    done = run("eval.py", *begin, "--images", *images, *settings, timeout=300)
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == ["photograph", "decoding", "A", "B"]
    assert len(table) == 2 + len(GOOD) and all("| greedy" in row for row in table[2:])
    failed = dict(line[8:].split(": ", 1) for line in done.stderr.splitlines() if line.startswith("failed: "))
    assert failed.keys() == {str(folder / name) for name in BAD} | {str(missing)}
    assert all(failed[str(folder / name)].startswith(reason) for name, (_, reason) in BAD.items())
    skipped = "skipped 1 (1 .raf): .raf is a raw photograph: save it as JPEG"  # in the folder; named, it is tried
    assert done.stderr.splitlines()[-1] == f"captioned {len(GOOD)}, {len(BAD) + 1} failed, {skipped}"


def test_nothing_that_can_be_captioned_is_status_2(runs, tmp_path):
    begin, settings = words(runs)
    done = run("eval.py", *begin, "--images", str(tmp_path), "*.nothing", *settings)
    assert (
        done.returncode == 2
        and done.stderr.splitlines()[-1] == "error: no photograph could be captioned; check the files behind --images"
    )
    done = run("eval.py", *begin[:2], "--checkpoint", "nothing", *settings)
    assert (done.returncode, done.stderr) == (
        2,
        "error: --checkpoint nothing: there is no file nothing; pass [NAME=]PATH\n",
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(runs, photographs):
    """What an unbroken run of one worker writes, by photograph."""
    begin, settings = words(runs, "AC")
    output = runs[0] / "whole.jsonl"
    done = run("eval.py", *begin, "--images", str(photographs), "--output", str(output), *settings)
    assert done.returncode == 0 and f"{output}: captioned 11 in " in done.stderr and done.stdout == "", done.stderr
    rows = lines(output)
    assert [row["image"] for row in rows] == sorted(map(str, photographs.iterdir()))
    return {row["image"]: row["captions"] for row in rows}


def close(one, other):
    """The same captions, and log-probs within rounding."""
    assert one.keys() == other.keys()
    for image in one:
        for name, rows in one[image].items():
            for ours, theirs in zip(rows, other[image][name], strict=True):
                assert ours["caption"] == theirs["caption"]
                assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=2e-3)


HALTS = """
import time
import eval
from src.captioning.output import CaptionFile
write = CaptionFile.write
CaptionFile.write = lambda *batch: (write(*batch), time.sleep(600))
eval.run_program(eval.main)
"""


def test_a_killed_run_goes_on(runs, photographs, whole, tmp_path):
    """Killed with SIGKILL after its first batch, with a torn line; what was written is not done again."""
    begin, settings = words(runs, "AC")
    output = tmp_path / "captions.jsonl"
    (tmp_path / "bad.jpg").touch()
    images = ["--images", str(photographs), str(tmp_path / "bad.jpg"), "--output", str(output)]
    process = subprocess.Popen([PYTHON, "-c", HALTS, *begin, *images, *settings], cwd=WORLD, stderr=-3)
    while process.poll() is None and not (output.exists() and output.read_bytes()):
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = output.read_bytes()
    assert before.count(b"\n") == 4
    with open(output, "ab") as file:
        file.write(b'{"image": "torn')
    for captioned in (7, 0):
        done = run("eval.py", *begin, *images, *settings)
        assert done.returncode == 0 and f"captioned {captioned} in " in done.stderr, done.stderr
        assert f"1 failed: {tmp_path}/captions.bad.jsonl" in done.stderr
    assert output.read_bytes().startswith(before)
    assert len(lines(output)) == 11
    close({row["image"]: row["captions"] for row in lines(output)}, whole)
    assert lines(tmp_path / "captions.bad.jsonl") == [{"image": str(tmp_path / "bad.jpg"), "reason": "empty"}]
    refused = run("eval.py", *begin, *images, *settings, "eval.beams=2")
    assert refused.returncode == 2 and "made with other eval.beams" in refused.stderr


def test_the_time_limit_leaves_whole_batches(runs, photographs, whole, tmp_path):
    begin, settings = words(runs, "AC")
    output = tmp_path / "captions.jsonl"
    images = ["--images", str(photographs), "--output", str(output)]
    done = run("eval.py", *begin, *images, *settings, "stop_after_minutes=0.001")
    assert done.returncode == 5 and "stop_after_minutes=0.001 is reached" in done.stderr and len(lines(output)) == 4
    done = run("eval.py", *begin, *images, *settings)
    assert done.returncode == 0 and "captioned 7 in " in done.stderr and "4 already captioned" in done.stderr
    close({row["image"]: row["captions"] for row in lines(output)}, whole)


def test_two_workers_share_a_collection(runs, photographs, whole, tmp_path):
    """Through run_eval.sh's program; the second worker's failures are in the list."""
    begin, settings = words(runs, "AC")
    output = tmp_path / "captions.jsonl"
    for number in range(4):
        (tmp_path / f"{number}.jpg").touch()
    listed = tmp_path / "list.txt"
    files = [*sorted(photographs.iterdir()), *tmp_path.glob("*.jpg")]
    listed.write_text("".join(f"{file}\n" for file in files))
    program = ["-m", "src.commands.pipeline", "eval", "--devices", "2", "--master", f"127.0.0.1:{free_port()}", *begin]
    done = run(*program, "--images", f"@{listed}", "--output", str(output), *settings)
    assert done.returncode == 0, done.stderr
    assert f"{output}: captioned 11 in " in done.stdout and f"4 failed: {tmp_path}/captions.bad.jsonl" in done.stdout
    assert len(lines(output)) == 11
    close({row["image"]: row["captions"] for row in lines(output)}, whole)
    bad = lines(tmp_path / "captions.bad.jsonl")
    assert sorted(row["image"] for row in bad) == sorted(map(str, tmp_path.glob("*.jpg")))


def test_several_devices_need_a_file(runs):
    with pytest.raises(InputError, match="several devices need --output"):
        caption_photographs(load_config(ROOT / "configs/demo/grpo.yaml", runs[1]), {}, [], None, Workers(0, 2))


def test_the_script_takes_the_result_of_the_run(runs, photographs):
    """Without --checkpoint; the run of a name of its own."""
    root, settings = runs
    done = run("-m", "src.commands.pipeline", "eval", "--images", str(photographs / "03.png"), *settings, "name=B")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| photograph") and done.stdout.splitlines()[0].split()[5] == "B"


def test_the_page_shows_captions_and_where_their_words_looked(runs, photographs, monkeypatch):
    """The captions are those of the command line, and each word has its attention over the encoder's grid."""
    root, settings = runs
    config = load_config(ROOT / "configs/demo/grpo.yaml", [*settings, "eval.beams=2", "eval.samples=2"])
    # This process has its device already; the mode is of the page's thread.
    monkeypatch.setattr(src.runtime.device, "setup_device", lambda config: ms.set_context(mode=ms.GRAPH_MODE))
    model = PageModel(config, {"B": root / "B/checkpoints/best"})
    file = sorted(photographs.iterdir())[5]
    shown = model.show(str(file))
    command, _ = captioners(runs, "B", "eval.beams=2", "eval.samples=2")
    assert shown.captions == command([command.prepare(read_photograph(str(file)))])[0]
    for name, looks in shown.looks.items():
        assert len(looks) == len(shown.captions[name]) == 4
        for row, (words, weights) in zip(shown.captions[name], looks):
            assert words == row.caption.split() and weights.shape == (len(words), 16)
            np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-4)
    assert shown.small.shape == (320, 320, 3) and attention_strip(shown, 0).count("<figure>") > 0
    with pytest.raises(UnusableImage, match="missing"):
        model.show("gone.jpg")


def test_the_page_is_served_and_leaves_nothing(runs, photographs, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: scripts/run_demo.sh installs it")
    begin, settings = words(runs)
    port = free_port()
    command = [PYTHON, "-m", "src.captioning.serve", *begin, "--port", str(port), *settings]
    environment = os.environ | {"TMPDIR": str(tmp_path), "GRADIO_SHARE": "True", "SSL_CERT_FILE": "/gone.pem"}
    environment |= {"http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9", "https_proxy": "ftp://x"}
    environment |= {"no_proxy": "[::1"}  # none of these is of use to a page that talks with nobody else
    process = subprocess.Popen(command, cwd=WORLD, env=environment, stdout=-1, text=True)
    assert process.stdout.readline() == f"the page is http://127.0.0.1:{port} (Ctrl-C ends it)\n"
    assert [path.name.startswith("captions-page-") for path in tmp_path.glob("captions-page-*")] == [True]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
        assert b"Captions by A" in answer.read()
    with pytest.raises(OSError), socket.create_connection((own_address(), port), timeout=5):
        pass
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 4 and not list(tmp_path.glob("captions-page-*"))


def own_address():
    """This machine's address on a network, or one that nobody has."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return probe.getsockname()[0]
    except OSError:
        return "192.0.2.1"
