"""Build the model that answers questions from captions, for the reward and for evaluation."""

from src.config.schema import CapRLConfig
from src.data.questions import Answerer
from src.demo.reading import SceneReader
from src.runtime.errors import InputError


def build_answerer(config: CapRLConfig, language: str) -> Answerer:
    """The answering model of caprl.answerer: a server, or the exact reading of the demo's captions.

    language: of the captions (Words). Errors: InputError if the server does not answer, or the reader cannot read it.
    """
    if config.answerer == "server":
        from src.rewards.server import ServerAnswerer  # its client takes a second to import

        return ServerAnswerer(config)
    if language != "en":
        raise InputError("caprl.answerer=reader reads only the demo's English captions; set caprl.answerer=server")
    return SceneReader()
