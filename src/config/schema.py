"""The sections of a configuration, as types. Values, units and reasons are in configs/base.yaml alone."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.runtime.device import DeviceSettings

# Keys that name files. A relative path starts at the repository's root in YAML, at the working folder on the command
# line; those of INNER_FILE_KEYS always start at data.root or at the folder of the configuration.
FILE_KEYS = ("output_root", "init_checkpoint", "data.root", "tokenizer.vocab", "encoder.checkpoint", "policy.path")
INNER_FILE_KEYS = ("init_config", "data.annotations", "data.images", "data.lists", "data.mindrecord", "caprl.questions")


@dataclass(frozen=True)
class DataConfig:
    dataset: str
    format: Literal["coco", "karpathy", "table"]
    root: str
    language: Literal["auto", "en", "zh"]
    segmentation: Literal["characters", "jieba"]
    annotations: str
    images: str
    lists: str | None
    mindrecord: str | None
    image_size: int
    aspect: Literal["stretch", "pad"]
    resize_after_normalize: bool
    workers: int


@dataclass(frozen=True)
class DemoConfig:
    """The number of generated images of each split, if data.dataset is demo."""

    seed: int
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class TokenizerConfig:
    kind: Literal["word", "wordpiece"]
    vocab: str | None
    min_count: int


@dataclass(frozen=True)
class PolicyConfig:
    kind: Literal["captioner", "prefix_lm", "qwen2_5_vl"]
    path: str | None
    prompt: str
    pool: int
    recompute: bool
    chunk_rows: int
    end_check: int

    @property
    def is_pretrained(self) -> bool:
        """Whether a pretrained language model writes the captions."""
        return self.kind != "captioner"


@dataclass(frozen=True)
class LoRAConfig:
    rank: int
    alpha: float
    targets: str
    dropout: float


@dataclass(frozen=True)
class EncoderConfig:
    kind: str
    variant: str
    scale: float | None
    checkpoint: str | None
    layer: int
    trainable: bool


@dataclass(frozen=True)
class DecoderConfig:
    layers: int
    width: int
    heads: int
    feed_forward: int
    dropout: float
    embedding_dropout: float | None
    positions: int


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float
    final_lr: float
    warmup_ratio: float
    decay_ratio: float
    weight_decay: float
    beta2: float
    grad_clip: float
    projector_lr: float | None = None
    adapter_lr: float | None = None


@dataclass(frozen=True)
class CEConfig:
    epochs: int
    patience: int
    batch_images: int
    micro_batches: int
    captions_per_image: int
    tokens: int
    label_smoothing: float
    save_steps: int
    optimizer: OptimizerConfig


@dataclass(frozen=True)
class RLConfig:
    group_size: int
    rollouts: int
    rollout_images: int
    sample_images: int
    passes: int
    update_images: int
    micro_batches: int
    tokens: int
    temperature: float
    top_k: int
    top_p: float
    clip_eps_low: float
    clip_eps_high: float
    optimizer: OptimizerConfig


@dataclass(frozen=True)
class AdvantageConfig:
    combine: Literal["sum", "gdpo"]
    baseline: Literal["group", "leave_one_out", "greedy"]
    scale: Literal["population", "sample", "none"]
    eps: float


@dataclass(frozen=True)
class KLConfig:
    coef: float
    importance_weight: bool


@dataclass(frozen=True)
class LossConfig:
    aggregation: Literal["token", "sequence", "constant"]


@dataclass(frozen=True)
class RewardsConfig:
    """The weight of each reward; with 0, it is not computed."""

    cider: float
    caprl: float
    length: float
    repetition: float

    @property
    def active(self) -> dict[str, float]:
        """The weights that are not 0, in the order of the fields."""
        return {name: weight for name, weight in dataclasses.asdict(self).items() if weight != 0}


@dataclass(frozen=True)
class CiderConfig:
    eos: bool
    document_frequency: Literal["train", "batch"]


@dataclass(frozen=True)
class CapRLConfig:
    questions: str | None
    presentations: int
    max_failed: float
    answerer: Literal["reader", "server"]
    base_url: str
    model: str | None
    max_tokens: int
    extra_body: str | None
    timeout: float
    retries: int
    concurrency: int
    read: Literal["letter", "likelihood"]
    template: str

    @property
    def asked_for(self) -> str:
        """The settings, besides the model, that a server's answers depend on, for signatures."""
        return self.read + (f", {self.extra_body}" if self.extra_body else "")


@dataclass(frozen=True)
class LengthConfig:
    least: int
    most: int
    margin: int


@dataclass(frozen=True)
class EvalConfig:
    batch_images: int
    tokens: int
    every: int
    beams: int
    length_penalty: float
    block_trigrams: bool
    samples: int
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Config(DeviceSettings):
    """The whole configuration of one stage."""

    output_root: str
    name: str
    fresh: bool
    stop_after_minutes: float
    init_config: str | None
    init_checkpoint: str | None
    select: Literal["best", "last", "original"]
    log_every: int
    data: DataConfig
    demo: DemoConfig
    tokenizer: TokenizerConfig
    policy: PolicyConfig
    lora: LoRAConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    ce: CEConfig
    rl: RLConfig
    advantage: AdvantageConfig
    kl: KLConfig
    loss: LossConfig
    rewards: RewardsConfig
    cider: CiderConfig
    caprl: CapRLConfig
    length: LengthConfig
    eval: EvalConfig

    @property
    def run_folder(self) -> Path:
        """`<output_root>/<name>`."""
        return Path(self.output_root) / self.name

    @property
    def has_convolutions(self) -> bool:
        """Whether the encoder is a network of convolutions."""
        return self.policy.kind != "qwen2_5_vl" and self.encoder.kind != "vit"

    @property
    def convolves(self) -> bool:
        """Whether training and evaluation run convolutions, because the encoder is trained or small."""
        return self.has_convolutions and (self.encoder.trainable or self.encoder.kind == "cnn")

    @property
    def pixels_folder(self) -> Path | None:
        """The pretrained folder whose preprocessor_config.json says how pixels are scaled; None: `encoder.variant`."""
        folder = self.policy.path if self.policy.kind == "qwen2_5_vl" else self.encoder.checkpoint
        return None if self.has_convolutions or folder is None else Path(folder)

    @property
    def language_folder(self) -> Path | None:
        """The folder of the pretrained language model."""
        return Path(self.policy.path) if self.policy.is_pretrained and self.policy.path else None

    @property
    def captions_per_rollout(self) -> int:
        """The number of decoded captions, including those of a greedy baseline."""
        return self.rl.rollout_images * (self.rl.group_size + (self.advantage.baseline == "greedy"))

    @property
    def updates_per_rollout(self) -> int:
        """The number of optimiser updates."""
        return self.rl.passes * (self.rl.rollout_images // self.rl.update_images)

    @property
    def reference_images(self) -> int:
        """The number of images whose samples the reference scores at once: no more than an update computes at once."""
        if self.rl.micro_batches == 1:
            return self.rl.sample_images
        return math.gcd(self.rl.sample_images, self.rl.update_images // self.rl.micro_batches)

    @property
    def result_checkpoint(self) -> Path:
        """The checkpoint of this run to evaluate."""
        return self.run_folder / "checkpoints" / ("best" if self.select == "best" else "last")

    @property
    def cache_folder(self) -> Path:
        """The folder of the feature and tokenisation caches of all runs under one output root."""
        return Path(self.output_root) / "cache"
