"""The line that a task shows of the dataset it runs, in its log or on a terminal: what `wdmoe watch` shows of it."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ..run.dataset_progress import RUNNING, Begun, DatasetWatch, clock

LOG = logging.getLogger(__name__)
INTERVAL = "WDMOE_PROGRESS_S"  # environment variable: seconds between two lines in a log; 0: none at all
LOG_EVERY_S, TERMINAL_EVERY_S = 30.0, 1.0
MAX_LOOK_S = 10.0  # a look that takes longer, on a file system that hangs, is not waited for
METHODS = ("uniform",)  # in the run itself: the optimal split costs some tenths of a millisecond per pass


def prompts_of(items: int, infer_cfg: Mapping[str, Any]) -> int | None:
    """-> how many prompts OpenCompass's inferencer makes of a dataset; None for one that does not tell.

    Generation makes one of an item, perplexity one per possible answer (two with a normalising text).
    """
    inferencer = infer_cfg["inferencer"]
    kind = str(getattr(inferencer.get("type"), "__name__", inferencer.get("type"))).rpartition(".")[2]
    if kind == "GenInferencer" and not inferencer.get("multiround"):
        return items
    if kind != "PPLInferencer":
        return None
    templates = ((infer_cfg.get(name) or {}).get("template") for name in ("prompt_template", "ice_template"))
    answers = inferencer.get("labels") or next((text for text in templates if isinstance(text, Mapping)), None)
    return None if answers is None else items * len(answers) * (2 if inferencer.get("normalizing_str") else 1)


@contextmanager
def live_line(watch: DatasetWatch, begun: Begun) -> Iterator[None]:
    """Note that a dataset begins, show how far it is while the block runs, and note that it is done.

    One line every half minute into a log, and one at the end; on a terminal one that changes, below OpenCompass's own
    bar. The first process of a task speaks for all. Nothing that goes wrong here touches the run.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    _note(watch, begun)
    shown = _Shown(watch)
    try:
        yield
    except BaseException:
        shown.stop()
        raise
    took_s = begun.earlier_s + max(0.0, time.time() - begun.started_s)
    shown.stop(f"finished, elapsed {clock(took_s)}")
    _note(watch, begun.model_copy(update=dict(took_s=took_s)))


def _note(watch: DatasetWatch, begun: Begun) -> None:
    try:
        begun.write(watch.begun)
    except OSError as error:
        LOG.warning("%s: %s: wdmoe watch will not know how far it is", watch.begun, error.strerror)


class _Shown:
    """Looks at the dataset's files from a thread of its own, and shows the line."""

    def __init__(self, watch: DatasetWatch):
        self.watch = watch
        self.bar: tqdm | None = None
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None
        try:
            self._start()
        except Exception as error:  # no thread to be had, say
            LOG.warning("no line of progress: %s: %s", type(error).__name__, error)

    def _start(self) -> None:
        is_terminal = sys.stderr.isatty()
        self.every_s = _interval_s(TERMINAL_EVERY_S if is_terminal else LOG_EVERY_S)
        if self.every_s <= 0:
            return
        if is_terminal:  # tqdm's bar makes room for OpenCompass's; a live display of rich would overwrite it
            self.bar = tqdm(bar_format="{desc}", leave=False, file=sys.stderr)
        thread = threading.Thread(target=self._go_on, name="progress", daemon=True)
        thread.start()
        self.thread = thread

    def stop(self, last_words: str | None = None) -> None:
        """End the display; last_words: what the last line says in place of the state and the times."""
        self.ended.set()
        if self.thread is None:
            return
        self.thread.join(MAX_LOOK_S)
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if last_words is not None:
            self._show(last_words)

    def _go_on(self) -> None:
        while not self.ended.wait(self.every_s):
            self._show()

    def _show(self, last_words: str | None = None) -> None:
        try:
            line = self._line(last_words)
            if self.bar is not None:
                self.bar.set_description_str(line)
            else:  # clears OpenCompass's bar, writes a whole line, and draws the bar again
                tqdm.write(line, file=sys.stderr)
        except Exception as error:
            LOG.warning("no line of progress: %s: %s", type(error).__name__, error)

    def _line(self, last_words: str | None) -> str:
        found = self.watch.counted(RUNNING, time.time())
        if last_words is not None:
            found.state, found.elapsed_s, found.remaining_s = last_words, None, None
        return f"progress: {found.line()}"


def _interval_s(usual_s: float) -> float:
    try:
        return float(os.environ.get(INTERVAL, usual_s))
    except ValueError:
        LOG.warning("%s must be a number of seconds, got %r", INTERVAL, os.environ[INTERVAL])
        return usual_s
