"""Groups of pictures that belong together, such as those of one patient: no split may separate them."""

from __future__ import annotations

from collections.abc import Sequence

from trainlib.errors import DataError

BY_FOLDER = "folder"  # the value of data.group that means the folder of a picture below its class


def folder_groups(names: Sequence[str], group: str | None) -> list[str] | None:
    """Return the group of each picture <class>/<folders>/<file>: its folders; None where there are no groups.

    Pictures of two classes in folders of one name are of one group. One directly in its class folder stands alone.

    Raises DataError where `group` is not "folder", or where no picture is in a folder below its class.
    """
    if group is None:
        return None
    if group != BY_FOLDER:
        raise DataError(
            f"data.group: got {group}, must be {BY_FOLDER} or null: only a table (data.name=table) has columns"
        )
    groups, found = [], False
    for name in names:
        folders = name.split("/")[1:-1]
        groups.append("/".join(folders) if folders else f"/{name}")  # no folder's name begins with a slash
        found = found or bool(folders)
    if not found:
        raise DataError(
            f"data.group: got {BY_FOLDER}, but no picture is in a folder below its class, <class>/<group>/<image>: "
            "sort the pictures into such folders, or set data.group=null"
        )
    return groups
