"""Read the questions, and build the model that answers them from captions, for the reward and for evaluation."""

from src.config.schema import CapRLConfig, Config
from src.data.questions import Answerer, Question, load_questions, questions_file
from src.data.record import ImageId
from src.demo.reading import SceneReader, asked
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


def read_questions(config: Config, split: str) -> dict[ImageId, list[Question]]:
    """Read the questions about a split. Errors: InputError naming a line, or one that the reader does not know."""
    path = questions_file(config, split)
    questions = load_questions(path)
    if config.caprl.answerer == "reader":
        for text in {question.question for several in questions.values() for question in several}:
            asked(text, str(path))
    return questions
