"""Generate the demo data: python -m src.commands.demo_data [--config configs/demo/ce.yaml] [key=value ...]

train.py, eval.py and the scripts do so automatically if data.dataset is demo.
"""

from pathlib import Path

from src.config.load import config_parser, load_config
from src.config.schema import Config
from src.runtime.environment import run_program
from src.runtime.errors import InputError


def make_demo_data(config: Config) -> None:
    """Write the demo data into data.root if data.dataset is demo and the data is missing. Errors: InputError."""
    if config.data.dataset != "demo":
        return
    from src.demo.generate import generate_demo

    demo = config.demo
    sizes = {"train": demo.train, "val": demo.val, "test": demo.test, "size": config.data.image_size}
    generate_demo(Path(config.data.root), seed=demo.seed, **sizes)


def main() -> None:
    """Parse the command line and write the data."""
    default = {"default": "configs/demo/ce.yaml", "help": "a file of configs/demo/"}
    parser = config_parser("Generate the demo data.", "python -m src.commands.demo_data", **default)
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    if config.data.dataset != "demo":
        raise InputError(f"{arguments.config}: data.dataset is {config.data.dataset}; use a file of configs/demo/")
    make_demo_data(config)
    print(f"the demo data is in {config.data.root}")


if __name__ == "__main__":
    run_program(main)
