"""A model that hangs once, so that a cluster's time limit ends its task while answers are partly on disk."""

import os
import time
from pathlib import Path
from typing import Any

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

MARKER = "WDMOE_TEST_STALL_MARKER"


class StallingModel(WdmoeHuggingFaceBaseModel):
    """Hangs before the second batch of a generation if the marker file is not there yet; without a marker, never."""

    def generate(self, inputs: list, max_out_len: int, **kwargs: Any) -> list[str]:
        marker = os.environ.get(MARKER)
        trace = self._session._trace
        if marker and trace is not None and trace.next_item and not Path(marker).exists():
            Path(marker).touch()
            time.sleep(180)  # longer than the limit of one minute, which Slurm looks at twice a minute
        return super().generate(inputs, max_out_len, **kwargs)
