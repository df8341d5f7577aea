"""The phases of a pretrained language model, each measured in a process of its own, for its memory and compile time."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from src.bench.phases import Phase, update_call, waiting_call
from src.bench.sizes import Sizes
from src.config.schema import Config
from src.runtime.text_tables import markdown_table
from src.training import zones

# Each set of phases, and the rank of adapters where it has its own.
RANKS = {"sample": None, "update": 0, "update_adapters": 16}


def language_phase(config: Config, sizes: Sizes, what: str) -> Phase:
    """Sampling from features [B, N, C], or an update of all parameters, or of adapters."""
    rank, rl = RANKS[what], config.rl
    config = config if rank is None else replace(config, lora=replace(config.lora, rank=rank))
    policy = zones.synthetic_policy(config, sizes.vocab, cached=True, ends=False, load=True)
    if what == "sample":
        zone = zones.sampler_zone(config, policy)
        return Phase(what, rl.sample_images * rl.group_size, waiting_call(zone))
    loss = zones.rl_loss_zone(config, policy, rl.update_images)
    return Phase(what, rl.update_images * rl.group_size, update_call(config, policy, loss, rl))


def language_table(cold: Mapping[str, Any], cached: Mapping[str, Any]) -> list[str]:
    """The lines of the report, from the results of each set without and with compiled graphs."""
    rows = []
    for what, result in cold.items():
        (phase,) = result["phases"].values()
        (again,) = cached[what]["phases"].values()
        numbers = (
            phase["seconds"],
            phase["cpu_seconds"],
            phase["captions_per_s"],
            phase["compile_s"],
            again["compile_s"],
        )
        rows.append([what, *(f"{number:.2f}" for number in numbers), f"{result['peak_memory_mb']:,.0f}"])
    columns = [
        "phase",
        "seconds",
        "CPU seconds",
        "captions/s",
        "extra time of the first call, s",
        "... cached, s",
        "MB",
    ]
    return markdown_table(columns, rows)
