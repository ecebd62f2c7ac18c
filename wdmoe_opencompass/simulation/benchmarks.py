"""The paper's eight benchmarks as forward passes of a synthetic router: lengths of prompts and answers, batches."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..trace.recording import RouterPass
from .router import Array32, SyntheticRouter

MAX_NEW_TOKENS = 512  # max_out_len of OpenCompass's configs of the generated benchmarks
QUESTION_SPREAD = 0.4  # assumption: standard deviation over mean of the tokens of one question
FEW_SHOT_SPREAD = 0.1  # assumption: the shots are the same in every prompt, only the question differs
ANSWER_SPREAD = 0.4  # assumption: of the tokens of an answer
MIN_TOKENS = 4


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper under OpenCompass's stock config.

    dataset:       as OpenCompass abbreviates it
    prompt_tokens: mean tokens of a prompt under Mixtral's tokenizer, the candidate answer included where answers are
                   scored by perplexity
    prompt_spread: their standard deviation over their mean
    batches:       how many are simulated
    answer_tokens: mean tokens of a generated answer; 0 where answers are scored by perplexity, in one forward pass
    topics:        whether every batch is of another subject
    """

    dataset: str
    prompt_tokens: int
    prompt_spread: float
    batches: int
    answer_tokens: int = 0
    topics: bool = False

    @property
    def work(self) -> float:
        """How long it takes to simulate, to the order: tokens, and passes as some hundred tokens each."""
        passes = MAX_NEW_TOKENS if self.answer_tokens else 1
        return self.batches * (self.prompt_tokens + self.answer_tokens + 10 * passes)


# Tokens per prompt were measured; answers of HumanEval and GSM8K are as long as the published recording of one (338 and
# 247 tokens); MBPP's have no published length and are taken to be as HumanEval's (assumption: each is one function).
BENCHMARKS = {
    "MMLU": Benchmark("mmlu", 600, FEW_SHOT_SPREAD, batches=6, topics=True),
    "PIQA": Benchmark("piqa", 48, QUESTION_SPREAD, batches=16),
    "ARC-E": Benchmark("ARC-e", 41, QUESTION_SPREAD, batches=16),
    "ARC-C": Benchmark("ARC-c", 46, QUESTION_SPREAD, batches=16),
    "HumanEval": Benchmark("openai_humaneval", 175, QUESTION_SPREAD, batches=1, answer_tokens=338),
    "GSM8K": Benchmark("gsm8k", 1585, FEW_SHOT_SPREAD, batches=1, answer_tokens=247),
    "BoolQ": Benchmark("BoolQ", 172, QUESTION_SPREAD, batches=6),
    "MBPP": Benchmark("mbpp", 815, FEW_SHOT_SPREAD, batches=1, answer_tokens=338),
}


def router_passes(benchmark: Benchmark, router: SyntheticRouter, batch_size: int, seed: int) -> Iterator[RouterPass]:
    """The forward passes of a benchmark: of every batch one prefill, then decode passes until its longest answer ends.

    Padding, and tokens after the end of an answer, are not in them. Every benchmark and batch has random numbers of its
    own, so that neither depends on which others are simulated. Of a benchmark that is scored by perplexity one pass per
    batch is drawn: its others differ from it in the candidate answer alone.
    """
    topic = router.topic(_generator(seed, benchmark.dataset))
    for batch in range(benchmark.batches):
        generator = _generator(seed, benchmark.dataset, batch)
        if benchmark.topics:
            topic = router.topic(generator)
        preferences = router.sequences(generator, topic, batch_size)
        prompts = _lengths(generator, benchmark.prompt_tokens, benchmark.prompt_spread, batch_size)
        of_batch = (batch, batch * batch_size, batch_size)
        tokens = np.repeat(np.arange(batch_size), prompts)
        yield RouterPass(*of_batch, "prefill", *router.route(generator, preferences, tokens))
        if benchmark.answer_tokens:
            answers = _lengths(generator, benchmark.answer_tokens, ANSWER_SPREAD, batch_size)
            answers = np.minimum(answers, MAX_NEW_TOKENS)
            for step, outputs in enumerate(_decode(router, generator, preferences, answers)):
                yield RouterPass(*of_batch, "decode", *outputs)._replace(finished=answers - 1 <= step)


def _decode(
    router: SyntheticRouter, generator: np.random.Generator, preferences: Array32, answers: NDArray[np.int64]
) -> Iterator[tuple]:
    """Router outputs of every decode pass; a prefill gives the first new token, so an answer takes one pass less."""
    sequence = np.repeat(np.arange(len(answers)), answers - 1)
    step = np.concatenate([np.arange(answer - 1) for answer in answers])
    outputs = router.route(generator, preferences, sequence)
    in_step = np.argsort(step, kind="stable")
    ends = np.cumsum(np.bincount(step))
    ordered = [array[in_step] for array in outputs]
    for start, end in zip([0, *ends[:-1]], ends):
        yield tuple(array[start:end] for array in ordered)


def _lengths(generator: np.random.Generator, mean: float, spread: float, count: int) -> NDArray[np.int64]:
    """-> [count] lengths of a gamma distribution of that mean and spread."""
    shape = 1 / spread**2
    drawn = generator.gamma(shape, mean / shape, count)
    return np.maximum(np.rint(drawn), MIN_TOKENS).astype(np.int64)


def _generator(seed: int, *what: str | int) -> np.random.Generator:
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
