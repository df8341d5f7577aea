"""Compiled graphs kept between runs: the second start of a program does not compile again.

MindSpore's cache finds a graph by the order in which a process compiles it, in the first folder that the process names,
and checks neither constants nor settings. Here, that folder is named after everything that the process's first graph
depends on, a file beside each graph holds the digest of what that one depends on, and the cache is on only while a
graph is compiled that matches its file.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn

from src.runtime.files import ROOT, lock

# Files below src/ that graphs depend on; editing any other file does not recompile a graph.
GRAPH_FILES = (
    *("models/**/*.py", "decoding/*.py", "losses/*.py", "training/optim.py", "training/step.py"),
    *(
        "config/kinds.py",
        "data/chat_template.py",
        "data/model_folder.py",
        "data/pretrained_tokenizer.py",
        "data/tokenizer.py",
    ),  # constants of graphs
)

_folder: Path | None = None  # of this process
_graphs = 0  # kept or found by this process

Compile = Callable[[str, nn.Cell], Callable[..., Any]]  # GraphCache.compile, or a stand-in without a cache


class GraphCache:
    """The cache of a program's graphs.

    made_from: all constants in the graphs, which depend also on the code, their parameters and the shapes of their
    inputs; JSON values.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any]) -> None:
        self.folder = folder
        digest = hashlib.sha256()
        for file in sorted(file for pattern in GRAPH_FILES for file in (ROOT / "src").glob(pattern)):
            digest.update(file.read_bytes())
        device = [ms.__version__, ms.get_context("device_target"), os.environ.get("ONEDNN_MAX_CPU_ISA")]
        self.made_from = [digest.hexdigest(), device, made_from]

    def compile(self, name: str, cell: nn.Cell) -> Callable[..., Any]:
        """Return `cell` as a function that is compiled once for all runs. Always call it with the same shapes."""
        if ms.get_context("mode") != ms.GRAPH_MODE or not Path(sys.argv[0]).is_file():
            return cell  # MindSpore reads the program's file, which a notebook lacks
        compiled: list[bool] = []

        def call(*inputs: Tensor) -> Any:
            if compiled:
                return cell(*inputs)
            compiled.append(True)
            held = [[path, *_shapes(one)] for path, one in cell.parameters_and_names()]
            key = hashlib.sha256(json.dumps([self.made_from, name, held, _shapes(inputs)]).encode()).hexdigest()
            with _claimed(self.folder / key[:32], key) as folder:
                if folder is None:
                    return cell(*inputs)
                settings = {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": str(folder)}
                before = {variable: os.environ.get(variable) for variable in settings}
                os.environ.update(settings)
                try:
                    return cell(*inputs)
                finally:
                    for variable, value in before.items():
                        os.environ.pop(variable)
                        if value is not None:
                            os.environ[variable] = value

        return call


def _shapes(inputs: Any) -> Any:
    """Return the types and shapes of nested tensors."""
    if isinstance(inputs, tuple):
        return [_shapes(value) for value in inputs]
    return [str(inputs.dtype), inputs.shape]


@contextlib.contextmanager
def _claimed(folder: Path, key: str) -> Iterator[Path | None]:
    """Yield this process's folder, `folder` if it has none yet, locked for the next graph.

    None if the next graph there is not `key`, if another process is compiling it, or if nothing can be written.
    """
    global _folder, _graphs
    fits, taken = False, _folder or folder
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            taken.mkdir(parents=True, exist_ok=True)
            claim = held.enter_context(open(taken / f"graph_{os.environ.get('RANK_ID', 0)}_{_graphs}", "a+"))
            if lock(claim):  # without waiting: workers of two runs would wait for each other
                claim.seek(0)
                found = claim.read()
                if not found:
                    claim.write(key)
                    claim.flush()
                fits = found in ("", key)
        if fits:
            _folder, _graphs = taken, _graphs + 1
        yield taken if fits else None
