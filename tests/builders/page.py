"""What the numbers on the report page should be, computed by Python."""

from pytest import approx

from wdmoe_opencompass.channel.profile import load_profile
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report.records import ROWS
from wdmoe_opencompass.trace.format import read_trace

DIGITS = 1e-6  # relative: six digits
INTERVAL_SHARE = 0.1  # of an interval's width, by which the page's random numbers may move its ends


PROFILE = load_profile("paper_8_devices")


MODEL_OF = {True: "vanilla", False: "wdmoe"}


def trace_of(run, model, dataset):
    return read_trace(run / "predictions" / model / f"{dataset}.trace.safetensors")


def expected(run, profile, scope="layer", per="batch", phase="all"):
    found = {}
    for row, (vanilla, method) in ROWS.items():
        for dataset in ("choice", "writing"):
            model = MODEL_OF[vanilla]
            mean_s = replay(trace_of(run, model, dataset), profile, method, scope).mean_s(per, phase)
            if mean_s is not None:
                found[row, model, dataset] = mean_s
    return found


def near_interval(interval):
    """What the ends of the page's interval are compared with."""
    return approx(tuple(interval), rel=0, abs=INTERVAL_SHARE * (interval[1] - interval[0]))


def device(number, key):
    return f"#device-controls [data-device=device_{number}][data-key={key}]"
