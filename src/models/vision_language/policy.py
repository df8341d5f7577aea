"""A pretrained language model that sees, as a policy: image tokens stand within the prompt of its chat template.

Letters: B images, G group size, M = B*G rows (row = b*G + g), N grid cells, I image tokens, P prefix tokens, T tokens
of a completion, C channels, D width. The last prompt token is left out of the prefix and fed to every row as its first
token, in the place of BOS.
"""

import hashlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from src.config.kinds import LORA_TARGETS
from src.config.schema import Config
from src.data.model_folder import config_digest
from src.data.tokenizer import TokenIds
from src.models import kernels, norms
from src.models.captioner.decoder import shift_right
from src.models.encoders.build import build_encoder, encoder_settings
from src.models.hugging_face import PretrainedWeights
from src.models.layers import Linear
from src.models.policy import Policy
from src.models.vision_language.adapters import LoRA, Projection
from src.models.vision_language.architecture import language_sizes, tower_sizes
from src.models.vision_language.language_model import Keys, LanguageModel, image_positions
from src.models.vision_language.tower import VisionTower, load_tower
from src.models.vision_language.weights import load_language_model, projections
from src.runtime.errors import InputError
from src.runtime.files import file_digest

_ADAPTERS = ("lora_down", "lora_up")  # how names of adapters' parameters end


class GridProjector(nn.Cell):
    """Grid features [B, N, C] -> image tokens [B, I, D]: pool x pool cells become one token, by two layers and a GELU.

    A part of a square at the edge is filled up with zeros.
    """

    def __init__(self, channels: int, tokens: int, pool: int, width: int, dtype: mstype.TensorType) -> None:
        super().__init__()
        side = round(tokens**0.5)
        out = -(-side // pool)
        places = np.full((out * pool, out * pool), tokens)  # of the row of zeros
        places[:side, :side] = np.arange(tokens).reshape(side, side)
        places = places.reshape(out, pool, out, pool).transpose(0, 2, 1, 3)
        self.places = Tensor(places.reshape(-1), mstype.int32)
        self.tokens, self.padded = out * out, out * pool > side
        self.expand = Linear(channels * pool**2, width, dtype=dtype)
        self.contract = Linear(width, width, dtype=dtype)
        self.normalize = norms.layer_norm()
        self.gamma = Parameter(initializer("ones", (channels,), ms.float32), name="gamma")
        self.beta = Parameter(initializer("zeros", (channels,), ms.float32), name="beta")

    def construct(self, features: Tensor) -> Tensor:
        x = self.normalize(ops.cast(features, mstype.float32), self.gamma, self.beta)
        if self.padded:
            x = ops.concat((x, ops.zeros_like(x[:, :1])), 1)
        x = ops.gather(x, self.places, 1).reshape(x.shape[0] * self.tokens, -1)
        x = self.contract(ops.gelu(self.expand(x), approximate="tanh"))
        return x.reshape(features.shape[0], self.tokens, -1)


class LanguagePolicy(Policy):
    """Encoder, projector (None where the encoder's features are image tokens already) and language model."""

    unrolled = False

    def __init__(
        self,
        encoder: nn.Cell,
        projector: GridProjector | None,
        language: LanguageModel,
        token_ids: TokenIds,
        *,
        cached: bool,
        keeps_encoder: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """keeps_encoder: whether a checkpoint with adapters holds the encoder, which is in no file or is trained."""
        super().__init__()
        self.keeps_encoder = keeps_encoder
        self.encoder, self.projector, self.language = encoder, projector, language
        self.token_ids, self.cached = token_ids, cached
        self.width, self.bos_id = language.sizes.width, token_ids.bos
        self.image_tokens = encoder.tokens if projector is None else projector.tokens
        self.before = Tensor([token_ids.before or (0,)], ms.int32)
        self.after = Tensor([token_ids.after or (0,)], ms.int32)
        self.counts = (len(token_ids.before), len(token_ids.after))
        self.adapted = len(self.adapted_projections()) > 0
        self.dropout_sites = (dropout,) * len(language.layers) if self.adapted and dropout > 0 else ()
        self.not_allowed = Tensor(np.where(token_ids.allowed, 0.0, kernels.MASKED), ms.float32)
        self.shift = kernels.bias_add()
        if self.adapted:
            for parameter in language.get_parameters():
                parameter.requires_grad = parameter.name.endswith(_ADAPTERS)

    def adapted_projections(self) -> list[Projection]:
        """Return the fused layers with adapters."""
        return [one for layer in self.language.layers for _, one in projections(layer) if len(one.adapted) > 0]

    def prefix(self, inputs: Tensor) -> Keys:
        """Compute keys and values of the prompt with its image, but the last token."""
        features = inputs if self.cached else self.encoder(inputs)
        image = features if self.projector is None else self.projector(features)
        image = ops.cast(image, self.language.dtype)
        images = image.shape[0]
        parts: tuple[Tensor, ...] = (image,)
        if self.counts[0] > 0:
            parts = (ops.tile(self.language.embed(self.before), (images, 1, 1)), *parts)
        if self.counts[1] > 0:
            parts += (ops.tile(self.language.embed(self.after), (images, 1, 1)),)
        return self.language.prefix(ops.concat(parts, 1))

    def empty_prefix(self, images: int) -> tuple[np.ndarray, ...]:
        """Return zeros in the shapes of the keys and values of a prefix."""
        sizes, dtype = self.language.sizes, np.float16 if self.language.dtype == mstype.float16 else np.float32
        zeros = np.zeros((images * sizes.key_heads, self.language.prompt, sizes.head_size), dtype)
        return (zeros,) * (2 * sizes.layers)

    def hidden(self, prefix: Keys, completion_ids: Tensor, keep: tuple[Tensor, ...] | None = None) -> Tensor:
        """Read the last prompt token and all tokens but the last."""
        return self.language.hidden(prefix, shift_right(completion_ids, self.bos_id), keep)

    def allocate(self, rows: int, tokens: int) -> tuple[Parameter, ...]:
        """Return keys and values of every layer for the tokens of M rows."""
        return self.language.allocate(rows, tokens)

    def start(self, prefix: Keys, rows: int) -> tuple[Tensor, ...]:
        """Return nothing: a step reads no more of what `allocate` returned than has been written."""
        return ()

    def step(self, token: Tensor, position: Tensor, prefix: Keys, cache: tuple) -> tuple[Tensor, Keys]:
        """See Policy.step; `position` is a tensor."""
        return self.language.step(token, position, prefix, cache)

    def store(self, in_place: tuple[Parameter, ...], cache: Keys, position: Tensor) -> Tensor:
        """Write the keys and values of the token at `position`."""
        return self.language.store(in_place, cache, position)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, D] -> [R, V]."""
        return self.shift(self.language.logits(hidden), self.not_allowed)

    def head(self) -> tuple[Parameter, Tensor]:
        """Return the output's weight, which may be the embedding, and the bias that masks tokens."""
        return self.language.output, self.not_allowed

    def reorder(self, cache: tuple, parents: Tensor) -> Tensor:
        """Move the rows of all layers' keys and values in place."""
        return self.language.reorder(cache, parents)

    def attention(self, prefix: Keys, completion_ids: Tensor) -> Tensor:
        """Return the attention of the last layer to the image tokens, mean over heads, scaled to sum to 1."""
        weights = self.language.attention(prefix, shift_right(completion_ids, self.bos_id))
        first = self.counts[0]
        weights = weights[:, :, first : first + self.image_tokens]
        return weights / ops.maximum(weights.sum(-1, keepdims=True), 1e-30)

    def reference(self) -> "LanguagePolicy":
        """Return a policy with copies of the trained parameters, which shares the others.

        Adapters that still add nothing are left out: then the reference is the pretrained model.
        """
        trained = {id(parameter) for parameter in self.trained_parameters()}
        shared: dict[int, Any] = {id(one): one for one in self.get_parameters() if id(one) not in trained}
        shared |= {id(layer._recompute_cell): None for layer in self.language.layers}  # has no gradient, nor a copy
        copy = deepcopy(self, shared)
        for one in copy.adapted_projections():
            if not one.lora_up.asnumpy().any():
                one.adapted = []
                del one.lora_down, one.lora_up  # the graph cache keeps a graph by its parameters
        return copy

    def trained_parameters(self) -> list[Parameter]:
        """Return the adapters or all of the language model, the projector, and the encoder if the inputs are pixels."""
        parts = [self.language, self.projector, None if self.cached else self.encoder]
        return [parameter for part in parts if part is not None for parameter in part.trainable_params()]

    def part_of(self, parameter: Parameter) -> str:
        """See Policy.part_of."""
        if self.projector is not None and any(parameter is one for one in self.projector.get_parameters()):
            return "projector"
        return "adapter" if parameter.name.endswith(_ADAPTERS) else ""

    def saved_parameters(self) -> dict[str, Parameter]:
        """Return all parameters or, with adapters, those that the pretrained files do not hold as they are."""
        everything = dict(self.parameters_and_names())
        if not self.adapted:
            return everything
        files = ("language.",) if self.keeps_encoder else ("language.", "encoder.")
        return {name: one for name, one in everything.items() if name.endswith(_ADAPTERS) or not name.startswith(files)}


def build_language_policy(config: Config, token_ids: TokenIds, *, cached: bool, load: bool) -> LanguagePolicy:
    """Build a policy of kind prefix_lm or qwen2_5_vl in evaluation mode.

    load: whether to read the pretrained weights; without them, sizes come from the folder's config.json alone.
    Errors: InputError naming the file, key or tensor that does not fit.
    """
    settings, folder = config.policy, Path(config.policy.path or "")
    dtype = getattr(ms, config.precision)
    sizes = language_sizes(folder)
    weights = PretrainedWeights(folder) if load else None
    projector = None
    if settings.kind == "qwen2_5_vl":
        encoder = build_tower(config, folder, weights)
        side = round(encoder.tokens**0.5)
    else:
        encoder = build_encoder(**encoder_settings(config), load=load, dtype=ms.float32 if cached else dtype)
        if settings.pool > round(encoder.tokens**0.5):
            raise InputError(f"policy.pool={settings.pool} exceeds the encoder's grid of {encoder.tokens} cells")
        projector = GridProjector(encoder.channels, encoder.tokens, settings.pool, sizes.width, dtype)
        side = round(projector.tokens**0.5)
    tokens = max(config.ce.tokens, config.rl.tokens, config.eval.tokens)
    before, after = len(token_ids.before), len(token_ids.after)
    prompt = before + side**2 + after
    if prompt + tokens > sizes.positions:
        raise InputError(
            f"policy.prompt, the image and a caption take {prompt} + {tokens} tokens, but {folder} was trained with at "
            f"most {sizes.positions}; shorten the prompt or the captions, or show a smaller image"
        )
    positions = image_positions(before, side, after + tokens, turned=bool(sizes.sections))
    language = LanguageModel(sizes, positions, prompt, dtype, _lora(config))
    if weights is not None:
        load_language_model(language, weights)
    if settings.recompute:
        for layer in language.layers:
            layer.recompute()
    base = _base_digest(config, weights)
    keeps_encoder = config.encoder.trainable or (projector is not None and config.encoder.checkpoint is None)
    policy = LanguagePolicy(
        *(encoder, projector, language, token_ids),
        cached=cached,
        keeps_encoder=keeps_encoder,
        dropout=config.lora.dropout,
    )
    policy.base, policy.end_check, policy.chunk_rows = base, settings.end_check, settings.chunk_rows
    return policy.set_train(False)


def _base_digest(config: Config, weights: PretrainedWeights | None) -> str:
    """Identify what a checkpoint needs besides its tensors: config.json and, with adapters, all of the pretrained
    files, and what the adapters mean.
    """
    digests = [config_digest(config.language_folder), config_digest(config.pixels_folder)]
    lora, encoder = _lora(config), config.encoder.checkpoint
    if lora is None or weights is None:
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    digests += [weights.digest(), repr(lora)]
    if config.policy.kind == "prefix_lm" and encoder is not None:
        path = Path(encoder)
        digests.append(PretrainedWeights(path).digest() if path.is_dir() else file_digest(path))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def build_tower(config: Config, folder: Path, weights: PretrainedWeights | None) -> VisionTower:
    """Build Qwen2.5-VL's vision tower for the configured image size."""
    sizes, side = tower_sizes(folder), config.data.image_size
    if side % (sizes.patch * sizes.merge):
        raise InputError(f"data.image_size={side} must be a multiple of {sizes.patch * sizes.merge} for {folder}")
    dtype = getattr(ms, config.precision) if config.encoder.trainable else ms.float32
    tower = VisionTower(sizes, side, dtype)
    if weights is not None:
        load_tower(tower, weights, sizes.frames)
    return tower


def _lora(config: Config) -> LoRA | None:
    settings = config.lora
    if settings.rank == 0:
        return None
    return LoRA(
        settings.rank, settings.alpha, tuple(name for name in LORA_TARGETS if name in settings.targets.split(","))
    )
