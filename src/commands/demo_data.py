"""Generate the demo data: python -m src.commands.demo_data [--config configs/demo/ce.yaml] [key=value ...]

train.py, eval.py and the scripts do so by themselves where data.dataset is demo.
"""

import argparse
from pathlib import Path

from src.config.load import load_config
from src.config.schema import Config
from src.runtime.environment import run_program
from src.runtime.errors import InputError
from src.runtime.files import from_root, given_file


def make_demo_data(config: Config) -> None:
    """Write the demo data into data.root unless it is there, or the data set is another. Errors: InputError."""
    if config.data.dataset != "demo":
        return
    from src.demo.generate import generate_demo

    demo = config.demo
    sizes = {"train": demo.train, "val": demo.val, "test": demo.test, "size": config.data.image_size}
    generate_demo(Path(config.data.root), seed=demo.seed, **sizes)


def main() -> None:
    """Parse the command line and write the data."""
    parser = argparse.ArgumentParser("python -m src.commands.demo_data", description="Generate the demo data.")
    parser.add_argument(
        "--config",
        type=given_file,
        default=Path(from_root("configs/demo/ce.yaml")),
        help="a file of configs/demo",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    if config.data.dataset != "demo":
        raise InputError(f"{arguments.config}: data.dataset is {config.data.dataset}; give a file of configs/demo/")
    make_demo_data(config)
    print(f"the demo data is in {config.data.root}")


if __name__ == "__main__":
    run_program(main)
