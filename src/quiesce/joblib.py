"""joblib on quiesce: importing this registers the backend "quiesce".

    import quiesce.joblib
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="quiesce", n_jobs=4):
        squares = Parallel()(delayed(pow)(i, 2) for i in range(100))

Unlike other backends it stops what runs when a call is given up (an error, a timeout, a generator that nobody
reads): exactly the tasks of that call, and joblib goes on once they have ended.
"""

import contextvars
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from joblib import cpu_count, register_parallel_backend
from joblib._parallel_backends import (  # where joblib's guide to backends has them from
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from quiesce.client.client import Client
from quiesce.client.executor import QuiesceExecutor
from quiesce.client.private_broker import KIND, RUNTIME
from quiesce.client.records import log
from quiesce.errors import QuiesceError, ShutdownTimeoutError

NAME: Final = "quiesce"

#: Seconds for what runs to have ended when a call is given up. It is forced at once, so this is for machines
#: that are stuck; joblib goes on then, and the pool gets over it by itself.
_ABORT_TIMEOUT: Final = 20.0


def run(batch: Callable[[], list[Any]]) -> list[Any]:
    """In the worker. Named there by this module, which so is imported, and its backend known to nested calls.

    A nested call may have used loky, which keeps its processes for the next one; but the task has ended only when
    they have.
    """
    try:
        return batch()
    finally:
        loky = sys.modules.get("joblib.externals.loky.reusable_executor")
        pool = getattr(loky, "_executor", None)
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=True)


class _Target:
    """Where calls go: the broker of `client` or at `address`; with neither a private pool, once it is wanted."""

    def __init__(self, client: Client | None, address: str | None) -> None:
        self.client = client
        self.address = address
        #: The private pool, and how many processes it has.
        self._private: QuiesceExecutor | None = None
        self._private_for: tuple[int, dict[str, str]] | None = None

    @property
    def is_private(self) -> bool:
        """Whether it is nobody's but ours."""
        return self.client is None and self.address is None

    @property
    def is_broken(self) -> bool:
        """Whether it is a private one that somebody has killed: then nothing runs there any more."""
        return self._private is not None and self._private._engine.is_broken

    def connected(self, n_jobs: int, env: dict[str, str]) -> Client:
        """A client of it; a private one has `n_jobs` processes with these variables."""
        if self.client is None and self.address is not None:
            self.client = Client(self.address)
        if self.client is not None:
            return self.client
        if self._private is None or self.is_broken or self._private_for != (n_jobs, env):
            self._private = QuiesceExecutor(n_jobs, env=env)
            self._private_for = (n_jobs, env)
        return self._private.client


class QuiesceBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """The backend "quiesce". Its options are given to `parallel_config`, or with `Parallel(backend=...)`.

    With `client` or `address` the calls go to that broker, into `runtime` with `kind`. With neither, a private
    broker and pool of `n_jobs` processes is started at the first call, kept as long as this backend (so for a
    `parallel_config` block, or a Parallel object), and ended with it. `n_jobs` is 1 by default, which runs
    calls here, as with joblib's own backends; -1 is the number of processors, or of all slots of that runtime.

    Calls nested in a task use threads, as with joblib's own backends, unless they name a backend: "quiesce" gives
    each a private pool. Give no address of the pool that they run in: if all of its workers wait for nested
    calls, none is left to run these.

    Arguments and results travel by value: joblib's `max_nbytes`, `temp_folder` and `mmap_mode` have no effect.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        client: Client | None = None,
        address: str | None = None,
        runtime: str | None = None,
        kind: str | None = None,
        **backend_kwargs: Any,
    ) -> None:
        super().__init__(
            nesting_level=nesting_level,
            inner_max_num_threads=inner_max_num_threads,
            **backend_kwargs,
        )
        self.parallel: Any = None
        self._choose(client, address, runtime, kind)
        #: It is one Parallel's own. Those of a block share what joblib has for all of them, and its pool; but the
        #: end of one call, which may come late and from another thread, must not be taken for that of the next.
        self._is_own = False
        #: For one configuration by joblib: a tenant of its own on the pool. (joblib's tests know this name.)
        self._workers: QuiesceExecutor | None = None
        self._tenant = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.nesting_level, self._target.address, self._runtime, self._kind)

    # --- what joblib asks ----------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at once."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        return max(self._places() + 1 + n_jobs, 1)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: Any = None,
        require: Any = None,
        **more: Any,
    ) -> int:
        """Be ready for `n_jobs` calls at once. What is given to Parallel itself arrives here."""
        if not self._is_own:
            raise FallbackToBackend(self._own())
        broker = [more.pop(name, None) for name in ("client", "address", "runtime", "kind")]
        if any(value is not None for value in broker):
            self._choose(*broker)
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        options = {**self.backend_kwargs, **more}
        self._tenant = f"joblib-{uuid.uuid4().hex[:12]}"
        client = self._connected(n_jobs)
        self._workers = QuiesceExecutor(
            n_jobs,
            client=client,
            runtime=RUNTIME if self._target.is_private else self._runtime,
            kind=KIND if self._target.is_private else self._kind,
            tenant_id=self._tenant,
            initializer=options.get("initializer"),
            initargs=options.get("initargs", ()),
        )
        return n_jobs

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Future[list[Any]]:
        """Hand over one batch. Too late, its future fails: after an error here joblib would wait on."""
        workers = self._workers
        future: Future[list[Any]] = Future()
        if workers is None:
            text = "this call has been given up: its backend is not configured any more"
            future.set_exception(RuntimeError(text))
        else:
            try:
                future = workers.submit(run, func)
            except RuntimeError as error:  # shut down meanwhile, or its pool has been killed
                future.set_exception(error)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[list[Any]]) -> list[Any]:
        """What came of a batch."""
        return out.result()

    def terminate(self) -> None:
        """The call is over. A private pool stays for the next one with this backend."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown(wait=False)
        self.parallel = (
            None  # it holds us: without this cycle, pools end when the last reference goes
        )
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Stop all that this call has under way, and return when it has ended."""
        workers, parallel = self._workers, self.parallel
        if workers is None:
            return
        self._workers = None
        workers.shutdown(wait=False, cancel_futures=True)
        if not self._target.is_broken:
            # Outside of the task that this may be in: a task that is asked to stop must be able to clean up.
            contextvars.Context().run(_stop, workers.client, self._tenant)
        if ensure_ready:
            self.configure(n_jobs=parallel.n_jobs, parallel=parallel, **parallel._backend_kwargs)

    # --- the pool --------------------------------------------------------------------------------

    def _choose(
        self, client: Client | None, address: str | None, runtime: str | None, kind: str | None
    ) -> None:
        if client is None and address is None and (runtime is not None or kind is not None):
            raise ValueError("runtime and kind are a broker's: give its client or address too")
        # Not `_pool`, by which joblib's tests know the workers of its own backends.
        self._target = _Target(client, address)
        self._runtime = runtime or "background"
        self._kind = kind

    def _own(self) -> "QuiesceBackend":
        """One for a Parallel, on the same pool."""
        own = type(self)(self.nesting_level, self.inner_max_num_threads, **self.backend_kwargs)
        own._target, own._runtime, own._kind = self._target, self._runtime, self._kind
        own._is_own = True
        return own

    def _connected(self, n_jobs: int) -> Client:
        return self._target.connected(n_jobs, self._prepare_worker_env(n_jobs=n_jobs))

    def _places(self) -> int:
        """How many calls could run at once."""
        if self._target.is_private:
            return int(cpu_count())
        runtime = self._connected(1).statistics()["runtimes"].get(self._runtime, {})
        return max(int(runtime.get("slots", 1)) * int(runtime.get("processes", 1)), 1)


def _stop(client: Client, tenant_id: str) -> None:
    try:
        client.shutdown_tasks(
            tenant_id=tenant_id,
            grace=0.0,
            timeout=_ABORT_TIMEOUT,
            reason="joblib has given up the call",
        )
    except ShutdownTimeoutError as error:
        log.warning("a call of joblib was given up, and some of its tasks go on: %s", error)
        client.reopen(tenant_id=tenant_id)  # nobody uses this name again
    except (QuiesceError, RuntimeError) as error:  # RuntimeError: the client is closed
        log.warning("a call of joblib was given up, and its tasks may go on: %s", error)


def _rebuilt(
    nesting_level: int | None, address: str | None, runtime: str, kind: str | None
) -> QuiesceBackend:
    """Of a backend that has travelled: without its client, which stays where it is."""
    if address is None:
        return QuiesceBackend(nesting_level)
    return QuiesceBackend(nesting_level, address=address, runtime=runtime, kind=kind)


register_parallel_backend(NAME, QuiesceBackend)
