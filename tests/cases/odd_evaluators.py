"""Evaluators that fail, harm their process, or give scores that are no plain numbers."""

import faulthandler
import os
import signal
import sys

import numpy as np
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


class SoundEvaluator(BaseEvaluator):
    """The share of equal answers, in percent; fails where the process is not as it was."""

    def score(self, predictions, references):
        assert os.path.isdir("tests/cases")
        assert sys.stdout is sys.__stdout__ or "pytest" in sys.modules
        return {"accuracy": 100 * sum(a == b for a, b in zip(predictions, references)) / len(references)}


class AnswersAloneEvaluator(BaseEvaluator):
    """A score that needs no reference: nothing else says that answers are missing."""

    def score(self, predictions):
        return {"accuracy": 100 * sum(answer == "A" for answer in predictions) / len(predictions)}


class RaisingEvaluator(BaseEvaluator):
    """An evaluator with a defect."""

    def score(self, predictions, references):
        raise KeyError("no such [answer] | key")


class SilentEvaluator(BaseEvaluator):
    """An exception without a text."""

    def score(self, predictions, references):
        raise RuntimeError


class TextlessEvaluator(BaseEvaluator):
    """An exception with a __str__ that raises."""

    def score(self, predictions, references):
        class Textless(Exception):
            def __str__(self):
                raise ValueError

        raise Textless


class SurrogateEvaluator(BaseEvaluator):
    """An exception with a text that no file can hold, over several lines."""

    def score(self, predictions, references):
        raise ValueError("half a sign \udcff,\nand\tmore")


class LongEvaluator(BaseEvaluator):
    """An exception that holds all answers."""

    def score(self, predictions, references):
        raise AssertionError("answers: " + "x" * 100_000)


class ExitingEvaluator(BaseEvaluator):
    """An evaluator that ends the program, as scripts do."""

    def score(self, predictions, references):
        sys.exit("no licence")


class VanishingEvaluator(BaseEvaluator):
    """An evaluator that ends its process without a word, as if all were well."""

    def score(self, predictions, references):
        os._exit(0)


class KilledEvaluator(BaseEvaluator):
    """An evaluator that takes more memory than there is."""

    def score(self, predictions, references):
        os.kill(os.getpid(), signal.SIGKILL)


class CrashingEvaluator(BaseEvaluator):
    """An evaluator with a defect in its compiled part."""

    def score(self, predictions, references):
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)


class NoResultEvaluator(BaseEvaluator):
    """A score that is no mapping."""

    def score(self, predictions, references):
        return None


class CircularEvaluator(BaseEvaluator):
    """A score that no file can hold."""

    def score(self, predictions, references):
        answer: dict = {"accuracy": 50.0}
        answer["itself"] = answer
        return answer


class WanderingEvaluator(BaseEvaluator):
    """A sound score, from another folder, with the output taken away and an alarm set."""

    def score(self, predictions, references):
        os.chdir("/")
        sys.stdout = None
        signal.alarm(1)
        return {"accuracy": 50.0}


class OddDetailsEvaluator(BaseEvaluator):
    """A sound score with details that JSON has no value for."""

    def score(self, predictions, references):
        odd = {"correct": True, "what": object(), "where": {1, 2}, "nan": float("nan"), "half": "\udcff"}
        return {"accuracy": 100.0, "details": [dict(odd) for _ in predictions]}


class OddKeysEvaluator(BaseEvaluator):
    """A sound score next to keys that JSON has none for."""

    def score(self, predictions, references):
        keys = {float("nan"): 1, np.int64(3): 2, (1, 2): 3, np.float64("inf"): 4, None: 5, 7: 6, np.bool_(True): 7}
        return {"accuracy": 50.0, "per": dict(keys), "array": np.array([dict(keys), float("nan")], dtype=object)}


class HalfLettersEvaluator(BaseEvaluator):
    """A sound score next to halves of letters, in a metric's name, a value, a key and an array."""

    def score(self, predictions, references):
        halves = {"text \ud83d": ["a\udc00b", "\ud83d\ude00"], "names": np.array(["\udfff"])}
        return {"accuracy": 50.0, "metric \udc00": 25.0, "text": "\ud800", "nested": halves}


def raising_postprocessor(text):
    """A post-processor that meets an answer that it does not know."""
    raise IndexError(f"no answer in {text!r}")
