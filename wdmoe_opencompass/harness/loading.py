"""Weights are loaded whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..routing.checkpoint import check_checkpoint, check_loading
from .adapters import whole_adapter
from .plan.weights import local_folder


@contextmanager
def whole_weights(path: str, model_kwargs: dict[str, Any], peft_path: str | None) -> Iterator[None]:
    """While a model is loaded: ModelError where its checkpoint's or its adapter's tensors are not its own.

    model_kwargs: of `from_pretrained`. What the headers tell is refused before anything is loaded.
    """
    if (folder := local_folder(path, model_kwargs.get("revision"))) is not None:
        check_checkpoint(folder, model_kwargs)
    with check_loading(path), whole_adapter(peft_path):
        yield
