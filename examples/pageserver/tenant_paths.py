"""Where everything of a tenant lies, so that removing one folder removes the tenant.

    work/
      plan.json               what is served, written by the demo before it starts
      run/                    sockets and ports of the listeners, metrics
      tenants/TENANT/         everything of a tenant: made by `attach`, and by nothing else
        tenant.json           its timelines and settings; `active` once it is loaded
        timelines/TIMELINE/   manifest, log, layers
      remote/TENANT/TIMELINE/ the copies that outlive a detach

Every other function opens what is there and fails with FileNotFoundError if it is not. That is
what makes "stop all tasks of the tenant, then remove its folder" final.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quiesce.examples.pageserver.layers import write_atomic
from quiesce.examples.pageserver.source import Plan, Settings, SourceFile, as_json


@dataclass(frozen=True, kw_only=True)
class TenantFile:
    """What `tenant.json` says."""

    tenant: str
    active: bool
    settings: Settings
    timelines: dict[str, SourceFile]


@dataclass(frozen=True)
class Work:
    """The work folder of one page server."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def tenants(self) -> Path:
        return self.root / "tenants"

    @property
    def remote(self) -> Path:
        return self.root / "remote"

    @property
    def pages_socket(self) -> Path:
        """Where the page service listens."""
        return self.run / "pages.sock"

    @property
    def hand_over_socket(self) -> Path:
        """Where a page request handler fetches the connection that it was spawned for."""
        return self.run / "hand-over.sock"

    @property
    def http_port_file(self) -> Path:
        return self.run / "http-port"

    @property
    def metrics_file(self) -> Path:
        return self.run / "metrics.json"

    def tenant(self, tenant: str) -> Path:
        return self.tenants / tenant

    def timeline(self, tenant: str, timeline: str) -> Path:
        return self.tenant(tenant) / "timelines" / slug(timeline)

    def remote_timeline(self, tenant: str, timeline: str) -> Path:
        return self.remote / tenant / slug(timeline)

    def create(self, plan: Plan, settings: Settings) -> None:
        """Make the folders that belong to no tenant, and write the plan."""
        for folder in (self.run, self.tenants, self.remote):
            folder.mkdir(parents=True)
        document = {
            "folder": plan.folder,
            "settings": asdict(settings),
            "tenants": {name: [as_json(f) for f in files] for name, files in plan.tenants.items()},
        }
        write_atomic(self.root / "plan.json", json.dumps(document).encode())

    def read_plan(self, tenant: str) -> TenantFile:
        """Return what the plan says of a tenant, attached or not."""
        document = json.loads((self.root / "plan.json").read_bytes())
        return TenantFile(
            tenant=tenant,
            active=False,
            settings=Settings(**document["settings"]),
            timelines=_timelines(document["tenants"][tenant]),
        )

    def read_tenant(self, tenant: str) -> TenantFile:
        """Return what an attached tenant's file says.

        Raises FileNotFoundError if it is not attached.
        """
        document = json.loads((self.tenant(tenant) / "tenant.json").read_bytes())
        return TenantFile(
            tenant=tenant,
            active=document["active"],
            settings=Settings(**document["settings"]),
            timelines=_timelines(document["timelines"]),
        )

    def write_tenant(self, tenant: TenantFile) -> None:
        """Write a tenant's file into its folder, which must be there."""
        document = {
            "active": tenant.active,
            "settings": asdict(tenant.settings),
            "timelines": [as_json(file) for file in tenant.timelines.values()],
        }
        write_atomic(self.tenant(tenant.tenant) / "tenant.json", json.dumps(document).encode())

    def attached(self) -> list[str]:
        """Return the tenants that have a folder with a tenant's file in it."""
        return sorted(path.parent.name for path in self.tenants.glob("*/tenant.json"))


def slug(timeline: str) -> str:
    """Return a folder's name for a timeline: readable, unique, and short whatever the path was."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", timeline)[-40:].lstrip("-.")
    return f"{readable}-{hashlib.sha256(timeline.encode()).hexdigest()[:12]}"


def _timelines(entries: list[dict[str, Any]]) -> dict[str, SourceFile]:
    files = [SourceFile(**entry) for entry in entries]
    return {file.timeline: file for file in files}
