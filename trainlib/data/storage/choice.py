"""The choice of what the cache keeps of a data set's pictures, by memory, disk and what their use needs."""

from __future__ import annotations

from dataclasses import dataclass

MAX_FRACTION = 0.5  # of the available memory and of the free disk that the pictures may take


@dataclass(frozen=True)
class Room:
    """What there is to choose by, in bytes.

    pixels   that the pictures take decoded: as images if they are the same in every epoch, else at the scale that
             decoding gives
    files    that the pictures' files have together
    memory   available to each rank of this machine
    disk     free where the cache is, and what the cache has of these pixels already
    folder   the cache
    for_files   as `disk`, with what the cache has of these files already
    shared   the type of the file system, such as nfs4, where each picture is a file of its own on one that machines
             share, and the cache is not; else empty
    """

    pixels: int
    files: int
    memory: int
    disk: int
    folder: str
    for_files: int = 0
    shared: str = ""


@dataclass(frozen=True)
class Choice:
    """What is kept: nothing, files, pictures or images (see `Records`), and why, for people.

    is_resident   True to have all images in memory
    is_trial      True where one shard is to show whether reading is faster than decoding
    is_tight      True where the cache takes more of the disk than it should
    """

    kept: str
    why: str
    is_resident: bool = False
    is_trial: bool = False
    is_tight: bool = False


def choose(cache: str, is_fixed: bool, room: Room) -> Choice:
    """Return what is kept of the pictures.

    cache      `data.cache`: auto, none, pixels or files
    is_fixed   True if a picture gives the same image in every epoch
    """
    need, disk = (room.files, room.for_files) if cache == "files" else (room.pixels, room.disk)
    numbers = (
        f"{_amount(need)}, of {_amount(room.memory)} of available memory and {_amount(disk)} of disk in {room.folder}"
    )
    what = "the files take" if cache == "files" else "decoded, the images take"
    is_tight = need > disk * MAX_FRACTION
    is_in_memory = need <= room.memory * MAX_FRACTION
    again = "they are decoded anew for each batch"
    if cache == "none":
        return Choice("none", f"data.cache: none: the images are not kept, {again}")
    if cache == "files":
        return Choice("files", f"data.cache: files: {what} {numbers}; their bytes are kept there", is_tight=is_tight)
    if cache == "auto" and (is_tight or not (is_in_memory or is_fixed)):
        too_much = f"{what} {numbers}, more than half of the {'disk' if is_tight else 'memory'}"
        if room.shared and room.files <= room.for_files * MAX_FRACTION:
            their = f"their files, {_amount(room.files)} on a file system that machines share ({room.shared})"
            return Choice("files", f"data.cache: files (auto): {too_much}; {their}, are kept there, packed")
        return Choice("none", f"data.cache: none (auto): {too_much}: {again}")
    named = "data.cache: pixels (auto)" if cache == "auto" else "data.cache: pixels"
    if not is_fixed:
        cut = "each is cut anew in each epoch"
        return Choice("pictures", f"{named}: {what} {numbers}; they are kept there, and {cut}", is_tight=is_tight)
    where = "in memory" if is_in_memory else "on disk, and read ahead of each batch"
    is_trial = cache == "auto" and not is_in_memory
    return Choice("images", f"{named}: {what} {numbers}; they are kept {where}", is_in_memory, is_trial, is_tight)


def _amount(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
