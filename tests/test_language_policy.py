"""A pretrained language model as a policy: sampling, losses, gradients, adapters, and what a checkpoint of it holds."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from tiny import WORLD
from tiny_models import tiny_folder

from src.config.load import load_config
from src.data.pretrained_tokenizer import load_pretrained_tokenizer
from src.decoding.attention import Attention
from src.decoding.beam import BeamDecoder
from src.decoding.distribution import Sampled
from src.decoding.generation import compile_generation
from src.decoding.sampler import GreedyDecoder, GroupSampler
from src.losses import tokens as losses
from src.losses.cross_entropy import CELossCell
from src.losses.grpo import LogprobCell
from src.losses.tokens import TokenScores
from src.models.build import build_policy
from src.models.checkpoint import load_checkpoint, read_checkpoint
from src.models.vision_language.policy import GridProjector
from src.models.vision_language.weights import projections
from src.runtime.errors import InputError
from src.runtime.rng import uniforms
from src.training.checkpoint import save_checkpoint
from src.training.step import Gradient

IMAGES, GROUP, TOKENS = 2, 3, 7
SETTINGS = ["policy.kind=prefix_lm", "data.image_size=64", "encoder.kind=cnn", "encoder.variant=cnn"]
SETTINGS += ["encoder.checkpoint=null", "encoder.trainable=false", f"ce.tokens={TOKENS}", f"rl.tokens={TOKENS}"]
SETTINGS += [f"eval.tokens={TOKENS}", "policy.chunk_rows=0"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_folder(kind, root / kind) for kind in ("llama", "qwen2", "qwen2_5_vl")}


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def configured(folder, *settings):
    return load_config(WORLD / "configs/base.yaml", [*SETTINGS, f"policy.path={folder}", *settings])


def build(folder, *settings, cached=True):
    config = configured(folder, *settings)
    ms.set_seed(1)
    return build_policy(config, load_pretrained_tokenizer(config).token_ids, cached=cached, load=True)


@pytest.fixture(scope="module")
def policies(folders):
    see = ("policy.kind=qwen2_5_vl", "data.image_size=112")
    return {
        "llama": build(folders["llama"]),
        "qwen2": build(folders["qwen2"], "lora.rank=4"),
        "qwen2_5_vl": build(folders["qwen2_5_vl"], *see),
    }


@pytest.fixture(params=["llama", "qwen2", "qwen2_5_vl"])
def policy(request, policies):
    return policies[request.param]


def features_of(policy, images=IMAGES, seed=0):
    shape = (images, policy.encoder.tokens, policy.encoder.channels)
    return Tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float16))


def compiled(generation):
    return compile_generation("any", generation, lambda name, cell: cell)


def drawn(seed=1, group=GROUP, images=IMAGES):
    return Tensor(uniforms(seed, 0, 0, images * group, TOKENS).reshape(images, group, TOKENS))


@pytest.mark.parametrize("sampled", [Sampled(0.7, 5), Sampled(1.3, 0, 0.8)])
def test_log_probs_of_a_cut_distribution_are_the_teacher_forced_ones(policies, sampled):
    check_log_probs(policies["llama"], sampled)


def test_sampled_log_probs_are_the_teacher_forced_ones(policy):
    check_log_probs(policy, Sampled())


def check_log_probs(policy, sampled):
    features = features_of(policy)
    ids, mask, logprobs = (out.asnumpy() for out in compiled(GroupSampler(policy, TOKENS, sampled))(features, drawn()))
    again = LogprobCell(policy, sampled)(features, Tensor(ids)).asnumpy()
    np.testing.assert_allclose(again[mask > 0], logprobs[mask > 0], atol=1e-4)
    assert policy.token_ids.allowed[ids].all() and len(set(ids.reshape(-1).tolist())) > 3


def test_a_step_writes_a_cache_for_each_number_of_rows(policies):
    """The same sampler serves batches of different sizes, as a last batch may have."""
    policy = policies["llama"]
    sample = compiled(GroupSampler(policy, TOKENS, Sampled()))
    features = features_of(policy)
    whole = sample(features, drawn())[0].asnumpy()
    first = sample(features[:1], drawn()[:1])[0].asnumpy()
    np.testing.assert_array_equal(whole[:GROUP], first)


def test_greedy_rows_and_single_beams_agree(policy):
    features = features_of(policy)
    greedy = compiled(GreedyDecoder(policy, TOKENS))(features)[0].asnumpy()
    joint = compiled(GroupSampler(policy, TOKENS, Sampled(), greedy=True))(features, drawn())[0].asnumpy()
    np.testing.assert_array_equal(joint.reshape(IMAGES, GROUP + 1, TOKENS)[:, GROUP], greedy)
    np.testing.assert_array_equal(compiled(BeamDecoder(policy, TOKENS, 1))(features)[0].asnumpy(), greedy)


def test_beams_score_their_own_captions(policy):
    """What reordering the caches in place would break: the score of a beam is its teacher-forced log-prob."""
    features = features_of(policy)
    ids, mask, scores = (out.asnumpy() for out in compiled(BeamDecoder(policy, TOKENS, 4))(features))
    logprobs = LogprobCell(policy, Sampled())(features, Tensor(ids)).asnumpy()
    np.testing.assert_allclose((logprobs * mask).sum(1), scores, atol=1e-3)
    greedy = compiled(GreedyDecoder(policy, TOKENS))(features)
    assert (scores >= greedy[2].asnumpy().sum(1) - 1e-3).all()


def test_draws_follow_the_distribution(policies):
    """Chi-square of 4,000 first tokens against the probabilities that greedy teacher forcing gives."""
    from scipy.stats import chisquare

    policy, count = policies["llama"], 4000
    features = features_of(policy, 1)
    sampler = compiled(GroupSampler(policy, 1, Sampled(top_p=0.9)))
    draws = Tensor(uniforms(5, 0, 0, count, 1).reshape(1, count, 1))
    tokens = sampler(features, draws)[0].asnumpy().reshape(-1)
    vocab = len(policy.token_ids.allowed)
    every = Tensor(np.arange(vocab, dtype=np.int32)[:, None])
    probabilities = np.exp(LogprobCell(policy, Sampled())(features, every).asnumpy().reshape(-1).astype(np.float64))
    order = np.argsort(-probabilities)
    kept = order[: np.searchsorted(np.cumsum(probabilities[order]), 0.9) + 1]  # the fewest that reach 0.9
    assert set(tokens.tolist()) <= set(kept.tolist()) and len(kept) < policy.token_ids.allowed.sum()
    expected = count * probabilities[kept] / probabilities[kept].sum()
    often = expected >= 5
    observed = np.bincount(tokens, minlength=vocab)[kept]
    observed = [*observed[often], observed[~often].sum()]
    expected = [*expected[often], expected[~often].sum()]
    assert (
        chisquare(np.array(observed)[np.array(expected) > 0], np.array(expected)[np.array(expected) > 0]).pvalue > 1e-3
    )


class Loss(nn.Cell):
    """A smooth function of the log-probs of rows."""

    def __init__(self, policy):
        super().__init__()
        self.scores = TokenScores(policy, Sampled())

    def construct(self, inputs, ids, weights):
        return ops.reduce_sum(self.scores(inputs, ids)[0] * weights), ()


def gradients(gradient, inputs, ids, weights):
    values, parts = gradient(inputs, Tensor(ids), Tensor(weights))
    return float(values.asnumpy()[0]), [part.asnumpy() for part in parts]


def test_gradients_through_a_shared_prefix_are_those_of_single_rows(policy):
    rng = np.random.default_rng(3)
    features = features_of(policy)
    allowed = np.flatnonzero(policy.token_ids.allowed)
    ids = rng.choice(allowed, (IMAGES * GROUP, TOKENS)).astype(np.int32)
    weights = rng.normal(size=ids.shape).astype(np.float32)
    gradient = Gradient(Loss(policy), ms.ParameterTuple(policy.trained_parameters()), None)
    value, together = gradients(gradient, features, ids, weights)
    total, sums = 0.0, [np.zeros_like(part, np.float64) for part in together]
    for row in range(len(ids)):
        one = slice(row, row + 1)
        part, parts = gradients(gradient, features[row // GROUP : row // GROUP + 1], ids[one], weights[one])
        total += part
        for held, more in zip(sums, parts):
            held += more
    assert value == pytest.approx(total, abs=1e-4)
    assert any(np.abs(held).max() > 1e-3 for held in sums)
    for held, part in zip(sums, together):
        np.testing.assert_allclose(part, held, atol=1e-4 * max(1.0, np.abs(held).max()))


@pytest.mark.parametrize(
    ("settings", "tolerance"), [(("lora.rank=4",), 1e-5), ((), 1e-5), (("lora.rank=4", "precision=float16"), 2e-2)]
)
def test_recomputed_layers_have_the_same_gradients(folders, settings, tolerance):
    rng = np.random.default_rng(7)
    ids, weights = rng.integers(20, 60, (IMAGES, TOKENS)).astype(np.int32), np.ones((IMAGES, TOKENS), np.float32)
    results = []
    for recompute in ("true", "false"):
        policy = build(folders["qwen2"], *settings, f"policy.recompute={recompute}")
        gradient = Gradient(Loss(policy), ms.ParameterTuple(policy.trained_parameters()), None)
        results.append(gradients(gradient, features_of(policy), ids, weights)[1])
    assert len(results[0]) > 8
    for again, kept in zip(*results):
        np.testing.assert_allclose(again, kept, atol=tolerance * max(1.0, np.abs(kept).max()))


class Everything(nn.Cell):
    """The scores of tokens, with a smooth loss of the log-probs and their means."""

    def __init__(self, policy, sampled):
        super().__init__()
        self.scores = TokenScores(policy, sampled, with_mean=sampled == Sampled())

    def construct(self, inputs, ids, weights):
        logprobs, mean, entropy, hits = self.scores(inputs, ids)
        sums = tuple([ops.reduce_sum(one * weights[2]) for one in (logprobs, mean, entropy, hits)])
        return ops.reduce_sum(logprobs * weights[0] + mean * weights[1]), sums


@pytest.mark.parametrize(
    ("sampled", "rows"), [(Sampled(), 4), (Sampled(), 42), (Sampled(0.7, 6), 5), (Sampled(1, 0, 0.7), 5)]
)
def test_chunks_of_rows_change_nothing(policies, monkeypatch, sampled, rows):
    policy = policies["llama"]
    rng = np.random.default_rng(4)
    ids = rng.choice(np.flatnonzero(policy.token_ids.allowed), (IMAGES * GROUP, TOKENS)).astype(np.int32)
    targets = Tensor(rng.normal(size=(3, *ids.shape)).astype(np.float32))
    results = []
    for chunk in (0, rows):
        monkeypatch.setattr(policy, "chunk_rows", chunk)
        gradient = Gradient(Everything(policy, sampled), ms.ParameterTuple(policy.trained_parameters()), None)
        values, parts = gradient(features_of(policy), Tensor(ids), targets)
        results.append((values.asnumpy(), [part.asnumpy() for part in parts]))
    (whole, whole_parts), (chunked, chunked_parts) = results
    np.testing.assert_allclose(chunked, whole, atol=1e-4, rtol=1e-5)
    assert any(np.abs(part).max() > 0.1 for part in whole_parts)
    for got, expected in zip(chunked_parts, whole_parts):
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_a_graph_never_holds_too_many_chunks(monkeypatch):
    sizes = []

    def chunk(self, hidden, *rest):
        sizes.append(len(hidden))
        return (hidden[:, 0],) * 5

    monkeypatch.setattr(losses, "MOST_CHUNKS", 3)
    monkeypatch.setattr(losses.ChunkedLogprobs, "chunk", chunk)
    ones = Tensor(np.ones((10, 2), np.float32))
    for rows, expected in ((1, [4, 4, 2]), (3, [4, 4, 2]), (4, [4, 4, 2]), (6, [6, 4])):
        sizes.clear()
        losses.ChunkedLogprobs(Sampled(), rows).construct(ones, ones, ones, ones)
        assert sizes == expected


def test_an_adapter_begins_as_nothing_and_is_what_is_trained(policies, folders):
    policy, plain = policies["qwen2"], build(folders["qwen2"])
    features, ids = features_of(policy), Tensor(np.full((IMAGES, TOKENS), 60, np.int32))
    for parameter, own in zip(policy.projector.get_parameters(), plain.projector.get_parameters()):
        own.set_data(parameter)
    scores = [LogprobCell(one, Sampled())(features, ids).asnumpy() for one in (policy, plain)]
    np.testing.assert_allclose(*scores, atol=1e-6)
    names = {parameter.name.rsplit(".", 1)[-1] for parameter in policy.language.trainable_params()}
    assert names == {"lora_down", "lora_up"}
    assert {policy.part_of(parameter) for parameter in policy.trained_parameters()} == {"adapter", "projector"}


def test_an_adapter_is_a_product_of_low_rank(folders):
    """W + alpha / r * B A of each adapted layer, merged into the weights by hand, gives the same log-probs."""
    policy, plain = (
        build(folders["qwen2"], "lora.rank=4", "lora.targets=q_proj,v_proj,down_proj"),
        build(folders["qwen2"]),
    )
    for parameter, own in zip(policy.projector.get_parameters(), plain.projector.get_parameters()):
        own.set_data(parameter)
    rng = np.random.default_rng(6)
    adapted = 0
    for one, other in zip(*([one for at in p.language.layers for _, one in projections(at)] for p in (policy, plain))):
        weight = one.weight.asnumpy().copy()
        for rows, columns, name in one.adapted_parts():
            assert name in ("q_proj", "v_proj", "down_proj")
            a = one.lora_down.asnumpy()[columns]
            b = rng.normal(0, 0.1, (rows.stop - rows.start, 4)).astype(np.float32)
            up = one.lora_up.asnumpy().copy()
            up[rows, columns] = b
            one.lora_up.set_data(Tensor(up))
            weight.T[rows] += 32.0 / 4 * b @ a
            adapted += 1
        other.weight.set_data(Tensor(weight))
    assert adapted == 3
    features, ids = features_of(policy), Tensor(rng.integers(20, 60, (IMAGES, TOKENS)).astype(np.int32))
    changed, merged = (LogprobCell(one, Sampled())(features, ids).asnumpy() for one in (policy, plain))
    np.testing.assert_allclose(changed, merged, atol=1e-4)
    reference = policy.reference()  # the adapter as it is now, whatever is trained afterwards
    for one in policy.adapted_projections():
        one.lora_up.set_data(Tensor(np.zeros(one.lora_up.shape, np.float32)))
    np.testing.assert_allclose(LogprobCell(reference, Sampled())(features, ids).asnumpy(), changed, atol=1e-6)
    assert np.abs(LogprobCell(policy, Sampled())(features, ids).asnumpy() - changed).max() > 1e-3


def test_a_reference_shares_what_is_not_trained(policies):
    adapted, whole = policies["qwen2"], policies["llama"]
    reference = adapted.reference()
    shared = {id(parameter) for parameter in reference.get_parameters()} & {id(p) for p in adapted.get_parameters()}
    trained = {id(parameter) for parameter in adapted.trained_parameters()}
    assert not shared & trained and len(shared) == len(list(adapted.get_parameters())) - len(trained)
    assert not reference.adapted_projections()  # nothing was added yet: no product for it
    assert not any("lora" in name for name, _ in reference.parameters_and_names())  # the graph cache's key
    copied = {id(parameter) for parameter in whole.reference().get_parameters()}
    assert not copied & {id(parameter) for parameter in whole.trained_parameters()}


def test_attention_goes_to_the_image(policy):
    weights = Attention(policy)(features_of(policy), Tensor(np.full((IMAGES, TOKENS), 60, np.int32))).asnumpy()
    assert weights.shape == (IMAGES, TOKENS, policy.image_tokens)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert weights.std(-1).min() > 0


def test_dropout_acts_on_adapters_alone(folders):
    policy = build(folders["qwen2"], "lora.rank=4", "lora.dropout=0.5")
    assert policy.dropout_sites == (0.5,)
    features = features_of(policy)
    ids = np.random.default_rng(1).integers(20, 60, (IMAGES, TOKENS)).astype(np.int32)
    weights = np.full(ids.shape, 1 / ids.size, np.float32)
    cell = CELossCell(policy, 0.0)

    def loss(share):
        keep = [
            Tensor(np.random.default_rng(2).random((*ids.shape, policy.width)) < share) for _ in policy.dropout_sites
        ]
        return float(cell(features, Tensor(ids), Tensor(weights), *keep)[0].asnumpy())

    assert loss(0.5) == pytest.approx(loss(1.0), abs=1e-6)  # adapters that add nothing lose nothing
    for one in policy.adapted_projections():
        one.lora_up.set_data(Tensor(np.random.default_rng(3).normal(0, 0.1, one.lora_up.shape).astype(np.float32)))
    assert abs(loss(0.5) - loss(1.0)) > 1e-3


def test_a_checkpoint_holds_the_adapter_and_names_its_base(folders, tmp_path):
    policy = build(folders["qwen2"], "lora.rank=4")
    path = tmp_path / "checkpoint"
    save_checkpoint(path, policy, {})
    state, arrays = read_checkpoint(path)
    names = {name.removeprefix("model.") for name in arrays}
    everything = [name for name, _ in policy.parameters_and_names()]
    expected = {name for name in everything if name.startswith(("projector.", "encoder.")) or "lora_" in name}
    assert names == expected, "the encoder has no file: encoder.checkpoint=null"
    seeing = build(folders["qwen2_5_vl"], "lora.rank=4", "policy.kind=qwen2_5_vl", "data.image_size=112")
    assert seeing.saved_parameters() and all("lora_" in name for name in seeing.saved_parameters())
    load_checkpoint(path, build(folders["qwen2"], "lora.rank=4"))
    other = Path(f"{tmp_path}/other")
    tiny_folder("qwen2", other)
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(0.5).tobytes())
    with pytest.raises(InputError, match="was trained with other pretrained files"):
        load_checkpoint(path, build(other, "lora.rank=4"))
    for setting in ("lora.alpha=8", "lora.targets=q_proj"):  # adapters that would mean something else
        with pytest.raises(InputError, match=r"or with another lora\.alpha or lora\.targets"):
            load_checkpoint(path, build(folders["qwen2"], "lora.rank=4", setting))
    changed = tiny_folder("qwen2", tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text()) | {"rms_norm_eps": 0.1}
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="was trained with other pretrained files"):
        load_checkpoint(path, build(changed, "lora.rank=4"))
    whole = tmp_path / "whole"  # holds all tensors, but no constants
    save_checkpoint(whole, build(folders["qwen2"]), {})
    load_checkpoint(whole, build(folders["qwen2"]))
    with pytest.raises(InputError, match="was trained with other pretrained files"):
        load_checkpoint(whole, build(changed))


def test_adapters_begin_unlike_each_other(folders):
    """As PEFT's: uniform within 1 / sqrt(C), with other numbers in every layer."""
    policy = build(folders["qwen2"], "lora.rank=4", "lora.targets=gate_proj,q_proj")
    downs = [one.lora_down.asnumpy() for one in policy.adapted_projections()]
    assert len(downs) == 2 and downs[0].shape == downs[1].shape and np.abs(downs[0] - downs[1]).max() > 0.01
    for down in downs:
        bound = down.shape[1] ** -0.5
        assert 0.9 * bound < np.abs(down).max() <= bound
    again = build(folders["qwen2"], "lora.rank=4", "lora.targets=gate_proj,q_proj")
    np.testing.assert_array_equal(again.adapted_projections()[1].lora_down.asnumpy(), downs[1])


def test_pooled_cells_by_hand():
    """5 x 5 cells in squares of 2: the last column and row of squares are filled up with zeros."""
    projector = GridProjector(2, 25, 2, 4, ms.float32)
    assert projector.tokens == 9
    places = projector.places.asnumpy().reshape(9, 4)
    assert places[0].tolist() == [0, 1, 5, 6] and places[1].tolist() == [2, 3, 7, 8]
    assert places[2].tolist() == [4, 25, 9, 25] and places[8].tolist() == [24, 25, 25, 25]


def test_a_pool_larger_than_the_grid_is_named(folders):
    with pytest.raises(InputError, match=r"policy\.pool=100 exceeds the encoder's grid of"):
        build(folders["llama"], "policy.pool=100")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["policy.prompt=" + "a b c d e f " * 30], "take .* tokens, but .* was trained with at most 128"),
        (["policy.kind=qwen2_5_vl"], "model_type=llama is not qwen2_5_vl; set policy.kind=prefix_lm"),
        (
            ["lora.rank=2", "lora.targets=q_proj,lm_head"],
            "lora.targets=q_proj,lm_head must be a comma-separated list of q_proj,",
        ),
        (["policy.kind=captioner"], "policy.path=.* is for a pretrained model"),
        (["tokenizer.kind=word"], "tokenizer.kind=word cannot be set with policy.path"),
        (["init_config=null", "stage=grpo", "policy.kind=captioner", "policy.path=null"], "init_config=None must name"),
        (["encoder.kind=vit", "encoder.checkpoint=null"], "encoder.checkpoint=None must name the folder"),
    ],
)
def test_what_does_not_fit_is_named(folders, settings, message):
    if "qwen2_5_vl" in settings[0]:
        config = configured(folders["llama"], *settings)
        ids = load_pretrained_tokenizer(configured(folders["llama"])).token_ids
        with pytest.raises(InputError, match=message):
            build_policy(config, ids, cached=True, load=True)
        return
    with pytest.raises(InputError, match=message):
        build(folders["llama"], *settings)


def test_an_image_size_that_does_not_divide_is_named(folders):
    with pytest.raises(InputError, match=r"data\.image_size=100 must be a multiple of 28"):
        build(folders["qwen2_5_vl"], "policy.kind=qwen2_5_vl", "data.image_size=100")
