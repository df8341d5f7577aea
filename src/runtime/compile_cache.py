"""Compiled graphs kept between runs: the second start of a program does not compile again.

MindSpore's own cache finds a graph by the order in which a process compiles it, in the first folder that the process
has named, and checks neither constants nor settings. So that folder is named here after everything that the process's
first graph was made from, a file beside each graph says what that one was made from, and the cache is on only while a
graph is compiled that the file fits.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn

from src.runtime.files import ROOT

# What graphs are made of, below src/; editing any other file compiles nothing again.
GRAPH_FILES = ("models/**/*.py", "decoding/*.py", "losses/*.py", "training/optim.py", "training/step.py")

_folder: Path | None = None  # of this process
_graphs = 0  # that this process has kept or found

Compile = Callable[[str, nn.Cell], Callable[..., Any]]  # GraphCache.compile, or a stand-in without a cache


class GraphCache:
    """Where the graphs of a program are kept.

    made_from: whatever the graphs hold as constants, beside the code and their input shapes; JSON values.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any]) -> None:
        self.folder = folder
        digest = hashlib.sha256()
        for file in sorted(file for pattern in GRAPH_FILES for file in (ROOT / "src").glob(pattern)):
            digest.update(file.read_bytes())
        device = [ms.__version__, ms.get_context("device_target"), os.environ.get("ONEDNN_MAX_CPU_ISA")]
        self.made_from = [digest.hexdigest(), device, made_from]

    def compile(self, name: str, cell: nn.Cell) -> Callable[..., Any]:
        """`cell` as a function that is compiled once for all runs. It must always be called with the same shapes."""
        if ms.get_context("mode") != ms.GRAPH_MODE or not Path(sys.argv[0]).is_file():
            return cell  # MindSpore reads the program's file, which a notebook does not have
        compiled: list[bool] = []

        def call(*inputs: Tensor) -> Any:
            if compiled:
                return cell(*inputs)
            compiled.append(True)
            key = hashlib.sha256(json.dumps([self.made_from, name, _shapes(inputs)]).encode()).hexdigest()
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
    """Types and shapes of tensors, nested as they are."""
    if isinstance(inputs, tuple):
        return [_shapes(value) for value in inputs]
    return [str(inputs.dtype), inputs.shape]


@contextlib.contextmanager
def _claimed(folder: Path, key: str) -> Iterator[Path | None]:
    """This process's folder, `folder` if it has none yet, which no other process writes this graph to at the same time.

    None where the next graph there is another than `key`, or where another process is compiling it.
    """
    global _folder, _graphs
    with contextlib.ExitStack() as held:
        taken = _folder or folder
        try:
            taken.mkdir(parents=True, exist_ok=True)
            claim = held.enter_context(open(taken / f"graph_{os.environ.get('RANK_ID', 0)}_{_graphs}", "a+"))
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not waited for: workers of two runs would cross
            claim.seek(0)
            found = claim.read()
            fits = found in ("", key)
            if not found:
                claim.write(key)
                claim.flush()
        except OSError:  # another process has the lock, or the folder cannot be written: nothing is kept
            fits = False
        if fits:
            _folder, _graphs = taken, _graphs + 1
        yield taken if fits else None
