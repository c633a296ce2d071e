"""Samples that show the same pictures: which they are, and how they are divided so that they stay together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import SPLITS, SharedPictures
from lmm_forget.tasks.images import Inspected, Source
from lmm_forget.tasks.rows import Row

UNSEEN = Inspected(None, None, "not opened")


@dataclass(frozen=True)
class Cluster:
    """Rows that show the same pictures: `number` tells clusters of one call apart, `name` is the image id.

    `key` decides the cluster's split: it follows from what the pictures hold, not from what their files are called.
    """

    number: int
    name: str
    key: str


def joined(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """The cluster of every item: items that share a key, directly or through other items, have the same number."""
    parent: list[int] = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Hashable, int] = {}
    for i, own in enumerate(keys):
        for key in own:
            low, high = sorted((root(first.setdefault(key, i)), root(i)))
            parent[high] = low
    return [root(i) for i in range(len(keys))]


@dataclass(frozen=True)
class Shown:
    """What decides a sample's cluster: its id, a given image id, and of every picture its name and digests.

    `contents` are digests of the files' bytes (None for what cannot be had), `pictures` what tells them apart.
    """

    id: str
    image_id: str | None
    names: tuple[str, ...]
    contents: tuple[str | None, ...]
    pictures: tuple[Hashable, ...]

    @classmethod
    def of(
        cls,
        sample: str,
        image_id: str | None,
        sources: Mapping[str, Source],
        seen: Mapping[Source, Inspected],
    ) -> Shown:
        """Of a sample whose pictures' `sources` have these names, and what opening them showed."""
        found = {source: seen.get(source, UNSEEN) for source in sources.values()}
        return cls(
            sample,
            image_id,
            tuple(sources),
            tuple(one.content for one in found.values()),
            tuple(one.pixels or ("source", source) for source, one in found.items()),
        )


def clusters(rows: Sequence[Row], pictures: Mapping[Source, Inspected]) -> list[Cluster]:
    """The cluster of every row of a file, whose pictures are as `pictures` says; see `clusters_of`."""
    return clusters_of(
        [
            Shown.of(row.id, row.image_id, dict(zip(row.names, row.images, strict=True)), pictures)
            for row in rows
        ]
    )


def clusters_of(samples: Sequence[Shown]) -> list[Cluster]:
    """The cluster of every sample: those that share a picture, directly or through others, share the cluster.

    Pictures are the same when they are decoded to the same pixels; one that cannot be opened is known by where it is.
    A given image id joins samples too. A cluster is named by the first, in alphabetical order, of its given ids or
    else of its pictures' names; a sample without pictures is a cluster of its own, named by its id.
    """
    numbers = joined([[*_given(one), *one.pictures] for one in samples])
    names: dict[int, tuple[int, str]] = {}
    keys: dict[int, tuple[int, str]] = {}
    for number, one in zip(numbers, samples, strict=True):
        given = [(0, image_id) for _, image_id in _given(one)]
        named = given + [(1, name) for name in one.names]
        # The bytes and not the pixels: another version of a decoder must not divide a data set anew.
        held = given + [
            (1, content[:16]) if content else (2, name)
            for content, name in zip(one.contents, one.names, strict=True)
        ]
        names[number] = min([*named, names.get(number, (3, one.id))])
        keys[number] = min([*held, keys.get(number, (3, one.id))])
    return [Cluster(number, names[number][1], keys[number][1]) for number in numbers]


def image_ids(given: Sequence[str], pictures: Sequence[Iterable[Hashable]]) -> list[str]:
    """The image id of every sample, when those that have one `given` id, or show one picture, are one cluster."""
    numbers = joined([[("id", own), *pictures[i]] for i, own in enumerate(given)])
    names: dict[int, str] = {}
    for number, own in zip(numbers, given, strict=True):
        names[number] = min(own, names.get(number, own))
    return [names[number] for number in numbers]


def divide(
    rows: Sequence[Row], images: Sequence[Cluster], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Positions of the rows of every split, so that no picture is in two splits.

    A row with a `split` keeps it; the others go where `assign` puts their cluster. Raises DataError if rows with
    given splits put an image file or an `image_id` into two of them; that two of their files hold the same picture
    is for `shared` to tell.
    """
    home: dict[int, tuple[str, Row]] = {}
    found: dict[str, list[int]] = {split: [] for split in SPLITS}
    drawn = assign(
        (image.key for row, image in zip(rows, images, strict=True) if row.split is None), fractions, seed
    )
    same = joined([_declared(row) for row in rows])
    for position, (row, image) in enumerate(zip(rows, images, strict=True)):
        split = row.split or drawn[image.key]
        there, first = home.setdefault(same[position], (split, row))
        if there != split:
            raise DataError(
                f"{row.where}: image {image.name} is in split {split} here and in {there} at {first.where}; "
                "an image may be in one split only"
            )
        found[split].append(position)
    return found


def assign(keys: Iterable[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of every key: test or validation by their `fractions`, else train; a key's place is its hash.

    What other keys there are plays no role, but for so few that a split would get none: it then takes one from a
    split that has several, or that can better do without (of train, test and validation the later).
    """
    places = {key: _place(key, seed) for key in keys}
    found = {key: _split_at(place, fractions) for key, place in places.items()}
    ordered = sorted(places, key=lambda key: (places[key], key))
    wanted = ["train", *(split for split in ("test", "validation") if fractions.get(split))]
    for rank, split in enumerate(wanted):
        if split in found.values():
            continue
        counts = Counter(found.values())
        able = [key for key in ordered if counts[found[key]] > 1 or found[key] in wanted[rank:]]
        if able:
            found[able[-1] if split == "train" else able[0]] = split
    return found


def shared(shown: Mapping[str, Mapping[str, str]]) -> SharedPictures:
    """Pictures that are in two splits, of `shown` (split -> digest of a picture's pixels -> id of a sample)."""
    found = {}
    for one, other in combinations(shown, 2):
        pairs = [(shown[one][key], shown[other][key]) for key in shown[one] if key in shown[other]]
        if pairs:
            found[one, other] = pairs
    return found


def _given(sample: Shown) -> list[tuple[str, str]]:
    return [] if sample.image_id is None else [("id", sample.image_id)]


def _declared(row: Row) -> list[Hashable]:
    """What a row itself calls its pictures: the files, and an `image_id`."""
    files = [image for image in row.images if isinstance(image, Path)]
    return [*files, *([] if row.image_id is None else [("id", row.image_id)])]


def _place(key: str, seed: int) -> float:
    """Where a key stands between 0 and 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64


def _split_at(place: float, fractions: Mapping[str, float]) -> str:
    for split in ("test", "validation"):
        place -= fractions.get(split, 0.0)
        if place < 0:
            return split
    return "train"
