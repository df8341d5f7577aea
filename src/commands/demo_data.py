"""The demo data, which every command generates if data.dataset is demo and the data is missing."""

from pathlib import Path

from src.config.schema import Config


def make_demo_data(config: Config) -> None:
    """Write the demo data into data.root if data.dataset is demo and the data is missing. Errors: InputError."""
    if config.data.dataset != "demo":
        return
    from src.demo.generate import generate_demo

    demo = config.demo
    sizes = {"train": demo.train, "val": demo.val, "test": demo.test, "size": config.data.image_size}
    generate_demo(Path(config.data.root), seed=demo.seed, **sizes)
