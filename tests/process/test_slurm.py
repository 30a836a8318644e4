"""A benchmark on a real SLURM: a controller and two nodes with two GPUs each on this machine, the GPUs made up."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue", "scancel")
CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={root}/munge.sock,cred_expire=5
SlurmctldPort={ports[0]}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
GresTypes=gpu
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=10
NodeName=n1 NodeHostname=localhost Port={ports[1]} CPUs=4 Gres=gpu:2
NodeName=n2 NodeHostname=localhost Port={ports[2]} CPUs=4 Gres=gpu:2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10
"""
GRES = "NodeName=n1 Name=gpu File=/dev/loop[0-1]\nNodeName=n2 Name=gpu File=/dev/loop[2-3]\n"


def why_not():
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurmctld slurmd munge slurm-client)"
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    if not all(Path(f"/dev/loop{number}").exists() for number in range(4)):
        return "no /dev/loop0 to 3 to stand for GPUs"
    return None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(why_not() is not None, reason=why_not() or "-"),
]


def free_ports(count):
    """Ports below the system's own range that are free: those of the last cluster stay taken for a while."""
    found = []
    with ExitStack() as held:
        for port in range(20000 + os.getpid() % 5000, 32000):
            probe = held.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("", port))
                found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError("no free ports between 20000 and 32000")


@pytest.fixture
def slurm(monkeypatch):
    """A running cluster; its commands find it by SLURM_CONF."""
    root = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # short: the path of a socket must be
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    monkeypatch.setenv("SLURM_CONF", str(root / "slurm.conf"))
    (root / "slurm.conf").write_text(CONF.format(root=root, ports=free_ports(3)))
    (root / "gres.conf").write_text(GRES)
    for name in ("state", "spool.n1", "spool.n2"):
        (root / name).mkdir()
    key = root / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    options = {"key-file": key, "socket": root / "munge.sock", "pid-file": root / "munge.pid"}
    options |= {"log-file": root / "munge.log", "seed-file": root / "munge.seed"}
    commands = [["munged", "-F", "--force", *(f"--{name}={value}" for name, value in options.items())]]
    commands += [["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    daemons = []
    try:
        for command in commands:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
            daemons.append(subprocess.Popen(command, **quiet))
            time.sleep(1.0)
        deadline = time.monotonic() + 60
        while ask("sinfo", "-h", "-o", "%T", "-p", "low") != "idle":
            ended = [command[0] for command, daemon in zip(commands, daemons, strict=True) if daemon.poll() is not None]
            log = root / "slurmctld.log"
            assert not ended and time.monotonic() < deadline, (ended, log.exists() and log.read_text()[-3000:])
            time.sleep(0.5)
        yield root
    finally:
        with suppress(subprocess.SubprocessError):
            subprocess.run(["scancel", "--user=root"], check=False, timeout=20)
        for daemon in reversed(daemons):
            with suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        shutil.rmtree(root, ignore_errors=True)


def ask(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def number_of(name):
    """SLURM's number of the job that works on a job of the benchmark."""
    lines = [line.split("|") for line in ask("squeue", "-h", "-o", "%i|%j").splitlines()]
    return next((number for number, job in lines if job == f"bench:{name}"), None)


@pytest.fixture
def cluster(slurm, bench):
    """A benchmark that asks for GPUs."""
    bench.limit(device='"cuda"')
    return bench


def test_dependencies_gpus_and_failures(cluster):
    cluster.limit(recipes='["unetrpp", "full"]', folds="[0, 1]", seeds="[0]")
    cluster.behave(TopoMAEPretrainer={"fails": True})
    assert "11 jobs submitted" in cluster.call("submit")
    requested = ask("squeue", "-h", "-O", "tres-per-node:30,name:60", "--states=all")
    assert "gpu:1" in requested
    cluster.wait_for(lambda: not ask("squeue", "-h"), 240)
    done = set(cluster.done())
    assert done == {"Dataset005__TopoMAEPlans__plan"} | {
        f"Dataset005__unetrpp__fold{fold}__seed0__{kind}" for fold in (0, 1) for kind in ("train", "score")
    }
    assert cluster.folder("Dataset005__full__fold0__seed0__pretrain").state() == "failed"
    before = cluster.done()
    cluster.behave()
    assert "6 jobs submitted" in cluster.call("submit")  # what is done is not submitted again
    cluster.wait_for(lambda: not ask("squeue", "-h"), 240)
    assert len(cluster.done()) == len(cluster.jobs) == 11
    assert {name: cluster.done()[name] for name in before} == before


def test_warned_and_preempted_jobs_come_back_and_continue(cluster):
    cluster.limit(recipes='["unetrpp"]', folds="[0]", seeds="[0]")
    cluster.file.write_text(cluster.file.read_text().replace("epochs = 3", "epochs = 30"))
    cluster.behave(UNETRPPTrainer={"seconds": 1.0, "worker": True})
    train = "Dataset005__unetrpp__fold0__seed0__train"
    cluster.call("submit")
    folder = cluster.folder(train)
    checkpoint = "nnUNet_results/*/UNETRPP*/fold_0/checkpoint_latest.pth"
    cluster.wait_for(lambda: list(folder.path.glob(checkpoint)), 120)
    again = cluster.call("submit")  # a job runs, another waits for it
    assert "2 jobs are in SLURM's queue" in again and "0 jobs submitted" in again
    # What SLURM sends two minutes before the wall time.
    ask("scancel", "--signal=USR1", "--batch", number_of(train))
    cluster.wait_for(lambda: len(cluster.starts(train)) == 2 and folder.state() == "running", 120)
    assert cluster.starts(train) == ["anew", "--c"]
    # Somebody more important wants all GPUs.
    gpus = ["--partition=high", "--nodes=2", "--gres=gpu:2", "--output=/dev/null"]
    ask("sbatch", *gpus, "--wrap=sleep 5")
    cluster.wait_for(lambda: folder.state() != "running", 60)
    cluster.wait_for(lambda: not ask("squeue", "-h"), 240)
    assert cluster.starts(train) == ["anew", "--c", "--c"]
    assert len(cluster.done()) == len(cluster.jobs)
    assert not cluster.processes(folder.path)
