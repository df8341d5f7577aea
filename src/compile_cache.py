"""Compiled graphs kept between runs: the second start of a program does not compile again.

MindSpore's own cache finds a graph by the order in which a process compiles it, in the first folder that the process
has named, and checks neither constants nor settings. So that folder is named here after everything that the process's
first graph was made from, a file beside each graph says what that one was made from, and the cache is on only while a
graph is compiled that the file fits.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn

_SOURCES = Path(__file__).parent

_folder: Path | None = None  # of this process
_graphs = 0  # that this process has kept or found

Keep = Callable[[str, nn.Cell], Callable[..., Any]]  # GraphCache.keep, or a stand-in without a cache


class GraphCache:
    """Where the graphs of a program are kept.

    made_from: whatever the graphs hold as constants, beside the code and their input shapes; JSON values.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any]) -> None:
        self.folder = folder
        digest = hashlib.sha256()
        for file in sorted(_SOURCES.rglob("*.py")):
            digest.update(file.read_bytes())
        device = [ms.__version__, ms.get_context("device_target"), os.environ.get("ONEDNN_MAX_CPU_ISA")]
        self.made_from = [digest.hexdigest(), device, made_from]

    def keep(self, name: str, cell: nn.Cell) -> Callable[..., Any]:
        """`cell` as a function that is compiled once for all runs. It must always be called with the same shapes."""
        if ms.get_context("mode") != ms.GRAPH_MODE or not Path(sys.argv[0]).is_file():
            return cell  # MindSpore reads the program's file, which a notebook does not have
        compiled: list[bool] = []

        def call(*inputs: Tensor) -> Any:
            if compiled:
                return cell(*inputs)
            compiled.append(True)
            shapes = [[str(value.dtype), value.shape] for value in inputs]
            key = hashlib.sha256(json.dumps([self.made_from, name, shapes]).encode()).hexdigest()
            folder = _claim(self.folder / key[:32], key)
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


def _claim(folder: Path, key: str) -> Path | None:
    """This process's folder, `folder` if it has none yet; None where the next graph there is another than `key`."""
    global _folder, _graphs
    _folder = _folder or folder
    claim = _folder / f"graph_{os.environ.get('RANK_ID', 0)}_{_graphs}"
    try:
        _folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), open(claim, "x") as file:  # another process may come to it now
            file.write(key)
        if claim.read_text() != key:
            return None
    except OSError:  # a folder that cannot be written: nothing is kept
        return None
    _graphs += 1
    return _folder
