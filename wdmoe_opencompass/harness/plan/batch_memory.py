"""What the forward passes of a batch need on top of the weights: key/value cache and the largest activations."""

from dataclasses import dataclass
from typing import Any

TABLE_2_SEQUENCES = 64  # of a forward pass: with it all of the paper's Table II comes out within a factor of two
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class TokenBytes:
    """Bytes that one token of a forward pass takes.

    cache:   keys and values of all layers, kept as long as the sequence
    experts: of one MoE layer's experts, alive at once: what goes in and comes out, and what is between
    logits:  of a perplexity, which reads every token's: as the model gives them, in float32, and their log-softmax
    """

    cache: int
    experts: int
    logits: int


@dataclass(frozen=True)
class BatchMemory:
    """What the largest forward pass of a dataset needs, over the GPUs that the layers are spread on.

    sequences: of a pass; prompt, new_tokens: the longest sampled prompt, and what is generated after it
    """

    dataset: str
    batch_size: int
    sequences: int
    prompt: int
    new_tokens: int
    cache_bytes: int
    activation_bytes: int

    def bytes_per_gpu(self, weight_bytes: int, gpus: int) -> int:
        """Weights and cache are spread evenly; activations are alive on one GPU at a time, and all on that one."""
        return (weight_bytes + self.cache_bytes) // gpus + self.activation_bytes


def token_bytes(config: Any, item_bytes: int, expert_parameters: int, top_k: int) -> TokenBytes | None:
    """Of a model by its text config; None where that does not say how its attention keeps keys and values.

    item_bytes: of an activation; expert_parameters: of one expert, hidden x FFN size each matrix; 0 of a dense model.
    """
    layers, hidden_size = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    heads, vocabulary = getattr(config, "num_attention_heads", None), getattr(config, "vocab_size", None)
    if not (layers and hidden_size and heads and vocabulary):
        return None
    if not expert_parameters:  # a dense model: its one feed-forward network
        expert_parameters, top_k = 3 * hidden_size * (getattr(config, "intermediate_size", None) or 4 * hidden_size), 1
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or hidden_size // heads
    key_size = getattr(config, "qk_head_dim", None) or head  # multi-head latent attention: as transformers caches it
    value_size = getattr(config, "v_head_dim", None) or head
    return TokenBytes(
        cache=layers * key_heads * (key_size + value_size) * item_bytes,
        experts=top_k * (2 * hidden_size + expert_parameters // hidden_size) * item_bytes,
        logits=vocabulary * (item_bytes + 2 * FLOAT32_BYTES),
    )


def batch_memory(
    dataset: str, of_token: TokenBytes, method: str, batch_size: int, beams: int, prompt: int, new_tokens: int
) -> BatchMemory:
    """-> what the largest pass needs; OpenCompass forwards `batch_size` sequences at once, generation once per beam.

    method: ppl or gen; prompt: tokens of the longest prompt, to which the others of its batch are padded.
    """
    sequences = batch_size * beams
    largest = of_token.experts if method == "gen" else max(of_token.experts, of_token.logits)
    return BatchMemory(
        dataset=dataset,
        batch_size=batch_size,
        sequences=sequences,
        prompt=prompt,
        new_tokens=new_tokens,
        cache_bytes=sequences * (prompt + new_tokens) * of_token.cache,
        activation_bytes=sequences * prompt * largest,
    )


def batch_sentence(needed: BatchMemory, weight_bytes: int, gpus: int, free_bytes: int | None) -> str:
    """Whether a batch size fits, and how it compares with the paper's Table II; gpus: 0 for the host's memory.

    free_bytes: over all of them; None where that is not known.
    """
    longest = f"longest on {needed.dataset}, {needed.prompt} + {needed.new_tokens} tokens"
    return (
        f"batch size {needed.batch_size} ({longest}): {_verdict(needed, weight_bytes, gpus, free_bytes)}; "
        f"Table II corresponds to about {TABLE_2_SEQUENCES} sequences per forward pass"
    )


def _verdict(needed: BatchMemory, weight_bytes: int, gpus: int, free_bytes: int | None) -> str:
    where = {0: "in the host's memory", 1: "on the GPU"}.get(gpus, f"on each of {gpus} GPUs")
    parts = max(gpus, 1)
    need = needed.bytes_per_gpu(weight_bytes, parts)
    parts_text = (
        f"weights {weight_bytes / parts / 1e9:.3g}, key/value cache {needed.cache_bytes / parts / 1e9:.3g}, "
        f"activations {needed.activation_bytes / 1e9:.3g}"
    )
    if free_bytes is None:
        return f"needs {need / 1e9:.3g} GB {where} ({parts_text})"
    free = free_bytes // parts
    if need <= free:
        return f"fits, with {need / 1e9:.3g} of {free / 1e9:.3g} GB {where} ({parts_text})"
    room, per_batch = free - weight_bytes // parts, need - weight_bytes // parts
    most = max(0, room) * needed.batch_size // per_batch
    way_out = f"; about {most} would fit" if most else ""
    return f"needs {need / 1e9:.3g} GB {where} ({parts_text}), free: {free / 1e9:.3g} GB{way_out}"
