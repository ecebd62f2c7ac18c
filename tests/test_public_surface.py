import subprocess
import sys

import wdmoe_opencompass

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
    visible = {name for name in vars(wdmoe_opencompass) if not name.startswith("_")}
    modules = {"allocation", "channel", "errors", "latency"}
    assert {name for name in visible if not hasattr(getattr(wdmoe_opencompass, name), "__path__")} >= set(
        wdmoe_opencompass.__all__
    )
    assert modules <= visible
    assert len(wdmoe_opencompass.__all__) <= 12


def test_lower_layers_import_with_torch_and_opencompass_blocked():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert done.stdout.strip() == "(8,)", done.stderr
