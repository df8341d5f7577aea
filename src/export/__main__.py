"""Export a checkpoint as one folder: for servers a MindIR graph, and for this project what eval.py takes.

python -m src.export --config FILE --checkpoint PATH --output FOLDER [--batch 1] [--compare 16] [key=value ...]
The graph is read back and has to caption test images, or noise where the data is not there, token by token as the
checkpoint does; else the status is 3, and there is no folder.
"""

import argparse
import json
import tempfile
from pathlib import Path

from src.config.load import load_config
from src.models.folder import FACTS, GRAPH, given_checkpoint
from src.runtime.environment import prepare_environment, run_program
from src.runtime.errors import InputError, RunStopped
from src.runtime.files import given_file, given_path


def main() -> None:
    """Parse the command line, write the folder and print a line."""
    parser = argparse.ArgumentParser(
        "python -m src.export", description="Export a checkpoint as one folder, with a MindIR graph."
    )
    parser.add_argument("--config", type=given_file, help="the YAML file that the checkpoint was trained with")
    parser.add_argument("--checkpoint", type=given_file, required=True, help="a checkpoint, or an exported folder")
    parser.add_argument("--output", type=given_path, required=True, help="the folder to write; it must not exist")
    parser.add_argument("--batch", type=int, default=1, help="images per call of the graph")
    parser.add_argument("--compare", type=int, default=16, help="images whose captions are compared")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args()
    if min(arguments.batch, arguments.compare) < 1:
        raise InputError("--batch and --compare must be at least 1")
    checkpoint, file = given_checkpoint(arguments.checkpoint, arguments.config)
    config = load_config(file, [*arguments.overrides, "mode=graph"])  # which a MindIR is
    output = arguments.output
    if output.exists():
        raise InputError(f"--output {output} exists; name another folder, or delete it")
    prepare_environment(convolutions=True)

    from src.decoding.sampler import GreedyDecoder
    from src.export.contents import compared_pixels, server_facts, write_checkpoint_folder
    from src.export.mindir import compare, load_mindir, write_mindir
    from src.models.build import load_policy
    from src.runtime.device import setup_device

    setup_device(config)
    policy, tokenizer = load_policy(config, checkpoint, cached=False)
    decoder = GreedyDecoder(policy, config.eval.tokens)
    images, batches = compared_pixels(config, arguments.compare, arguments.batch)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be written: {error.strerror}; name another folder") from None
    with tempfile.TemporaryDirectory(prefix=f"{output.name}-", dir=output.parent) as scratch:
        folder = Path(scratch, "export")
        write_checkpoint_folder(folder, config, checkpoint, policy, tokenizer)
        write_mindir(folder / GRAPH, decoder, (arguments.batch, 3, config.data.image_size, config.data.image_size))
        facts = server_facts(config, tokenizer, folder / GRAPH, arguments.batch)
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        ids, differs = compare(decoder, load_mindir(folder / GRAPH), batches)
        if differs.any():
            raise RunStopped(
                f"{GRAPH} captions {differs.sum()} of {len(ids)} rows of {images} otherwise than {checkpoint}; "
                f"{output} is not written"
            )
        folder.rename(output)
    distinct = len({tokenizer.decode(row) for row in ids})
    print(f"{output}: {GRAPH} captions {images} as {checkpoint} does, token by token ({distinct} different captions)")


if __name__ == "__main__":
    run_program(main)
