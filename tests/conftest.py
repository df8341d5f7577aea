"""Fixtures: a tiny model and both execution modes. The environment is prepared before MindSpore is imported."""

import os
import sys

for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]  # the tests talk with servers of their own on this machine

from tiny import ROOT, USED, WORLD  # noqa: E402

os.chdir(WORLD)
_USED = tuple(f"{ROOT / name}{os.sep}" for name in USED)


def _refuse_used(event: str, arguments: tuple) -> None:
    """Python calls this before it opens or lists a file."""
    if event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove"):
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and os.path.join(path, "").startswith(_USED):  # relative: in WORLD
            raise AssertionError(f"a test reads or writes {path}, which using the product leaves in the tree")


sys.addaudithook(_refuse_used)

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from src.config.schema import DecoderConfig  # noqa: E402
from src.data.tokenizer import TokenIds  # noqa: E402
from src.models.captioner.decoder import Decoder  # noqa: E402
from src.models.captioner.policy import Captioner  # noqa: E402

PAD, BOS, EOS = 0, 2, 3  # 1 is UNK
VOCAB = 13
CHANNELS = 6

# Files that take a minute or more: begun first, so that no process waits for one at the end.
LONG = ["test_workers.py", "test_captioning_run.py", "test_pipeline.py", "test_comparison.py", "test_resume.py"]
LONG += ["test_policy.py", "test_caprl_run.py", "test_export.py", "test_extend.py", "test_encoder.py"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    """Runs a test in both modes."""
    ms.set_context(mode=ms.GRAPH_MODE if request.param == "graph" else ms.PYNATIVE_MODE)
    yield request.param
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="session")
def allowed():
    """Ids that the tiny policy may produce: not PAD, UNK, BOS, nor the last id."""
    mask = np.ones(VOCAB, bool)
    mask[[0, 1, 2, VOCAB - 1]] = False
    return mask


def build_captioner(allowed, dtype=ms.float32):
    """A two-layer captioner on cached features [B, N, 6] with lively random weights."""
    ms.set_seed(1)
    config = DecoderConfig(
        layers=2, width=16, heads=2, feed_forward=24, dropout=0.0, embedding_dropout=None, positions=8
    )
    token_ids = TokenIds(PAD, BOS, (EOS,), allowed)
    model = Captioner(None, Decoder(config, CHANNELS, allowed, dtype), token_ids, cached=True).set_train(False)
    rng = np.random.default_rng(0)
    for parameter in model.get_parameters():
        parameter.set_data(ms.Tensor(rng.normal(0, 0.5, parameter.shape).astype(np.float32)))
    return model


@pytest.fixture(scope="session")
def captioner(allowed):
    return build_captioner(allowed)


@pytest.fixture(scope="session")
def half_captioner(allowed):
    """The same weights, with products in float16."""
    return build_captioner(allowed, ms.float16)


@pytest.fixture(scope="session")
def features():
    """Cached features float16 [2, 4, 6]."""
    return ms.Tensor(np.random.default_rng(1).normal(size=(2, 4, CHANNELS)).astype(np.float16))
