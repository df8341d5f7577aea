"""Build the policy that a configuration describes, or load it from a checkpoint or an exported folder."""

import sys
from pathlib import Path

import mindspore as ms

from src.config.schema import Config
from src.data.tokenizer import TokenIds, Tokenizer
from src.models.captioner.policy import build_captioner
from src.models.checkpoint import check_tokenizer, load_checkpoint, load_run_tokenizer
from src.models.policy import Policy


def build_policy(config: Config, token_ids: TokenIds, *, cached: bool, checkpoint: str | None = None) -> Policy:
    """Build a policy in evaluation mode. Its weights are random, except the encoder's if `checkpoint` is given.

    cached: whether the inputs are features instead of pixels.
    """
    return build_captioner(config, token_ids, cached=cached, checkpoint=checkpoint)


def load_policy(config: Config, checkpoint: Path, *, cached: bool) -> tuple[Policy, Tokenizer]:
    """Load the policy of a checkpoint and its tokenizer. Errors: InputError if the file does not fit `config`."""
    tokenizer = load_run_tokenizer(checkpoint)
    policy = build_policy(config, tokenizer.token_ids, cached=cached)
    state = load_checkpoint(checkpoint, policy)
    check_tokenizer(checkpoint, state, tokenizer)
    exported_with = state.get("mindspore", ms.__version__)  # only exported folders record it
    if exported_with != ms.__version__:
        say = f"warning: {checkpoint} was exported with MindSpore {exported_with}, this is {ms.__version__}"
        print(f"{say}: a caption may differ where two tokens are nearly equally probable", file=sys.stderr)
    return policy, tokenizer
