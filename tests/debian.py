"""Programs that a test needs from Debian: found on this machine, or installed where that is allowed."""

import os
import shutil
import subprocess
from collections.abc import Sequence

MAY_INSTALL = "WDMOE_INSTALL_PACKAGES"
SEARCH_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # a user's PATH may lack the daemons'
STEP_S = 300  # what a step of apt-get may take


class UnavailableError(Exception):
    """A program is not on this machine and cannot be installed here."""


def require(programs: Sequence[str], packages: Sequence[str]) -> None:
    """Install the packages if a program lacks and that is allowed, else raise UnavailableError with the reason."""
    missing = [program for program in programs if shutil.which(program, path=SEARCH_PATH) is None]
    if not missing:
        return
    lacking = f"no {missing[0]} on this machine"
    if os.environ.get(MAY_INSTALL) != "1":
        raise UnavailableError(f"{lacking}; {MAY_INSTALL}=1 lets the test install {' and '.join(packages)}")
    if shutil.which("apt-get") is None:
        raise UnavailableError(f"{lacking}, and no apt-get to install it with")
    if os.geteuid():
        raise UnavailableError(f"{lacking}, and only root may install it")
    for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        _apt_get(step, lacking)


def _apt_get(step: list[str], lacking: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(["apt-get", *step], env=environment, capture_output=True, text=True, timeout=STEP_S)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{lacking}, and apt-get {step[0]} did not end within {STEP_S} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnavailableError(f"{lacking}, and apt-get {step[0]} failed: {reason}")
