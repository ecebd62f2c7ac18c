"""Three of the quickstart's tasks, the first 200 items of each: two by perplexity, one generated."""

from mmengine.config import read_base

with read_base():
    from .quickstart import quickstart_datasets

quickstart_short_datasets = [
    {**one, "abbr": f"{one['abbr']}_200", "reader_cfg": {**one["reader_cfg"], "test_range": "[:200]"}}
    for one in quickstart_datasets
    if one["abbr"] in ("qs_twoway", "qs_yesno", "qs_arith")
]
