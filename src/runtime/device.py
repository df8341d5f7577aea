"""The device of a program: its target, graph or PyNative mode, and the seed of the initialisers."""

import ctypes
import logging
import os
from dataclasses import dataclass
from typing import Literal

from src.runtime.environment import say_once
from src.runtime.errors import InputError

TARGETS = ("Ascend", "GPU", "CPU")


@dataclass(frozen=True)
class DeviceSettings:
    """The keys of a configuration that choose where and how a program computes; read before MindSpore is imported."""

    stage: Literal["ce", "grpo", "scst"]
    seed: int
    device: Literal["auto", "Ascend", "GPU", "CPU"]
    device_id: int | None
    jit_level: Literal["O0", "O1"] | None
    deterministic: bool
    precision: Literal["float32", "float16", "bfloat16"]
    mode: Literal["graph", "pynative"]


def setup_device(config: DeviceSettings) -> str:
    """Choose the device and the mode, seed the initialisers, and return the target.

    `device=auto` takes the first of TARGETS that works, and says on stderr why earlier ones do not. Connected workers
    keep the device that they have.
    Errors: InputError with MindSpore's reason if `device` or `device_id` does not work.
    """
    import mindspore as ms
    from mindspore.communication import GlobalComm

    if GlobalComm.INITED:
        return ms.get_context("device_target")
    wanted = TARGETS if config.device == "auto" else (config.device,)
    missing = {}
    for target in wanted:
        reason = _why_not(target, config.device_id)
        if reason is None:
            break
        missing[target] = reason
    else:
        raise InputError(f"device={config.device}: {reason}; see docs/ascend.md, or use device=auto")
    if config.precision == "bfloat16" and target != "Ascend":
        raise InputError(f"precision=bfloat16: MindSpore has no bfloat16 products on {target}; use float16 or float32")
    if missing:
        reasons = "; ".join(f"no {name}: {reason}" for name, reason in missing.items())
        say_once(f"environment: device=auto takes {target} ({reasons})")
    ms.set_context(mode=ms.GRAPH_MODE if config.mode == "graph" else ms.PYNATIVE_MODE)
    if config.jit_level is not None:
        ms.set_context(jit_config={"jit_level": config.jit_level})
    if config.deterministic:
        ms.set_deterministic(True)
    ms.set_seed(config.seed)
    return target


def _why_not(target: str, device_id: int | None) -> str | None:
    """Set the device, or return why that fails. MindFormers' build_context does the same, but imports more slowly."""
    import mindspore as ms

    if target == "GPU":  # MindSpore's message lacks the reason
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            return str(error)
    logger = logging.getLogger(f"ME.mindspore.log.{os.getpid()}")
    logger.addFilter(_is_not_repeated)
    try:
        ms.set_device(target, device_id)
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        plugins = [line.partition(" failed. ")[2] for line in lines if line.startswith("Load dynamic library: ")]
        return next(filter(None, [*plugins, *lines] if target == "Ascend" else lines))
    finally:
        logger.removeFilter(_is_not_repeated)
    return None


def _is_not_repeated(record: logging.LogRecord) -> bool:
    """Drop the libraries that MindSpore's check of the installation names: the error that it raises names them too."""
    return record.module != "_check_version"
