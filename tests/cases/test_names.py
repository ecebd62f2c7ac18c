"""Names that are paths, globs, too long or two of a kind: every file is found again, or the name is refused."""

import ast
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from opencompass.utils import get_infer_output_path

from tests.builders.hostile_names import MODELS, NAMES
from tests.cases.eval_faults import LONG
from tests.conftest import ROOT
from wdmoe_opencompass._util import file_names
from wdmoe_opencompass._util.atomic_write import remove_torn_writes, write_whole
from wdmoe_opencompass._util.file_names import (
    MAX_NAME_BYTES,
    dataset_file,
    file_name,
    files_below,
    hidden_sibling,
    partial_file,
    parts_of,
    sibling,
    whole_of,
)
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.harness.infer_task import WdmoeInferTask
from wdmoe_opencompass.harness.name_checks import name_problems
from wdmoe_opencompass.harness.partitioner import (
    WdmoeNaivePartitioner,
    WdmoeNumWorkerPartitioner,
    WdmoeSizePartitioner,
)
from wdmoe_opencompass.harness.plan.make import make_plan
from wdmoe_opencompass.harness.verify.inputs import unfinished_files, unfit_inputs
from wdmoe_opencompass.harness.verify.verdict import Run
from wdmoe_opencompass.report.publication import manifest
from wdmoe_opencompass.report.testbed_events import event_records
from wdmoe_opencompass.run.recovery import WRITTEN_WHOLE
from wdmoe_opencompass.run.run_progress import RunWatch
from wdmoe_opencompass.trace.format import SEALED_SUFFIX, read_trace

OWN_SUFFIXES = (*WRITTEN_WHOLE, ".json.lock", ".json.unfinished")
components = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=300)
names = st.lists(components, min_size=1, max_size=3).map("/".join)
short = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)


# -- one function makes names ----------------------------------------------------------------------------------------
@given(stem=components, suffix=st.sampled_from(OWN_SUFFIXES))
def test_a_name_is_valid_whatever_it_is_made_from(stem, suffix):
    made = file_name(stem, suffix)
    assert len(os.fsencode(made)) <= MAX_NAME_BYTES
    assert made.endswith(suffix)
    assert "/" not in made
    if len(os.fsencode(stem + suffix)) <= MAX_NAME_BYTES and "~" not in stem:
        assert made == stem + suffix  # files of earlier runs are found


@given(start=components, ends=st.tuples(components, components), suffix=st.sampled_from(OWN_SUFFIXES))
def test_two_stems_have_two_names_also_where_only_their_ends_differ(start, ends, suffix):
    first, second = (start * 3 + end for end in ends)
    assert (file_name(first, suffix) == file_name(second, suffix)) == (first == second)


def test_a_stem_that_reads_like_a_shortened_one_does_not_take_its_name():
    long = "x" * 400
    shortened = file_name(long, SEALED_SUFFIX).removesuffix(SEALED_SUFFIX)
    assert file_name(shortened, SEALED_SUFFIX) != file_name(long, SEALED_SUFFIX)
    assert file_name(shortened, ".json") == shortened + ".json"  # OpenCompass's own: it changes none


def test_long_names_that_differ_only_in_case_have_different_files_on_any_disk():
    assert len({file_name(stem, SEALED_SUFFIX).casefold() for stem in ("x" * 300, "X" * 300)}) == 2


@given(model=short, dataset=short)
def test_predictions_and_results_are_where_opencompass_puts_them(model, dataset):
    theirs = get_infer_output_path(ConfigDict(abbr=model), ConfigDict(abbr=dataset), "run/predictions")
    if name_problems([(model, dataset)], Path("run")):
        return
    assert str(dataset_file(Path("run/predictions"), model, dataset, ".json")) == os.path.normpath(theirs)


@pytest.mark.parametrize(
    "name", [*NAMES, "", "x/", ".hidden", "trailing.", "trailing ", "a\nb", "a/../b", "*", "%s", "~"]
)
def test_partial_answers_are_where_opencompass_puts_them(name):
    predictions = dataset_file(Path("p"), "m", name, ".json")
    assert partial_file(predictions).name == Path(f"tmp_{predictions.name}").with_suffix(".jsonl").name


# -- and one finds files again ---------------------------------------------------------------------------------------
@given(dataset=names, numbers=st.sets(st.integers(0, 12), max_size=4), suffix=st.sampled_from((".json", SEALED_SUFFIX)))
def test_a_dataset_s_parts_are_found_again(tmp_path_factory, dataset, numbers, suffix):
    root = tmp_path_factory.mktemp("predictions")
    if name_problems([("org/model", f"{dataset}_12")], root):
        return
    for name in (dataset, *(f"{dataset}_{number}" for number in numbers)):
        path = dataset_file(root, "org/model", name, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    names = [f"{dataset}_{number}" for number in sorted(numbers)]
    assert parts_of(root, "org/model", dataset, [dataset], [suffix]) == names
    assert parts_of(root, "org/model", dataset, [dataset, f"{dataset}_1"], [suffix]) == [
        name for name in names if name != f"{dataset}_1"
    ]
    assert len(files_below(root, suffix)) == 1 + len(numbers)
    assert {whole_of(name, [dataset]) for name in names} <= {dataset}


@pytest.mark.parametrize("name", ["a_²", "a_٣", "a_007", "a_-1", "a_", "a_1_", "b_1"])
def test_what_opencompass_calls_no_part_is_none(tmp_path, name):
    (tmp_path / "m").mkdir()
    dataset_file(tmp_path, "m", name, ".json").write_text("{}")
    assert parts_of(tmp_path, "m", "a", ["a"]) == []
    assert whole_of(name, ["a"]) == name


def torn_write(path):
    """-> what a process leaves that is killed while it writes this file."""
    before = set(os.listdir(path.parent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError))
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(OSError):
            write_whole(path, "x")
    return path.parent / (set(os.listdir(path.parent)) - before).pop()


@given(name=components, other=components)
def test_torn_writes_of_a_file_are_removed_and_no_other_s(tmp_path_factory, name, other):
    folder = tmp_path_factory.mktemp("torn")
    paths = [folder / file_name(name, SEALED_SUFFIX), folder / file_name(f"{name}{SEALED_SUFFIX}.{other}", ".x")]
    torn = [torn_write(path) for path in paths]
    remove_torn_writes(paths[0])
    assert [path.exists() for path in torn] == [False, True]


def test_events_are_of_the_model_and_dataset_that_they_name(tmp_path):
    event = dict(device="d", kind="timeout", reason="", by="", tokens=0)
    predictions = dataset_file(tmp_path, "org/model", LONG, ".json")
    predictions.parent.mkdir(parents=True)
    named = event | dict(model="org/model", dataset=LONG)
    sibling(predictions, ".testbed_events.jsonl").write_text(f"{json.dumps(named)}\n{json.dumps(event)}\n")
    found = event_records(tmp_path)
    assert (found[0]["model"], found[0]["dataset"]) == ("org/model", LONG)
    assert len(found) == 2


# -- refused: what OpenCompass cannot do either ----------------------------------------------------------------------
REFUSED = {
    "a number": ([("m", 5)], "datasets: an abbr must be a text, got 5"),
    "NUL": ([("m", "a\0b")], "holds a NUL character"),
    "lone surrogate": ([("m", "a\ud800")], "lone surrogate"),
    "absolute": ([("m", "/etc/x")], "begins with a slash"),
    "absolute model": ([("/m", "x")], "begins with a slash"),
    "outside": ([("m", "../../x")], "outside"),
    "246 bytes": ([("m", "x" * 246)], "has 246 bytes in UTF-8; a file name takes at most 245"),
    "82 letters": ([("m", "算" * 82)], "has 246 bytes"),
    "a long folder": ([("m", "x" * 256 + "/y")], "has 256 bytes in UTF-8; a file name takes at most 255"),
    "a long model": ([("m" * 256, "y")], "models: the abbr"),
    "a long path": ([("m", "/".join(["x" * 240] * 20))], "the path of its file has"),
    "case": ([("m", "ARC"), ("m", "arc")], "datasets 'ARC' and 'arc' would write the same file"),
    "case of models": ([("M", "a"), ("m", "a")], "models 'M' and 'm' would write the same file"),
    "composed": ([("m", unicodedata.normalize("NFD", "é")), ("m", "é")], "same file"),
    "the same path": ([("m", "a"), ("m", "./a")], "same file"),
    "a path of both": ([("m", "x/y"), ("m/x", "y")], "same file"),
    "a folder": ([("m", "a"), ("m", "a.json/b")], "a file and a folder of the same name, 'm/a.json'"),
    "a folder of ours": ([("m", "a"), ("m", "a.routing.safetensors/b")], "a file and a folder of the same name"),
    "a lock's folder": ([("m", "x"), ("m", ".x.json.lock/y")], "a file and a folder of the same name"),
    "a folder of another case": ([("m", "a"), ("m", "A.JSON/b/c")], "a file and a folder of the same name"),
    "partial answers": ([("m", "a"), ("m", "tmp_a")], "same file, 'm/tmp_a.json'"),
}
TAKEN = {
    "slash": [("org/m", "cibench_generation/{lib}"), ("org/m", "cibench_generation/x")],
    "dots": [("m", ".."), ("m", "..."), ("m", "a/../b"), ("m", "a.")],
    "longest": [("m" * 255, "x" * 245), ("算" * 85, "算" * 81 + "xx")],
    "one above the run's models": [("m", "../x")],
    "folders next to files": [("m", "a"), ("m", "a/b"), ("m", "a_0"), ("m", "b.json"), ("m", "b")],
    "other models": [("m", "A"), ("n", "a")],
    "empty": [("", ""), ("m", "x/")],
    "control characters": [("m", "a\nb\x1b[0m"), ("m", "\u202e")],
}


@pytest.mark.parametrize(("pairs", "words"), REFUSED.values(), ids=list(REFUSED))
def test_names_of_which_opencompass_can_make_no_file_of_their_own_are_refused(pairs, words):
    (problem,) = name_problems(pairs, Path("outputs/run"))
    assert words in problem
    assert "\n" not in problem


@pytest.mark.parametrize("pairs", TAKEN.values(), ids=list(TAKEN))
def test_names_that_opencompass_can_keep_apart_are_taken(pairs):
    assert name_problems(pairs, Path("outputs/run")) == []


@given(pairs=st.lists(st.tuples(short, short), max_size=4, unique=True))
def test_names_that_are_taken_have_files_of_their_own(tmp_path_factory, pairs):
    root = tmp_path_factory.mktemp("run")
    if name_problems(pairs, root):
        return
    for number, pair in enumerate(pairs):
        predictions = dataset_file(root / "predictions", *pair, ".json")
        predictions.parent.mkdir(parents=True, exist_ok=True)
        every = [partial_file(predictions), hidden_sibling(predictions, ".json.lock")]
        for path in (predictions, *every, *(sibling(predictions, suffix) for suffix in OWN_SUFFIXES)):
            assert not path.exists()
            path.write_text(str(number))
    for number, pair in enumerate(pairs):
        assert dataset_file(root / "predictions", *pair, ".json").read_text() == str(number)


def combinations(*abbrs, model="m"):
    reader_cfg = dict(input_columns=["x"], output_column="y")
    infer_cfg = dict(prompt_template=dict(template="{x}"), inferencer=dict(type="GenInferencer"))
    datasets = [ConfigDict(abbr=abbr, reader_cfg=reader_cfg, infer_cfg=infer_cfg) for abbr in abbrs]
    return [dict(models=[ConfigDict(abbr=model)], datasets=datasets)]


def start(partitioner, folder, *abbrs):
    return partitioner.partition(
        model_dataset_combinations=combinations(*abbrs),
        work_dir=str(folder),
        out_dir=str(folder / "predictions"),
        add_cfg={},
    )


def test_a_run_with_such_names_does_not_start(tmp_path):
    with pytest.raises(SystemExit, match=r"error: datasets 'A' and 'a' would write the same file") as refused:
        start(WdmoeNaivePartitioner(out_dir=str(tmp_path)), tmp_path, "A", "a", "b")
    assert "'b'" not in str(refused.value)
    task = WdmoeInferTask(
        dict(models=[dict(abbr="m")], datasets=[[dict(abbr="x" * 300)]], work_dir=str(tmp_path), infer={})
    )
    with pytest.raises(WdmoeError, match="has 300 bytes"):  # a partitioner of OpenCompass's own looks at no name
        task.run_or_raise()


@pytest.mark.parametrize("partitioner", [WdmoeNumWorkerPartitioner, WdmoeSizePartitioner])
def test_a_dataset_is_not_split_into_another_one_s_files(tmp_path, monkeypatch, partitioner):
    monkeypatch.setattr(partitioner, "get_size", lambda self, dataset: 40, raising=False)
    cost = lambda self, dataset, get_raw_factors=False: (40, 1) if get_raw_factors else 40  # noqa: E731
    monkeypatch.setattr(partitioner, "get_cost", cost, raising=False)
    options = dict(num_worker=2) if partitioner is WdmoeNumWorkerPartitioner else dict(max_task_size=20)
    made = partitioner(out_dir=str(tmp_path), **options)
    tasks = start(made, tmp_path, "a", "qs/b")
    abbrs = {dataset["abbr"] for task in tasks for part in task["datasets"] for dataset in part}
    assert {"a_0", "a_1", "qs/b_0", "qs/b_1"} <= abbrs
    with pytest.raises(SystemExit, match=r"dataset 'a' is split, and of its part 'a_0': .* dataset of that name"):
        start(made, tmp_path, "a", "a_0")
    with pytest.raises(SystemExit, match=r"has 247 bytes in UTF-8"):
        start(made, tmp_path, "x" * 245)


def test_plan_says_so(tmp_path):
    config = tmp_path / "config.py"
    lines = (ROOT / "tests/cases/eval_faults.py").read_text().replace('("qs/arith"', '("x" * 250, "B.json", "qs/arith"')
    config.write_text(lines)
    problems = make_plan(config).problems
    assert any("has 250 bytes in UTF-8; a file name takes at most 245 of it" in problem for problem in problems)
    config.write_text(lines.replace('"x" * 250, ', ""))
    problems = make_plan(config).problems
    assert "datasets 'B.json' and 'b.json' would write the same file, " in " ".join(problems)


# -- a run with such names -------------------------------------------------------------------------------------------
def test_each_dataset_is_scored_and_in_the_tables(faulty_run):
    folder, _ = faulty_run
    summary = folder / "summary"
    accuracy = {
        (r["model"], r["dataset"])
        for r in json.loads((summary / "accuracy.json").read_text())
        if r["metric"] == "accuracy"
    }
    latency = {(r["model"], r["dataset"]) for r in json.loads((summary / "latency.json").read_text())}
    wanted = {(model, name) for model in MODELS for name in NAMES}
    assert wanted <= accuracy
    assert wanted <= latency
    row = json.loads((summary / "table_1_accuracy.json").read_text())["rows"][0]
    assert all(row[name] != "-" for name in NAMES)
    missing = (summary / "missing.json").read_text()
    assert not any(json.dumps(f"{model}, {name}: ")[1:-1] in missing for model, name in wanted)


def test_each_trace_and_each_result_is_its_own(faulty_run):
    folder, _ = faulty_run
    for model in MODELS:
        for name in NAMES:
            metadata = read_trace(dataset_file(folder / "predictions", model, name, SEALED_SUFFIX)).metadata
            assert (metadata.model, metadata.dataset) == (model, name)
            assert dataset_file(folder / "results", model, name, ".json").exists()
    listed = manifest(folder)
    assert f"predictions/{MODELS[0]}/tmp_{{lib}}.json" in listed
    assert not [name for name in listed if name.endswith("tmp_a.jsonl")]


def test_watch_sees_each_finished(faulty_run):
    folder, _ = faulty_run
    lines = {(line.model, line.dataset): line for line in RunWatch(folder).look(0.0).datasets}
    for model in MODELS:
        for name in NAMES:
            found = lines[model, name]
            assert (found.state, found.prompts_done, found.metric) == ("finished", 2, "accuracy")
            assert found.elapsed_s is not None


def test_verify_finds_all_files_of_each(faulty_run):
    folder, _ = faulty_run
    run = Run.open(folder)
    told = {mismatch.file for mismatch in [*unfinished_files(run), *unfit_inputs(run)]}
    for model in MODELS:
        for name in NAMES:
            path = dataset_file(Path("predictions"), model, name, ".json")
            assert not told & {str(sibling(path, suffix)) for suffix in (".json", *OWN_SUFFIXES)}
    assert {(model, name) for model in MODELS for name in NAMES} <= set(run.traces)


def test_the_page_shows_the_items_of_each(faulty_run):
    folder, _ = faulty_run
    page = (folder / "summary" / "report.html").read_text()
    for name in NAMES:
        text = json.dumps(name, ensure_ascii=False)
        for sign in "<>&":
            text = text.replace(sign, f"\\u{ord(sign):04x}")
        assert f'{{"dataset":{text}' in page


def test_the_traces_in_reproduce_md_are_all_that_there_are(faulty_run):
    folder, _ = faulty_run
    line = next(line for line in (folder / "summary/reproduce.md").read_text().splitlines() if "wdmoe replay" in line)
    found = subprocess.run(
        line.partition("| xargs")[0] + "| tr -dc '\\0' | wc -c", shell=True, cwd=folder, capture_output=True, text=True
    )
    assert int(found.stdout) == len(files_below(folder / "predictions", SEALED_SUFFIX))


# -- nowhere else ----------------------------------------------------------------------------------------------------
def test_no_other_module_makes_file_names_from_names():
    """No `with_name`, no pattern that is not a constant, no ending put to a name, but in file_names.py."""
    package = ROOT / "wdmoe_opencompass"
    found = []
    for path in sorted(package.rglob("*.py")):
        if path == Path(file_names.__file__):
            continue
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and node.attr in ("with_name", "with_suffix", "with_stem"):
                found.append(f"{path.name}:{node.lineno}: {node.attr}")
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("glob", "rglob", "iglob")
                and not isinstance(node.args[0], ast.Constant)
            ):
                found.append(f"{path.name}: {ast.unparse(node)}")
            if isinstance(node, ast.ImportFrom | ast.Import) and "get_infer_output_path" in ast.unparse(node):
                found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
        endings = re.finditer(r"""\+ *\w*SUFFIX\b|/ f"\{[^}"]*(model|dataset|abbr)\}""", text)
        found += [f"{path.name}: {match[0]}" for match in endings]
    assert found == ["atomic_write.py: folder.glob(pattern)"]  # of the summary's tables, each a constant


if sys.platform == "darwin":  # its disks keep no bytes that are no UTF-8, and one file for both cases
    pytestmark = pytest.mark.skip("made for disks that keep all names apart")
