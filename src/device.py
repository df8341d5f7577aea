"""The device of a program: target with fallback, graph or PyNative mode, seeds of the initialisers."""

import mindspore as ms
from mindspore.communication import GlobalComm

from src.config import Config
from src.errors import InputError

TARGETS = ("Ascend", "GPU", "CPU")


def setup_device(config: Config) -> str:
    """Choose the device and the mode, and seed the initialisers. Returns the target taken.

    Where workers have connected, their device is set already and cannot be again.

    Errors: InputError where `device` names a target that this MindSpore or this machine lacks.
    """
    if GlobalComm.INITED:
        return ms.get_context("device_target")
    if config.device == "auto":
        target = next(name for name in TARGETS if ms.hal.is_available(name))
    elif ms.hal.is_available(config.device):
        target = config.device
    else:
        raise InputError(
            f"device={config.device}: this MindSpore {ms.__version__} finds no such device; use device=auto, "
            "or install the MindSpore and the driver that belong together"
        )
    mode = ms.GRAPH_MODE if config.mode == "graph" else ms.PYNATIVE_MODE
    ms.set_device(target)  # as MindFormers' build_context does, whose import takes longer than MindSpore's
    ms.set_context(mode=mode)
    ms.set_seed(config.seed)
    return target
