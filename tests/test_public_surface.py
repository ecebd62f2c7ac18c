import subprocess
import sys

import pytest

import wdmoe_opencompass

VISIBLE = """
import wdmoe_opencompass
print(*(name for name in dir(wdmoe_opencompass) if not name.startswith("_")))
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
