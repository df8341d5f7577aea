"""The device of a program: target with fallback, graph or PyNative mode, seeds of the initialisers."""

import ctypes
import logging
from dataclasses import dataclass
from typing import Literal

from src.runtime.environment import say_once
from src.runtime.errors import InputError

TARGETS = ("Ascend", "GPU", "CPU")


@dataclass(frozen=True)
class DeviceSettings:
    """The keys of a configuration that say where and how a program computes. Read before MindSpore is imported."""

    stage: Literal["ce", "grpo", "scst"]
    seed: int
    device: Literal["auto", "Ascend", "GPU", "CPU"]
    device_id: int | None
    jit_level: Literal["O0", "O1"] | None
    deterministic: bool
    precision: Literal["float32", "float16", "bfloat16"]
    mode: Literal["graph", "pynative"]


def setup_device(config: DeviceSettings) -> str:
    """Choose the device and the mode, and seed the initialisers. Returns the target taken.

    `device=auto` takes the first of TARGETS that is there, and says on stderr why not one before. Where workers have
    connected, their device is set already and cannot be again.
    Errors: InputError where `device` or `device_id` names what is not there, with the reason that MindSpore gives.
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
        raise InputError(f"precision=bfloat16: MindSpore has no such products on {target}; take float16 or float32")
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
    """Take a device, as MindFormers' build_context does, whose import takes longer than MindSpore's; or say why not."""
    import mindspore as ms

    if target == "GPU":  # MindSpore's message does not hold the reason
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            return str(error)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # MindSpore logs what it raises
    try:
        ms.set_device(target, device_id)
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        plugins = [line.partition(" failed. ")[2] for line in lines if line.startswith("Load dynamic library: ")]
        reasons = [*plugins, *lines] if target == "Ascend" else lines
        return next(filter(None, reasons))
    finally:
        logging.disable(level)
    return None
