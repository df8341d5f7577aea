"""The JSON files of a pretrained model's folder in Hugging Face's layout. They are not trusted."""

import hashlib
import json
from pathlib import Path
from typing import Any

from src.config.kinds import Preprocessing
from src.runtime.errors import InputError, one_line


def read_json(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    """Read a JSON object of a model's folder; {} if it is missing and `optional`. Errors: InputError naming it."""
    path = folder / name
    if not path.is_file():
        if optional:
            return {}
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist, or is not a folder; give the folder of a pretrained model")
        raise InputError(
            f"{folder} is not a pretrained model: {name} is missing; use a folder in Hugging Face's layout"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}; copy it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it does not hold a JSON object; copy it again")
    return value


def config_digest(folder: Path | None) -> str:
    """Return the SHA-256 of config.json, hexadecimal: it holds constants that no tensor holds. Empty without folder."""
    if folder is None:
        return ""
    read_json(folder, "config.json")
    return hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()


_RESAMPLING = {2: "bilinear, antialiased", 3: "bicubic, antialiased"}  # Pillow's numbers
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read mean, deviation, scale and resampling of pixels from preprocessor_config.json.

    transformers 5 writes them into processor_config.json. Errors: InputError naming the file.
    """
    name, newer = "preprocessor_config.json", "processor_config.json"
    settings = read_json(folder, newer, optional=True).get("image_processor")
    if (folder / name).is_file() or not isinstance(settings, dict):
        settings = read_json(folder, name)
    else:
        name = newer
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    mean, std = settings.get("image_mean", _CLIP_MEAN), settings.get("image_std", _CLIP_STD)
    if not settings.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    resample = settings.get("resample", 3)
    numbers = [
        *(mean if isinstance(mean, list | tuple) else ()),
        *(std if isinstance(std, list | tuple) else ()),
        scale,
    ]
    if len(numbers) != 7 or not all(type(number) in (int, float) for number in numbers) or min(numbers[3:]) <= 0:
        raise InputError(f"{folder / name}: image_mean, image_std and rescale_factor are not usable; copy it again")
    if not isinstance(resample, int) or resample not in _RESAMPLING:
        raise InputError(f"{folder / name}: resample={resample} is not supported; use 2 (bilinear) or 3 (bicubic)")
    return Preprocessing(float(scale), tuple(mean), tuple(std), _RESAMPLING[resample])
