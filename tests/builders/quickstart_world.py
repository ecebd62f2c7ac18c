"""The world that the quickstart's questions are about, from the quickstart's own generator."""

import sys

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "quickstart"))
import tasks

WORLD = tasks.World()
