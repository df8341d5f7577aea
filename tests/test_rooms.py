"""The rooms of src: imports point down the list, never up nor sideways."""

import ast

import pytest
from tiny import ROOT

SRC = ROOT / "src"
ROOMS = [
    ["commands"],
    ["captioning", "export", "bench", "readiness"],
    ["evaluation"],
    ["training"],
    ["demo"],
    ["rl"],
    ["losses"],
    ["rewards", "decoding"],
    ["models"],
    ["data"],
    ["config"],
    ["runtime"],
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(path for path in SRC.rglob("*.py") if path.parent != SRC)


def imported_rooms(source: str) -> set[str]:
    """The rooms that a file imports from, at its top, in functions, or for types alone."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names]
    return {rest[0] for package, *rest in parts if package == "src" and rest and rest[0] in LEVEL}


def wrong(room: str, source: str) -> set[str]:
    """The rooms that a file of `room` must not import from."""
    return {other for other in imported_rooms(source) if other != room and LEVEL[other] <= LEVEL[room]}


def test_nothing_lies_outside_the_rooms():
    assert [path.name for path in SRC.iterdir() if path.is_file()] == ["__init__.py"]
    folders = {path.name for path in SRC.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_imports_point_down(path):
    assert not wrong(path.relative_to(SRC).parts[0], path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("models", "from src.rl.rollout import Rollout", {"rl"}),
        ("models", "def f():\n    import src.training.run", {"training"}),
        ("rewards", "from src.decoding import beam", {"decoding"}),
        ("rewards", "if TYPE_CHECKING:\n    from src import rl", {"rl"}),
        (
            "rl",
            "from src.models.layers import Linear\nfrom src.rl.rollout import Rollout\nfrom src import __version__",
            set(),
        ),
    ],
)
def test_an_import_that_points_up_is_found(room, source, found):
    assert wrong(room, source) == found
