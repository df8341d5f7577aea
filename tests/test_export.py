"""Exported folders: a server that has nothing else, and eval.py, caption from them as from the checkpoint."""

import json
import shutil
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import tokenizers
from mindspore import Tensor, nn
from mindspore.train import serialization
from PIL import Image
from tiny import TINY, messages, run, tiny_data

import src
import src.export.mindir
import src.runtime.device
from src.captioning.captioners import Captioners
from src.config.load import load_config
from src.data.photographs import read_photograph
from src.data.tokenizer import build_word_tokenizer
from src.export.__main__ import main
from src.export.mindir import Exported, compare, write_mindir
from src.models.build import load_policy
from src.models.captioner.policy import build_captioner
from src.models.folder import given_checkpoint
from src.runtime.errors import InputError, RunStopped
from src.runtime.workers import Workers
from src.training.checkpoint import save_checkpoint

NAMES = {"model.safetensors", "config.yaml", "tokenizer.json", "captioner.mindir", "export.json"}
SETTINGS = [*TINY, f"data.root={tiny_data()}"]
FILES = sorted((tiny_data() / "images/test").glob("*.png"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run folder's checkpoint with random weights that heed the image: captions differ, and some have an EOS."""
    root = tmp_path_factory.mktemp("run")
    tokenizer = build_word_tokenizer(["a red star is left of two small blue circles"], 1)
    ms.set_seed(1)
    captioner = build_captioner(load_config("configs/demo/ce.yaml", SETTINGS), tokenizer.token_ids, cached=False)
    attended = captioner.decoder.layers[0].cross_out.weight
    attended.set_data(attended * 8)
    (root / "checkpoints").mkdir()
    save_checkpoint(root / "checkpoints/best", captioner, {"step": 7, "tokenizer": tokenizer.fingerprint})
    tokenizer.save(root / "tokenizer.json")
    return root / "checkpoints/best"


@pytest.fixture(scope="module")
def captions(checkpoint):
    """What the project captions the test images with, all in one batch, by file."""
    captioners = Captioners(load_config("configs/demo/ce.yaml", SETTINGS), {"it": checkpoint}, Workers())
    rows = captioners([captioners.prepare(read_photograph(str(file))) for file in FILES])
    found = {file: row["it"][0].caption for file, row in zip(FILES, rows)}
    assert len(set(found.values())) > 4
    return found


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The folder that it is exported to, in batches of three: the last of the 16 test images is alone in its batch."""
    folder = tmp_path_factory.mktemp("to") / "mit Umlaut ä"
    flags = ["--config", "configs/demo/ce.yaml", "--checkpoint", checkpoint, "--output", folder, "--batch", "3"]
    done = run("-m", "src.export", *map(str, flags), *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder}: captioner.mindir captions 16 test images as {checkpoint} does")
    return folder


def test_a_server_captions_with_the_folder_alone(captions, exported):
    """Pillow, NumPy, the tokenizers library and the facts of export.json in place of this project."""
    assert {path.name for path in exported.iterdir()} == NAMES
    facts = json.loads((exported / "export.json").read_text())
    assert (facts["version"], facts["mindspore"]) == (src.__version__, ms.__version__)
    graph = nn.GraphCell(ms.load(str(exported / "captioner.mindir")))
    vocabulary = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    special = set(facts["tokens"].values())
    batch, _, side, _ = facts["graph"]["inputs"]["pixels"]["shape"]
    normalize = facts["preprocessing"]["normalize"]
    served, complete = {}, set()
    for start in range(0, len(FILES), batch):
        group = [FILES[min(start + place, len(FILES) - 1)] for place in range(batch)]
        images = np.stack([np.asarray(Image.open(file).convert("RGB"), np.float64) for file in group])
        assert images.shape == (batch, side, side, 3)  # nothing to resize
        pixels = (images * normalize["scale"] - normalize["mean"]) / normalize["std"]
        ids, lengths = graph(Tensor(pixels.transpose(0, 3, 1, 2), ms.float32))
        assert list(ids.shape) == facts["graph"]["outputs"]["ids"]["shape"]
        for file, row, length in zip(group, ids.asnumpy(), lengths.asnumpy()):
            assert (row[length:] == facts["tokens"]["pad"]).all() and (row[:length] != facts["tokens"]["pad"]).all()
            words = [token for token in row[:length] if token not in special]
            served[file] = vocabulary.decode(words, skip_special_tokens=False)
            complete.add(facts["tokens"]["eos"] in row)
    assert served == captions and complete == {True, False}


def test_eval_takes_the_folder_without_a_configuration(captions, exported, tmp_path):
    out = tmp_path / "out.jsonl"
    done = run("eval.py", "--checkpoint", f"it={exported}", "--images", *map(str, FILES), "--output", str(out))
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {Path(row["image"]): row["captions"]["it"][0]["caption"] for row in rows} == captions


def test_a_folder_is_exported_again_where_the_data_is_not(exported, tmp_path):
    """With another batch; the captions are compared on noise."""
    again = tmp_path / "again"
    done = run("-m", "src.export", "--checkpoint", str(exported), "--output", str(again), "data.root=/absent")
    assert done.returncode == 0 and "captions 16 images of noise as" in done.stdout, done.stderr
    assert json.loads((again / "export.json").read_text())["graph"]["inputs"]["pixels"]["shape"][0] == 1
    assert (again / "tokenizer.json").read_bytes() == (exported / "tokenizer.json").read_bytes()


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def truncated(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])


def other_vocabulary(folder):
    """Of the same size: two words have changed places."""
    library = json.loads((folder / "tokenizer.json").read_text())
    vocab = library["model"]["vocab"]
    first, second = [word for word, place in vocab.items() if place in (5, 6)]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(library))


@pytest.mark.parametrize(
    "damage, words",
    [
        (without_tokenizer, ["tokenizer.json is missing", "copy it again"]),
        (truncated, ["model.safetensors is damaged"]),
        (other_vocabulary, ["model.safetensors", "the vocabulary does not match"]),
    ],
)
def test_a_damaged_folder_is_one_line_and_status_2(exported, tmp_path, damage, words):
    folder = shutil.copytree(exported, tmp_path / "copy")
    damage(folder)
    done = run("eval.py", "--checkpoint", str(folder), "--images", str(FILES[0]), "device=CPU")
    errors = messages(done.stderr)
    assert done.returncode == 2 and len(errors) == 1 and all(word in errors[0] for word in words), done.stderr


def test_another_version_of_mindspore_is_a_warning(exported, monkeypatch, capsys):
    config = load_config(exported / "config.yaml")
    load_policy(config, exported / "model.safetensors", cached=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(ms, "__version__", "9.9.9")
    load_policy(config, exported / "model.safetensors", cached=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning:") and "9.9.9" in line and "2.9" in line


def test_a_graph_that_captions_otherwise_is_status_3_and_no_folder(exported, tmp_path, monkeypatch):
    def plant(folder, graph):
        """The last word has the largest logit while the graph is written."""
        bias = graph.cell.decoder.policy.decoder.output.bias
        before = bias.asnumpy().copy()
        bias.set_data(Tensor(100 * np.arange(len(before)), ms.float32))
        file = write(folder, graph)
        bias.set_data(Tensor(before))
        return file

    write = src.export.mindir.write_mindir
    monkeypatch.setattr(src.export.mindir, "write_mindir", plant)
    monkeypatch.setattr(src.runtime.device, "setup_device", lambda config: "CPU")  # this process has its device already
    arguments = ["--checkpoint", exported, "--output", tmp_path / "out/new"]
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    with pytest.raises(RunStopped, match=r"captioner\.mindir captions 16 of 16 rows") as raised:
        main()
    assert raised.value.exit_status == 3 and list((tmp_path / "out").iterdir()) == []


def test_comparing_finds_another_token_and_another_length():
    ids, lengths = np.array([[5, 3, 0], [5, 6, 3], [5, 6, 3]]), np.array([2, 3, 3])
    exported = (np.array([[5, 3, 0], [5, 7, 3], [5, 6, 3]]), np.array([2, 3, 2]))
    found = compare(lambda pixels: (ids, lengths), lambda pixels: exported, [np.zeros(1), np.zeros(1)])
    assert found[0].tolist() == ids.tolist() * 2 and found[1].tolist() == [False, True, True] * 2


class Shifted(nn.Cell):
    """A cell with one parameter, of 4 kB."""

    def __init__(self):
        super().__init__()
        self.weight = ms.Parameter(Tensor(np.arange(1000)[None], ms.float32))

    def construct(self, x):
        return x + self.weight


@pytest.mark.parametrize(("limit", "name"), [(5, "new.mindir"), (3, "new_graph.mindir")])
def test_a_large_model_is_several_files(tmp_path, monkeypatch, limit, name):
    monkeypatch.setattr(serialization, "TOTAL_SAVE", limit)  # kB
    x = Tensor(np.ones((1, 1000)), ms.float32)
    file = write_mindir(tmp_path, Exported("new", Shifted(), {"x": x}, {}))
    assert file.name == name and (tmp_path / "new_variables").is_dir() == (limit == 3)
    moved = shutil.copytree(tmp_path, tmp_path.with_name(f"moved{limit}"))
    np.testing.assert_array_equal(nn.GraphCell(ms.load(str(moved / name)))(x).asnumpy()[0], np.arange(1000) + 1)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--checkpoint", "a/file", "--output", "new"], "--config is missing"),
        (["--checkpoint", "{run}", "--output", "new"], "is a run folder; pass .*/checkpoints/best"),
        (["--checkpoint", "src", "--output", "new"], r"src is not a complete exported checkpoint.*model\.safetensors"),
        (["--config", "configs/demo/ce.yaml", "--checkpoint", "a/file", "--output", "src"], "src exists"),
        (["--checkpoint", "a/file", "--output", "new", "--batch", "0"], "--batch and --compare must be at least 1"),
    ],
)
def test_what_cannot_be_exported_is_named(flags, message, monkeypatch, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best").touch()
    monkeypatch.setattr(sys, "argv", ["export", *[flag.format(run=tmp_path) for flag in flags]])
    with pytest.raises(InputError, match=message):
        main()


def test_a_configuration_that_is_given_replaces_the_folders(exported):
    assert given_checkpoint(exported, "other.yaml")[1].name == "other.yaml"
    assert given_checkpoint(exported, None) == (exported / "model.safetensors", exported / "config.yaml")
