"""The type of the file system that a path is on: a disk of this machine, memory, or one that machines share."""

from __future__ import annotations

from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
SHARED = frozenset(
    {
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "cifs",
        "smb3",
        "glusterfs",
        "panfs",
        "wekafs",
        "virtiofs",
    }
)


def file_system_here(path: Path) -> str:
    """Return the type of the file system that holds a path on this machine, as `file_system` does."""
    try:
        return file_system(path.resolve(), MOUNTS.read_text())
    except (OSError, ValueError):
        return file_system(path, "")


def file_system(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that holds an absolute path: `ext4`, `nfs4`.

    mountinfo   the text of /proc/self/mountinfo, see proc(5)
    """
    best, kind = -1, "unknown file system"
    for line in mountinfo.splitlines():
        fields, _, source = line.partition(" - ")
        words = fields.split()
        if len(words) < 5 or not source:
            continue
        point = Path(words[4].replace("\\040", " "))
        if (path == point or point in path.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), source.split()[0]
    return kind
