"""The files of a run's summary folder: their names, what the page reads of them, and the one reader of them."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..allocation import PRIMARY_SCOPE
from ..channel.profile import first_error, sentence
from ..errors import WdmoeError, show

MISSING_FILE, MAIN_TABLES_FILE, GROUPS_FILE = "missing.json", "main_tables.md", "groups.json"
DATASETS_FILE, PROVENANCE_FILE, MANIFEST_FILE = "datasets.json", "provenance.json", "manifest.json"
ITEMS_FILE, BATCHES_FILE, IDENTITY_FILE = "items.json", "batches.json", "identity.json"
REQUEST_RECORDS_FILE, SPEED_RECORDS_FILE = "request_records.json", "speed_records.json"
FRONTIER_RECORDS_FILE, LAYER_PASSES = "frontier_records.json", "testbed_layer_passes.csv"
# Tables, in every format; FIGURE_10 is a picture.
MAIN = ("table_1_accuracy", f"table_2_latency_{PRIMARY_SCOPE}_per_batch_all")  # the two that are printed
SHOWN = dict(scope=PRIMARY_SCOPE, per="batch", phase="all")  # of the latencies that other tables take up
COMPARISON, DIFFERENCES, FRONTIER = "paper_comparison", "differences", "frontier"
REQUESTS, SPEED, EVENTS, PREDICTION = "requests", "speed", "testbed_events", "testbed_prediction"
TABLE_3, TABLE_4, FIGURE_10 = "table_3_testbed_accuracy", "table_4_testbed_latency", "figure_10_testbed_latency"
FURTHER = (DIFFERENCES, REQUESTS, SPEED, FRONTIER, COMPARISON, TABLE_3, TABLE_4, PREDICTION, EVENTS)  # not in all runs

WRITE_AGAIN = "write the summary again: opencompass CONFIG -r TIME --mode viz"
NO_FOLDER, NO_TABLES = "no summary folder in it", "no tables in its summary folder, or those of an older version"
GIVE_A_RUN = (
    "give the time-stamped folder of a finished run with summarizer=dict(type=WdmoeSummarizer) in its config, or "
    f"{WRITE_AGAIN}"
)
Number = Annotated[float, Field(allow_inf_nan=False)]


class Part(BaseModel):
    """An object with at least these keys; page and tables may know more."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Model(Part):
    """Of provenance.json; files: dataset -> path in the run folder -> SHA-256."""

    model: str
    policy: str
    weights: str
    profile_hash: str = ""
    batch_size: int | None = None
    files: dict[str, dict[str, str]]


class Provenance(Part):
    """provenance.json."""

    packages: dict[str, list[str]]
    profiles: list[dict[str, Any]]
    models: list[Model]
    notes: list[str]


class Accuracy(Part):
    """A record of accuracy.json."""

    model: str
    dataset: str
    metric: str
    value: Number
    low: Number | None
    high: Number | None


class Difference(Part):
    """A record of accuracy_differences.json."""

    model: str
    vanilla: str
    benchmark: str
    difference: Number
    low: Number | None
    high: Number | None
    significant: bool | None


class Latency(Part):
    """A record of latency.json."""

    row: str
    model: str
    dataset: str
    scope: str
    per: str
    phase: str
    latency_s: Number
    latency_low_s: Number | None
    latency_high_s: Number | None
    saving: Number | None
    saving_low: Number | None
    saving_high: Number | None
    no_interval: str | None
    tokens_per_batch: Number | None
    passes_per_batch: Number | None
    draws: int | None
    saving_draws_low: Number | None
    saving_draws_median: Number | None
    saving_draws_high: Number | None


class Point(Part):
    """A record of frontier_records.json."""

    model: str
    policy: str
    payload_bits: int
    family: list[str]
    scope: str
    quality: str
    quality_percent: Number
    accuracy: Number | None
    accuracy_low: Number | None
    accuracy_high: Number | None
    latency_ratio: Number | None
    latency_ratio_even: Number | None
    on_front: bool
    benchmarks: list[str] | None = None


class Items(Part):
    """A record of items.json."""

    model: str
    dataset: str
    right: str


class Identity(Part):
    """A record of identity.json."""

    model: str
    dataset: str
    facts: dict[str, Any]
    asked: dict[str, Any]


class Table(Part):
    """Any table; cells as they are shown."""

    rows: list[dict[str, Any]]
    notes: list[str]


SHAPES: dict[str, TypeAdapter[Any]] = {
    PROVENANCE_FILE: TypeAdapter(Provenance),
    GROUPS_FILE: TypeAdapter(dict[str, list[str]]),
    DATASETS_FILE: TypeAdapter(list[str]),
    MISSING_FILE: TypeAdapter(list[str]),
    ITEMS_FILE: TypeAdapter(list[Items]),
    IDENTITY_FILE: TypeAdapter(list[Identity]),
    FRONTIER_RECORDS_FILE: TypeAdapter(list[Point]),
    "accuracy.json": TypeAdapter(list[Accuracy]),
    "accuracy_differences.json": TypeAdapter(list[Difference]),
    "latency.json": TypeAdapter(list[Latency]),
}
TABLE: TypeAdapter[Any] = TypeAdapter(Table)


def read_summary(run_folder: Path, name: str, kind: type | None = None, otherwise: Any = None) -> Any:
    """-> what a JSON file of a run's summary folder holds, unchanged; WdmoeError where it is not what it must be.

    kind:      list or dict, and nothing else of it is checked; None: all that the page reads
    otherwise: the answer where there is no such file, if there may be none
    """
    path = run_folder / "summary" / name
    try:
        text = path.read_bytes()
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise WdmoeError(f"{path}: cannot be read: {error.strerror}") from None
        if otherwise is not None:
            return otherwise
        raise WdmoeError(f"{run_folder}: {NO_TABLES if path.parent.is_dir() else NO_FOLDER}; {GIVE_A_RUN}") from None
    try:
        content = json.loads(text)
        if kind is None:
            json.dumps(content, ensure_ascii=False, allow_nan=False).encode()  # as the page will hold it
    except (ValueError, RecursionError):
        raise WdmoeError(f"{path}: not JSON; {WRITE_AGAIN}") from None
    if kind is not None:
        if not isinstance(content, kind):
            raise WdmoeError(f"{path}: must hold a {kind.__name__}, got {show(content)}; {WRITE_AGAIN}")
        return content
    try:
        SHAPES.get(name, TABLE).validate_json(text, strict=True)
    except ValidationError as error:
        wrong = sentence(first_error(error), lambda location: []).lstrip()
        raise WdmoeError(f"{path}: {wrong}; {WRITE_AGAIN}") from None
    return content
