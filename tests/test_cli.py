import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.routing.test_trace import block, metadata
from wdmoe_opencompass import ExpertShape, draw_channel, link_budget, load_profile, token_latency_s
from wdmoe_opencompass.routing.trace import join, write_trace


def wdmoe(*arguments):
    return subprocess.run(
        [Path(sys.executable).with_name("wdmoe"), *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "d.trace.safetensors"
    write_trace(path, join(metadata(), [block(0), block(4, seed=1)]))
    return path


def test_profile_show_gives_the_draw_and_token_latency():
    shown = json.loads(wdmoe("profile", "show", "paper_8_devices", "--json").stdout)["devices"]
    profile = load_profile("paper_8_devices")
    channel = draw_channel(profile)
    assert [d["downlink_gain"] for d in shown] == channel.downlink_gain.tolist()
    expected = token_latency_s(link_budget(profile, channel, ExpertShape()), 12.5e6)
    assert np.allclose([d["token_latency_s"] for d in shown], expected, rtol=1e-12)
    small = json.loads(
        wdmoe("profile", "show", "paper_8_devices", "--json", "--hidden-size", 64, "--ffn-size", 96).stdout
    )
    assert small["devices"][0]["token_latency_s"] < shown[0]["token_latency_s"]


def test_profile_list_names_the_shipped_profiles():
    assert "paper_8_devices" in wdmoe("profile", "list").stdout


@pytest.mark.parametrize("allocation", ["uniform", "slsqp"])
def test_replay_gives_every_pass_and_the_mean(trace, allocation):
    done = wdmoe(
        "replay", trace, "--profile", "paper_8_devices", "--allocation", allocation, "--scope", "layer", "--json"
    )
    answer = json.loads(done.stdout)
    assert [(p["dataset"], p["batch"], p["pass"]) for p in answer["passes"]] == [
        ("d", b, int(p)) for b, numbers in enumerate(np.split(read(trace).pass_index, 2)) for p in numbers
    ]
    for one in answer["passes"]:
        assert one["waiting_latency_s"] == pytest.approx(sum(one["layer_latency_s"]))
    mean = np.mean([one["waiting_latency_s"] for one in answer["passes"]])
    assert answer["mean_waiting_latency_s"] == pytest.approx(mean)


def read(path):
    from wdmoe_opencompass.routing.trace import read_trace

    return read_trace(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["profile", "show", "paper_8"], "did you mean 'paper_8_devices'"),
        (["profile", "show", "no.yaml"], "no.yaml: no such channel profile file"),
        (["profile", "validate", "setup.cfg"], "must end in .yaml"),
        (["replay", "no.trace", "--profile", "paper_8_devices"], "no.trace: cannot be read"),
        (["replay", "TRACE", "--profile", "testbed_4_devices"], "devices of profile 'paper_8_devices'"),
        (["replay", "TRACE", "--profile", "paper_8_devices", "--allocation", "slsq"], "did you mean 'slsqp'"),
        (["replay", "TRACE", "--profile", "paper_8_devices", "--scope", "batch"], "scope 'batch' is unknown"),
        (["report", "no-such-run"], "no tables in its summary folder"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(trace, arguments, sentence):
    done = wdmoe(*(trace if word == "TRACE" else word for word in arguments))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
