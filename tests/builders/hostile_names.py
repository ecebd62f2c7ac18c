"""Abbreviations of datasets and models that are paths, globs, markup, too long or not ASCII."""

from tests.cases.eval_faults import LONG

NAMES = ("qs/arith", "qs arith [1:3]", "算术_é%&#$~^", "a_0", "a", "b.json", "tmp_{lib}", LONG)


MODELS = ("[a] vanilla ~x^2", "b|wdmoe\\y<z>")
