import subprocess
import sys

import pytest

import wdmoe_opencompass

VISIBLE = """
import wdmoe_opencompass
print(*(name for name in dir(wdmoe_opencompass) if not name.startswith("_")))
"""
BLOCKED = """
import sys
for name in ("torch", "transformers", "opencompass", "mmengine"):
    sys.modules[name] = None
import wdmoe_opencompass
from wdmoe_opencompass import allocation, channel, latency, placement
profile = wdmoe_opencompass.load_profile("paper_8_devices")
channel = wdmoe_opencompass.draw_channel(profile)
budget = wdmoe_opencompass.link_budget(profile, channel, wdmoe_opencompass.ExpertShape())
print(wdmoe_opencompass.token_latency_s(budget, 12.5e6).shape)
"""


def test_all_names_are_what_is_visible():
    done = subprocess.run([sys.executable, "-c", VISIBLE], capture_output=True, text=True)
    visible = set(done.stdout.split())
    modules = {"allocation", "channel", "errors", "latency"}
    assert visible - {"Any", "TYPE_CHECKING", "import_module"} == modules | set(wdmoe_opencompass.__all__)
    assert len(wdmoe_opencompass.__all__) <= 12
    assert all(getattr(wdmoe_opencompass, name).__name__.endswith(name) for name in visible - {"TYPE_CHECKING"})


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'allocat'"):
        wdmoe_opencompass.allocat  # noqa: B018


def test_lower_layers_import_with_torch_and_opencompass_blocked():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert done.stdout.strip() == "(8,)", done.stderr
