"""A part in a section where it does not belong is refused by `wdmoe plan` and at a start, before the inference."""

import pytest
from mmengine.config import Config, ConfigDict
from opencompass.registry import PARTITIONERS

from wdmoe_opencompass.harness.infer_task import WdmoeInferTask
from wdmoe_opencompass.harness.partitioner import (
    SharedProcessPartitioner,
    WdmoeNaivePartitioner,
    WdmoeNumWorkerPartitioner,
    WdmoeSizePartitioner,
)
from wdmoe_opencompass.harness.plan.make import make_plan
from wdmoe_opencompass.harness.sections import ENDS_AT_FIRST, ends_at_first, score_one_by_one, wrong_parts

OURS = "wdmoe_opencompass.harness"
INFER_TASK, EVAL_TASK = f"{OURS}.infer_task.WdmoeInferTask", f"{OURS}.eval_task.WdmoeEvalTask"
NAIVE = f"{OURS}.partitioner.WdmoeNaivePartitioner"
STOCK_EVAL_TASK = "opencompass.tasks.OpenICLEvalTask"


def config(**changed):
    """A sound config with some keys, such as `eval__partitioner__type`, set to something else."""

    def section(task):
        runner = dict(type="opencompass.runners.LocalRunner", task=dict(type=task))
        return dict(partitioner=dict(type=NAIVE, n=1000), runner=runner)

    model = dict(abbr="m", type=f"{OURS}.models.WdmoeHuggingFaceBaseModel", wdmoe=dict(profile="paper_8_devices"))
    summarizer = dict(type=f"{OURS}.summarizer.WdmoeSummarizer")
    cfg = dict(models=[model], datasets=[], summarizer=summarizer, infer=section(INFER_TASK), eval=section(EVAL_TASK))
    for path, value in changed.items():
        *folders, last = path.split("__")
        part = cfg
        for key in folders:
            part = part[int(key)] if key.isdigit() else part[key]
        if value is None:
            del part[last]
        else:
            part[last] = value
    return Config(cfg)


def partitioner(name):
    return f"opencompass.partitioners.{name}"


SUBJECTIVE_TASK = "opencompass.tasks.subjective_eval.SubjectiveEvalTask"
WRONG = [
    (dict(eval__runner__task__type=INFER_TASK), "eval.runner.task.type is WdmoeInferTask"),
    (dict(eval__runner__task__type="opencompass.tasks.OpenICLInferTask"), "eval.runner.task.type is OpenICLInferTask"),
    (dict(eval__runner__task__type="opencompass.tasks.OpenICLEvalWatchTask"), "nothing would be scored"),
    (dict(eval__runner__task__type=NAIVE), "eval.runner.task.type is WdmoeNaivePartitioner"),
    (dict(eval__runner__task__type=f"{OURS}.eval_task.WdmoeEvalTsk"), "cannot be imported"),
    (dict(eval__runner__task__type="json.loads"), "cannot be imported as a class"),
    (dict(eval__runner__task__type=None), "eval.runner.task.type is not there"),
    (dict(eval__partitioner__type=partitioner("NumWorkerPartitioner")), "take WdmoeNumWorkerPartitioner"),
    (dict(eval__partitioner__type="SizePartitioner"), "take WdmoeSizePartitioner"),
    (dict(eval__partitioner=dict(type="NumWorkerPartitioner", num_worker=1, num_split=2)), "which splits datasets"),
    (dict(eval__partitioner=dict(type="NumWorkerPartitioner", num_worker=2)), "which splits datasets"),
    (dict(eval__partitioner=dict(type="NumWorkerPartitioner", min_task_size=1000)), "which splits datasets"),
    (dict(eval__partitioner=dict(type="SizePartitioner", max_task_size=10**9, gen_task_coef=1000)), "splits datasets"),
    (
        dict(eval__partitioner__type=partitioner("sub_naive.SubjectiveNaivePartitioner")),
        "SubjectiveNaivePartitioner is for subjective evaluation and WdmoeEvalTask is not",
    ),
    (dict(eval__runner__task__type=SUBJECTIVE_TASK), "SubjectiveEvalTask is for subjective evaluation"),
    (
        dict(
            eval__partitioner__type=partitioner("sub_size.SubjectiveSizePartitioner"),
            eval__runner__task__type=SUBJECTIVE_TASK,
        ),
        "WdmoeSummarizer shows no subjective judgements",
    ),
    (dict(eval__partitioner__type=EVAL_TASK), "WdmoeEvalTask, which is an eval task and belongs in eval.runner.task"),
    (dict(eval__partitioner__n=0), "eval.partitioner.n must be a whole number of at least 1, got 0"),
    (dict(eval__partitioner__n=-3), "got -3"),
    (dict(eval__partitioner__n="8"), "got '8'"),
    (dict(eval__runner__type=INFER_TASK), "eval.runner.type is WdmoeInferTask"),
    (dict(infer__runner__task__type=EVAL_TASK), "infer.runner.task.type is WdmoeEvalTask"),
    (dict(infer__runner__task__type=STOCK_EVAL_TASK), "infer.runner.task.type is OpenICLEvalTask"),
    (dict(infer__runner__task__type="opencompass.tasks.OpenICLInferTask"), "must be WdmoeInferTask"),
    (dict(infer__partitioner__type=f"{OURS}.summarizer.WdmoeSummarizer"), "belongs in summarizer.type"),
    (dict(infer__partitioner__type=partitioner("sub_naive.SubjectiveNaivePartitioner")), "belongs in eval"),
    (dict(summarizer__type=EVAL_TASK), "summarizer.type is WdmoeEvalTask"),
    (dict(models__0__type=INFER_TASK), "models[0].type is WdmoeInferTask"),
]
RIGHT = [
    dict(),
    dict(eval__runner__task__type=STOCK_EVAL_TASK),
    dict(eval__runner__task__type="OpenICLEvalTask"),
    dict(eval__partitioner__type="NaivePartitioner"),
    dict(eval__partitioner=dict(type=f"{OURS}.partitioner.SharedProcessPartitioner", tasks=2)),
    dict(eval__partitioner=dict(type=f"{OURS}.partitioner.WdmoeSizePartitioner", max_task_size=9)),
    dict(eval__partitioner=dict(type=f"{OURS}.partitioner.WdmoeNumWorkerPartitioner", num_worker=2)),
    dict(eval__partitioner=dict(type=partitioner("NumWorkerPartitioner"), num_worker=8, num_split=1)),
    dict(infer__partitioner=dict(type=partitioner("NumWorkerPartitioner"), num_worker=8)),
    dict(eval__partitioner=dict(type=partitioner("NumWorkerPartitioner"), num_worker=1)),
    dict(eval__partitioner=dict(type="NumWorkerPartitioner", num_worker=1, num_split=None, strategy="split")),
    dict(eval__partitioner=dict(type=partitioner("NumWorkerPartitioner"), num_worker=8, min_task_size=10**9)),
    dict(eval__partitioner=dict(type="SizePartitioner", max_task_size=10**12)),
    dict(eval__partitioner=dict(type="SizePartitioner", max_task_size=10**9, gen_task_coef=1)),
    dict(infer=None),
    dict(eval=None),
    dict(summarizer=None),
    dict(summarizer__type="opencompass.summarizers.DefaultSummarizer"),
    dict(
        summarizer__type="opencompass.summarizers.DefaultSubjectiveSummarizer",
        eval__partitioner=dict(type=partitioner("sub_naive.SubjectiveNaivePartitioner")),
        eval__runner__task__type=SUBJECTIVE_TASK,
    ),
]


@pytest.mark.parametrize(("changed", "sentence"), WRONG)
def test_what_does_not_belong_is_one_sentence_and_stops_a_start(tmp_path, changed, sentence):
    cfg = config(**changed)
    problems = wrong_parts(cfg)
    assert len(problems) == 1
    assert sentence in problems[0]
    with pytest.raises(SystemExit, match=r"^error: "):
        WdmoeNaivePartitioner(out_dir=str(tmp_path / "predictions/"))(cfg)
    is_of_eval = any(key.startswith(("eval", "summarizer")) for key in changed)
    scoring = WdmoeNaivePartitioner(out_dir=str(tmp_path / "results/"))
    cfg["work_dir"] = str(tmp_path)
    if is_of_eval:
        with pytest.raises(SystemExit, match=r"^error: "):
            scoring(cfg)
    else:
        assert scoring(cfg) == []  # --mode eval needs nothing of `infer`


@pytest.mark.parametrize("changed", RIGHT)
def test_what_belongs_is_let_through(changed):
    assert wrong_parts(config(**changed)) == []


def test_the_infer_task_looks_where_no_partitioner_of_ours_does(tmp_path):
    (tmp_path / "configs").mkdir()
    stock = partitioner("NaivePartitioner")
    task = dict(models=[dict(abbr="m")], datasets=[[dict(abbr="d")]], work_dir=str(tmp_path))
    for number, (eval_type, is_refused) in enumerate(((stock, False), (partitioner("SizePartitioner"), True))):
        cfg = config(infer__partitioner__type=stock, eval__partitioner__type=eval_type)
        cfg.dump(str(tmp_path / "configs" / f"20260101_00000{number}_1.py"))
        if is_refused:
            with pytest.raises(SystemExit, match=r"eval\.partitioner\.type is SizePartitioner"):
                WdmoeInferTask(ConfigDict(task)).get_command("x.py", "{task_cmd}")
        else:
            assert "infer_task x.py" in WdmoeInferTask(ConfigDict(task)).get_command("x.py", "{task_cmd}")


@pytest.mark.parametrize("named", [STOCK_EVAL_TASK, "OpenICLEvalTask"])
def test_the_stock_eval_task_is_run_as_ours_by_our_partitioners(tmp_path, named):
    cfg = config(eval__runner__task__type=named, eval__runner__task__dump_details=True)
    cfg["work_dir"] = str(tmp_path)
    WdmoeNaivePartitioner(out_dir=str(tmp_path / "predictions/"))(cfg)
    assert cfg.eval.runner.task == dict(type=EVAL_TASK, dump_details=True)
    for other in (EVAL_TASK, SUBJECTIVE_TASK):
        cfg = config(eval__runner__task__type=other)
        assert not score_one_by_one(cfg)
        assert cfg.eval.runner.task.type == other


def test_plan_warns_where_nothing_of_ours_could_change_that():
    stock = partitioner("NaivePartitioner")
    parts = dict(
        infer__partitioner__type=stock, eval__partitioner__type=stock, eval__runner__task__type=STOCK_EVAL_TASK
    )
    assert ends_at_first(config(**parts))
    assert not ends_at_first(config(**parts, eval__partitioner__n=1))
    assert not ends_at_first(config(**parts | dict(infer__partitioner__type=NAIVE)))
    assert not ends_at_first(config(**parts | dict(eval__runner__task__type=EVAL_TASK)))


PLANNED = """
from mmengine.config import read_base
with read_base():
    from wdmoe_opencompass.eval_configs.eval_quickstart import *
"""


def test_plan_tells_both(tmp_path):
    path = tmp_path / "config.py"
    wrong = 'eval["partitioner"] = dict(type="opencompass.partitioners.SizePartitioner")\n'
    stock = 'infer["partitioner"]["type"] = eval["partitioner"]["type"] = "opencompass.partitioners.NaivePartitioner"\n'
    path.write_text(f'{PLANNED}{stock}eval["runner"]["task"] = dict(type="{STOCK_EVAL_TASK}")\n')
    plan = make_plan(path)
    assert plan.problems == []
    assert f"eval: {ENDS_AT_FIRST}" in plan.notes
    path.write_text(PLANNED + wrong)
    plan = make_plan(path)
    assert len(plan.problems) == 1
    assert "take WdmoeSizePartitioner" in plan.problems[0]


@pytest.mark.parametrize(
    ("raised", "key"),
    [
        ("RuntimeError('no GPU')", "models[0]"),
        ("SystemExit(3)", "models[1]"),
        ("KeyError('x')", "infer['runner']['task']"),
        ("RuntimeError()", "eval['partitioner']"),
        ("SyntaxError('y')", "summarizer"),
    ],
)
def test_a_module_that_cannot_be_imported_is_a_sentence_of_plan(tmp_path, monkeypatch, raised, key):
    (tmp_path / "badmod.py").write_text(f"raise {raised}\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "config.py"
    path.write_text(f"{PLANNED}{key}['type'] = 'badmod.Model'\n")
    assert any("cannot be imported" in problem or "WdmoeSummarizer" in problem for problem in make_plan(path).problems)


# -- datasets are whole where they are scored ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        (WdmoeNumWorkerPartitioner, dict(num_worker=2, num_split=2, min_task_size=4, batch_size=4)),
        (WdmoeNumWorkerPartitioner, dict(num_worker=3, strategy="split", min_task_size=1)),
        (WdmoeSizePartitioner, dict(max_task_size=40)),
        (WdmoeSizePartitioner, dict(max_task_size=60, strategy="split")),
        (WdmoeNaivePartitioner, dict(n=2)),
        (SharedProcessPartitioner, dict(tasks=2)),
    ],
)
def test_evaluation_takes_datasets_whole_and_inference_may_split_them(tmp_path, monkeypatch, kind, parameters):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "dataset_size.json").write_text('{"a": 30, "b": 9, "c": 1}')
    infer = dict(prompt_template=dict(template="{q}"), inferencer=dict(type="GenInferencer"))
    datasets = [ConfigDict(abbr=name, reader_cfg=dict(), infer_cfg=infer) for name in "abc"]
    models = [ConfigDict(abbr=f"m{number}") for number in range(2)]

    def names(stage):
        tasks = kind(out_dir=stage, **parameters).partition(
            [dict(models=models, datasets=list(datasets))], work_dir=str(tmp_path), out_dir=f"{stage}/", add_cfg={}
        )
        return sorted(
            (model["abbr"], dataset["abbr"])
            for task in tasks
            for model, of_model in zip(task["models"], task["datasets"], strict=True)
            for dataset in of_model
        )

    whole = [(model, name) for model in ("m0", "m1") for name in "abc"]
    assert names("results") == whole
    if kind in (WdmoeNumWorkerPartitioner, WdmoeSizePartitioner):
        assert ("m0", "a_1") in names("predictions")
    else:
        assert names("predictions") == whole


@pytest.mark.parametrize("stage", ["predictions", "results"])
@pytest.mark.parametrize(
    ("kind", "parameters"),
    [(WdmoeNumWorkerPartitioner, dict(num_worker=2)), (WdmoeSizePartitioner, dict(max_task_size=400))],
)
def test_a_dataset_whose_size_is_not_known_is_left_to_its_task(tmp_path, monkeypatch, kind, parameters, stage):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "dataset_size.json").write_text('{"a": 30}')
    infer = dict(prompt_template=dict(template="{q}"), inferencer=dict(type="GenInferencer"))
    nowhere = dict(
        type="opencompass.datasets.GSM8KDataset", path="nowhere", abbr="b", reader_cfg=dict(), infer_cfg=infer
    )
    datasets = [ConfigDict(nowhere), ConfigDict(abbr="a", reader_cfg=dict(), infer_cfg=infer)]
    combinations = [dict(models=[ConfigDict(abbr="m")], datasets=datasets)]
    tasks = kind(out_dir=stage, **parameters).partition(combinations, work_dir="w", out_dir=stage, add_cfg={})
    names = [dataset["abbr"] for task in tasks for of_model in task["datasets"] for dataset in of_model]
    assert "b" in names
    assert [name for name in names if name.startswith("a")]


def test_our_partitioners_are_found_as_opencompass_finds_them():
    built = PARTITIONERS.build(dict(type=f"{OURS}.partitioner.WdmoeNumWorkerPartitioner", out_dir="x", num_worker=2))
    assert isinstance(built, WdmoeNumWorkerPartitioner)
