"""Tables III and IV, Figure 10 and predictions, from synthetic times."""

import json

import numpy as np
import pytest
from pytest import approx
from typer.testing import CliRunner

from tests.testbed.synthetic import (
    FFN,
    HIDDEN,
    PAYLOAD_BITS,
    lab_profile,
    measured_times,
    probe,
    trace_beside,
)
from wdmoe_opencompass import ExpertShape
from wdmoe_opencompass.cli import app
from wdmoe_opencompass.errors import TraceError
from wdmoe_opencompass.report.items import ItemResults
from wdmoe_opencompass.report.predictions import predicted_and_measured, prediction_records
from wdmoe_opencompass.report.runs import MeasuredRun, ModelRun, measured_runs
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.report.testbed_tables import (
    MAX_POINTS,
    OTHER_LAB,
    figure_10,
    measured_sums,
    table_3,
    table_4,
    token_bins,
    waiting_records,
    write_testbed,
)
from wdmoe_opencompass.testbed.fit import fit_lab, measured_profile, measured_profile_text
from wdmoe_opencompass.trace.format import write_trace
from wdmoe_opencompass.trace.times import write_times

BATCHES = 12


def fitted_profile():
    names = [device.name for device in lab_profile().devices]
    fits = fit_lab(names, probe(message_s=0.0), ExpertShape(HIDDEN, FFN), PAYLOAD_BITS)
    return measured_profile(lab_profile(), names, fits, PAYLOAD_BITS)


def run_of(abbr, policy, slower=1.0, seed=0, profile=None, batches=BATCHES, **changes):
    """-> a run of one dataset, and its times."""
    times = measured_times(batches, seed, slower, model=abbr, policy=policy, **changes)
    trace = trace_beside(times, profile)
    right = np.arange(48) < (40 if policy == "top_k" else 42)
    run = ModelRun(
        abbr,
        policy,
        ("weights", trace.metadata.profile_hash),
        accuracies={"d": ("accuracy", 100 * right.mean())},
        traces={"d": [trace]},
        items={"d": ItemResults(right, "same")},
    )
    return run, times


def two_runs(**changes):
    """Vanilla, and a policy that is measured to take 0.7 of its time."""
    return [run_of("vanilla", "top_k"), run_of("algo2", "bottleneck", slower=0.7, seed=1, **changes)]


def measured_of(pairs):
    return [MeasuredRun(run, {"d": [(run.traces["d"][0], times)]}) for run, times in pairs]


def on_disk(tmp_path, pairs):
    for run, times in pairs:
        folder = tmp_path / "predictions" / run.abbr
        folder.mkdir(parents=True)
        write_times(folder / "d.times.safetensors", times)
    return [run for run, _ in pairs]


def test_table_3_shows_accuracy_with_its_interval():
    table = table_3(measured_of(two_runs()), ["d"])
    assert table["model"].tolist() == ["vanilla", "algo2"]
    assert table["d"][0].startswith("83.33 [")
    assert table["d"][1].startswith("87.50 [")


@pytest.mark.parametrize("layer", [None, 0, 2])
def test_the_latency_of_one_layer_per_batch_is_the_sum_over_its_passes(layer):
    _, times = run_of("vanilla", "top_k")
    by_hand = []
    for batch in range(BATCHES):
        own = times.waiting_s[times.batch == batch].astype(float)  # [passes, layers]
        by_hand.append(own.sum(axis=0).mean() if layer is None else own[:, layer].sum())
    sums = measured_sums([times], layer)
    assert sums.latency_s.tolist() == approx(by_hand)
    assert sums.passes.tolist() == [2] * BATCHES
    (record,) = waiting_records(measured_of([run_of("vanilla", "top_k")]), ["d"], layer)
    assert record["latency_s"] == approx(np.mean(by_hand))
    assert record["latency_low_s"] < record["latency_s"] < record["latency_high_s"]
    assert (record["gain"], record["batches"]) == (None, BATCHES)


def test_the_gain_is_against_vanilla_with_an_interval_that_holds_it():
    records = waiting_records(measured_of(two_runs()), ["d"])
    gain = records[1]
    assert gain["gain"] == approx(0.3, abs=0.02)
    assert gain["gain_low"] < gain["gain"] < gain["gain_high"]
    assert gain["gain_high"] - gain["gain_low"] < 0.05  # paired: the batches' sizes cancel
    cells = table_4(records, ["d", "not run"])
    assert cells["d"][1].count("[") == 2
    assert "(+" in cells["d"][1]
    assert cells["d"][0].count("[") == 1
    assert cells["not run"].tolist() == ["-", "-", "-"]
    assert cells["model"].tolist() == ["vanilla", "algo2", "tokens per batch"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [(dict(lab_hash="another"), OTHER_LAB), (dict(batches=5), "not of the same items")],
)
def test_what_cannot_be_compared_has_no_gain_shown(changes, reason):
    records = waiting_records(measured_of(two_runs(**changes)), ["d"])
    assert records[1]["gain_low"] is None
    assert reason in records[1]["no_interval"]
    assert table_4(records, ["d"])["d"][1].count("%") == 0


def test_a_run_without_vanilla_has_no_gain():
    (record,) = waiting_records(measured_of(two_runs()[1:]), ["d"])
    assert (record["gain"], record["no_interval"]) == (None, None)


def test_figure_10_draws_the_mean_within_the_least_and_the_most():
    measured = measured_of(two_runs())
    figure = figure_10(measured, ["d"])
    panel = figure.axes[0]
    assert [line.get_label() for line in panel.lines] == ["vanilla", "algo2"]
    assert "ms" in panel.get_ylabel()
    times = measured[0].measured["d"][0][1]
    x, y = panel.lines[0].get_data()
    assert len(x) == len(np.unique(times.pass_tokens))
    chosen = times.pass_tokens == x[0]
    assert y[0] == approx(1e3 * times.waiting_s[chosen].mean())
    (_, low), (_, high) = panel.collections[0].get_datalim(panel.transData).get_points()
    assert low == approx(1e3 * times.waiting_s.min(), rel=1e-4)
    assert high == approx(1e3 * times.waiting_s.max(), rel=1e-4)
    (line, _) = figure_10(measured, ["d"], layer=1).axes[0].lines
    assert line.get_ydata()[0] == approx(1e3 * times.waiting_s[chosen, 1].mean())


def test_many_numbers_of_tokens_are_put_together():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 500, 3000).astype(float)
    seconds = tokens * 1e-3
    x, mean, least, most = token_bins(tokens, seconds)
    assert len(x) == MAX_POINTS
    assert (np.diff(x) > 0).all()
    assert mean == approx(x * 1e-3)
    assert ((least <= mean) & (mean <= most)).all()
    assert least[0] == seconds.min()
    assert most[-1] == seconds.max()
    few = token_bins(np.array([3.0, 3.0, 5.0]), np.array([1.0, 2.0, 4.0]))
    assert few.tolist() == [[3, 5], [1.5, 4], [1, 4], [2, 4]]


def test_the_fitted_profile_predicts_what_was_measured_to_a_few_percent():
    profile = fitted_profile()
    pairs = [run_of("vanilla", "top_k", profile=profile, batches=40)]
    records, rows = prediction_records(measured_of(pairs))
    (record,) = records
    assert record["layer_passes"] == len(rows) == 240
    assert record["median_relative_error"] < 0.05  # 3 % noise on each part
    times = pairs[0][1]
    assert rows["measured_s"].to_numpy() == approx(times.waiting_s.ravel())
    assert rows["layer"].tolist()[:4] == [0, 1, 2, 0]
    error = abs(rows["predicted_s"] / rows["measured_s"] - 1)
    assert record["median_relative_error"] == approx(np.median(error))


def test_a_prediction_is_made_from_any_profile_with_the_payload_of_the_wire():
    profile = fitted_profile()
    run, times = run_of("vanilla", "top_k")  # its own profile is physical
    trace = run.traces["d"][0]
    one = predicted_and_measured(trace, times, profile)
    other = predicted_and_measured(trace, times, profile.model_copy(update=dict(payload_bits=4)))
    assert one.predicted_s == approx(other.predicted_s)
    assert np.median(one.relative_error) < 0.05
    assert np.median(predicted_and_measured(trace, times).relative_error) > 0.5


def test_layers_without_a_token_on_a_device_are_left_out():
    run, times = run_of("vanilla", "top_k", batches=1, most=2)
    trace = run.traces["d"][0]
    trace.device_load[0, 1] = 0
    assert len(predicted_and_measured(trace, times).layer) == (trace.device_load.sum(axis=2) > 0).sum() < 6


def test_times_of_other_passes_are_refused():
    run, _ = run_of("vanilla", "top_k")
    with pytest.raises(TraceError, match="not of the passes of its trace"):
        predicted_and_measured(run.traces["d"][0], measured_times(batches=3, model="vanilla"))


def test_a_run_folder_gets_its_testbed_tables_and_figure(tmp_path):
    runs = on_disk(tmp_path, two_runs())
    printed = write_report(runs, ["d"], tmp_path / "summary")
    summary = tmp_path / "summary"
    for name in ("table_3_testbed_accuracy.md", "table_4_testbed_latency.tex", "testbed_prediction.csv"):
        assert (summary / name).stat().st_size > 100
    for kind in ("png", "pdf"):
        assert (summary / f"figure_10_testbed_latency.{kind}").stat().st_size > 5000
    records = json.loads((summary / "table_4_testbed_latency_records.json").read_text())
    assert [one["model"] for one in records] == ["vanilla", "algo2"]
    assert len((summary / "testbed_layer_passes.csv").read_text().splitlines()) == 1 + 2 * BATCHES * 2 * 3
    text = "\n".join(printed)
    assert "measured attention waiting latency of one MoE layer" in text
    assert "a profile of physical rates is an assumption about the testbed" in text
    assert "all" in json.loads((summary / "testbed_prediction_records.json").read_text())[-1]["model"]


def test_a_run_without_measured_times_gets_none_of_it(tmp_path):
    runs = [run for run, _ in two_runs()]
    assert write_testbed(runs, ["d"], tmp_path / "predictions", tmp_path / "summary") == []
    assert not (tmp_path / "summary").exists()


def test_times_that_are_torn_or_of_other_passes_are_named_and_the_rest_is_shown(tmp_path):
    runs = on_disk(tmp_path, two_runs())
    path = tmp_path / "predictions" / "algo2" / "d.times.safetensors"
    write_times(path, measured_times(3, model="algo2", policy="bottleneck"))
    found = measured_runs(runs, tmp_path / "predictions")
    assert "not of the passes of its trace" in found[1].missing["d"]
    path.write_bytes(b"torn")
    printed = write_testbed(runs, ["d"], tmp_path / "predictions", tmp_path / "summary", fitted_profile())
    assert f"empty: algo2, d: {path}: not a file of measured times, or torn" in printed[0]
    assert printed[0].count("| vanilla |") == 1


def predict(tmp_path, *arguments):
    return CliRunner().invoke(app, ["predict", str(tmp_path), *arguments])


@pytest.fixture
def run_folder(tmp_path):
    for run in on_disk(tmp_path, two_runs()):
        write_trace(tmp_path / "predictions" / run.abbr / "d.trace.safetensors", run.traces["d"][0])
    profile = tmp_path / "lab.yaml"
    names = [device.name for device in lab_profile().devices]
    fits = fit_lab(names, probe(message_s=0.0), ExpertShape(HIDDEN, FFN), PAYLOAD_BITS)
    profile.write_text(measured_profile_text(fitted_profile(), fits))
    return tmp_path


def test_the_command_line_predicts_from_any_profile(run_folder):
    lab = str(run_folder / "lab.yaml")
    answer = predict(run_folder, "--profile", lab, "--format", "json")
    assert answer.exit_code == 0
    records = {one["model"]: one for one in json.loads(answer.output)["predictions"]}
    assert records["vanilla"]["median_relative_error"] < 0.05
    assert records["all"]["layer_passes"] == 2 * BATCHES * 2 * 3
    text = predict(run_folder, "--profile", lab).output
    assert "predicted from profile lab (hash" in text
    assert "measured rates)" in text
    assert "an assumption about the testbed" not in text
    assert "an assumption about the testbed" in predict(run_folder).output
    rows = predict(run_folder, "--profile", lab, "--layers").output.splitlines()
    assert rows[0] == "model,dataset,batch,pass_index,layer,tokens,predicted_s,measured_s,relative_error"
    assert len(rows) == 1 + 2 * BATCHES * 2 * 3


def test_the_command_line_says_what_is_missing(run_folder):
    folder = run_folder / "predictions"
    (folder / "algo2" / "d.times.safetensors").write_bytes(b"torn")
    answer = predict(run_folder, "--format", "csv")
    assert answer.exit_code == 1
    assert "vanilla,d," in answer.output
    assert "or torn" in answer.output
    (folder / "algo2" / "d.times.safetensors").unlink()
    (folder / "vanilla" / "d.times.safetensors").unlink()
    assert "no measured times next to its traces" in str(predict(run_folder).exception)
    write_times(folder / "vanilla" / "d.times.safetensors", two_runs()[0][1])
    assert "differ from those of 'paper_8_devices'" in str(
        predict(run_folder, "--profile", "paper_8_devices").exception
    )
