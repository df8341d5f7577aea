"""Pretrained vision Transformers as grid encoders: the vision towers of CLIP and SigLIP, and DINOv2.

Letters: B images, S = image side / patch side, N = S*S grid cells, R = N rows, or N + 1 with a class token, C channels,
H heads, d = C/H.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Parameter, Tensor, lazy_inline, nn, ops

from src.data.model_folder import read_json
from src.models import kernels, norms
from src.models.hugging_face import PretrainedWeights
from src.models.kernels import attend
from src.models.layers import LayerNorm, Linear
from src.runtime.errors import InputError


@dataclass(frozen=True)
class _Names:
    """Where a family keeps its tensors. Only the names of norms and positions that exist are given."""

    patch: str
    positions: str
    class_token: str | None
    first_norm: str | None  # before the layers
    last_norm: str | None  # of last_hidden_state
    layer: str  # with {} for its number
    attention: tuple[str, str, str, str]  # query, key, value, output
    norms: tuple[str, str]
    scales: tuple[str, str] | None  # of the two residual branches


_CLIP = _Names(
    patch="embeddings.patch_embedding",
    positions="embeddings.position_embedding.weight",
    class_token="embeddings.class_embedding",
    first_norm="pre_layrnorm",  # its real spelling
    last_norm=None,
    layer="encoder.layers.{}",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    norms=("layer_norm1", "layer_norm2"),
    scales=None,
)
_SIGLIP = _Names(
    patch=_CLIP.patch,
    positions=_CLIP.positions,
    class_token=None,
    first_norm=None,
    last_norm="post_layernorm",
    layer=_CLIP.layer,
    attention=_CLIP.attention,
    norms=_CLIP.norms,
    scales=None,
)
_DINOV2 = _Names(
    patch="embeddings.patch_embeddings.projection",
    positions="embeddings.position_embeddings",
    class_token="embeddings.cls_token",
    first_norm=None,
    last_norm="layernorm",
    layer="encoder.layer.{}",
    attention=(
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
    ),
    norms=("norm1", "norm2"),
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
# model_type -> names, and transformers' defaults for what config.json leaves out
_DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_FAMILIES: dict[str, tuple[_Names, dict[str, Any]]] = {
    "clip": (_CLIP, _DEFAULTS | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}),
    "siglip": (_SIGLIP, _DEFAULTS | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}),
    "dinov2": (_DINOV2, _DEFAULTS | {"patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "mlp_ratio": 4}),
}
_FAMILIES |= {"clip_vision_model": _FAMILIES["clip"], "siglip_vision_model": _FAMILIES["siglip"]}
# Older folders, and those with a text tower or a classifier.
_PREFIXES = ("", "vision_model.", "dinov2.")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * ops.sigmoid(1.702 * x)


def _gelu(x: Tensor) -> Tensor:
    return ops.gelu(x, approximate="none")


def _gelu_tanh(x: Tensor) -> Tensor:
    return ops.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": _quick_gelu,
    "gelu": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_new": _gelu_tanh,
}


class ViT(nn.Cell):
    """images [B, 3, H, H], normalised as its folder says -> features [B, N, C], row by row, without the class token.

    layer: which hidden state, counted from the end as transformers' `hidden_states`: -1 is last_hidden_state (with the
    model's last norm, where it has one), -2 the output of the layer before the last. dtype: of the products.
    Errors: InputError naming config.json and the key, or the size that does not fit.
    """

    def __init__(self, folder: Path, image_size: int, layer: int, dtype: mstype.TensorType = mstype.float32) -> None:
        super().__init__()
        self.names, sizes = _sizes(folder)
        width, patch = sizes["hidden_size"], sizes["patch_size"]
        if image_size % patch:
            raise InputError(f"data.image_size={image_size} must be a multiple of {patch}, the patch size of {folder}")
        layers = sizes["num_hidden_layers"] + 1 + layer
        if not 0 < layers <= sizes["num_hidden_layers"]:
            raise InputError(f"encoder.layer={layer} must be from -{sizes['num_hidden_layers']} to -1 for {folder}")
        self.channels, self.patch, self.side = width, patch, image_size // patch
        self.tokens, self.eps = self.side**2, sizes["layer_norm_eps"]
        self.patches = Linear(3 * patch**2, width, has_bias=self.names is not _CLIP, dtype=dtype)
        self.class_rows = int(self.names.class_token is not None)
        self.class_token = (
            Parameter(np.zeros((1, 1, width), np.float32), name="class_token") if self.class_rows else None
        )
        self.positions = Parameter(np.zeros((self.class_rows + self.tokens, width), np.float32), name="positions")
        self.first_norm = LayerNorm(width, self.eps) if self.names.first_norm else None
        self.last_norm = LayerNorm(width, self.eps) if self.names.last_norm and layer == -1 else None
        self.layers = nn.CellList([_Layer(sizes, self.names.scales is not None, dtype) for _ in range(layers)])
        self.repeated = kernels.repeated()

    def construct(self, images: Tensor) -> Tensor:
        batch, side, patch = images.shape[0], self.side, self.patch
        grid = images.reshape(batch, 3, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
        x = self.patches(grid.reshape(batch, self.tokens, -1))
        if self.class_token is not None:
            x = ops.concat((ops.tile(self.class_token, (batch, 1, 1)), x), 1)
        x = x + self.repeated(ops.expand_dims(self.positions, 0), batch)
        if self.first_norm is not None:
            x = self.first_norm(x)
        for layer in self.layers:
            x = layer(x)
        if self.class_rows:
            x = x[:, self.class_rows :]
        return x if self.last_norm is None else self.last_norm(x)


class _Layer(nn.Cell):
    """A pre-norm layer, with a scale on each residual branch in DINOv2: x [B, R, C] -> [B, R, C]."""

    @lazy_inline(policy="front")
    def __init__(self, sizes: Mapping[str, Any], scaled: bool, dtype: mstype.TensorType) -> None:
        super().__init__()
        width, wide, eps = sizes["hidden_size"], sizes["intermediate_size"], sizes["layer_norm_eps"]
        self.heads, self.dtype, self.gated = sizes["num_attention_heads"], dtype, sizes["gated"]
        self.norm1, self.norm2 = LayerNorm(width, eps), LayerNorm(width, eps)
        self.qkv = Linear(width, 3 * width, has_bias=sizes["qkv_bias"], dtype=dtype)
        self.out = Linear(width, width, dtype=dtype)
        self.expand = Linear(width, 2 * wide if self.gated else wide, dtype=dtype)
        self.contract = Linear(wide, width, dtype=dtype)
        self.activation = norms.swiglu() if self.gated else _ACTIVATIONS[sizes["hidden_act"]]
        self.scale1 = Parameter(np.ones(width, np.float32), name="scale1") if scaled else None
        self.scale2 = Parameter(np.ones(width, np.float32), name="scale2") if scaled else None

    def construct(self, x: Tensor) -> Tensor:
        rows = x.shape[1]
        qkv = ops.cast(self.qkv(self.norm1(x)), self.dtype).reshape(x.shape[0], rows, 3, self.heads, -1)
        query, key, value = ops.unbind(qkv.transpose(2, 0, 3, 1, 4), 0)  # [B, H, R, d]
        update = self.out(attend(query, key, value).transpose(0, 2, 1, 3).reshape(x.shape))
        x = x + (update if self.scale1 is None else update * self.scale1)
        update = self.contract(self.activation(self.expand(self.norm2(x))))
        return x + (update if self.scale2 is None else update * self.scale2)


def load_vit(vit: ViT, folder: Path) -> None:
    """Set every parameter from the folder. Errors: InputError naming the tensor that is missing or misshapen."""
    weights, names, width = PretrainedWeights(folder), vit.names, vit.channels
    prefix = next((p for p in _PREFIXES if f"{p}{names.patch}.weight" in weights), "")

    def get(name: str, *shape: int) -> np.ndarray:
        return weights.get(prefix + name, shape)

    def fill(linear: Linear, *layers: str) -> None:
        shape = (linear.weight.shape[0] // len(layers), linear.weight.shape[1])
        _set(linear.weight, np.concatenate([get(f"{name}.weight", *shape) for name in layers]))
        if linear.bias is not None:
            _set(linear.bias, np.concatenate([get(f"{name}.bias", shape[0]) for name in layers]))

    def fill_norm(norm: LayerNorm, name: str) -> None:
        _set(norm.gamma, get(f"{name}.weight", width))
        _set(norm.beta, get(f"{name}.bias", width))

    kernel = get(f"{names.patch}.weight", width, 3, vit.patch, vit.patch)
    _set(vit.patches.weight, kernel.reshape(width, -1))
    if vit.patches.bias is not None:
        _set(vit.patches.bias, get(f"{names.patch}.bias", width))
    _set(vit.positions, _positions(weights, prefix + names.positions, vit))
    if names.class_token is not None:
        shape = (width,) if names is _CLIP else (1, 1, width)
        _set(vit.class_token, get(names.class_token, *shape).reshape(1, 1, width))
    for norm, name in ((vit.first_norm, names.first_norm), (vit.last_norm, names.last_norm)):
        if norm is not None and name is not None:
            fill_norm(norm, name)
    for number, layer in enumerate(vit.layers):
        at = names.layer.format(number)
        fill(layer.qkv, *(f"{at}.{name}" for name in names.attention[:3]))
        fill(layer.out, f"{at}.{names.attention[3]}")
        feed_forward = ("weights_in", "weights_out") if layer.gated else ("fc1", "fc2")
        for linear, name in zip((layer.expand, layer.contract), feed_forward):
            fill(linear, f"{at}.mlp.{name}")
        for norm, name in zip((layer.norm1, layer.norm2), names.norms):
            fill_norm(norm, f"{at}.{name}")
        for scale, name in zip((layer.scale1, layer.scale2), names.scales or ()):
            _set(scale, get(f"{at}.{name}", width))


def _sizes(folder: Path) -> tuple[_Names, dict[str, Any]]:
    """Return the names of a folder's tensors, and its sizes with all keys of _FAMILIES, `gated` and mlp sizes."""
    file, config = folder / "config.json", read_json(folder, "config.json")
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        known = "clip, siglip, clip_vision_model, siglip_vision_model or dinov2"
        raise InputError(f"{file}: model_type={family} is not a supported vision tower; use one of {known}")
    names, defaults = _FAMILIES[family]
    given = config.get("vision_config") if family in ("clip", "siglip") else config
    sizes: dict[str, Any] = defaults | (given if isinstance(given, dict) else {})
    for key, default in defaults.items():
        whole = isinstance(default, int)
        if type(sizes[key]) not in ((int,) if whole else (type(default), int)) or (whole and sizes[key] < 1):
            raise InputError(f"{file}: {key}={sizes[key]} is not usable; copy the folder again")
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if width % heads or sizes["hidden_act"] not in _ACTIVATIONS:
        raise InputError(
            f"{file}: hidden_size={width} with num_attention_heads={heads} and hidden_act={sizes['hidden_act']} is not "
            f"supported; hidden_act must be one of {', '.join(_ACTIVATIONS)}"
        )
    sizes["gated"] = bool(sizes.get("use_swiglu_ffn", False))
    sizes["qkv_bias"] = family != "dinov2" or bool(sizes.get("qkv_bias", True))
    if "mlp_ratio" in defaults:
        wide = width * sizes["mlp_ratio"]
        sizes["intermediate_size"] = (wide * 2 // 3 + 7) // 8 * 8 if sizes["gated"] else wide
    return names, sizes


def _positions(weights: PretrainedWeights, name: str, vit: ViT) -> np.ndarray:
    """Return the table of positions, interpolated where the image size differs from the model's own."""
    found = weights.shape(name)
    rows = int(np.prod(found)) // vit.channels
    side = round(max(0, rows - vit.class_rows) ** 0.5)
    if found[-1:] != (vit.channels,) or side < 1 or side**2 + vit.class_rows != rows:
        raise InputError(f"{weights.folder}: {name} has shape {found}, which is not a square grid; use another model")
    table = weights.get(name, found).reshape(-1, vit.channels)
    if side == vit.side:
        return table
    resize = bicubic(side, vit.side)
    grid = table[vit.class_rows :].reshape(side, side, -1)
    grid = np.einsum("ij,jkc,lk->ilc", resize, grid, resize).reshape(-1, vit.channels)
    return np.concatenate((table[: vit.class_rows], grid)).astype(np.float32)


def bicubic(old: int, new: int) -> np.ndarray:
    """float64 [new, old]: cubic convolution (Keys 1981) with a = -0.75 and repeated edges, as PyTorch's `interpolate`
    with align_corners=False has it."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(places).astype(int)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        x = np.abs(places - (first + tap))
        near = (1.25 * x - 2.25) * x**2 + 1
        far = -0.75 * (((x - 5) * x + 8) * x - 4)
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return matrix


def _set(parameter: Parameter, values: np.ndarray) -> None:
    parameter.set_data(Tensor(np.ascontiguousarray(values)))
