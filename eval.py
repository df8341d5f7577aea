"""Evaluate a checkpoint, caption photographs, or score a file of captions.

python eval.py --config FILE --checkpoint PATH [--split test] [--prism] [key=value ...]
python eval.py --config FILE --checkpoint [NAME=]PATH... --images PHOTO... [--output FILE.jsonl] [key=value ...]
python eval.py --config FILE --captions FILE [--split test]
If PATH is an exported folder (python -m src.export), it brings its own configuration and needs no --config.
"""

import json

from src.captioning.arguments import add_image_arguments, read_image_arguments
from src.commands.demo_data import make_demo_data
from src.config.load import config_parser, load_config
from src.config.rules import check_workers
from src.data.locate import evaluated_split
from src.data.record import SPLITS
from src.runtime.environment import prepare_environment, run_program
from src.runtime.errors import InputError
from src.runtime.files import given_file


def main() -> None:
    """Parse the command line and print a table."""
    config_help = {"help": "the configuration of the training; an exported folder brings its own"}
    parser = config_parser("Evaluate a checkpoint, or score captions.", **config_help)
    source = parser.add_mutually_exclusive_group(required=True)
    path = "such as outputs/demo-grpo/checkpoints/best, or an exported folder"
    source.add_argument("--checkpoint", nargs="+", metavar="[NAME=]PATH", help=path)
    source.add_argument("--captions", type=given_file, help="a COCO results file to score instead")
    parser.add_argument("--split", choices=SPLITS, help="default: test, or val where the data has no test split")
    add_image_arguments(parser)
    parser.add_argument("--prism", action="store_true", help="also answer caprl.questions from eval.samples captions")
    arguments = parser.parse_intermixed_args()
    checkpoints = read_image_arguments(arguments)
    if arguments.captions is not None and (arguments.images or arguments.prism):
        raise InputError("--captions scores a file as is: --images and --prism need --checkpoint")
    if arguments.config is None:
        raise InputError("--config is missing: it names the data to score --captions on")
    config = load_config(arguments.config, arguments.overrides)
    if arguments.prism and (config.caprl.questions is None or config.eval.samples == 0):
        raise InputError("--prism needs caprl.questions, a file of questions, and eval.samples of at least 2")
    split = "" if arguments.images else evaluated_split(config, arguments.split)
    prepare_environment(convolutions=bool(arguments.images) or (config.convolves and arguments.captions is None))

    from src.runtime.workers import join_workers

    workers = join_workers(config)
    check_workers(config, workers.size)

    from src.data.dataset import load_dataset
    from src.evaluation.caption_metrics import load_split_captions
    from src.evaluation.evaluate import evaluate, scored
    from src.evaluation.report import metrics_table
    from src.runtime.device import setup_device

    if not arguments.images:
        with workers.first_alone():
            make_demo_data(config)
    if arguments.captions is not None:
        dataset = load_dataset(config, scored=split)
        given = load_split_captions(arguments.captions, dataset.by_image_id(split), split)
        scores, _ = scored(given, dataset, split, "file")
        print(metrics_table({arguments.captions.name: scores}), scores["signature"], json.dumps(scores), sep="\n")
        return
    setup_device(config)
    if arguments.images:
        from src.captioning.collection import caption_photographs

        caption_photographs(config, checkpoints, arguments.images, arguments.output, workers)
        return
    with workers.first_alone():
        dataset = load_dataset(config)
    (checkpoint,) = checkpoints.values()
    result = evaluate(config, dataset, checkpoint, split, workers, arguments.prism)
    if result is not None:
        print(metrics_table({str(checkpoint): result}), result["signature"], sep="\n")


if __name__ == "__main__":
    run_program(main)
