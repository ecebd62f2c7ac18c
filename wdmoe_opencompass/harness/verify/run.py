"""Whether a run's tables follow from its predictions and traces: all are computed again elsewhere and compared."""

import tempfile
from pathlib import Path

from .compare import compare
from .inputs import changed_files, other_versions, unfinished_files, unfit_inputs
from .recompute import recompute
from .verdict import Run, Verdict

NOT_RECOMPUTED = "nothing was recomputed: what the tables would be made from does not belong together"


def verify(folder: Path) -> Verdict:
    """Check that a run's files belong together, then compute its results and tables again and compare.

    Runs the run's own config and OpenCompass's evaluators on its predictions in a fresh process, in this folder, where
    relative data paths must hold as they did for the run; the run itself is only read. WdmoeError for a folder that is
    no finished run, or that cannot be evaluated here.
    """
    run = Run.open(folder)
    unfit = [*unfinished_files(run), *unfit_inputs(run)]
    verdict = Verdict(mismatches=[*unfit, *changed_files(run)], notes=other_versions(run))
    if unfit:
        verdict.notes.append(NOT_RECOMPUTED)
        return verdict
    with tempfile.TemporaryDirectory(prefix="wdmoe_verify_") as work:
        again = recompute(run, Path(work))
        verdict.compared, mismatches = compare(run, again)
    verdict.mismatches += mismatches
    return verdict
