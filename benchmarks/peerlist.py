"""Who is measured: one entry for each, with what it needs and what it does not do."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One line of the comparison."""

    title: str
    #: The driver program, in `peers/`, and what it is started with.
    script: str
    options: dict[str, Any] = field(default_factory=dict)
    #: The environment's name, and what is installed there; "": the one that runs the benchmark.
    environment: str = ""
    requirements: tuple[str, ...] = ()
    redis: bool = False
    #: What of quiesce's it has not.
    lacks: str = ""


NO_STOP = "no registry; a running task can't be stopped"

#: By the name that `--peers` takes, in the order of the tables.
KINDS = {
    "quiesce": Kind(title="quiesce", script="peer_quiesce.py"),
    "quiesce-power-loss": Kind(
        title="quiesce, power-loss",
        script="peer_quiesce.py",
        options={"durability": "power-loss"},
    ),
    "quiesce-none": Kind(
        title="quiesce, no journal",
        script="peer_quiesce.py",
        options={"durability": "none"},
    ),
    "quiesce-slots": Kind(
        title="quiesce, 16 slots",
        script="peer_quiesce.py",
        options={"runtime": "slots"},
    ),
    "floor": Kind(
        title="bare parts",
        script="peer_floor.py",
        options={"registry": True},
        lacks="no logic: a dict as registry, nothing acknowledged, no journal, no proof",
    ),
    "floor-plain": Kind(
        title="bare parts, no registry",
        script="peer_floor.py",
        lacks="no logic at all",
    ),
    "floor-tuned": Kind(
        title="bare parts, tuned",
        script="peer_floor.py",
        options={"registry": True, "tuned": True},
        lacks="no logic, and sockets read frame by frame until empty",
    ),
    "floor-journal": Kind(
        title="bare parts, journalled",
        script="peer_floor.py",
        options={"registry": True, "journal": True},
        lacks="no logic, nothing acknowledged, no proof",
    ),
    "pool": Kind(title="multiprocessing.Pool", script="peer_pool.py", lacks=NO_STOP),
    "futures": Kind(title="ProcessPoolExecutor", script="peer_futures.py", lacks=NO_STOP),
    "multiprocess": Kind(
        title="multiprocess.Pool",
        script="peer_multiprocess.py",
        environment="multiprocess",
        requirements=("multiprocess",),
        lacks=NO_STOP,
    ),
    "loky": Kind(
        title="loky",
        script="peer_loky.py",
        environment="loky",
        requirements=("loky",),
        lacks=NO_STOP,
    ),
    "pebble": Kind(
        title="pebble",
        script="peer_pebble.py",
        environment="pebble",
        requirements=("pebble",),
        lacks="no registry; stops a running task by ending its process",
    ),
    "mpire": Kind(
        title="mpire",
        script="peer_mpire.py",
        environment="mpire",
        requirements=("mpire",),
        lacks=NO_STOP,
    ),
    "dask": Kind(
        title="Dask distributed",
        script="peer_dask.py",
        environment="dask",
        requirements=("distributed",),
        lacks="no stop of a running task: it may look at an Event of the scheduler; no journal",
    ),
    "ray": Kind(
        title="Ray",
        script="peer_ray.py",
        environment="ray",
        requirements=("ray",),
        lacks="no stop by scope, no proof of the end; cancel raises KeyboardInterrupt",
    ),
    "parsl": Kind(
        title="Parsl HTEX",
        script="peer_parsl.py",
        environment="parsl",
        requirements=("parsl",),
        lacks=NO_STOP,
    ),
    "celery": Kind(
        title="Celery on Redis",
        script="peer_celery.py",
        environment="celery",
        requirements=("celery[redis]",),
        redis=True,
        lacks="no registry; terminate kills the process, whatever it runs by then",
    ),
    "dramatiq": Kind(
        title="dramatiq on Redis",
        script="peer_dramatiq.py",
        environment="dramatiq",
        requirements=("dramatiq[redis]",),
        redis=True,
        lacks=NO_STOP,
    ),
    "huey": Kind(
        title="huey on Redis",
        script="peer_huey.py",
        environment="huey",
        requirements=("huey", "redis"),
        redis=True,
        lacks=NO_STOP,
    ),
    "saq": Kind(
        title="SAQ on Redis",
        script="peer_saq.py",
        environment="saq",
        requirements=("saq[redis]", "typing_extensions"),
        redis=True,
        lacks="abort is polled by the worker; no proof of the end",
    ),
}

#: Those that are measured against each other again and again; the rest once in each round, started anew.
CORE = (
    "quiesce", "quiesce-power-loss", "quiesce-none", "quiesce-slots",
    "floor", "floor-plain", "floor-tuned", "floor-journal", "pool", "futures",
)  # fmt: skip
#: Those of them that a quick run leaves out, unless they are asked for.
NOT_QUICK = ("quiesce-slots", "floor-plain", "floor-tuned", "floor-journal")
#: Those of the core that stand in the table of peers, too.
IN_BOTH = ("quiesce", "floor", "pool", "futures")
