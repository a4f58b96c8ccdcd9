"""How a Client spawns: with signatures by which a type checker knows what comes back, and what may be given."""

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar, TypeVarTuple, Unpack, overload

from quiesce.client.base import BaseClient
from quiesce.client.handle import TaskHandle
from quiesce.client.options import Restart, SpawnOptions
from quiesce.client.progress import Show, checked, follow

A = TypeVar("A")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SpawningClient(BaseClient):
    """The part of `Client` that spawns. Not made by users.

    In the overloads, positional arguments are checked against the function; with `kwargs` nothing is, since no type
    stands for the keywords of a function beside options of our own.
    """

    @overload
    def spawn(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        /,
        *args: *Ts,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[T]: ...

    @overload
    def spawn(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[Unpack[Ts]], T],
        /,
        *args: *Ts,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[T]: ...

    @overload
    def spawn(
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        kwargs: Mapping[str, Any] | None,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[T]: ...

    @overload
    def spawn(
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., T],
        /,
        *args: Any,
        kwargs: Mapping[str, Any] | None,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[T]: ...

    def spawn(  # type: ignore[misc]  # mypy can't tell that *args: Any takes what *args: *Ts does
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        kwargs: Mapping[str, Any] | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        name: str | None = None,
        shutdown_process_on_error: bool = False,
        retries: int = 0,
        restart: Restart = "never",
        timeout: float | None = None,
        unique_key: str | None = None,
        progress: Show = None,
    ) -> TaskHandle[Any]:
        """Run `fn(*args, **kwargs)` in a worker of `runtime`. Returns at once, without the broker's answer.

        An importable function goes by reference; a lambda, a closure or a function of `__main__` by value.
        An `async def` runs on the worker's event loop, anything else in a thread of it or its main thread.

        Args:
            runtime: the pool to run in.
            kind: what the task is for: a TaskKind, or a name that the broker's configuration declares.
            kwargs: keyword arguments for `fn`.
            tenant_id, timeline_id: whom it works for; what stops and listings select by.
            name: for people; None: the function's qualified name.
            shutdown_process_on_error: if it fails, crashes or is lost unasked, the whole system stops in
                order, and `quiesce up` exits 1.
            retries: how often it is run again after it failed or its process died.
            restart: "never"; "on-failure": run again whenever it fails or crashes, at once, but at most five
                times a minute; "always": also when it returns. For long-lived tasks; a stop ends it for good.
            timeout: seconds that one execution may take; then it is stopped and ends with TaskTimeoutError.
            unique_key: one live task at most per key within (kind, tenant, timeline): a second spawn gets
                a handle of the first's task.
            progress: True shows what the task says with `report_progress` as a bar, if standard error is a
                terminal; a callable is given a `Progress`, in a thread of its own, and once more at the end.

        Raises:
            TypeError, ValueError: an argument is unusable, or can't be pickled.
            RuntimeError: the client is closed, or was made before a fork.

        What the broker refuses is raised by the handle's `id`, `wait` and `result`.
        """
        if progress is not None:
            checked(progress)
        asked = (
            runtime,
            kind,
            fn,
            tenant_id,
            timeline_id,
            name,
            shutdown_process_on_error,
            retries,
            restart,
            timeout,
            unique_key,
        )
        record = self._hand_over(self._prepared(args, kwargs, asked))
        if progress:
            follow(self, [record], progress)
        return TaskHandle(self, record)  # type: ignore[arg-type]  # this is a Client

    @overload
    def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        iterable_of_args: Iterable[tuple[*Ts]],
        /,
        *,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> list[TaskHandle[T]]: ...

    @overload
    def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[Unpack[Ts]], T],
        iterable_of_args: Iterable[tuple[*Ts]],
        /,
        *,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> list[TaskHandle[T]]: ...

    @overload
    def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[A], Coroutine[Any, Any, T]],
        iterable_of_args: Iterable[A],
        /,
        *,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> list[TaskHandle[T]]: ...

    @overload
    def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[[A], T],
        iterable_of_args: Iterable[A],
        /,
        *,
        kwargs: None = None,
        **options: Unpack[SpawnOptions],
    ) -> list[TaskHandle[T]]: ...

    @overload
    def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., Coroutine[Any, Any, T]],
        iterable_of_args: Iterable[Any],
        /,
        *,
        kwargs: Mapping[str, Any] | None,
        **options: Unpack[SpawnOptions],
    ) -> list[TaskHandle[T]]: ...

    @overload
    def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., T],
        iterable_of_args: Iterable[Any],
        /,
        *,
        kwargs: Mapping[str, Any] | None,
        **options: Unpack[SpawnOptions],
    ) -> list[TaskHandle[T]]: ...

    def spawn_many(
        self,
        runtime: str,
        kind: str,
        fn: Callable[..., Any],
        iterable_of_args: Iterable[Any],
        /,
        *,
        kwargs: Mapping[str, Any] | None = None,
        tenant_id: str | None = None,
        timeline_id: str | None = None,
        name: str | None = None,
        shutdown_process_on_error: bool = False,
        retries: int = 0,
        restart: Restart = "never",
        timeout: float | None = None,
        unique_key: str | None = None,
        progress: Show = None,
    ) -> list[TaskHandle[Any]]:
        """Spawn one task for each item, all or none; their handles in the same order.

        An item that is a tuple holds the positional arguments of one call; any other item is the only
        argument (so a tuple as the only argument is written `((1, 2),)`). All else is shared, and as in
        `spawn`. No items: no handles. If one is refused, all are, and so they are if there are over a
        million. `progress` shows how many have ended.
        """
        checked(progress)
        asked = (
            runtime,
            kind,
            fn,
            tenant_id,
            timeline_id,
            name,
            shutdown_process_on_error,
            retries,
            restart,
            timeout,
            unique_key,
        )
        records = self._spawn_many(iterable_of_args, kwargs, asked)
        if progress:
            follow(self, records, progress)
        return [TaskHandle(self, record) for record in records]  # type: ignore[arg-type]  # as in `spawn`
