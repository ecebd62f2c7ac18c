"""Result files as OpenCompass 0.5.4 writes them, cut to what is read."""

import numpy as np
import pytest

from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.report.items import item_results


def by_number(details, kind="PPL"):
    return {"type": kind} | {str(number): detail for number, detail in enumerate(details)}


MARKED = [True, False, True, True]
DETAILS = {
    "AccEvaluator, perplexity": by_number([dict(predictions="A", references="AB"[not x], correct=x) for x in MARKED]),
    "AccEvaluator, generation": by_number([dict(predictions="A", references="AB"[not x]) for x in MARKED], "GEN"),
    "Gsm8kEvaluator": [dict(example_abbr="g", pred=["3"], answer=["3"], correct=[x]) for x in MARKED],
    "MBPPEvaluator": [dict(programs=[["def f", "assert f"]], result=["pass"], is_correct=[x]) for x in MARKED],
    "HumanEvalEvaluator": [dict(task_id=["HumanEval/0"], passed=[x], is_correct=[x]) for x in MARKED],
    "AccwithDetailsEvaluator": [dict(pred=["A"], answer=["A"], is_correct=[x]) for x in MARKED],
}


@pytest.mark.parametrize("details", DETAILS.values(), ids=list(DETAILS))
def test_right_and_wrong_of_every_evaluator(details):
    found = item_results(dict(accuracy=75.0, details=details), "accuracy", 75.0)
    assert found.right.tolist() == MARKED


@pytest.mark.parametrize(
    ("result", "metric", "reason"),
    [
        (dict(), "accuracy", "names no item right or wrong"),
        (dict(details=by_number([dict(predictions="a b", references="a c")])), "bleu", "names no item right or wrong"),
        (dict(details=[dict(correct=[True, False])]), "accuracy", "answered 2 times"),
        (dict(details=[dict(correct=[0.5])]), "score", "names no item right or wrong"),
        (dict(details={"0": dict(correct=True), "2": dict(correct=True)}), "accuracy", "lack items"),
        (dict(details=DETAILS["Gsm8kEvaluator"]), "accuracy", "3 of its 4 items are marked right, which is not"),
        (dict(details=DETAILS["Gsm8kEvaluator"][:1] * 2 + [None]), "accuracy", "names no item right or wrong"),
    ],
)
def test_what_does_not_tell_the_items_apart_is_refused_with_the_reason(result, metric, reason):
    with pytest.raises(WdmoeError, match=reason):
        item_results(result, metric, 50.0)


def test_items_are_told_by_what_answers_are_held_against():
    def of(references, right=True):
        details = [dict(pred=["x"], answer=[reference], correct=[right]) for reference in references]
        return item_results(dict(details=details), "accuracy", 100.0 * right)

    assert of("ab").same_items(of("ab", right=False))
    assert not of("ab").same_items(of("ac"))
    assert not of("ab").same_items(of("a"))


def test_numbered_details_are_read_in_number_order():
    details = {str(n): dict(correct=n == 10, references="A") for n in (10, *range(10))}
    assert np.flatnonzero(item_results(dict(details=details), "accuracy", 100 / 11).right).tolist() == [10]
