"""Make questions about the images of a split: for the CapRL reward, and for evaluation by questions.

python -m src.commands.make_questions --config FILE [--split train] [--questions 5] [--base_url URL] [--model NAME]
    [key=value ...]
Adds to the file that caprl.questions names, image by image; run the same command to resume with the remaining images.
Exit status 0, even if single images failed; 3 if the server fails image after image.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait

from src.commands.demo_data import make_demo_data
from src.config.load import config_parser, load_config
from src.config.schema import Config
from src.data.locate import evaluated_split, find_images, read_records
from src.data.questions import QuestionFile, questions_file
from src.data.record import SPLITS, Record
from src.rewards.question_maker import ImageFailed, QuestionMaker
from src.runtime.environment import prepare_environment, run_program
from src.runtime.errors import InputError, RunStopped
from src.runtime.progress import Progress, say


def main() -> None:
    """Parse the command line, and ask about the remaining images."""
    parser = config_parser("Make questions about images, with a vision-language server.")
    parser.add_argument("--split", choices=SPLITS, default="train", help="default train")
    parser.add_argument("--questions", type=int, default=5, help="questions about each image (default 5)")
    parser.add_argument("--base_url", help="server address: replaces caprl.base_url")
    parser.add_argument("--model", help="model on the server: replaces caprl.model")
    arguments = parser.parse_intermixed_args()
    if arguments.questions < 1:
        raise InputError(f"--questions {arguments.questions} must be at least 1")
    server = {"caprl.base_url": arguments.base_url, "caprl.model": arguments.model}
    named = [f"{key}={value}" for key, value in server.items() if value is not None]
    config = load_config(arguments.config, [*arguments.overrides, *named])
    path = questions_file(config, arguments.split)
    if config.caprl.model is None:
        raise InputError("caprl.model=null: name the server's vision-language model with --model NAME")
    prepare_environment(convolutions=False)
    make_demo_data(config)
    evaluated_split(config, arguments.split)  # the split exists
    records, skipped = read_records(config)
    for left_out in skipped:
        print(f"skipped: {left_out.file}: {left_out.reason}")
    made = QuestionFile(path)
    left = [record for record in records[arguments.split] if record.image_id not in made.image_ids]
    failed = 0
    if left:
        maker = QuestionMaker(config.caprl, arguments.questions)
        with Progress(path.name, len(left), "image") as bar:
            failed = ask_about(config, left, made, maker, bar)
    again = f", {failed:,} failed: run the same command to ask about them again" if failed else ""
    print(f"{made.summary()}{again}", flush=True)


def ask_about(
    config: Config, records: Sequence[Record], made: QuestionFile, maker: QuestionMaker, bar: Progress
) -> int:
    """Ask about caprl.concurrency images at a time, and write each result at once. Returns how many images failed.

    Errors: RunStopped if the server fails 2 * caprl.concurrency images in a row.
    """
    most = config.caprl.concurrency
    images = find_images(config, [record.file for record in records]).stream(range(len(records)))
    failed = row = 0
    with ThreadPoolExecutor(most) as pool:
        try:
            work = (
                (record, pool.submit(maker.make, record.image_id, load)) for record, (_, load) in zip(records, images)
            )
            for record, future in as_done(work, most):
                try:
                    made.add(record.image_id, *future.result())
                    row = 0
                except ImageFailed as error:
                    failed += 1
                    row += error.down
                    say(f"failed: {record.file}: {error}")
                bar.update()
                if row == 2 * most:
                    raise RunStopped(
                        f"caprl.base_url={config.caprl.base_url}: {row} images in a row failed; {made.path} holds the "
                        "questions about earlier images; run the same command to resume"
                    )
        finally:
            maker.stop.set()  # the pool waits for its threads
    return failed


def as_done(work: Iterable[tuple[Record, Future]], most: int) -> Iterator[tuple[Record, Future]]:
    """Yield the pairs of `work` in the order in which they finish, with at most `most` under way."""
    pending: dict[Future, Record] = {}
    for record, future in work:
        pending[future] = record
        if len(pending) == most:
            for done in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(done), done
    for done in as_completed(list(pending)):
        yield pending[done], done


if __name__ == "__main__":
    run_program(main)
