"""What the page reads of a summary folder: checked, so that a damaged file is one sentence and not half a page."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..channel.profile import first_error, sentence
from ..errors import WdmoeError
from .compare import IDENTITY_FILE, ITEMS_FILE
from .provenance import PROVENANCE_FILE
from .summary import FRONTIER_RECORDS_FILE
from .tables import DATASETS_FILE, GROUPS_FILE, MISSING_FILE

NO_TABLES = (
    "no tables in its summary folder, or those of an older version; give the time-stamped folder of a finished run "
    "whose config has summarizer=dict(type=WdmoeSummarizer), or write them anew with --mode viz -r"
)
WRITE_ANEW = "write it anew with --mode viz -r"
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


def read_checked(path: Path) -> Any:
    """-> what a JSON file of a summary folder holds, unchanged; WdmoeError where the page cannot be made of it."""
    try:
        text = path.read_bytes()
    except OSError:
        raise WdmoeError(f"{path.parent.parent}: {NO_TABLES}") from None
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()  # as the page will hold it
    except (ValueError, RecursionError):
        raise WdmoeError(f"{path}: not JSON; {WRITE_ANEW}") from None
    shape = SHAPES.get(path.name, TABLE)
    try:
        shape.validate_json(text, strict=True)
    except ValidationError as error:
        wrong = sentence(first_error(error), lambda location: []).lstrip()
        raise WdmoeError(f"{path}: {wrong}; {WRITE_ANEW}") from None
    return content
