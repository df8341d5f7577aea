"""Read everything that a configuration names, once, and report it: before starting a run of days.

python -m src.commands.check --config FILE [key=value ...]
Prints a table of splits (images, captions, tokens per caption, captions that ce.tokens cuts, unknown tokens), and every
skipped image or caption; also reads the weights of the encoder and the reward's questions. Exit status 0, or 2 with one
line if the data would stop a run.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from src.commands.demo_data import make_demo_data
from src.config.load import config_parser, load_config
from src.config.rules import check_sizes
from src.config.schema import Config
from src.data.photographs import UnusableImage, decode
from src.runtime.environment import prepare_environment, run_program
from src.runtime.errors import InputError
from src.runtime.progress import Progress
from src.runtime.text_tables import markdown_table
from src.runtime.threads import in_order
from src.training.answerer import read_questions

COLUMNS = ("split", "images", "captions", "tokens (mean)", "tokens (max)", "cut", "unknown tokens")


def main() -> None:
    """Parse the command line and print what the data holds."""
    arguments = config_parser("Check the data of a configuration.").parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    prepare_environment(convolutions=False)

    from src.data.dataset import build_tokenizer, load_dataset
    from src.data.locate import find_images
    from src.data.pretrained_tokenizer import load_pretrained_tokenizer
    from src.models.build import build_policy
    from src.models.encoders.build import build_encoder, encoder_settings

    if config.policy.is_pretrained:
        build_policy(config, load_pretrained_tokenizer(config).token_ids, cached=False, load=True)
    else:
        build_encoder(**encoder_settings(config))
    make_demo_data(config)
    dataset = load_dataset(config)
    if dataset.words.warning:
        print(dataset.words.warning, file=sys.stderr)
    tokenizer = build_tokenizer(config, dataset)
    rows = []
    for split in dataset.records:
        truths = dataset.targets(split)
        captions = [np.array(tokenizer.encode(caption)) for image in truths for caption in image]
        rows.append([split, *split_facts([ids == tokenizer.unk_id for ids in captions], len(truths), config)])
    print("\n".join(markdown_table(COLUMNS, rows)))
    print(f"vocabulary: {tokenizer.vocab_size}, of which {int(tokenizer.allowed.sum())} can be produced")
    if dataset.words.note:
        print(dataset.words.note)
    for skipped in dataset.skipped:
        print(f"skipped: {skipped.file}: {skipped.reason}")
    print(f"{len(dataset.skipped)} images or captions skipped", flush=True)
    if config.stage != "ce":
        check_sizes(config, len(dataset.records["train"]), tokenizer.vocab_size)
    if config.stage != "ce" and config.rewards.caprl:
        questions = read_questions(config, "train")
        print(f"questions: {sum(map(len, questions.values())):,} on {len(questions):,} images", flush=True)
    files = [record.file for records in dataset.records.values() for record in records]
    reasons = in_order(broken_image, find_images(config, files).stream(range(len(files))), config.data.workers)
    broken = [reason for reason in Progress("decoding images", len(files), "image").over(reasons) if reason]
    for line in broken:
        print(f"broken: {line}")
    if broken:
        raise InputError(f"{len(broken)} images would stop a run, first {broken[0]}; delete them to have them skipped")


def broken_image(file: Path, load: Callable[[], bytes]) -> str | None:
    """Return an unusable file with the reason, or None."""
    try:
        decode(load())
    except (UnusableImage, InputError) as error:
        return f"{file}: {error}"
    return None


def split_facts(unknown: Sequence[np.ndarray], images: int, config: Config) -> list[str]:
    """Return the cells of one split after its name. unknown: for each caption, bool per token."""
    lengths = np.array([len(tokens) for tokens in unknown])
    return [
        f"{images:,}",
        f"{len(unknown):,}",
        f"{lengths.mean():.1f}",
        str(lengths.max()),
        f"{(lengths > config.ce.tokens).mean():.1%}",
        f"{sum(tokens.sum() for tokens in unknown) / max(1, lengths.sum()):.1%}",
    ]


if __name__ == "__main__":
    run_program(main)
