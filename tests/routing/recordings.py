"""Recordings of a router for tests: random ones, those of tiny models, and the arrays of one that is imported."""

from contextlib import contextmanager

import numpy as np
import torch

from tests.routing.families import attached
from tests.tiny import PAD, prompts
from wdmoe_opencompass.routing.router_recorder import RouterRecorder
from wdmoe_opencompass.trace.recording import RecordingMetadata, join_recording, new_recording


def recording_metadata(**changes):
    values = dict(
        source="run",
        model="tiny",
        dataset="d",
        layers=3,
        num_experts=8,
        top_k=2,
        hidden_size=32,
        ffn_size=48,
        router_is_softmax=True,
        router_normalises=True,
        has_weights=True,
        has_probabilities=True,
    )
    return RecordingMetadata(**(values | changes))


def router_outputs(rng, tokens, layers=3, experts=8, k=2):
    """-> expert_index, weights, probabilities of a random softmax router that normalises its top-k."""
    probabilities = rng.dirichlet(np.full(experts, 0.5), size=(tokens, layers)).astype(np.float32)
    index = np.argsort(-probabilities, axis=2, kind="stable")[..., :k].astype(np.int16)
    weights = np.take_along_axis(probabilities, index.astype(np.int64), axis=2)
    return index, weights / np.maximum(weights.sum(axis=2, keepdims=True), 1e-30), probabilities


def import_arrays(seed=0, prompt_length=(3, 0, 5), new=(2, 4, 0), layers=3, experts=8, k=2):
    """-> arrays of an NPZ file as `wdmoe recording import` takes it."""
    rng = np.random.default_rng(seed)
    lengths = np.array(prompt_length) + np.array(new)
    index, weights, probabilities = router_outputs(rng, lengths.sum(), layers, experts, k)
    return dict(
        expert_index=index,
        weights=weights,
        probabilities=probabilities,
        sequence=np.repeat(np.arange(len(lengths)), lengths),
        position=np.concatenate([np.arange(length) for length in lengths]),
        prompt_length=np.array(prompt_length),
        num_experts=np.array(experts),
        hidden_size=np.array(32),
        ffn_size=np.array(48),
    )


def random_recording(seed=0, prompt_length=(3, 0, 5), new=(2, 4, 0), weights=True, probabilities=True, **sizes):
    """-> an import's recording."""
    given = import_arrays(seed, prompt_length, new, **sizes)
    types = dict(expert_index=np.int16, weights=np.float32, probabilities=np.float32)
    arrays = {name: array.astype(types.get(name, np.int32)) for name, array in given.items() if array.ndim}
    for name, is_there in (("weights", weights), ("probabilities", probabilities)):
        if not is_there:
            del arrays[name]
    _, layers, k = arrays["expert_index"].shape
    metadata = recording_metadata(
        source="import",
        layers=layers,
        top_k=k,
        num_experts=int(given["num_experts"]),
        has_weights=weights,
        has_probabilities=probabilities,
    )
    return new_recording("random", metadata, arrays)


def recording_block(first_item, items=2, seed=0):
    """-> one batch of a run's journal: prompts of 3 and 2 tokens, then 2 and 1 new ones."""
    arrays = import_arrays(seed, prompt_length=(3, 2), new=(2, 1))
    types = dict(expert_index=np.int16, weights=np.float32, probabilities=np.float32)
    numbers = dict(batch=[0, 0], first_pass=[0, 0], first_item=[first_item], items=[items], passes=[3])
    arrays = {name: array for name, array in arrays.items() if array.ndim} | numbers
    return {name: np.asarray(array, types.get(name, np.int32)) for name, array in arrays.items()}


def run_recording():
    """-> a run's recording of two batches."""
    return join_recording(recording_metadata(), [recording_block(0), recording_block(2, seed=1)])


@contextmanager
def recorded(model, policy):
    """A policy attached to a model whose router is recorded."""
    with attached(model, policy) as attachment:
        attachment.router_recorder = RouterRecorder(attachment.layers)
        yield attachment


def recorded_batches(model, policy, new_tokens=6):
    """-> (blocks of a trace, recording): a batch of prompts alone, then one that generates."""
    traced, blocks = [], []
    with recorded(model, policy) as attachment:
        for number, side in enumerate(("right", "left")):
            ids, mask = prompts(rows=4, seed=number, side=side)
            if number == 0:
                for _ in range(2):  # as perplexity of two labels in one batch would be
                    with torch.no_grad():
                        model(input_ids=ids, attention_mask=mask)
            else:
                model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=PAD
                )
            traced.append(attachment.recorder.finish_batch(4 * number, 4))
            blocks.append(attachment.router_recorder.finish_batch(4 * number, 4))
        layers, is_softmax = attachment.layers, attachment.router_recorder.is_softmax
    metadata = recording_metadata(
        layers=len(layers),
        num_experts=max(layer.num_experts for layer in layers),
        top_k=layers[0].top_k,
        hidden_size=layers[0].shape.hidden_size,
        ffn_size=layers[0].shape.ffn_size,
        router_is_softmax=is_softmax,
        has_probabilities=is_softmax,
    )
    return traced, join_recording(metadata, blocks)
