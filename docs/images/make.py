"""Makes the pictures of this folder, from a real system: `PYTHONPATH=src python docs/images/make.py`."""

import asyncio
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from quiesce import Client
from quiesce.cli.top.app import TopApp

HERE = Path(__file__).parent
CONFIG = """
[broker]
address = "ipc:///tmp/quiesce-picture/run"
state = "{folder}/state"
[runtimes.background]
processes = 4
slots = 16
[runtimes.compute-request]
slots = 32
[runtimes.walreceiver]
processes = 1
slots = 64
[runtimes.mgmt-request]
slots = 1
[kinds.attach]
stop_grace = 2.0
"""
WORK = """
import time
import quiesce

def _steps(count, note):
    for done in range(count):
        if quiesce.wait_for_shutdown(0.1):
            return
        if note and done % 5 == 0:
            quiesce.report_progress(done, count, note)

def receive(count): _steps(10 * count, "")
def compact(count): _steps(count, "merging")
def collect(count): _steps(count, "")
def upload(count): _steps(count, "uploading")
def serve(count): _steps(count // 20, "")
def measure(count): return count
def save(count):
    while not quiesce.is_shutdown_requested():
        time.sleep(0.01)
    time.sleep(9)  # what it has is written down first
def stuck(count):
    time.sleep(count)
"""
KINDS = (
    ("walreceiver", "wal-receiver-connection", "receive"),
    ("background", "compaction", "compact"),
    ("background", "garbage-collector", "collect"),
    ("background", "remote-upload-task", "upload"),
    ("compute-request", "page-request-handler", "serve"),
)
TENANTS = ("acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "tyrell", "soylent")


def main() -> None:
    """Start it, fill it, look at it, stop a tenant of it, end it."""
    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "quiesce.toml").write_text(CONFIG.format(folder=folder))
        (folder / "work.py").write_text(WORK)
        sys.path.insert(0, name)
        command = [sys.executable, "-m", "quiesce", "up"]
        up = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        try:
            with Client("ipc:///tmp/quiesce-picture/run") as client:
                fill(client)
                asyncio.run(take(client))
                report(client)
        finally:
            up.send_signal(signal.SIGQUIT)
            up.wait()


def fill(client: Client) -> None:
    """Some of everything, and a steady stream of short tasks."""
    import work  # type: ignore[import-not-found]  # it was written just now

    client.spawn(
        "background", "layer-flush-task", work.save, 0, tenant_id="acme", timeline_id="main"
    )
    client.spawn("mgmt-request", "attach", work.stuck, 600, tenant_id="acme", timeline_id="dev")
    chance = random.Random(7)
    for number in range(360):
        runtime, kind, function = KINDS[chance.randrange(len(KINDS))]
        tenant = TENANTS[number % len(TENANTS)]
        client.spawn(
            runtime,
            kind,
            getattr(work, function),
            chance.randrange(60, 900),
            tenant_id=tenant,
            timeline_id=("main", "dev")[number % 2],
        )

    def stream() -> None:
        chance = random.Random(8)
        for _ in range(36):
            client.spawn_many(
                "compute-request",
                "metrics-collection",
                work.measure,
                range(chance.randrange(20, 90)),
                tenant_id="stark",
            )
            time.sleep(0.25)

    threading.Thread(target=stream, daemon=True).start()


async def take(client: Client) -> None:
    """Of `quiesce top` while a stop waits."""
    app = TopApp(client, interval=0.5)
    async with app.run_test(size=(112, 30)) as pilot:
        await asyncio.sleep(9)
        stop = threading.Thread(
            target=lambda: stopped.append(
                str(client.shutdown_tasks(tenant_id="acme", reason="detach"))
            )
        )
        stop.start()
        await asyncio.sleep(1.2)
        await pilot.press("s", "S")  # by state, what stops first
        await asyncio.sleep(1)
        save("top.svg", app.export_screenshot(title="quiesce top"))
        await asyncio.to_thread(stop.join)


#: What the stop of `take` has brought.
stopped: list[str] = []


def report(client: Client) -> None:
    """Of that stop: its head, and the most different of its lines."""
    head, reason, *lines = stopped[0].splitlines()
    kinds = ("attach", "layer-flush", "wal-receiver", "page-request", "compaction", "garbage")
    shown = [next((line for line in lines if f"  {kind}" in line), "") for kind in kinds]
    never = [line for line in lines if "NEVER_RAN" in line][:1]
    console = Console(record=True, width=max(map(len, lines)) + 2, file=open("/dev/null", "w"))  # noqa: SIM115 - of this program's life
    console.print(
        Text('>>> print(client.shutdown_tasks(tenant_id="acme", reason="detach"))', "bold cyan")
    )
    console.print(Text(head, "bold"))
    console.print(Text(reason))
    for line in dict.fromkeys(filter(None, [*shown, *never])):
        console.print(coloured(line))
    left = len(lines) - len(dict.fromkeys(filter(None, [*shown, *never])))
    console.print(Text(f"  … and {left} more", "dim"))
    save("report.svg", console.export_svg(title="a stop's report"))


def coloured(line: str) -> Text:
    """As it is, with the outcome and the times standing out."""
    text = Text(line)
    text.highlight_regex(r"completed RETURNED|NEVER_RAN", "green")
    text.highlight_regex(r"cancelled \w+.*?(?=  )", "yellow")
    text.highlight_regex(r"never \w+", "red")
    return text


def save(name: str, svg: str) -> None:
    """Without the fonts of others: every viewer has one of its own."""
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"font-family: Fira Code, monospace",
        "font-family: Menlo, Consolas, 'DejaVu Sans Mono', monospace",
        svg,
    )
    svg = re.sub(r"font-family: arial", "font-family: sans-serif", svg)
    (HERE / name).write_text(svg)
    print(name, len(svg))  # noqa: T201 - a program for people


main()
