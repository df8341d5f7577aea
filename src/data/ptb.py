"""PTB tokens as pycocoevalcap makes them: lower case, Penn Treebank rules, without its list of punctuation."""

from collections.abc import Sequence
from pathlib import Path
from subprocess import PIPE

from pycocoevalcap.tokenizer import ptbtokenizer

from src.runtime.java import java_failure, plain_jar, start_java

_JAR = Path(ptbtokenizer.__file__).resolve().with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
_PUNCTUATIONS = frozenset(ptbtokenizer.PUNCTUATIONS)


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenise captions like pycocoevalcap's PTBTokenizer, aligned one to one whatever characters they hold.

    Any run of white space counts as one blank. Returns strings of tokens separated by blanks, "" for a caption
    without a word. A token may hold a no-break space ("1 1/2"). Raises InputError if Java is missing or fails.
    """
    if not captions:
        return []
    # One caption per line: str.split also removes the separators at which Java would start a line (\r, \x85, \u2028).
    text = "\n".join(" ".join(caption.split()) for caption in captions)
    program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    with (
        plain_jar(_JAR) as jar,
        start_java(["-cp", str(jar), *program], stdin=PIPE, stdout=PIPE, stderr=PIPE) as child,
    ):
        # A lone surrogate (JSON can hold one) cannot be encoded and becomes "?", which is punctuation.
        stdout, stderr = child.communicate(text.encode("utf-8", "replace"))
    lines = stdout.decode("utf-8", "replace").split("\n")
    if child.returncode != 0 or len(lines) != len(captions):
        raise java_failure("the PTB tokenizer", child.returncode, stderr)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in _PUNCTUATIONS) for line in lines]
