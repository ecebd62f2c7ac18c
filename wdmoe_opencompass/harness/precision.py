"""Whether a model was loaded in the precision that its config asks for: quantisers skip weights without a word."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from ..errors import ModelError

TOLERANCE = 1.25  # scales and zero points come on top: one float32 per 64 values of 4 bit is 12.5 %


def check_precision(path: str, model: Any) -> None:
    """Compare the loaded bytes with those of the precision asked for; ModelError where far more were loaded.

    bitsandbytes converts only ``nn.Linear``, and transformers 5 keeps a layer's experts in one 3-D parameter; a GPU
    without FP8 silently gets bfloat16.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    value_bytes = getattr(quantiser, "quantized_element_size", None)
    if value_bytes is None:
        return
    expected = expected_bytes(model.config, value_bytes, model.dtype)
    loaded = sum(tensor_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))
    if loaded > TOLERANCE * expected:
        widest = max(model.named_parameters(), key=lambda named: tensor_bytes(named[1]))[0]
        raise ModelError(
            f"{path}: {8 * value_bytes:g}-bit weights should take {expected / 1e9:.3g} GB, but {loaded / 1e9:.3g} GB "
            f"were loaded: {type(quantiser).__name__} left {widest} in full precision; a config that converts "
            "the experts too is eval_configs/models/wdmoe_mixtral_8x7b_instruct_int8.py"
        )


def precision_name(model: Any) -> str:
    """What the tables say of a model's numbers: the dtype it computes in and how its weights are quantised."""
    name = str(model.dtype).removeprefix("torch.")
    quantiser = getattr(model, "hf_quantizer", None)
    value_bytes = getattr(quantiser, "quantized_element_size", None)
    if quantiser is None:
        return name
    bits = f"{8 * value_bytes:g}-bit " if value_bytes else ""
    method = quantiser.quantization_config.quant_method
    return f"{name}, {bits}weights by {getattr(method, 'value', method)}"


def expected_bytes(config: PretrainedConfig, value_bytes: float, dtype: torch.dtype) -> float:
    """Bytes of a model with `value_bytes` per value of its matrices; embeddings, head and vectors stay in `dtype`."""
    values = {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(config).from_dict(values))
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    kept = {id(end.weight) for end in ends if end is not None}
    return sum(
        parameter.numel() * (value_bytes if parameter.ndim >= 2 and id(parameter) not in kept else dtype.itemsize)
        for parameter in model.parameters()
    )


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes; a quantised tensor of a subclass holds several plain ones.

    tensor: [any shape]
    Returns: bytes.
    """
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.numel() * tensor.element_size()
    held = (getattr(tensor, name) for name in flatten()[0])
    return sum(tensor_bytes(part) for part in held if isinstance(part, Tensor))
