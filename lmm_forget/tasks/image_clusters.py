"""Samples that show the same pictures: which they are, and how they are divided so that they stay together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from lmm_forget.errors import DataError
from lmm_forget.tasks.file_rows import FileRow
from lmm_forget.tasks.images import ImageInspection, ImageSource
from lmm_forget.tasks.task import SPLITS, SplitOverlap

NOT_INSPECTED = ImageInspection(None, None, "not opened")


@dataclass(frozen=True)
class ImageCluster:
    """Rows that show the same pictures: `number` tells clusters of one call apart, `name` is the image id.

    `key` decides the cluster's split: it follows from what the pictures hold, not from what their files are called.
    """

    cluster_index: int
    image_id: str
    split_key: str


def group_by_shared_keys(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """The cluster of every item: items that share a key, directly or through other items, have the same number."""
    parent: list[int] = list(range(len(keys)))

    def find_root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Hashable, int] = {}
    for i, item_keys in enumerate(keys):
        for key in item_keys:
            low, high = sorted((find_root(first.setdefault(key, i)), find_root(i)))
            parent[high] = low
    return [find_root(i) for i in range(len(keys))]


@dataclass(frozen=True)
class SampleImages:
    """What decides a sample's cluster: its id, a given image id, and of every picture its name and digests.

    `contents` are digests of the files' bytes (None for what cannot be had), `pictures` what tells them apart.
    """

    id: str
    image_id: str | None
    image_names: tuple[str, ...]
    content_hashes: tuple[str | None, ...]
    pixel_keys: tuple[Hashable, ...]

    @classmethod
    def from_inspections(
        cls,
        sample_id: str,
        image_id: str | None,
        sources: Mapping[str, ImageSource],
        inspections: Mapping[ImageSource, ImageInspection],
    ) -> SampleImages:
        """Of a sample whose pictures' `sources` have these names, and what opening them showed."""
        inspected = {source: inspections.get(source, NOT_INSPECTED) for source in sources.values()}
        return cls(
            sample_id,
            image_id,
            tuple(sources),
            tuple(one.content_hash for one in inspected.values()),
            tuple(one.pixel_hash or ("source", source) for source, one in inspected.items()),
        )


def cluster_rows(rows: Sequence[FileRow], inspections: Mapping[ImageSource, ImageInspection]) -> list[ImageCluster]:
    """The cluster of every row of a file, whose pictures are as `pictures` says; see `cluster_samples`."""
    return cluster_samples(
        [
            SampleImages.from_inspections(
                row.id, row.image_id, dict(zip(row.image_names, row.images, strict=True)), inspections
            )
            for row in rows
        ]
    )


def cluster_samples(samples: Sequence[SampleImages]) -> list[ImageCluster]:
    """The cluster of every sample: those that share a picture, directly or through others, share the cluster.

    Pictures are the same when they are decoded to the same pixels; one that cannot be opened is known by where it is.
    A given image id joins samples too. A cluster is named by the first, in alphabetical order, of its given ids or
    else of its pictures' names; a sample without pictures is a cluster of its own, named by its id.
    """
    numbers = group_by_shared_keys([[*_list_given_ids(one), *one.pixel_keys] for one in samples])
    names: dict[int, tuple[int, str]] = {}
    keys: dict[int, tuple[int, str]] = {}
    for number, sample in zip(numbers, samples, strict=True):
        given_ids = [(0, image_id) for _, image_id in _list_given_ids(sample)]
        name_candidates = given_ids + [(1, name) for name in sample.image_names]
        # The bytes and not the pixels: another version of a decoder must not divide a data set anew.
        key_candidates = given_ids + [
            (1, content[:16]) if content else (2, name)
            for content, name in zip(sample.content_hashes, sample.image_names, strict=True)
        ]
        names[number] = min([*name_candidates, names.get(number, (3, sample.id))])
        keys[number] = min([*key_candidates, keys.get(number, (3, sample.id))])
    return [ImageCluster(number, names[number][1], keys[number][1]) for number in numbers]


def merge_image_ids(sample_image_ids: Sequence[str], pixel_hashes: Sequence[Iterable[Hashable]]) -> list[str]:
    """The image id of every sample, when those that have one `given` id, or show one picture, are one cluster."""
    numbers = group_by_shared_keys([[("id", own), *pixel_hashes[i]] for i, own in enumerate(sample_image_ids)])
    names: dict[int, str] = {}
    for number, image_id in zip(numbers, sample_image_ids, strict=True):
        names[number] = min(image_id, names.get(number, image_id))
    return [names[number] for number in numbers]


def divide_rows(
    rows: Sequence[FileRow], image_clusters: Sequence[ImageCluster], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Positions of the rows of every split, so that no picture is in two splits.

    A row with a `split` keeps it; the others go where `assign` puts their cluster. Raises DataError if rows with
    given splits put an image file or an `image_id` into two of them; that two of their files hold the same picture
    is for `shared` to tell.
    """
    assigned: dict[int, tuple[str, FileRow]] = {}
    positions: dict[str, list[int]] = {split: [] for split in SPLITS}
    drawn_splits = assign_splits(
        (image.split_key for row, image in zip(rows, image_clusters, strict=True) if row.split is None),
        fractions,
        seed,
    )
    groups = group_by_shared_keys([_list_declared_images(row) for row in rows])
    for position, (row, image) in enumerate(zip(rows, image_clusters, strict=True)):
        split = row.split or drawn_splits[image.split_key]
        previous_split, first = assigned.setdefault(groups[position], (split, row))
        if previous_split != split:
            raise DataError(
                f"{row.location}: image {image.image_id} is in split {split} here and in {previous_split} at "
                f"{first.location}; "
                "an image may be in one split only"
            )
        positions[split].append(position)
    return positions


def assign_splits(keys: Iterable[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of every key: test or validation by their `fractions`, else train; a key's place is its hash.

    What other keys there are plays no role, but for so few that a split would get none: it then takes one from a
    split that has several, or that can better do without (of train, test and validation the later).
    """
    positions = {key: _hash_to_fraction(key, seed) for key in keys}
    splits = {key: _pick_split(place, fractions) for key, place in positions.items()}
    ordered = sorted(positions, key=lambda key: (positions[key], key))
    required_splits = ["train", *(split for split in ("test", "validation") if fractions.get(split))]
    for rank, split in enumerate(required_splits):
        if split in splits.values():
            continue
        counts = Counter(splits.values())
        candidates = [key for key in ordered if counts[splits[key]] > 1 or splits[key] in required_splits[rank:]]
        if candidates:
            splits[candidates[-1] if split == "train" else candidates[0]] = split
    return splits


def find_shared_images(pixel_index: Mapping[str, Mapping[str, str]]) -> SplitOverlap:
    """Pictures that are in two splits, of `shown` (split -> digest of a picture's pixels -> id of a sample)."""
    overlaps = {}
    for first_split, second_split in combinations(pixel_index, 2):
        pairs = [
            (pixel_index[first_split][key], pixel_index[second_split][key])
            for key in pixel_index[first_split]
            if key in pixel_index[second_split]
        ]
        if pairs:
            overlaps[first_split, second_split] = pairs
    return overlaps


def _list_given_ids(sample: SampleImages) -> list[tuple[str, str]]:
    return [] if sample.image_id is None else [("id", sample.image_id)]


def _list_declared_images(row: FileRow) -> list[Hashable]:
    """What a row itself calls its pictures: the files, and an `image_id`."""
    files = [image for image in row.images if isinstance(image, Path)]
    return [*files, *([] if row.image_id is None else [("id", row.image_id)])]


def _hash_to_fraction(key: str, seed: int) -> float:
    """Where a key stands between 0 and 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64


def _pick_split(position: float, fractions: Mapping[str, float]) -> str:
    for split in ("test", "validation"):
        position -= fractions.get(split, 0.0)
        if position < 0:
            return split
    return "train"
