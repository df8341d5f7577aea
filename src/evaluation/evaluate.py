"""Evaluate a checkpoint on a split: decode, score, and write the results."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from src.config.schema import Config, EvalConfig
from src.data.dataset import Dataset
from src.data.questions import questions_file
from src.data.record import ImageId, with_known_ids
from src.data.tokenizer import Tokenizer, decode_completions
from src.decoding.beam import BeamDecoder
from src.decoding.distribution import Sampled
from src.decoding.generation import Outputs, compile_generation
from src.decoding.sampler import GreedyDecoder, GroupSampler
from src.evaluation.caption_metrics import compute_metrics, signature
from src.evaluation.diversity import broken_endings, diversity
from src.evaluation.prism import prism
from src.evaluation.report import owning_folder
from src.evaluation.result_files import decoding_name, examined_by, results_name, scored_as, write_arrays, write_json
from src.models.build import load_policy
from src.models.policy import Policy
from src.runtime.compile_cache import GraphCache
from src.runtime.errors import InputError
from src.runtime.files import file_digest
from src.runtime.rng import uniforms
from src.runtime.workers import Workers
from src.training.answerer import build_answerer, read_questions
from src.training.graphs import graph_cache
from src.training.sources import build_sources
from src.training.split_batches import SplitBatches


def evaluate(
    config: Config, dataset: Dataset, checkpoint: Path, split: str, workers: Workers, with_prism: bool
) -> dict[str, Any] | None:
    """Caption a split, and write captions_<split>.json and their scores, eval_<split>.json.

    Names end in _<decoding> unless that is greedy. Segment statistics for confidence intervals go into
    segments_<split>.npz, `eval.samples` captions per image into samples_<split>.json. Captions are saved before they
    are scored; the scores are written last, and returned. Each worker decodes its share; the first scores, and the
    others return None. with_prism: also answer caprl.questions from the samples.
    """
    if with_prism:  # bad questions fail before the model is loaded
        questions = read_questions(config, split)
        questions = with_known_ids(questions, dataset.by_image_id(split), questions_file(config, split))
    policy, tokenizer = load_policy(config, checkpoint, cached=not config.encoder.trainable)
    records = dataset.records[split]
    (source,) = build_sources(config, {split: records}, [split], policy.encoder, workers)
    batches = SplitBatches(source, len(records), config.eval.batch_images, workers)
    graphs = graph_cache(config, tokenizer, workers)
    decoder = build_decoder(config.eval, policy, graphs)
    sampler = build_sampler(config.eval, policy, graphs) if config.eval.samples else None
    completions = batches.map(f"decoding {split}", lambda _, inputs: decoder(inputs)[:2])
    texts, ended = decode_completions(tokenizer, policy.token_ids.eos, *completions)
    drawn = _sample_captions(config, policy, tokenizer, sampler, batches) if sampler else []
    if with_prism:
        answerer = build_answerer(config.caprl, dataset.words.language)
    workers.wait()
    if not workers.is_first:
        return None
    captions = {record.image_id: text for record, text in zip(records, texts)}
    folder = owning_folder(config, checkpoint)
    name = results_name(split, config.eval)
    coco = [{"image_id": image_id, "caption": text} for image_id, text in captions.items()]
    write_json(folder / f"captions_{name}.json", coco)
    result, segments = scored(captions, dataset, split, decoding_name(config.eval))
    result["endings"] = {"truncated": float(1 - ended.mean())}
    if dataset.words.language == "en":
        result["endings"] = {"function_word": broken_endings(texts)} | result["endings"]
    samples = {record.image_id: texts for record, texts in zip(records, drawn)}
    if samples:
        rows = [{"image_id": image_id, "captions": texts} for image_id, texts in samples.items()]
        write_json(folder / f"samples_{split}.json", rows)
        training = {caption for truths in dataset.ground_truths["train"] for caption in truths}
        result["diversity"] = diversity(dataset.words.tokenize_images(samples), dataset.by_image_id(split), training)
    if with_prism:
        result["prism"], found = prism(samples, questions, answerer, config)
        result["prism"]["examined_by"] = examined_by(config, split)
        result["metrics"] |= {f"prism_{name}": result["prism"][name]["value"] for name in ("mean", "best")}
        segments |= found
    result |= {"checkpoint": file_digest(checkpoint), "eval": scored_as(config)}
    write_arrays(folder / f"segments_{name}.npz", segments)
    write_json(folder / f"eval_{name}.json", result)
    return result


def build_decoder(settings: EvalConfig, policy: Policy, graphs: GraphCache) -> Callable[[Tensor], Outputs]:
    """Build the decoder of the configuration: greedy, or beam search."""
    if settings.beams == 1:
        return compile_generation("greedy", GreedyDecoder(policy, settings.tokens), graphs.compile)
    beams = BeamDecoder(policy, settings.tokens, settings.beams, settings.length_penalty, settings.block_trigrams)
    return compile_generation("beams", beams, graphs.compile)


def build_sampler(settings: EvalConfig, policy: Policy, graphs: GraphCache) -> Callable[[Tensor, Tensor], Outputs]:
    """Build the sampler of captions. Errors: InputError if eval.top_k exceeds the vocabulary."""
    size = len(policy.token_ids.allowed)
    if settings.top_k > size:
        raise InputError(f"eval.top_k={settings.top_k} must be at most {size}, the vocabulary's size")
    sampler = GroupSampler(policy, settings.tokens, Sampled.of(settings))
    return compile_generation("sampler", sampler, graphs.compile)


def _sample_captions(
    config: Config,
    policy: Policy,
    tokenizer: Tokenizer,
    sampler: Callable[[Tensor, Tensor], Outputs],
    batches: SplitBatches,
) -> list[list[str]]:
    """Sample `eval.samples` captions of every image."""
    group_size, tokens = config.eval.samples, config.eval.tokens

    def sample(first: int, inputs: Tensor) -> Sequence[Tensor]:
        draws = uniforms(config.seed, 0, first * group_size, len(inputs) * group_size, tokens)
        return sampler(inputs, Tensor(draws.reshape(len(inputs), group_size, tokens)))[:2]

    texts, _ = decode_completions(tokenizer, policy.token_ids.eos, *batches.map("sampling", sample))
    return [texts[start : start + group_size] for start in range(0, len(texts), group_size)]


def scored(
    captions: dict[ImageId, str], dataset: Dataset, split: str, decoding: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score captions, one for each image of a split or of part of it; return the scores and the segment statistics.

    The scores are metrics, signature, number of images and, unless empty, `left_out` and `notes` (CaptionScores).
    """
    words = dataset.words
    scores = compute_metrics(captions, dataset.by_image_id(split), words)
    images = len(dataset.records[split])
    line = signature(
        tokens=words.name, document_frequencies=split, decoding=decoding, num_images=len(captions), of=images
    )
    result = {"metrics": scores.metrics, "signature": line, "num_images": len(captions)}
    remarks = {"left_out": scores.left_out, "notes": scores.notes}
    return result | {name: value for name, value in remarks.items() if value}, scores.segments
