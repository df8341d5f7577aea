"""Export a checkpoint as one folder, with MindIR graphs for servers and the files that eval.py needs.

python -m src.export --config FILE --checkpoint PATH --output FOLDER [--batch 1] [--compare 16] [key=value ...]
The graphs are read back and must caption test images, or noise if the data is missing, exactly like the checkpoint;
otherwise the exit status is 3, and no folder is written.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from src import __version__
from src.config.load import load_config, whole, write_tree
from src.config.schema import Config
from src.models.folder import CONFIG, FACTS, MODEL, TOKENIZER, given_checkpoint
from src.runtime.environment import prepare_environment, run_program
from src.runtime.errors import InputError, RunStopped
from src.runtime.files import given_file, given_path, new_folder


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser("python -m src.export", description="Export a checkpoint and its MindIR graphs.")
    parser.add_argument("--config", type=given_file, help="the YAML file that the checkpoint was trained with")
    parser.add_argument("--checkpoint", type=given_file, required=True, help="a checkpoint, or an exported folder")
    parser.add_argument("--output", type=given_path, required=True, help="the folder to write; it must not exist")
    parser.add_argument(
        "--format",
        choices=("mindir", "huggingface", "peft"),
        default="mindir",
        help="huggingface: the folder of a pretrained language model, adapters merged; peft: its adapters alone",
    )
    parser.add_argument("--batch", type=int, default=1, help="images per call of a graph")
    parser.add_argument("--compare", type=int, default=16, help="number of images to compare captions for")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    arguments = parser.parse_intermixed_args()
    if min(arguments.batch, arguments.compare) < 1:
        raise InputError("--batch and --compare must be at least 1")
    checkpoint, file = given_checkpoint(arguments.checkpoint, arguments.config)
    config = load_config(file, [*arguments.overrides, "mode=graph"])  # MindIR requires it
    prepare_environment(convolutions=True)
    with new_folder(arguments.output) as folder:
        if arguments.format == "mindir":
            message = export_graphs(config, checkpoint, folder, arguments.batch, arguments.compare)
        else:
            message = export_pretrained(config, checkpoint, folder, arguments.format)
    print(f"{arguments.output}: {message}")


def export_graphs(config: Config, checkpoint: Path, folder: Path, batch: int, compare: int) -> str:
    """Write checkpoint, settings and MindIR graphs, and compare their captions. Returns what to say about it.

    Raises RunStopped if captions differ.
    """
    import mindspore as ms

    from src.export import mindir
    from src.models.build import load_policy
    from src.models.checkpoint import read_state
    from src.runtime.device import setup_device
    from src.training.checkpoint import save_checkpoint

    setup_device(config)
    policy, tokenizer = load_policy(config, checkpoint, cached=False)
    images, batches = mindir.compared_pixels(config, compare, batch)
    versions = {"version": __version__, "mindspore": ms.__version__}
    save_checkpoint(folder / MODEL, policy, read_state(checkpoint) | versions)
    write_tree(whole(replace(config, device="auto", device_id=None)), folder / CONFIG)  # for other machines
    tokenizer.save(folder / TOKENIZER)
    graphs = mindir.graphs_of(policy, config, batch)
    files = {name: mindir.write_mindir(folder, graph) for name, graph in graphs.items()}
    facts = mindir.server_facts(config, tokenizer)
    facts |= {name: mindir.graph_facts(graph, files[name]) for name, graph in graphs.items()}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    exported = mindir.load_mindir(files, graphs, tokenizer.token_ids)
    ids, differs = mindir.compare(mindir.captions_of(policy, config.eval.tokens), exported, batches)
    written = " with ".join(file.name for file in files.values())
    if differs.any():
        raise RunStopped(
            f"{written} captions {differs.sum()} of {len(ids)} rows of {images} differently from {checkpoint}; "
            "nothing was written"
        )
    distinct = len({tokenizer.decode(row) for row in ids})
    return f"{written} captions {images} as {checkpoint} does, token by token ({distinct} different captions)"


def export_pretrained(config: Config, checkpoint: Path, folder: Path, form: str) -> str:
    """Write what transformers or PEFT loads. Returns what to say about it. Raises InputError for other policies."""
    from src.export.hugging_face import write_adapter, write_model
    from src.models.build import load_policy
    from src.models.vision_language.policy import LanguagePolicy
    from src.runtime.device import setup_device

    if not config.policy.is_pretrained:
        raise InputError(f"--format {form} is for policy.kind prefix_lm or qwen2_5_vl; export MindIR instead")
    if form == "peft" and config.lora.rank == 0:
        raise InputError("--format peft: lora.rank=0 has no adapters; use --format huggingface")
    if form == "peft" and config.policy.kind == "qwen2_5_vl" and config.encoder.trainable:
        raise InputError("--format peft: the vision tower was trained and is no adapter; use --format huggingface")
    setup_device(config)
    policy, _ = load_policy(config, checkpoint, cached=False)
    assert isinstance(policy, LanguagePolicy)
    (write_adapter if form == "peft" else write_model)(policy, config, folder)
    elsewhere = "; the encoder is in the checkpoint alone" if policy.projector and policy.keeps_encoder else ""
    return f"the language model of {checkpoint}, for transformers{' and PEFT' if form == 'peft' else ''}{elsewhere}"


if __name__ == "__main__":
    run_program(main)
