"""The page itself: a run's summary folder, its traces' counts and its answers, in one file.

Nothing is fetched when it is opened: styles, scripts and plotly.js are in the file, and its content security policy
forbids every request. What models, datasets and files say goes into the page as JSON and reaches the screen as text.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm, t

from ..._util.atomic_write import write_whole
from ..._util.utf8_text import clean_text, count_surrogates
from ...errors import TraceError, WdmoeError
from ...trace.format import PHASES, SEALED_SUFFIX, RoutingTrace, read_trace
from .. import summary_files as names
from ..figures import BANDWIDTHS_HZ, CAVEAT, MAX_MODELS, PAPERS_POLICIES, ROW_STYLE, largest_pair_share
from ..records import ROWS
from ..runs import DENSE, ModelRun, benchmarks_of, vanilla_of
from ..statistics import BATCH_RESAMPLES, MIN_GROUPS, TAILS
from ..summary_files import WRITE_AGAIN, read_summary
from .answers import answered_items
from .counts import counts

REPORT_FILE = "report.html"
MAX_DATA_BYTES = 4_900_000  # of all that is embedded but code
MAX_COUNT_BYTES = 3_000_000
MIN_ITEM_BYTES = 200_000  # however large the counts are
PARTS = {  # of each script, in the order that they need each other
    "engine": (
        *("constants", "counts", "settings", "origin", "profile_yaml", "latency", "allocation", "layer_optimum"),
        *("pass_optimum", "results", "interface"),
    ),
    "page": (
        *("intervals", "state", "helpers", "styles", "latencies", "tables", "figures", "benchmark", "heat", "channel"),
        *("items", "origin", "controls", "drawing", "start"),
    ),
}
LATENCY_KEYS = (
    *("row", "model", "dataset", "scope", "per", "phase", "latency_s", "latency_low_s", "latency_high_s", "saving"),
    *("saving_low", "saving_high", "no_interval", "tokens_per_batch", "passes_per_batch"),
    *("draws", "saving_draws_low", "saving_draws_median", "saving_draws_high"),
)


@dataclass(frozen=True)
class Page:
    """One page: its text, how much of it is data, and what did not fit or could not be read, a sentence each."""

    html: str
    data_bytes: int
    left_out: list[str]


def write_page(run_folder: Path) -> tuple[Path, Page]:
    """Write `summary/report.html` from the tables in a run's summary folder; -> its path and the page.

    WdmoeError where there are no tables; OSError where the file cannot be written.
    """
    page = make_page(run_folder)
    path = run_folder / "summary" / REPORT_FILE
    write_whole(path, page.html)
    return path, page


def make_page(run_folder: Path) -> Page:
    """The page of a run: equal runs give equal pages, but for the measured speed."""
    runs, problems = _runs(run_folder)
    facts = _facts(run_folder, runs)
    facts["problems"] = problems
    packed = counts(runs, MAX_COUNT_BYTES)
    texts = [_json(facts), _json(packed)]
    left = max(MIN_ITEM_BYTES, MAX_DATA_BYTES - sum(len(text.encode()) for text in texts))
    items = _items(run_folder, facts, left)
    texts.append(_json(items))
    left_out = [*problems, *_without_counts(packed), *items["problems"], *_cut_items(items)]
    unfit = count_surrogates([facts, items])
    if unfit:
        left_out.append(f"{unfit} texts hold lone surrogates, which UTF-8 cannot hold; U+FFFD is in their place")
    return Page(_html(texts), sum(len(text.encode()) for text in texts), left_out)


def _without_counts(packed: Mapping[str, Any]) -> list[str]:
    return [f"{model['abbr']}, {name}: {why}" for model in packed["models"] for name, why in model["left_out"].items()]


def _cut_items(items: Mapping[str, Any]) -> list[str]:
    shown = [(dataset["dataset"], len(dataset["items"]), dataset["count"]) for dataset in items["datasets"]]
    return [f"{name}: {n} of {count} items are shown" for name, n, count in shown if n < count]


def _facts(run_folder: Path, runs: Sequence[ModelRun]) -> dict[str, Any]:
    """Everything of the page but counts and items."""
    groups, datasets = read_summary(run_folder, names.GROUPS_FILE), read_summary(run_folder, names.DATASETS_FILE)
    benchmarks = benchmarks_of(datasets, groups)
    latency = read_summary(run_folder, "latency.json")
    traces = {run.abbr: run.traces for run in runs}
    return dict(
        format=1,
        shown=names.SHOWN,
        benchmarks=benchmarks,
        groups={name: groups.get(name, [name]) for name in benchmarks},
        rows={
            row: dict(vanilla=vanilla, allocation=method, colour=ROW_STYLE[row][0])
            for row, (vanilla, method) in ROWS.items()
        },
        caveat=CAVEAT,
        few=_few(runs),
        models=[_model(run, runs, benchmarks) for run in runs],
        accuracy=read_summary(run_folder, "accuracy.json"),
        differences=read_summary(run_folder, "accuracy_differences.json"),
        latency=dict(keys=LATENCY_KEYS, records=[[record.get(key) for key in LATENCY_KEYS] for record in latency]),
        frontier=read_summary(run_folder, names.FRONTIER_RECORDS_FILE),
        missing=read_summary(run_folder, names.MISSING_FILE),
        notes={name: read_summary(run_folder, f"{name}.json")["notes"] for name in names.MAIN},
        tables={name: found for name in names.FURTHER if (found := _table(run_folder, name))},
        figures=[name for name in (f"{names.FIGURE_10}.png",) if (run_folder / "summary" / name).is_file()],
        provenance=read_summary(run_folder, names.PROVENANCE_FILE),
        sweep_hz=BANDWIDTHS_HZ.tolist(),
        tokens={abbr: {name: _tokens(parts) for name, parts in of.items()} for abbr, of in traces.items()},
        pairs={run.abbr: {name: _pairs(parts) for name, parts in run.traces.items()} for run in _routers(runs)},
        bootstrap=dict(
            resamples=BATCH_RESAMPLES, min_groups=MIN_GROUPS, tails=TAILS, widening=_widenings(runs, benchmarks)
        ),
    )


def _runs(run_folder: Path) -> tuple[list[ModelRun], list[str]]:
    """The models of the run's tables with the traces that their numbers came from; what could not be read again.

    Only what provenance.json names is read, and only if it is what it was: what the tables left out stays out.
    """
    facts = read_summary(run_folder, names.PROVENANCE_FILE)
    groups = read_summary(run_folder, names.GROUPS_FILE)
    identities = read_summary(run_folder, names.IDENTITY_FILE, otherwise=[])  # not in summaries of earlier versions
    runs, problems = [], []
    for model in facts["models"]:
        run = ModelRun(model["model"], model["policy"], (model["weights"], model.get("profile_hash", "")))
        run.groups, run.batch_size = groups, model.get("batch_size")
        run.perplexity = model.get("perplexity", run.perplexity)
        own = [record for record in identities if record["model"] == run.abbr]
        run.identities = {record["dataset"]: record["facts"] for record in own if record["facts"]}
        run.asked = {record["dataset"]: record["asked"] for record in own}
        for dataset, digests in model["files"].items():
            trace_names = [name for name in digests if name.endswith(SEALED_SUFFIX)]
            try:
                run.traces[dataset] = [_trace(run_folder, run.abbr, name, digests[name]) for name in trace_names]
            except WdmoeError as reason:
                problems.append(f"{run.abbr}, {dataset}: {reason}")
        runs.append(run)
    return runs, problems


def _trace(run_folder: Path, abbr: str, name: str, digest: str) -> RoutingTrace:
    path = run_folder / os.path.normpath(name)
    if not path.is_relative_to(run_folder / "predictions"):
        raise TraceError(f"{name}: no file of the run's predictions")
    trace = read_trace(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise TraceError(f"{path.name} is not the trace that the tables were made from; {WRITE_AGAIN}")
    return trace


def _few(runs: Sequence[ModelRun]) -> list[str]:
    """Of many policies those that figures begin with: vanilla's and the paper's; the others can be chosen."""
    papers = [run.abbr for run in runs if run.policy in PAPERS_POLICIES]
    return [run.abbr for run in runs] if len(runs) <= MAX_MODELS or not papers else papers[:MAX_MODELS]


def _vanilla_of(run: ModelRun, runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> ModelRun | None:
    """The vanilla that a model is compared with, if it is the same on all benchmarks; else None."""
    found = {v.abbr: v for name in benchmarks if (v := vanilla_of(run, runs, name)) is not None}
    return next(iter(found.values())) if len(found) == 1 else None


def _model(run: ModelRun, runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> dict[str, Any]:
    vanilla = _vanilla_of(run, runs, benchmarks)
    first = next(iter(run.all_traces), None)
    facts = dict(
        abbr=run.abbr,
        policy=run.policy,
        dense=run.policy == DENSE,
        is_vanilla=run.is_vanilla,
        vanilla=vanilla.abbr if vanilla else None,
        profile_hash=run.base[1],
        batch_size=run.batch_size,
    )
    if first is not None:
        metadata = first.metadata
        facts |= dict(
            layers=metadata.layers,
            experts=metadata.experts,
            profile=metadata.profile.model_dump(mode="json", exclude_none=True),
            device_of_expert=metadata.profile.device_of_expert(metadata.experts),
        )
    return facts


def _tokens(traces: Sequence[RoutingTrace]) -> list[int]:
    """Tokens of each batch, for Figure 7; the traces one after the other."""
    sums = [np.bincount(trace.batch, weights=trace.tokens, minlength=len(trace.items)) for trace in traces]
    return np.concatenate(sums).astype(int).tolist()


def _routers(runs: Sequence[ModelRun]) -> list[ModelRun]:
    """The models of Figure 8: vanilla, because it keeps every expert of its router; without vanilla, all."""
    return [run for run in runs if run.is_vanilla] or list(runs)


def _pairs(traces: Sequence[RoutingTrace]) -> dict[str, Any]:
    """Figure 8: the largest share of a batch's tokens with one pair of experts, in the first, middle and last layer."""
    layers = traces[0].metadata.layers
    chosen = list(dict.fromkeys((0, (layers - 1) // 2, layers - 1)))
    shares = np.concatenate([largest_pair_share(trace) for trace in traces])
    return dict(layers=[layer + 1 for layer in chosen], shares=np.round(shares[:, chosen].T, 6).tolist())


def _widenings(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> dict[int, float]:
    """Number of groups of batches -> factor that widens its intervals; see `statistics._batch_interval`."""
    groups = np.array(sorted({n for run in runs for b in benchmarks for n in _group_counts(run.traces_of(b)) if n > 1}))
    factors = np.sqrt(groups / (groups - 1)) * t.ppf(TAILS[1], groups - 1) / norm.ppf(TAILS[1])
    return dict(zip(groups.tolist(), factors.tolist(), strict=True))


def _group_counts(traces: Sequence[RoutingTrace]) -> set[int]:
    """Numbers of groups of batches of the same items, in each phase and in all."""
    found = set()
    for phase in ("all", *PHASES):
        keys = {
            (trace.metadata.dataset, int(trace.first_item[batch]), int(trace.items[batch]))
            for trace in traces
            for batch in np.unique(trace.batch[trace.is_phase(phase)])
        }
        found.add(len(keys))
    return found


def _items(run_folder: Path, facts: Mapping[str, Any], most_bytes: int) -> dict[str, Any]:
    marks = {(r["model"], r["dataset"]): r["right"] for r in read_summary(run_folder, names.ITEMS_FILE)}
    scored = {(record["model"], record["dataset"]) for record in facts["accuracy"]}
    members = [dataset for of in facts["groups"].values() for dataset in of]
    asked = [(model["abbr"], dataset) for dataset in dict.fromkeys(members) for model in facts["models"]]
    rights = {pair: marks.get(pair, "") for pair in asked if pair in scored}
    return answered_items(run_folder, facts["models"], rights, most_bytes)


def _table(run_folder: Path, name: str) -> dict[str, Any]:
    """The rows and notes of a table that only some runs have; empty without it."""
    content = read_summary(run_folder, f"{name}.json", otherwise={})
    return {key: content[key] for key in ("rows", "notes") if content}


def _json(content: Any) -> str:
    """JSON that is safe in a script element: no text in it ends the element or begins a comment."""
    text = clean_text(json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _html(data: Sequence[str]) -> str:
    from plotly.offline import get_plotlyjs

    scripts = {name: script(name) for name in PARTS} | {"plotly": get_plotlyjs()}
    for name, text in scripts.items():
        if re.search(r"</script|<!--", text, re.IGNORECASE):
            raise WdmoeError(f"{name}: holds text that would end the page's script")
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in scripts.values())
    values = {"POLICY": allowed, "STYLE": _shipped_text("page.css")}
    values |= dict(zip(("FACTS", "COUNTS", "ITEMS"), data, strict=True))
    values |= {name.upper(): text for name, text in scripts.items()}
    pieces = re.split(r"\{\{([A-Z]+)\}\}", _shipped_text("page.html"))  # never looked for in what is put in
    return "".join(values[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def script(name: str) -> str:
    """The parts of a folder as one closure: `engine` computes latencies, `page` shows them and has the controls.

    `page` puts everything that models, datasets or files said in as text, never as HTML; plotly.js, which reads some
    HTML in labels, gets it escaped (`plain` of helpers.js).
    """
    parts = "\n".join(_shipped_text(f"{name}/{part}.js") for part in PARTS[name])
    return f'"use strict";\n\n(() => {{\n{parts}}})();\n'


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _shipped_text(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
