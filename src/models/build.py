"""Build the policy that a configuration describes, or load it from a checkpoint or an exported folder."""

import sys
from pathlib import Path

import mindspore as ms
from mindspore import nn

from src.config.schema import Config
from src.data.tokenizer import TokenIds, Tokenizer
from src.models.captioner.policy import build_captioner
from src.models.checkpoint import check_tokenizer, load_checkpoint, load_run_tokenizer
from src.models.encoders.build import build_encoder, encoder_settings
from src.models.policy import Policy
from src.models.vision_language.policy import build_language_policy, build_tower


def build_policy(config: Config, token_ids: TokenIds, *, cached: bool, load: bool = False) -> Policy:
    """Build a policy in evaluation mode.

    load: whether to read the pretrained weights that the configuration names; what it does not name is random.
    cached: whether the inputs are features instead of pixels.
    """
    build = build_language_policy if config.policy.is_pretrained else build_captioner
    return build(config, token_ids, cached=cached, load=load)


def load_policy(config: Config, checkpoint: Path, *, cached: bool) -> tuple[Policy, Tokenizer]:
    """Load the policy of a checkpoint and its tokenizer. Errors: InputError if the file does not fit `config`."""
    tokenizer = load_run_tokenizer(checkpoint, config)
    policy = build_policy(config, tokenizer.token_ids, cached=cached, load=config.lora.rank > 0)
    state = load_checkpoint(checkpoint, policy)
    check_tokenizer(checkpoint, state, tokenizer)
    exported_with = state.get("mindspore", ms.__version__)  # only exported folders record it
    if exported_with != ms.__version__:
        say = f"warning: {checkpoint} was exported with MindSpore {exported_with}, this is {ms.__version__}"
        print(f"{say}: a caption may differ where two tokens are nearly equally probable", file=sys.stderr)
    return policy, tokenizer


def build_vision(config: Config) -> nn.Cell:
    """Build the encoder that features are computed with, in full precision; its weights are for the caller to set."""
    if config.policy.kind == "qwen2_5_vl":
        return build_tower(config, Path(config.policy.path or ""), None)
    return build_encoder(**encoder_settings(config), load=False)
