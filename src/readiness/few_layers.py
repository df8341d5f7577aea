"""A large pretrained model is judged by graphs of few layers: all layers of a kind compile to the same operators, and
what they take grows linearly with their number.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from src.config.schema import Config
from src.data.model_folder import read_json
from src.models.vision_language.architecture import language_sizes, tower_sizes

_FEW, _MORE = 2, 4  # of the tower's blocks, one has full attention: in Qwen2.5-VL 28 of 32 look within windows
Variant = tuple[list[str], float]  # overrides, and the weight of what is measured with them


def variants(config: Config, scratch: Path) -> Iterator[Variant]:
    """Yield what to measure: the sum of the results times their weights is that of the configuration.

    scratch: a folder for the model's config.json with other numbers of layers.
    """
    if not config.policy.is_pretrained:
        yield [], 1.0
        return
    source = Path(config.policy.path or "")
    layers, sees = language_sizes(source).layers, config.policy.kind == "qwen2_5_vl"
    more = (layers - _FEW) / (_MORE - _FEW)
    more_blocks = (tower_sizes(source).layers - _FEW) / (_MORE - _FEW) if sees else 0.0
    yield [_shortened(source, scratch / "few", _FEW, _FEW)], 1.0 - more - more_blocks
    yield [_shortened(source, scratch / "more", _MORE, _FEW)], more
    if sees:
        yield [_shortened(source, scratch / "more_blocks", _FEW, _MORE)], more_blocks


def _shortened(source: Path, folder: Path, layers: int, blocks: int) -> str:
    """Write config.json with other numbers of layers and of the tower's blocks; return the override."""
    config = read_json(source, "config.json")
    for section in (config, config.get("text_config", {})):
        section["num_hidden_layers"] = layers
    config.get("vision_config", {}).update(depth=blocks, fullatt_block_indexes=[1])
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"policy.path={folder}"
