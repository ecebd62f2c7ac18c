"""Evaluators whose scores are no plain numbers."""

from opencompass.openicl.icl_evaluator import BaseEvaluator


class NanEvaluator(BaseEvaluator):
    """A score that is not defined (a correlation of constant answers, say)."""

    def score(self, predictions, references):
        return {"correlation": float("nan")}


class InfinityEvaluator(BaseEvaluator):
    """A score that overflowed."""

    def score(self, predictions, references):
        return {"perplexity": float("inf")}


class BoolEvaluator(BaseEvaluator):
    """A verdict and a text where numbers are expected."""

    def score(self, predictions, references):
        return {"passed": True, "score": "87.5 %"}


class HalfRightEvaluator(BaseEvaluator):
    """A score above 100, and items that are half right."""

    def score(self, predictions, references):
        return {"score": 1234.5, "details": [{"correct": 0.5} for _ in predictions]}
