"""Who answers questions from captions: in training, to reward them, and in evaluation, to examine them."""

from src.config.schema import Config
from src.data.questions import Answerer
from src.runtime.errors import InputError
from src.runtime.workers import Workers


def build_answerer(config: Config, workers: Workers, *, examiner: bool, language: str) -> Answerer:
    """The model that caprl.answerer names: a server's, or the demo's reader, which the first worker trains if need be.

    examiner: for evaluation. The demo's then is a reader of another seed that has learned from other scenes, lest a
    policy be praised for what only its own reader understands; of a server, give another caprl.model.
    language: of the captions (Words). Errors: InputError where a server does not answer, or the reader cannot read.
    """
    if config.caprl.answerer == "server":
        from src.rewards.server import ServerAnswerer

        return ServerAnswerer(config.caprl)
    if language != "en":
        raise InputError("caprl.answerer=reader reads the demo's English alone: set caprl.answerer=server")
    from src.training.reader import EXAMINER, REWARD, cached_reader

    seed = config.demo.seed
    with workers.first_alone():
        if examiner:
            return cached_reader(config.cache_folder, seed + 1, EXAMINER)
        return cached_reader(config.cache_folder, seed, REWARD)
