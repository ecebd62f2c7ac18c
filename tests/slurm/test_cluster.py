"""Where there can be no cluster, the reason is told."""

import pytest

from tests import debian
from tests.slurm import cluster


@pytest.fixture
def without_slurm(monkeypatch):
    monkeypatch.delenv(debian.MAY_INSTALL, raising=False)
    monkeypatch.setattr(debian.shutil, "which", lambda program, path=None: None)


def apt_get(folder, monkeypatch, script):
    """A command of that name that does something else."""
    (folder / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv(debian.MAY_INSTALL, "1")
    monkeypatch.setattr(debian.shutil, "which", lambda program, path=None: program if program == "apt-get" else None)
    monkeypatch.setattr(debian.os, "geteuid", lambda: 0)


def test_nothing_is_installed_that_was_not_asked_for(without_slurm):
    with pytest.raises(debian.UnavailableError, match=r"no munged .* WDMOE_INSTALL_PACKAGES=1 lets the test install"):
        cluster.require_slurm()


def test_a_machine_without_apt_get(without_slurm, monkeypatch):
    monkeypatch.setenv(debian.MAY_INSTALL, "1")
    with pytest.raises(debian.UnavailableError, match="no apt-get"):
        cluster.require_slurm()


def test_an_ordinary_user_cannot_install(tmp_path, monkeypatch):
    apt_get(tmp_path, monkeypatch, "exit 0")
    monkeypatch.setattr(debian.os, "geteuid", lambda: 1000)
    with pytest.raises(debian.UnavailableError, match="only root"):
        cluster.require_slurm()


def test_what_apt_get_said_is_the_reason(tmp_path, monkeypatch):
    apt_get(
        tmp_path, monkeypatch, '[ "$1" = update ] || { echo "E: Unable to locate package slurm-wlm" >&2; exit 100; }'
    )
    with pytest.raises(debian.UnavailableError, match="apt-get install failed: E: Unable to locate package slurm-wlm"):
        cluster.require_slurm()


def test_the_command_exits_with_the_number_that_means_no_cluster(without_slurm, tmp_path, capsys):
    assert cluster.main(str(tmp_path), "true") == cluster.UNAVAILABLE
    assert "no munged" in capsys.readouterr().err
