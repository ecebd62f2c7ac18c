import pytest
import torch

from tests.testbed.testbeds import GROUPS, device_processes, servers
from tests.tiny import tiny_mixtral
from wdmoe_opencompass.routing.discovery import find_moe_layers


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
    """Four devices that serve the tiny Mixtral; b and c are processes: tests that kill them start them again."""
    with device_processes(saved, GROUPS[1:3]) as (b, c), servers(saved, (GROUPS[0], GROUPS[3])) as (a, d):
        yield [a, b, c, d]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield
