"""What a data set is made of: digests notice every change, sentences name it, a file keeps it."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import pytest

from trainlib.data.identity.hashes import Hashes
from trainlib.data.identity.listing import Listing, changes, dump_listing, identities, parse_listing
from trainlib.data.identity.names import PrefixedNames
from trainlib.data.identity.sample_files import SampleFile, SampleFiles
from trainlib.data.identity.stamp import Stamp


def listed(*files: tuple[str, int, int, str | None], classes: tuple[str, ...] = ("cat", "dog")) -> Listing:
    samples = SampleFiles.of(SampleFile(name, label, Stamp(size, 1, 2, 3), sha) for name, label, size, sha in files)
    return Listing("image_folder", classes, {"train": len(files), "test": 0}, samples)


CAT, DOG, PUG = (
    ("train/cat/1.png", 0, 10, "a" * 64),
    ("train/dog/1.png", 1, 20, "b" * 64),
    ("train/dog/2.png", 1, 9, None),
)
BOTH = listed(CAT, DOG)

OTHERS = {
    "1 file added: train/dog/2.png": listed(CAT, DOG, PUG),
    "1 file removed: train/dog/1.png": listed(CAT),
    "1 file of another class: train/dog/1.png": listed(CAT, (DOG[0], 0, *DOG[2:])),
    "1 file with other bytes: train/cat/1.png": listed((*CAT[:3], "c" * 64), DOG),
    "1 file with other bytes: train/dog/1.png": listed(CAT, (*DOG[:2], 21, DOG[3])),
    "the classes were cat, dog; they are dog, cat": listed(CAT, DOG, classes=("dog", "cat")),
    "the order of the samples is another": listed(DOG, CAT),
    "data.name was image_folder, is table": replace(BOTH, source="table"),
}


@pytest.mark.parametrize("sentence", list(OTHERS))
def test_every_change_is_named_and_changes_a_digest(sentence: str) -> None:
    other = OTHERS[sentence]
    assert sentence in changes(BOTH, other)
    assert other.facts != BOTH.facts


def test_where_and_when_the_files_are_is_no_part_of_it() -> None:
    moved = SampleFiles.of(replace(file, stamp=Stamp(file.stamp.size, 7, 8, 9)) for file in BOTH.files)
    assert changes(BOTH, replace(BOTH, files=moved)) == []
    assert replace(BOTH, files=moved).facts == BOTH.facts


def test_other_numbers_of_samples_that_are_no_files_are_named() -> None:
    old, new = (Listing("given", ("a", "b"), {"train": n, "test": 5}) for n in (10, 11))
    assert changes(old, new) == ["there were 10 samples for train and 5 samples for test; there are 11 samples for "
                                 "train and 5 samples for test"]  # fmt: skip
    assert old.digest != new.digest
    assert old.content is None


def test_bytes_that_are_not_known_yet_are_no_change() -> None:
    unknown = listed((*CAT[:3], None), DOG)
    assert changes(BOTH, unknown) == changes(unknown, BOTH) == []
    assert unknown.content is None
    assert unknown.digest == BOTH.digest


def test_at_most_five_files_are_named() -> None:
    many = listed(CAT, DOG, *((f"train/dog/new-{i}.png", 1, 1, None) for i in range(8)))
    (sentence,) = changes(BOTH, many)
    assert sentence.startswith("8 files added: train/dog/new-0.png, ")
    assert sentence.endswith("train/dog/new-4.png and 3 more")


@pytest.mark.parametrize("name", ["train/cat/1.png", "train/c\n\u202e/ü \udcff.png", 'train/"/\\.png'])
def test_the_file_brings_the_listing_back(name: str) -> None:
    listing = listed((name, 0, 10, None), DOG)
    text = dump_listing(listing)
    assert text.isascii()
    assert parse_listing(text) == listing
    assert parse_listing(text).digest == listing.digest  # type: ignore[union-attr]


DAMAGED = {
    "empty": "",
    "torn": "{",
    "list": "[]",
    "null": "null",
    "no keys": "{}",
    "few keys": '{"source": 1}',
    "cut off": dump_listing(BOTH)[:-20],
    "short row": dump_listing(BOTH) + "[1]",
    "deep": "[" * 100_000,
    "infinite label": dump_listing(BOTH) + '["x", Infinity, null, 1, 1, 1, 1]',
    "infinite size": dump_listing(BOTH) + '["x", 0, null, 1e999, 1, 1, 1]',
    "infinite count": dump_listing(BOTH).replace('"train": 2', '"train": 1e999'),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_none(text: str) -> None:
    assert parse_listing(text) is None


def test_a_samples_number_is_that_of_its_name_alone() -> None:
    names = [f"cat/{i}.png" for i in range(1000)]
    numbers = identities(names)
    assert len(set(numbers.tolist())) == 1000
    assert identities(reversed(names)).tolist() == numbers.tolist()[::-1]


def test_the_column_of_hashes_holds_what_it_was_made_of() -> None:
    given = ["ab" * 32, None, "00" * 32]
    column = Hashes.of(given)
    assert list(column) == given == [column[row] for row in range(3)]
    assert list(column[1:]) == given[1:]
    assert (column == Hashes.of(given), column == Hashes.of([given[0], given[2], given[2]])) == (True, False)
    assert column.content() is None
    assert Hashes.of(given[:1]).content() == hashlib.sha256(str(given[0]).encode()).hexdigest()
    with pytest.raises(ValueError, match="64 digits"):
        Hashes.of(["abcd"])


@pytest.mark.parametrize("step", [1, 2, -1])
def test_a_slice_of_names_with_prefixes_is_that_of_all_names(step: int) -> None:
    parts = [("train/", 3), ("val/", 0), ("test/", 2)]
    names = PrefixedNames([str(i) for i in range(5)], parts)
    assert list(names) == ["train/0", "train/1", "train/2", "test/3", "test/4"]
    for start, stop in itertools.product([None, *range(-6, 7)], repeat=2):
        assert names[start:stop:step] == list(names)[start:stop:step]
