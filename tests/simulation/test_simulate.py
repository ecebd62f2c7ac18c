"""Benchmarks as forward passes, `wdmoe simulate`, and Table II rebuilt."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.conftest import ROOT
from wdmoe_opencompass.channel.profile import load_profile
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.report.paper import BENCHMARKS as PAPERS
from wdmoe_opencompass.report.paper import TABLE_2
from wdmoe_opencompass.report.runs import runs_from_traces
from wdmoe_opencompass.selection import POLICIES
from wdmoe_opencompass.simulation import run
from wdmoe_opencompass.simulation.benchmarks import BENCHMARKS, MAX_NEW_TOKENS, router_passes
from wdmoe_opencompass.simulation.router import EXPERTS, LAYERS, SyntheticRouter
from wdmoe_opencompass.simulation.run import Simulation, simulate, simulate_benchmark
from wdmoe_opencompass.trace.format import PHASES

SMALL = dict(
    prompts=replace(BENCHMARKS["PIQA"], prompt_tokens=12, batches=2),
    answers=replace(BENCHMARKS["HumanEval"], prompt_tokens=9, answer_tokens=12, batches=2),
)


@pytest.fixture
def small(monkeypatch):
    """Two benchmarks in place of the eight, small enough for a fast test."""
    monkeypatch.setattr(run, "BENCHMARKS", {"PIQA": SMALL["prompts"], "HumanEval": SMALL["answers"]})
    monkeypatch.setattr("wdmoe_opencompass.simulation.benchmarks.BENCHMARKS", run.BENCHMARKS)


def simulation(**changes):
    return Simulation(
        **dict(profile=load_profile("paper_8_devices"), policy="wlr", parameters={}, batch_size=4, seed=0) | changes
    )


def passes(name, batch_size=5, seed=0):
    return list(router_passes(SMALL[name], SyntheticRouter(seed), batch_size, seed))


# -- forward passes ------------------------------------------------------------------------------------------------
def test_the_benchmarks_are_the_papers_under_the_names_of_the_tables():
    assert {name: benchmark.dataset for name, benchmark in BENCHMARKS.items()} == PAPERS


def test_a_benchmark_scored_by_perplexity_has_one_prefill_per_batch():
    found = passes("prompts")
    assert [(one.batch, one.first_item, one.items, one.phase) for one in found] == [
        (0, 0, 5, "prefill"),
        (1, 5, 5, "prefill"),
    ]


def test_a_decode_pass_holds_one_token_of_every_answer_that_goes_on():
    found = [one for one in passes("answers", batch_size=40) if one.batch == 0]
    assert [one.phase for one in found] == ["prefill"] + ["decode"] * (len(found) - 1)
    tokens = [len(one.expert_index) for one in found[1:]]
    assert tokens[0] == 40
    assert all(later <= earlier for earlier, later in pairwise(tokens))
    assert tokens[-1] >= 1
    assert sum(tokens) / 40 + 1 == pytest.approx(12, rel=0.25)


def test_no_answer_is_longer_than_the_configs_let_it_be():
    benchmark = replace(BENCHMARKS["HumanEval"], prompt_tokens=4, answer_tokens=5000)
    found = list(router_passes(benchmark, SyntheticRouter(0), 2, 0))
    assert len(found) == MAX_NEW_TOKENS


@pytest.mark.parametrize("name", ["MMLU", "ARC-C", "BoolQ"])
def test_prompts_have_their_measured_mean_length(name):
    benchmark = replace(BENCHMARKS[name], batches=1)
    (one,) = router_passes(replace(benchmark, prompt_tokens=benchmark.prompt_tokens // 4), SyntheticRouter(0), 400, 0)
    assert len(one.expert_index) / 400 == pytest.approx(benchmark.prompt_tokens // 4, rel=0.06)


def test_equal_seeds_give_equal_passes_and_others_do_not():
    first, same, other = passes("prompts"), passes("prompts"), passes("prompts", seed=1)
    assert all((a.expert_index == b.expert_index).all() for a, b in zip(first, same, strict=True))
    assert (
        len(first[0].expert_index) != len(other[0].expert_index)
        or (first[0].expert_index != other[0].expert_index).any()
    )


def test_a_batch_does_not_depend_on_how_many_there_are():
    fewer = list(router_passes(replace(SMALL["prompts"], batches=1), SyntheticRouter(0), 5, 0))
    assert (fewer[0].expert_index == passes("prompts")[0].expert_index).all()


def test_a_row_is_finished_once_its_answer_has_no_token_left():
    decoding = [one for one in passes("answers") if one.phase == "decode"]
    assert all((~one.finished).sum() == len(one.expert_index) for one in decoding)
    for earlier, later in pairwise(decoding):
        assert earlier.batch != later.batch or (earlier.finished <= later.finished).all()


# -- traces --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["PIQA", "HumanEval"])
def test_the_vanilla_trace_counts_what_was_generated(small, name):
    found = simulate_benchmark(simulation(), name)
    generated = list(router_passes(run.BENCHMARKS[name], SyntheticRouter(0), 4, 0))
    for n, one in enumerate(generated):
        counts = [np.bincount(one.expert_index[:, layer].ravel(), minlength=EXPERTS) for layer in range(LAYERS)]
        assert (found.vanilla.device_load[n] == counts).all()
        assert (found.selected.device_load_before[n] == counts).all()
    assert [PHASES[phase] for phase in found.vanilla.phase] == [one.phase for one in generated]
    waits = [1 + sum(~one.finished for one in generated if one.batch == batch and one.finished is not None)
             for batch in range(len(found.vanilla.items))]  # fmt: skip
    assert (found.vanilla.item_passes == np.concatenate([np.broadcast_to(wait, 4) for wait in waits])).all()
    assert (found.selected.device_load <= found.vanilla.device_load).all()
    assert (found.selected.assignments >= found.selected.tokens[:, None]).all()  # every token keeps an expert
    assert found.vanilla.metadata.policy == "top_k"
    assert found.vanilla.metadata.routed_from == "generator"


@pytest.mark.slow
def test_processes_change_nothing():
    alone, together = (simulate(simulation(batch_size=1), ["ARC-E", "PIQA"], workers) for workers in (1, 2))
    for one, other in zip(alone, together, strict=True):
        assert one.name == other.name
        for name, array in one.selected.arrays.items():
            assert (array == other.selected.arrays[name]).all()


# -- the command ---------------------------------------------------------------------------------------------------
def test_json_holds_every_cell_next_to_the_papers(wdmoe, monkeypatch):
    monkeypatch.setattr(run, "available_cores", lambda: 1)
    answer = json.loads(wdmoe("simulate", "--benchmarks", "ARC-E,PIQA", "--batch-size", "2", "--json").stdout)
    assert answer["routing"] == "synthetic"
    assert (len(answer["fitted_to_table_2"]), len(answer["chosen_by_order"])) == (3, 2)
    cells = {(cell["row"], cell["benchmark"]): cell for cell in answer["cells"]}
    assert set(cells) == {(row, name) for row in TABLE_2 for name in ("PIQA", "ARC-E")}
    for (row, name), cell in cells.items():
        place = list(PAPERS).index(name)
        first = cells["vanilla_even", name]
        assert cell["paper_ms"] == TABLE_2[row][place]
        assert cell["difference_ms"] == pytest.approx(cell["ours_ms"] - cell["paper_ms"])
        if row != "vanilla_even":
            assert cell["saving_percent"] == pytest.approx(100 * (1 - cell["ours_ms"] / first["ours_ms"]))
            assert cell["paper_saving_percent"] == pytest.approx(
                100 * (1 - TABLE_2[row][place] / TABLE_2["vanilla_even"][place])
            )
    for row, means in answer["mean_savings"].items():
        ours = [cells[row, name]["saving_percent"] for name in ("PIQA", "ARC-E")]
        assert means["ours_percent"] == pytest.approx(np.mean(ours))


def test_the_table_says_that_its_routing_is_synthetic(wdmoe):
    shown = wdmoe("simulate", "--benchmarks", "ARC-E", "--batch-size", "2").stdout
    assert "synthetic routing" in shown.splitlines()[0]
    for row in TABLE_2:
        assert row in shown


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_runs_or_says_what_it_needs(small, policy):
    if policy in ("naee", "adapmoe", "sift_moe", "lexi"):
        with pytest.raises(PolicyError, match="calibration"):
            simulate(simulation(policy=policy), ["PIQA"], workers=1)
        return
    (found,) = simulate(simulation(policy=policy, batch_size=1), ["PIQA"], workers=1)
    assert found.selected.metadata.policy == policy
    assert (found.selected.assignments_before == 2 * found.selected.tokens[:, None]).all()


def test_a_folder_holds_traces_figures_and_the_comparison(wdmoe, tmp_path):
    out = tmp_path / "simulated"
    sizes = ["--batch-size", "2", "--seed", "7", "--scope", "pass"]
    done = wdmoe("simulate", "--benchmarks", "ARC-E", *sizes, "--out", str(out))
    assert done.returncode == 0, done.stderr
    runs = runs_from_traces(out)
    assert [found.policy for found in runs] == ["top_k", "wlr"]
    names = {path.name for path in (out / "summary").iterdir()}
    for figure in ("figure_5_bandwidth", "figure_6_benchmarks", "figure_7_ablation", "figure_8_expert_pairs"):
        assert f"{figure}.png" in names
    text = (out / "summary" / "simulation.md").read_text()
    for words in ("synthetic routing", "fitted to the 32 cells of Table II: 3 values", "not fitted: 2"):
        assert words in text
    for words in ("scope pass (hindsight): one", "batch size 2 (", "routing seed 7", "seed 0"):
        assert words in text
        assert words in done.stdout
    told = json.loads((out / "summary" / "simulation.json").read_text())["provenance"]
    assert told["scope"] == "pass (hindsight)"
    of_folder = json.loads((out / "summary" / "provenance.json").read_text())
    for model in told["models"] + of_folder["models"]:
        assert (model["batch_size"], model["routing_seed"], model["seed"]) == (2, 7, 0)
    again = wdmoe("simulate", "--benchmarks", "ARC-E", "--out", str(out))
    assert again.returncode == 2
    assert "give a new folder" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--benchmarks", "MMLUU"], ["MMLUU", "did you mean 'MMLU'"]),
        (["--policy", "wrl"], ["wrl", "did you mean 'wlr'"]),
        (["--parameters", "[1]"], ["--parameters must be a JSON object"]),
        (["--parameters", '{"tetha": 1}'], ["tetha", "did you mean theta"]),
        (["--scope", "layers"], ["layers", "did you mean 'layer'"]),
        (["--batch-size", "0"], ["batch-size"]),
        (["--profile", "nowhere"], ["nowhere"]),
    ],
)
def test_bad_input_is_one_sentence(wdmoe, arguments, words):
    done = wdmoe("simulate", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


# -- Table II ------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_table_2_is_rebuilt_with_one_profile_and_one_batch_size():
    script = ROOT / "benchmarks" / "reconstruction.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for row, worst in (("allocation_only", 8), ("selection_only", 11), ("both", 8)):
        assert found[f"{row}_mean_points"] <= 2
        assert found[f"{row}_worst_points"] <= worst
    assert found["row_1_worst_factor"] <= 1.6
    assert (found["fitted_values"], found["chosen_values"], found["cells"]) == (3, 2, 32)


def test_the_benchmarks_figures_are_those_of_its_cells():
    spec = importlib.util.spec_from_file_location("reconstruction", ROOT / "benchmarks" / "reconstruction.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    cells = [
        dict(row="vanilla_even", benchmark="A", ours_ms=150.0, paper_ms=100.0),
        dict(row="vanilla_even", benchmark="B", ours_ms=50.0, paper_ms=100.0),
    ]
    cells += [
        dict(row=row, benchmark=name, difference_points=points)
        for row in script.SAVING_ROWS
        for name, points in (("A", -3.0), ("B", 1.0))
    ]
    found = script.figures(cells, {row: dict(difference_points=-1.0) for row in script.SAVING_ROWS})
    assert found["row_1_worst_factor"] == 2.0
    assert found["both_mean_points"] == 1.0
    assert found["both_worst_points"] == 3.0
