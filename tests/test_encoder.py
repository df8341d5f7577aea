"""Encoder: ResNet-50 against an independent NumPy float64 version, its weight files, and the small CNN."""

import json
import struct
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops
from mindspore.train.checkpoint_pb2 import Checkpoint
from PIL import Image
from safetensors.numpy import save_file

from src.config.kinds import KINDS, PREPROCESSING
from src.models.encoders.build import BUILDERS, build_encoder
from src.models.encoders.weights import load_encoder_weights, other_pixels
from src.runtime.errors import InputError

SIZE = 64
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL_WEIGHTS = SHARED / "weights" / "resnet50_v1_imagenet.safetensors"
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 1))
# variant -> stride on the first 1x1, zeros before and after the pool's rows and columns
EXPECTED = {"torchvision": (False, (1, 1)), "mindspore": (False, (0, 1)), "v1": (True, (1, 1))}


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


# ---- the NumPy version: weights is {torchvision name: array}


def conv(x, weight, stride):
    out_channels, _, k, _ = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))[:, :, ::stride, ::stride]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(*[windows.shape[i] for i in (0, 2, 3)], -1)
    return (columns @ weight.reshape(out_channels, -1).T).transpose(0, 3, 1, 2)


def norm(x, weights, name):
    gamma, beta, mean, variance = (
        weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def numpy_resnet(weights, images, variant):
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    stride_on_1x1, pool_padding = EXPECTED[variant]
    x = np.maximum(norm(conv(images.astype(np.float64), weights["conv1.weight"], 2), weights, "bn1"), 0)
    x = np.pad(x, ((0, 0), (0, 0), pool_padding, pool_padding))
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((-1, -2))
    for number, (blocks, _, stage_stride) in enumerate(STAGES, 1):
        for block in range(blocks):
            name, stride = f"layer{number}.{block}", stage_stride if block == 0 else 1
            strides = (stride, 1, 1) if stride_on_1x1 else (1, stride, 1)
            y = x
            for i in (1, 2, 3):
                y = norm(conv(y, weights[f"{name}.conv{i}.weight"], strides[i - 1]), weights, f"{name}.bn{i}")
                y = np.maximum(y, 0) if i < 3 else y
            if block == 0:
                x = norm(conv(x, weights[f"{name}.downsample.0.weight"], stride), weights, f"{name}.downsample.1")
            x = np.maximum(x + y, 0)
    return x.transpose(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])


# ---- weights and files


def random_weights(seed=0):
    rng, weights = np.random.default_rng(seed), {}

    def add(conv_name, norm_name, out_channels, in_channels, k):
        fan_in = in_channels * k * k
        shape = (out_channels, in_channels, k, k)
        weights[f"{conv_name}.weight"] = (rng.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float16)
        for part, low, high in (("weight", 0.5, 1), ("bias", -0.2, 0.2)):
            weights[f"{norm_name}.{part}"] = rng.uniform(low, high, out_channels).astype(np.float32)
        weights[f"{norm_name}.running_mean"] = rng.uniform(-0.2, 0.2, out_channels).astype(np.float32)
        weights[f"{norm_name}.running_var"] = rng.uniform(0.5, 2, out_channels).astype(np.float32)

    add("conv1", "bn1", 64, 3, 7)
    channels = 64
    for number, (blocks, width, _) in enumerate(STAGES, 1):
        for block in range(blocks):
            name = f"layer{number}.{block}"
            add(f"{name}.conv1", f"{name}.bn1", width, channels, 1)
            add(f"{name}.conv2", f"{name}.bn2", width, width, 3)
            add(f"{name}.conv3", f"{name}.bn3", width * 4, width, 1)
            if block == 0:
                add(f"{name}.downsample.0", f"{name}.downsample.1", width * 4, channels, 1)
            channels = width * 4
    return weights


def original_name(name):
    """torchvision's name -> the original's MindSpore name, written without looking at the loader."""
    parts = name.split(".")
    is_norm = parts[-2].startswith("bn") or parts[-2] == "1"
    last = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    parts[-1] = last[parts[-1]] if is_norm else parts[-1]
    if parts[0] == "bn1":
        parts[0] = "norm"
    return ".".join(parts).replace(".bn", ".norm").replace("downsample", "down_sample")


def save_ckpt(path, weights):
    items = [{"name": name, "data": ms.Tensor(array.astype(np.float32))} for name, array in weights.items()]
    ms.save_checkpoint(items, str(path))


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def files(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    extra = {"fc.weight": np.zeros((10, 2048), np.float32), "bn1.num_batches_tracked": np.array(3)}
    save_file({**weights, **extra}, folder / "torchvision.safetensors")
    save_ckpt(folder / "mindspore.ckpt", {original_name(name): array for name, array in weights.items()})
    tv = folder / "torchvision.safetensors"
    return {"torchvision": str(tv), "v1": str(tv), "mindspore": str(folder / "mindspore.ckpt")}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def encoders(files):
    return {
        name: build_encoder("resnet50", variant=name, checkpoint=path, image_size=SIZE) for name, path in files.items()
    }


@pytest.fixture(scope="module")
def features(encoders, images):
    ms.set_context(mode=ms.GRAPH_MODE)
    return {name: encoder(ms.Tensor(images)).asnumpy() for name, encoder in encoders.items()}


# ---- ResNet-50


@pytest.mark.parametrize("variant", sorted(EXPECTED))
def test_resnet_equals_numpy(variant, features, weights, images):
    expected = numpy_resnet(weights, images, variant)
    assert features[variant].shape == expected.shape == (1, 16, 2048)
    assert 0.1 < expected.std() < 1e4
    np.testing.assert_allclose(features[variant], expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_variants_differ(features):
    names = sorted(features)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            difference = np.abs(features[first] - features[second]).mean()
            assert difference > 0.01 * np.abs(features[first]).mean(), (first, second)


def test_channels_and_tokens(encoders, features):
    encoder = encoders["v1"]
    assert (encoder.tokens, encoder.channels) == features["v1"].shape[1:]
    assert len(list(encoder.get_parameters())) == 265
    assert len(encoder.trainable_params()) == 159  # 53 convolutions, gammas and betas; no statistics


def test_pynative_equals_graph(encoders, features, images):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    result = encoders["mindspore"](ms.Tensor(images)).asnumpy()
    np.testing.assert_allclose(result, features["mindspore"], rtol=1e-5, atol=1e-5 * result.max())


class Gradient(nn.Cell):
    """images, factors [B,N,C] -> gradients of mean(features * factors)."""

    def __init__(self, encoder, parameters):
        super().__init__()
        self.encoder = encoder

        def loss(images, factors):
            return ops.mean(encoder(images) * factors)

        self.gradient = ms.grad(loss, None, parameters)

    def construct(self, images, factors):
        return self.gradient(images, factors)


def test_gradient_equals_finite_differences(encoders, weights, images):
    """Directional derivatives against the NumPy version, by central differences in float64; statistics stay."""
    encoder = encoders["torchvision"]
    encoder.set_train(True)
    names = ["conv1.weight", "layer1.0.norm1.gamma", "layer4.2.norm3.beta", "layer3.0.down_sample.0.weight"]
    torch_names = ["conv1.weight", "layer1.0.bn1.weight", "layer4.2.bn3.bias", "layer3.0.downsample.0.weight"]
    by_name = dict(encoder.parameters_and_names())
    before = {name: by_name[name].asnumpy().copy() for name in by_name if "moving" in name}
    rng = np.random.default_rng(2)
    factors = rng.standard_normal((1, 16, 2048)).astype(np.float32)
    trained = ms.ParameterTuple([by_name[name] for name in names])
    gradient_of = Gradient(encoder, trained)
    # Three calls: MindSpore operators exist whose gradient is right the first time only.
    for _ in range(3):
        gradients = gradient_of(ms.Tensor(images), ms.Tensor(factors))
    for name, gradient in zip(torch_names, gradients, strict=True):
        base = weights[name].astype(np.float64)
        direction = rng.standard_normal(base.shape)
        step = 1e-8  # so small that hardly a ReLU changes sides
        losses = [
            (numpy_resnet({**weights, name: base + sign * step * direction}, images, "torchvision") * factors).mean()
            for sign in (1, -1)
        ]
        expected = (losses[0] - losses[1]) / (2 * step)
        scale = np.linalg.norm(gradient.asnumpy())  # the size that a random direction's derivative has
        assert scale > 1e-3
        assert abs((gradient.asnumpy() * direction).sum() - expected) < 1e-4 * scale, name
    encoder.set_train(False)
    assert all(np.array_equal(by_name[name].asnumpy(), value) for name, value in before.items())


@pytest.mark.skipif(not REAL_WEIGHTS.exists(), reason="../shared/data/weights is absent")
def test_real_weights_on_a_photograph():
    photos = sorted((SHARED / "flickr8k" / "img").glob("*.jpg"))
    if not photos:
        pytest.skip("../shared/data/flickr8k/img is absent")
    scaling = PREPROCESSING["v1"]
    pixels = np.asarray(Image.open(photos[0]).convert("RGB").resize((224, 224)), np.float32)
    image = ((pixels * scaling.scale - scaling.mean) / scaling.std).transpose(2, 0, 1)[None].astype(np.float32)
    encoder = build_encoder("resnet50", variant="v1", checkpoint=str(REAL_WEIGHTS), image_size=224)
    result = encoder(ms.Tensor(image)).asnumpy()
    assert result.shape == (1, 196, 2048) and (encoder.tokens, encoder.channels) == (196, 2048)
    assert np.isfinite(result).all() and (result > 0).any()


# ---- weight files


def truncate(source, target):
    data = Path(source).read_bytes()
    target.write_bytes(data[: len(data) // 2])


def changed(weights, rename=None, **replaced):
    """A copy of the weights without the names in `replaced`, or with the arrays given there."""
    result = {**weights, **{name.replace("__", "."): array for name, array in replaced.items()}}
    return {(rename or str)(name): array for name, array in result.items() if array is not None}


BAD_WEIGHTS = {
    "missing": (lambda w: changed(w, layer2__0__bn2__running_var=None), "layer2.0.bn2.running_var is missing"),
    "shape": (lambda w: changed(w, conv1__weight=np.zeros((64, 1, 7, 7), np.float32)), "conv1.weight has shape"),
    "other network": (lambda w: changed(w, layer3__6__bn1__bias=np.zeros(256, np.float32)), "layer3.6.bn1.bias is not"),
    "prefix": (lambda w: changed(w, lambda name: "encoder." + name), "without the prefix encoder."),
    "integers": (lambda w: changed(w, bn1__bias=np.zeros(64, np.int32)), "bn1.bias has type int32"),
    "not finite": (lambda w: changed(w, bn1__weight=np.full(64, np.nan, np.float32)), "bn1.weight has values"),
    "variance": (lambda w: changed(w, bn1__running_var=np.full(64, -1, np.float32)), "bn1.running_var has values"),
}


@pytest.mark.parametrize("case", sorted(BAD_WEIGHTS))
def test_bad_weights_are_refused(case, encoders, weights, tmp_path):
    change, message = BAD_WEIGHTS[case]
    path = tmp_path / "weights.safetensors"
    save_file(change(weights), path)
    refused(encoders["v1"], path, message)


def write_safetensors(path, weights, dtype, convert):
    """By hand: NumPy has no bfloat16. convert: float32 array -> bytes."""
    header, body = {}, b""
    for name, array in weights.items():
        data = convert(np.ascontiguousarray(array, np.float32))
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def loaded(variant, path) -> dict[str, np.ndarray]:
    encoder = build_encoder("resnet50", variant=variant, checkpoint=str(path), image_size=SIZE)
    return {name: value.asnumpy() for name, value in encoder.parameters_and_names()}


def upper_halves(array) -> bytes:
    return array.view(np.uint16).reshape(-1, 2)[:, 1].astype("<u2").tobytes()


def test_bfloat16_weights_are_read_exactly(weights, tmp_path):
    cut = {name: np.ascontiguousarray(array, np.float32).copy() for name, array in weights.items()}
    for array in cut.values():
        array.view(np.uint16)[..., ::2] = 0  # the lower halves: what bfloat16 has not
    write_safetensors(tmp_path / "b.safetensors", weights, "BF16", upper_halves)
    save_file(cut, tmp_path / "f.safetensors")
    found, want = (loaded("v1", tmp_path / f"{name}.safetensors") for name in "bf")
    assert all(np.array_equal(found[name], want[name]) for name in want)
    np.testing.assert_array_equal(found["conv1.weight"], cut["conv1.weight"])
    assert np.abs(found["conv1.weight"]).max() > 0


def test_bfloat16_of_a_ckpt_is_read(encoders, tmp_path):
    rows = [
        {"name": name, "data": ms.Tensor(np.full(value.shape, 1.5, np.float32)).astype(ms.bfloat16)}
        for name, value in encoders["mindspore"].parameters_and_names()
    ]
    ms.save_checkpoint(rows, str(tmp_path / "b.ckpt"))
    assert all((value == 1.5).all() for value in loaded("mindspore", tmp_path / "b.ckpt").values())


def test_quantised_weights_are_refused(encoders, weights, tmp_path):
    write_safetensors(tmp_path / "q.safetensors", weights, "F8_E4M3", lambda array: bytes(array.size))
    refused(encoders["v1"], tmp_path / "q.safetensors", "not a readable safetensors file of unquantised weights")


def test_prefixed_ckpt_is_refused(encoders, tmp_path):
    save_ckpt(tmp_path / "a.ckpt", {"encoder.conv1.weight": np.zeros((64, 3, 7, 7)), "encoder.norm.beta": np.zeros(64)})
    refused(encoders["mindspore"], tmp_path / "a.ckpt", "conv1.weight is missing; it has encoder.conv1.weight")


def test_damaged_files_are_refused(encoders, files, tmp_path):
    truncate(files["v1"], tmp_path / "half.safetensors")
    truncate(files["mindspore"], tmp_path / "half.ckpt")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "pickle.pth").write_bytes(b"\x80\x02")
    (tmp_path / "zip.ckpt").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    (tmp_path / "wide.safetensors").write_bytes(b"\xff" * 64)
    whole = Checkpoint.FromString(Path(files["mindspore"]).read_bytes())
    whole.value[0].tensor.tensor_content = b"\0" * 16
    (tmp_path / "short.ckpt").write_bytes(whole.SerializeToString())
    whole.value[0].tensor.tensor_type = "Float31"
    (tmp_path / "type.ckpt").write_bytes(whole.SerializeToString())
    (tmp_path / "folder.ckpt").mkdir()
    safetensors = ("half.safetensors", "wide.safetensors")
    for name in (*safetensors, "half.ckpt", "empty.ckpt", "zip.ckpt", "short.ckpt", "type.ckpt"):
        refused(encoders["v1"], tmp_path / name, "not a readable")
    refused(encoders["v1"], tmp_path / "pickle.pth", "convert the file to .safetensors")
    for name in ("absent.ckpt", "folder.ckpt"):
        refused(encoders["v1"], tmp_path / name, "no such weights file")


@pytest.mark.parametrize("variant", EXPECTED)
def test_weights_of_another_pixel_scale_are_told(encoders, variant):
    """Weights whose first batch norm has seen photographs, uncorrelated: 58^2 sum(weight^2) where they are 0 to 255."""
    encoder = encoders[variant]
    variance = encoder.norm.moving_variance
    before = variance.asnumpy().copy()
    sums = (encoder.conv1.weight.asnumpy() ** 2).sum((1, 2, 3))
    try:
        for std, fitting in ((58.0, {"v1"}), (1.0, {"torchvision", "mindspore"}), (1e-3, set(EXPECTED))):
            variance.set_data(ms.Tensor((std**2 * sums).astype(np.float32)))
            odd = other_pixels(encoder, variant)
            assert (odd is None) == (variant in fitting), (std, odd)
            assert odd is None or all(f"encoder.variant={variant} " in odd and name in odd for name in fitting)
    finally:
        variance.set_data(ms.Tensor(before))


def refused(encoder, path, message):
    """InputError of one line that names the file, and the encoder is as it was."""
    before = encoder.conv1.weight.asnumpy().copy()
    with pytest.raises(InputError) as caught:
        load_encoder_weights(encoder, str(path))
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text and "\n" not in text
    assert np.array_equal(encoder.conv1.weight.asnumpy(), before)


# ---- the small CNN, and the choice


@pytest.fixture(scope="module")
def cnn():
    ms.set_seed(0)
    return build_encoder("cnn", variant="cnn", checkpoint=None, image_size=96)


def test_cnn_shapes_and_modes(cnn):
    images = np.random.default_rng(3).standard_normal((2, 3, 96, 96)).astype(np.float32)
    graph = cnn(ms.Tensor(images)).asnumpy()
    assert graph.shape == (2, 36, 128) and (cnn.tokens, cnn.channels) == (36, 128)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    np.testing.assert_allclose(cnn(ms.Tensor(images)).asnumpy(), graph, rtol=1e-4, atol=1e-5)
    # An image's features depend on neither its neighbours in the batch nor the training flag.
    cnn.set_train(True)
    np.testing.assert_allclose(cnn(ms.Tensor(images[1:])).asnumpy(), graph[1:], rtol=1e-4, atol=1e-5)


def numpy_cnn(weights, images):
    def block(x, name, stride):
        return np.maximum(conv(x, weights[f"{name}.0.weight"], stride) + weights[f"{name}.0.bias"][:, None, None], 0)

    x = images
    for i in range(4):
        x = block(x, f"stages.{i}", 2)
    x = x + block(x, "mix", 1)
    x = x.transpose(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * weights["norm.gamma"] + weights["norm.beta"] + weights["positions"]


def test_cnn_equals_numpy_with_gradients(cnn):
    """Every parameter's directional derivative, against central differences in float64."""
    rng = np.random.default_rng(4)
    images, factors = rng.standard_normal((2, 3, 96, 96)), rng.standard_normal((2, 36, 128))
    images, factors = images.astype(np.float32), factors.astype(np.float32)
    parameters = dict(cnn.parameters_and_names())
    weights = {name: parameter.asnumpy().astype(np.float64) for name, parameter in parameters.items()}
    expected = numpy_cnn(weights, images)
    np.testing.assert_allclose(cnn(ms.Tensor(images)).asnumpy(), expected, rtol=1e-4, atol=1e-5 * expected.max())
    gradient_of = Gradient(cnn, ms.ParameterTuple(parameters.values()))
    for _ in range(3):
        gradients = gradient_of(ms.Tensor(images), ms.Tensor(factors))
    assert len(gradients) == len(weights) == 13
    for name, gradient in zip(parameters, (tensor.asnumpy() for tensor in gradients), strict=True):
        direction, step = rng.standard_normal(gradient.shape), 1e-8
        losses = [
            (numpy_cnn({**weights, name: weights[name] + sign * step * direction}, images) * factors).mean()
            for sign in (1, -1)
        ]
        expected = (losses[0] - losses[1]) / (2 * step)
        assert np.linalg.norm(gradient) > 1e-4, name
        assert abs((gradient * direction).sum() - expected) < 1e-3 * np.linalg.norm(gradient), name


def test_every_choice_can_be_built_and_has_a_preprocessing():
    with pytest.raises(InputError, match=r"encoder\.checkpoint"):
        build_encoder("cnn", variant="cnn", checkpoint="a.ckpt", image_size=96)
    assert {name for names in KINDS.values() for name in names} == set(PREPROCESSING)
    assert set(BUILDERS) | {"vit"} == set(KINDS)  # a vision Transformer is built from its folder
