"""A Slurm cluster on this machine for as long as a `with`: munged, slurmctld and two slurmd, all files in one folder.

python -m tests.slurm.cluster FOLDER COMMAND...

runs a command on such a cluster (FOLDER keeps the logs); where there can be none it says why and exits with 3.
"""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.debian import SEARCH_PATH, UnavailableError, require

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo", "squeue", "scancel")
NODES = ("one", "two")
UNAVAILABLE = 3

# Processes are found by their parents (linuxproc), since a container may lack cgroups. A node has one CPU, whatever the
# machine has (config_overrides): two jobs run at once. The rest is Slurm's default: no accounting, no task affinity.
CONFIG = """\
ClusterName=wdmoe
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
OverTimeLimit=0
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=tasks Nodes=ALL Default=YES State=UP
"""


class Cluster:
    """Daemons that run in the foreground of this process's children, so that their ids are known."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.variables = {"PATH": SEARCH_PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "slurm.conf").write_text(self._config())
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={self.folder / 'munge'}.{ending}" for option, ending in files.items()]
        # --force: pytest's folders are open to their owner alone, where munged wants a socket for every user
        self._spawn("munged", "munged", "--foreground", "--force", "--num-threads=2", *options)
        self._wait("munged's socket", (self.folder / "munge.socket").exists, 20)
        self._spawn("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self._spawn(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        self._wait("idle nodes", lambda: self._ask("sinfo", "-h", "-N", "-o", "%T") == ["idle"] * len(NODES), 60)

    def stop(self) -> None:
        """Cancel what still runs, and end the daemons, last started first."""
        if "slurmctld" in self._daemons:
            self._ask("scancel", *self._ask("squeue", "-h", "-o", "%i"))
            deadline = time.monotonic() + 15
            while self._ask("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.5)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def ended_jobs(self) -> list[dict[str, str]]:
        """-> what slurmctld wrote of each job that ended: JobId, Name, JobState, NodeList, ..."""
        lines = (self.folder / "jobs.txt").read_text().splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def logs(self) -> str:
        """-> the end of each daemon's log."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    def _config(self) -> str:
        user = pwd.getpwuid(os.geteuid()).pw_name
        host = socket.gethostname().split(".")[0]
        return CONFIG.format(host=host, user=user, folder=self.folder, nodes=NODES, ports=_free_ports(1 + len(NODES)))

    def _spawn(self, name: str, program: str, *options: str) -> None:
        path = shutil.which(program, path=SEARCH_PATH)
        assert path
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [path, *options], env=os.environ | self.variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _ask(self, program: str, *options: str) -> list[str]:
        """-> the lines that a client prints; none if it fails, as it does until slurmctld listens."""
        path = shutil.which(program, path=SEARCH_PATH)
        try:
            done = subprocess.run(
                [str(path), *options], env=os.environ | self.variables, capture_output=True, text=True, timeout=20
            )
        except subprocess.TimeoutExpired:
            return []
        return done.stdout.split("\n")[:-1] if done.returncode == 0 else []

    def _wait(self, what: str, is_there, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_there():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise RuntimeError(f"no {what}; ended: {dead}\n{self.logs()}")
            time.sleep(0.3)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that is stopped again whatever happens."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def require_slurm() -> None:
    """Install Slurm if it lacks and that is allowed, else raise UnavailableError with the reason."""
    require(PROGRAMS, PACKAGES)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def main(folder: str, *command: str) -> int:
    try:
        require_slurm()
    except UnavailableError as reason:
        print(reason, file=sys.stderr)
        return UNAVAILABLE
    with running_cluster(Path(folder)) as cluster:
        return subprocess.run(command, env=os.environ | cluster.variables).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
