"""A finished run's folder that no model ever ran: tables, traces, predictions, as the page reads them."""

import hashlib
import json
from pathlib import Path

import numpy as np

from tests.builders.trace_blocks import block, metadata
from wdmoe_opencompass.channel.profile import load_profile
from wdmoe_opencompass.report.items import ItemResults
from wdmoe_opencompass.report.publication import write_publication
from wdmoe_opencompass.report.runs import ModelRun
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.trace.format import SEALED_SUFFIX, join, write_trace

MODELS = {"vanilla": "top_k", "wdmoe": "wlr"}
SIZES = {"choice": (8, 1), "writing": (7, 5)}  # dataset -> batches, passes of each
ITEMS = 4  # per batch


def trace(model, policy, dataset, batches, passes, profile, seed=0, layers=3):
    """Random loads; a selecting policy's are about a third lower."""
    rng = np.random.default_rng(seed)
    of = metadata(
        model=model, policy=policy, dataset=dataset, profile=profile, profile_hash=profile.content_hash, layers=layers
    )
    sizes = dict(layers=layers, devices=len(profile.devices))
    blocks = []
    for number in range(batches):
        arrays_of = block(ITEMS * number, ITEMS, passes, seed + number)
        shape = (passes, sizes["layers"], sizes["devices"])
        before = rng.integers(0, 90, shape).astype(np.int32)
        kept = before if policy == "top_k" else (before * 0.65).astype(np.int32)
        arrays = dict(device_load_before=before, device_load=kept, expert_evaluations_before=before)
        arrays |= dict(expert_evaluations=kept, weight_sum=np.zeros(shape, np.float32))
        arrays["weight_sum_before"] = np.zeros(shape, np.float32)
        arrays |= dict(assignments_before=before.sum(axis=2), assignments=kept.sum(axis=2))
        arrays["pass_index"], arrays["phase"] = np.arange(passes), np.arange(passes) > 0
        arrays["tokens"] = before[:, 0].sum(axis=1) // 2
        for name in ("co_selection", "ratio_counts"):
            arrays[name] = np.repeat(arrays_of[name][:, :1], layers, axis=1)
        blocks.append(
            arrays_of | {name: np.asarray(array).astype(arrays_of[name].dtype) for name, array in arrays.items()}
        )
    return join(of, blocks)


def generated(question, answer, reference):
    return dict(origin_prompt=question, prediction=answer, gold=reference)


def ranked(question, options, answer, reference):
    labels = {
        f"label: {label}": {"testing input": question + text, "prompt": question + text, "PPL": 1.0}
        for label, text in options.items()
    }
    return {"in-context examples": "", "origin_prompt": question} | labels | dict(prediction=answer, gold=reference)


def predictions(dataset, model, items):
    """Every fifth answer of a selecting model is another one."""
    other = [model != "vanilla" and n % 5 == 0 for n in range(items)]
    if dataset == "choice":
        options = dict(A="owls", B="bears")
        return [
            ranked(f"What does beast {n} fear?\nAnswer: ", options, "B" if other[n] else "A", "A") for n in range(items)
        ]
    return [generated(f"Count to {n}.", f"{n + other[n]}", f"{n}") for n in range(items)]


def write_run(folder, models=MODELS, sizes=SIZES, profile=None, seed=0, written=predictions, layers=3, profiles=None):
    """-> a run's folder with tables of these models and datasets, as the summarizer leaves it without a page.

    profiles: by model, where they are not all one.
    """
    common = profile or load_profile("paper_8_devices")
    runs = []
    for number, (abbr, policy) in enumerate(models.items()):
        profile = (profiles or {}).get(abbr, common)
        run = ModelRun(abbr, policy, ("models/tiny", profile.content_hash), batch_size=ITEMS)
        own = folder / "predictions" / abbr
        own.mkdir(parents=True)
        for dataset, (batches, passes) in sizes.items():
            answers = written(dataset, abbr, batches * ITEMS)
            (own / f"{dataset}.json").write_text(json.dumps({str(n): answer for n, answer in enumerate(answers)}))
            path = own / f"{dataset}{SEALED_SUFFIX}"
            run.traces[dataset] = [trace(abbr, policy, dataset, batches, passes, profile, seed, layers)]
            write_trace(path, run.traces[dataset][0])
            run.sources[dataset] = {f"predictions/{abbr}/{path.name}": _digest(path)}
            right = np.array([n % (7 - number % 3) != 0 for n in range(batches * ITEMS)])
            run.accuracies[dataset] = ("accuracy", 100 * float(right.mean()))
            run.items[dataset] = ItemResults(right, f"{dataset} items")
        runs.append(run)
    write_summary(folder, runs, list(sizes))
    return folder


def write_summary(folder, runs, benchmarks):
    write_report(runs, benchmarks, folder / "summary")
    write_publication(folder, runs)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
