"""Killed at random moments, started again: the same answers, counts and tables as a run that was not."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment
from tests.harness.kills import (
    Outcome,
    chances,
    dumped_task,
    killed_command,
    killed_task,
    undisturbed_command,
    undisturbed_task,
)


@pytest.mark.slow
def test_tasks_that_are_killed_lose_nothing_and_count_nothing_twice(tmp_path):
    reference, active_s = undisturbed_task(tmp_path / "reference")
    for number, chance in enumerate(chances(5, 0)):
        found = killed_task(dumped_task(tmp_path / str(number)), reference, active_s, chance)
        assert (found.is_complete, found.items_lost, found.items_twice) == (True, 0, 0), found
        assert found.is_equal, found


@pytest.mark.slow
def test_a_task_may_die_before_anything_it_does_to_a_file_and_may_run_twice_at_once(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.harness.every_write", str(tmp_path / "runs")],
        cwd=ROOT,
        env=environment(tmp_path / "hf"),
        stdout=subprocess.PIPE,
        text=True,
    )
    outcomes = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    assert done.returncode == 0, outcomes[-1:]
    assert outcomes[-1].how == "two at once"
    assert len(outcomes) > 40
    for found in outcomes:
        assert found == Outcome(found.how, is_complete=True, is_equal=True)


@pytest.mark.slow
def test_run_that_is_killed_gives_the_same_tables(tmp_path):
    reference, took_s = undisturbed_command(tmp_path / "reference" / "outputs")
    found = killed_command(tmp_path / "killed" / "outputs", reference, took_s, "a task", chances(1, 1)[0])
    assert (found.is_complete, found.items_lost, found.items_twice, found.is_equal) == (True, 0, 0, True), found
