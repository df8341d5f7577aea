"""Serve a page on this machine that captions the photographs dropped on it.

python -m src.captioning.serve --checkpoint [NAME=]PATH... [--config FILE] [--host ADDRESS] [--port N] [key=value ...]
Uploads are kept in a temporary folder, which is deleted at the end; nothing is fetched from or sent to other machines.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from src.captioning.arguments import read_image_arguments
from src.captioning.page import Shown, small_picture
from src.config.load import load_config
from src.config.schema import Config
from src.data.photographs import Photograph, read_photograph
from src.runtime.environment import prepare_environment, run_program
from src.runtime.errors import InputError
from src.runtime.files import from_root, given_file

_DEFAULTS = ["eval.beams=3", "eval.samples=5"]  # a page is for looking at captions; key=value overrides them
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Unused by a page that contacts no other machine; gradio would contact the page itself through a proxy.
_NETWORK = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir")


class PageModel:
    """Checkpoints behind a page. One thread does all their work, because MindSpore's mode belongs to a thread."""

    def __init__(self, config: Config, checkpoints: Mapping[str, Path]) -> None:
        """Load and compile. Errors: InputError if a checkpoint does not fit."""
        self.names = list(checkpoints)
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(self._load, config, checkpoints).result()

    def _load(self, config: Config, checkpoints: Mapping[str, Path]) -> None:
        from src.captioning.captioners import Captioners
        from src.runtime.device import setup_device
        from src.runtime.workers import Workers

        setup_device(config)
        self._captioners = Captioners(config, checkpoints, Workers())
        self._show(Photograph(np.full((8, 8, 3), 128, np.uint8), 0))  # compiles

    def _show(self, photograph: Photograph) -> Shown:
        prepared = self._captioners.prepare(photograph)
        (captions,) = self._captioners([prepared])
        return Shown(small_picture(photograph.pixels), captions, self._captioners.attend(prepared, captions))

    def show(self, path: str) -> Shown:
        """Caption an image file. Raises UnusableImage."""
        return self._thread.submit(self._show, read_photograph(path)).result()


def main() -> None:
    """Load the checkpoints, and serve the page until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser("scripts/run_demo.sh", description="Caption photographs on a local page.")
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="[NAME=]PATH", help="one or more checkpoints")
    config_help = "the configuration of the training (default: an exported folder's, or the demo's)"
    parser.add_argument("--config", type=given_file, help=config_help)
    parser.add_argument("--host", default=_LOOPBACK[0], help="address to listen on (default: only this machine)")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    parser.set_defaults(images=["on the page"], output=None)
    arguments = parser.parse_intermixed_args()
    if not 0 < arguments.port < 65_536:
        raise InputError(f"--port {arguments.port}: choose a port from 1 to 65535")
    checkpoints = read_image_arguments(arguments, Path(from_root("configs/demo/grpo.yaml")))
    config = load_config(arguments.config, [*_DEFAULTS, *arguments.overrides])
    with tempfile.TemporaryDirectory(prefix="captions-page-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}  # read at its import
        for name in [name for name in os.environ if name.lower() in _NETWORK]:
            del os.environ[name]
        prepare_environment(convolutions=True)
        try:
            from src.captioning.gradio_page import serve_page
        except ModuleNotFoundError as error:
            fix = "start the page with scripts/run_demo.sh, which installs it"
            raise InputError(f"{error.name} is not installed; {fix}") from None
        if arguments.host not in _LOOPBACK:
            print(f"warning: anyone who can reach {arguments.host}:{arguments.port} can use the page", file=sys.stderr)
        print("loading and compiling", file=sys.stderr)
        serve_page(PageModel(config, checkpoints), arguments.host, arguments.port)
        print(f"the page is http://{arguments.host}:{arguments.port} (Ctrl-C ends it)", flush=True)
        while True:
            signal.pause()


if __name__ == "__main__":
    run_program(main)
