"""Which boot of the machine this is."""

from pathlib import Path


def boot_id() -> str:
    """Another one after each restart of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
