"""The world of the tests, and a tiny configuration that those of whole programs share: 64 scenes, seconds per stage."""

import atexit
import contextlib
import functools
import gzip
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pycocoevalcap.meteor import meteor

ROOT = Path(__file__).resolve().parent.parent
USED = ("data", "outputs")  # what using the product leaves in ROOT: no test reads or writes it


def _make_world() -> Path:
    if "CAPTIONER_TESTS" in os.environ:  # a process of pytest-xdist
        return Path(os.environ["CAPTIONER_TESTS"])
    world = Path(tempfile.mkdtemp(prefix="captioner-tests-"))
    atexit.register(shutil.rmtree, world, ignore_errors=True)
    for path in ROOT.iterdir():
        if path.name not in USED and not path.name.startswith("."):
            shutil.copy(path, world) if path.suffix == ".py" else (world / path.name).symlink_to(path)
    os.environ["CAPTIONER_TESTS"] = str(world)
    os.environ["CAPTIONER_GRAPHS"] = str(world / "graphs")  # compiled once for all programs
    return world


def _shorten_meteor(folder: Path) -> None:
    """METEOR with the first thousand of its paraphrases (three lines each): all of them take 6 seconds to load."""
    whole, name = Path(meteor.__file__).parent, "data/paraphrase-en.gz"
    (folder / "data").mkdir(parents=True)
    shutil.copy(whole / meteor.METEOR_JAR, folder)
    with gzip.open(whole / name) as lines, gzip.open(folder / name, "w") as first:
        first.writelines(itertools.islice(lines, 3000))


def _serve_programs(world: Path) -> None:
    """Start the process that programs are forked from, and write what stands for Python (tests/forked_python.py)."""
    here = Path(__file__).resolve().parent
    with open(world / "fork_server.log", "w") as log:  # MindFormers warns when it is imported
        server = [sys.executable, here / "fork_server.py", "programs", str(os.getpid())]
        subprocess.Popen(server, cwd=world, stdout=log, stderr=log)
    command = [os.path.realpath(sys.executable), "-IS", str(here / "forked_python.py"), str(world / "programs")]
    (world / "bin").mkdir()
    (world / "bin/python").write_text(f'#!/bin/sh\nexec {shlex.join([*command, sys.executable])} "$@"\n')
    (world / "bin/python").chmod(0o755)


WORLD = _make_world()  # the root of one run of the tests: they, and the programs that they start, run there
PYTHON = str(WORLD / "bin/python")  # of programs; sys.executable for those whose environment or interpreter matters
sys.path.insert(0, str(WORLD))

from src.demo.generate import generate_demo  # noqa: E402
from src.runtime.environment import prepare_environment  # noqa: E402

prepare_environment(convolutions=True)  # before MindSpore is imported, here or there
if not (WORLD / "bin").exists():
    _shorten_meteor(WORLD / "meteor")
    _serve_programs(WORLD)
meteor.__file__ = str(WORLD / "meteor/meteor.py")

TINY = [
    *("demo.train=64", "demo.val=16", "demo.test=16", "tokenizer.min_count=2", "log_every=1", "device=CPU"),
    *("caprl.questions=null", "eval.samples=0"),
    *("decoder.width=32", "decoder.heads=2", "decoder.feed_forward=64", "decoder.positions=16"),
    *(
        "ce.epochs=3",
        "ce.patience=0",
        "ce.batch_images=32",
        "ce.tokens=12",
        "eval.batch_images=16",
        "eval.tokens=5",
        "eval.every=1",
    ),
    *("rl.rollouts=2", "rl.rollout_images=8", "rl.sample_images=8", "rl.update_images=4", "rl.tokens=5"),
    "rl.group_size=3",
]


@functools.cache
def tiny_data() -> Path:
    """The folder of the 64 scenes, made once per test session."""
    root = Path(tempfile.mkdtemp(prefix="tiny-demo-")) / "demo"
    generate_demo(root, train=64, val=16, test=16, size=64)
    return root


CHINESE = {"red": "红色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色", "white": "白色"}
CHINESE |= {"circle": "圆", "square": "方块", "triangle": "三角形", "star": "星星", "ring": "圆环", "heart": "心"}
CHINESE |= {"small": "小", "large": "大"}


def chinese_data(root: Path, translate: Callable[[str], str] = str) -> Path:
    """The 64 scenes with three Chinese captions each, in `root`, with links to the images. translate: of a caption."""
    (root / "annotations").mkdir(parents=True)
    (root / "images").symlink_to(tiny_data() / "images")
    for split in ("train", "val", "test"):
        data = json.loads((tiny_data() / f"annotations/captions_{split}.json").read_text())
        rows = [
            {"id": 3 * place + number, "image_id": image["id"], "caption": translate(caption)}
            for place, image in enumerate(data["images"])
            for number, caption in enumerate(chinese_captions(image["scene"]))
        ]
        text = json.dumps(data | {"annotations": rows}, ensure_ascii=False)
        (root / f"annotations/captions_{split}.json").write_text(text, encoding="utf-8")
    return root


def chinese_captions(scene: dict) -> list[str]:
    """What is there, and where, with mixed and full-width letters, and punctuation."""
    things = [CHINESE[o["size"]] + CHINESE[o["colour"]] + CHINESE[o["shape"]] for o in scene["objects"]]
    listed = "和".join(f"一个{thing}" for thing in things)
    return [
        f"图中有{listed}。",
        f"{listed}，在Ｔ恤上",
        f"{things[0]}在picture{'右边' if len(things) > 1 else '中间'}！",
    ]


@functools.cache
def tiny_mixture() -> list[str]:
    """All rewards, combined by GDPO, with questions about the 64 scenes; caprl.base_url is still to be given."""
    images = json.loads((tiny_data() / "annotations/captions_train.json").read_text())["images"]
    question = {"question": "what is there", "options": ["circle", "square", "star"], "answer": "circle"}
    lines = [json.dumps({"image_id": image["id"], **question}) + "\n" for image in images]
    (tiny_data() / "questions_train.jsonl").write_text("".join(lines))
    rewards = [f"rewards.{name}=1" for name in ("cider", "caprl", "length", "repetition")]
    caprl = ["caprl.questions=questions_{split}.jsonl", "caprl.answerer=server", "caprl.model=m", "caprl.retries=0"]
    return [*rewards, *caprl, "advantage.combine=gdpo", "length.least=3"]


def documented(section: str) -> set[str]:
    """The names in the first column of a section's table in docs/metrics.md."""
    text = (ROOT / "docs/metrics.md").read_text().partition(f"## {section}")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return {word.strip() for row in rows for word in row.split("|")[1].split(",")}


def messages(stderr: str) -> list[str]:
    """The lines of a program's stderr but those of its environment, and of progress, whose number depends on speed."""
    return [line for line in stderr.splitlines() if not re.match(r"environment: |.*: +\d+% \d+/\d+ \[", line)]


def free_port() -> int:
    """The first of eight ports that are free, below those that the system gives to whoever asks for any."""
    while True:
        first = random.randrange(10_000, 32_000, 8)
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + 8):
                held.enter_context(socket.create_server(("", port)))
            return first


def take_ctrl_c() -> None:
    """For a child's preexec_fn: as in a terminal, also where the tests are a shell's job in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*command: str, python: str = PYTHON, **options) -> subprocess.CompletedProcess:
    """Run a Python program of the project in WORLD."""
    return subprocess.run([python, *command], cwd=WORLD, capture_output=True, text=True, **options)
