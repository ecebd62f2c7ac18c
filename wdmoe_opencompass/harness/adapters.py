"""Adapters (LoRA and its like): refused where they cannot be applied, and applied so that routing can be changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ModelError, brief, pip_install
from ..identity import adapter_digest
from .plan.weights import local_folder

ADAPTER_CONFIG = "adapter_config.json"
# Those that change a model's own layers and nothing else, so that the model works without PEFT's wrapper around it.
KINDS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT")


def check_adapter(path: str, peft_path: str | None) -> None:
    """Raise ModelError, in one sentence, where an adapter cannot be applied: before anything is loaded."""
    folder = local_folder(path) if path else None
    if folder is not None and (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{path}: holds an adapter ({ADAPTER_CONFIG}): give its base model in path and this folder in peft_path"
        )
    if peft_path is not None and (kind := adapter_kind(peft_path)) not in KINDS:
        raise ModelError(
            f"peft_path {peft_path}: an adapter of kind {kind} changes more than the weights of the model's own "
            f"layers; supported: {', '.join(KINDS)}"
        )


def adapter_kind(peft_path: str) -> str:
    """-> PEFT's name of an adapter's kind; ModelError where it, its files or PEFT itself is not on this machine."""
    adapter = local_folder(str(peft_path))
    if adapter is None or not (adapter / ADAPTER_CONFIG).is_file():
        raise ModelError(f"peft_path: no {ADAPTER_CONFIG} in {peft_path}, which is not an adapter on this machine")
    if adapter_digest(adapter) is None:
        raise ModelError(f"peft_path {peft_path}: no adapter_model.safetensors or adapter_model.bin in it")
    try:
        from peft import PeftConfig
    except ImportError:
        raise ModelError(
            f"peft_path needs the package peft, which is not installed: {pip_install('adapters')}"
        ) from None
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except Exception as error:  # whatever the schemas of peft raise
        raise ModelError(f"{adapter / ADAPTER_CONFIG}: cannot be read: {brief(error)}") from None
    if getattr(config, "alora_invocation_tokens", None):
        return "activated LoRA"
    return str(getattr(config.peft_type, "value", config.peft_type))


@contextmanager
def whole_adapter(peft_path: str | None) -> Iterator[None]:
    """While a model is loaded: ModelError if a tensor of its adapter fits no layer, or an adapted layer gets no tensor.

    PEFT only warns, and goes on with random values.
    """
    if peft_path is None:
        yield
        return
    import peft

    wrapper: Any = peft.PeftModel
    load_adapter = wrapper.load_adapter

    def load_whole(model: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            found = load_adapter(model, *args, **kwargs)
        except RuntimeError as error:  # tensors of other shapes
            raise ModelError(f"peft_path {peft_path}: it does not fit the model: {brief(error)}") from None
        for what, keys in (
            ("tensors that fit no layer of the model", found.unexpected_keys),
            ("no tensor for what it adapts", found.missing_keys),
        ):
            if keys:
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                raise ModelError(f"peft_path {peft_path}: it has {what}: {sorted(keys)[0]}{more}")
        return found

    wrapper.load_adapter = load_whole
    try:
        yield
    except ValueError as error:  # it adapts layers that the model does not have
        raise ModelError(f"peft_path {peft_path}: it does not fit the model: {brief(error)}") from None
    finally:
        wrapper.load_adapter = load_adapter


def without_wrapper(model: Any, peft_path: str, experts_elsewhere: bool = False) -> Any:
    """-> the transformers model within a PeftModel, its layers adapted.

    experts_elsewhere: devices of a testbed load the experts, which no adapter must change then.

    PEFT's wrapper calls the model's `forward` past its hooks, which routing and counting need. An adapter of the
    experts' stacked weights would hide the experts from the router: it is added to these weights, which is what PEFT
    does in every forward pass.
    """
    inner = model.get_base_model()
    for name, module in list(inner.named_modules()):
        wrappers, experts = _unwrap(module)
        owner, _, own = name.rpartition(".")
        if not wrappers or not hasattr(experts, "_is_expert_parallel") or own == "base_layer":
            continue
        if experts_elsewhere:
            raise ModelError(
                f"peft_path {peft_path}: it changes the experts {name}, which the devices of wdmoe.testbed load "
                "without it"
            )
        try:
            for wrapper in wrappers:
                wrapper.merge(safe_merge=True)
        except Exception as error:  # of quantised weights, for one
            raise ModelError(f"peft_path {peft_path}: cannot be added to the experts {name}: {brief(error)}") from None
        setattr(inner.get_submodule(owner), own, experts)
    return inner


def _unwrap(module: Any) -> tuple[list[Any], Any]:
    """-> PEFT's layers around a module, the outermost first, and the module."""
    wrappers = []
    while hasattr(module, "base_layer") and hasattr(module, "merge"):
        wrappers.append(module)
        module = module.base_layer
    return wrappers, module
