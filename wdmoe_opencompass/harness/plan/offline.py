"""OpenCompass and Hugging Face without a network: what is not on this machine fails at once."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets.config
import huggingface_hub.constants
import opencompass.utils.datasets


class NotOnThisMachine(Exception):
    """OpenCompass would have begun a download; holds the path it looked for."""


@contextmanager
def no_network() -> Iterator[None]:
    """Everything that would open a connection fails at once; OpenCompass's download says what it looked for instead."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise ConnectionError(f"wdmoe plan opens no connection, {address} was asked for")
        connect(self, address)

    def no_lookup(host: Any, *others: Any, **more: Any) -> None:
        raise socket.gaierror(f"wdmoe plan opens no connection, {host} was asked for")

    replaced = [
        (opencompass.utils.datasets, "download_dataset", _find_downloaded),
        (huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        (datasets.config, "HF_HUB_OFFLINE", True),
        (socket.socket, "connect", local_only),
        (socket, "getaddrinfo", no_lookup),
    ]
    before = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(replaced, before, strict=True):
            setattr(owner, name, value)


def _find_downloaded(data_path: str, cache_dir: str, remove_finished: bool = True) -> str:
    kept = os.path.join(opencompass.utils.datasets.DEFAULT_DATA_FOLDER, data_path)
    if os.path.exists(kept):
        return kept
    raise NotOnThisMachine(data_path)
