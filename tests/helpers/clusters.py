"""Clusters on this machine: SLURM and Ray, each with two nodes of one core."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["RayCluster", "start_ray", "start_slurm"]


def wait_until(holds: Callable[[], Any], what: str, seconds: float = 60) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.2)


def find_port() -> int:
    """Returns a free port."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def succeeds(*command: str, environment: dict[str, str] | None = None) -> bool:
    """Whether a command ends with code 0."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode == 0


@contextmanager
def daemon(*command: str, log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """Runs a command in the background."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


SLURM = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
MpiDefault=none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""

ACCOUNTING = """\
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={accounting}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""


@contextmanager
def start_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Starts SLURM with accounting, from Debian's packages; yields the environment of its users.

    Arguments:
        folder: Where its files go; a short path, because sockets lie there.
    """
    with ExitStack() as stack:
        ports = {
            name: find_port()
            for name in ("controller", "accounting", "database", "first", "second")
        }
        settings = {"folder": folder, "host": socket.gethostname().partition(".")[0], **ports}
        (folder / "slurm.conf").write_text(SLURM.format(**settings))
        (folder / "slurmdbd.conf").write_text(ACCOUNTING.format(**settings))
        (folder / "slurmdbd.conf").chmod(0o600)
        (folder / "state").mkdir()
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

        def run(name: str, *command: str) -> None:
            stack.enter_context(
                daemon(*command, log=folder / f"{name}.out", environment=environment)
            )

        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        socket_path = folder / "munge.socket"
        run(
            "munged", "munged", "--foreground", "--force", f"--key-file={folder}/munge.key",
            f"--socket={socket_path}", f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
        )  # fmt: skip
        wait_until(socket_path.exists, "munge")
        _start_database(folder, ports["database"], run)
        run("slurmdbd", "slurmdbd", "-D")
        register = ("sacctmgr", "--immediate", "add", "cluster", "test")
        wait_until(lambda: succeeds(*register, environment=environment), "accounting")
        run("slurmctld", "slurmctld", "-D", "-c")
        for name in ("n1", "n2"):
            run(f"slurmd-{name}", "slurmd", "-D", "-N", name)
        wait_until(
            lambda: succeeds("srun", "--nodes=2", "true", environment=environment), "two nodes", 120
        )
        yield environment


def _start_database(folder: Path, port: int, run: Callable[..., None]) -> None:
    """Starts the database of the accounting."""
    data = folder / "database"
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root",
         "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True, capture_output=True,
    )  # fmt: skip
    path = folder / "database.socket"
    run(
        "mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}",
        f"--socket={path}", f"--port={port}", "--bind-address=127.0.0.1",
        "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900",
    )  # fmt: skip
    client = ("mariadb", "--no-defaults", f"--socket={path}", "--user=root", "-e")
    wait_until(lambda: succeeds(*client, "select 1"), "database")
    statement = "create user slurm@'%' identified by 'slurm'; grant all on slurm.* to slurm@'%'"
    assert succeeds(*client, statement)


class RayCluster:
    """Ray on this machine; its nodes have one core each.

    Arguments:
        folder: Where its files go; a short path, because sockets lie there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, find_port()
        self.nodes: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its users."""
        address = {"RAY_ADDRESS": f"127.0.0.1:{self.port}"} if self.nodes else {}
        return {**os.environ, "RAY_AUTH_MODE": "disabled", **address}

    def add_node(self) -> None:
        """Starts a node, the first one as the head."""
        where = [f"--address=127.0.0.1:{self.port}"] if self.nodes else [
            "--head", f"--port={self.port}", "--include-dashboard=false",
            f"--temp-dir={self.folder}",
        ]  # fmt: skip
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1",
            "--disable-usage-stats", "--object-store-memory=100000000", *where,
        ]  # fmt: skip
        environment = self.environment
        environment.pop("RAY_ADDRESS", None)
        number = len(self.nodes) + 1
        with (self.folder / f"node{number}.out").open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        self.nodes.append(process)
        wait_until(lambda: self.count_nodes() == number, f"node {number}", 120)

    def count_nodes(self) -> int:
        """Returns the number of nodes that are alive."""
        code = (
            "import ray; ray.init(log_to_driver=False, logging_level='ERROR'); "
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, capture_output=True, text=True
        )
        return int(done.stdout.split()[-1]) if done.returncode == 0 else 0

    def kill_node(self, index: int) -> None:
        """Kills all processes of a node, as if its power failed."""
        with suppress(ProcessLookupError):
            os.killpg(self.nodes[index].pid, signal.SIGKILL)
        self.nodes[index].wait()


@contextmanager
def start_ray(folder: Path) -> Iterator[RayCluster]:
    """Starts Ray with two nodes."""
    cluster = RayCluster(folder)
    try:
        cluster.add_node()
        cluster.add_node()
        yield cluster
    finally:
        for index in reversed(range(len(cluster.nodes))):
            cluster.kill_node(index)
