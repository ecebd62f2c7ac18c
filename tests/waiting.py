"""Waiting for what other threads and processes do, however busy the machine is."""

import time

PATIENCE_S = 300.0


def until(condition, seconds=PATIENCE_S):
    """Wait until the condition holds, and fail if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
