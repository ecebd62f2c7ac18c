import pytest
import torch

from tests.testbed.labs import device_processes
from tests.tiny import tiny_mixtral
from wdmoe_opencompass.routing.layers import find_moe_layers


@pytest.fixture(scope="session")
def tiny():
    """A tiny Mixtral in float32, its MoE layers."""
    model = tiny_mixtral().float()
    return model, find_moe_layers(model)


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):
    """Folder of the tiny Mixtral."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny[0].save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processes(saved):
    """Four devices that serve the tiny Mixtral; tests that stop or kill them start them again."""
    with device_processes(saved) as devices:
        yield devices


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield
