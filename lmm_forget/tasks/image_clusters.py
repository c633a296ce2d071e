"""Cluster samples that show the same images, and divide samples into splits without separating a cluster."""

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
    """A cluster of samples that show the same images.

    `cluster_index` differs between the clusters of one call, `image_id` is the image id of its samples, `split_key`
    determines the cluster's split. The key is made from the content of the images, not from the names of their files.
    """

    cluster_index: int
    image_id: str
    split_key: str


def group_by_shared_keys(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """A cluster number for every item: items that share a key, directly or through other items, get the same one."""
    parent: list[int] = list(range(len(keys)))

    def find_root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_item: dict[Hashable, int] = {}
    for i, item_keys in enumerate(keys):
        for key in item_keys:
            low, high = sorted((find_root(first_item.setdefault(key, i)), find_root(i)))
            parent[high] = low
    return [find_root(i) for i in range(len(keys))]


@dataclass(frozen=True)
class SampleImages:
    """What determines a sample's cluster: its id, the image id of its row, and names and hashes of its images.

    `content_hashes` are hashes of the files' bytes (None for a file that cannot be read). `pixel_keys` are the hashes
    of the decoded pixels, or the source of an image that cannot be decoded.
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
        """From a sample's images (name -> source) and the results of inspecting them."""
        inspected = {source: inspections.get(source, NOT_INSPECTED) for source in sources.values()}
        return cls(
            sample_id,
            image_id,
            tuple(sources),
            tuple(inspection.content_hash for inspection in inspected.values()),
            tuple(inspection.pixel_hash or ("source", source) for source, inspection in inspected.items()),
        )


def cluster_rows(rows: Sequence[FileRow], inspections: Mapping[ImageSource, ImageInspection]) -> list[ImageCluster]:
    """The cluster of every row of a file, from the inspections of its images; see `cluster_samples`."""
    return cluster_samples(
        [
            SampleImages.from_inspections(
                row.id, row.image_id, dict(zip(row.image_names, row.images, strict=True)), inspections
            )
            for row in rows
        ]
    )


def cluster_samples(samples: Sequence[SampleImages]) -> list[ImageCluster]:
    """The cluster of every sample: samples that share an image, directly or through others, are in one cluster.

    Two images are equal if their decoded pixels are; an image that cannot be opened is identified by its source.
    Samples with equal `image_id` are in one cluster too. The image id of a cluster is the first, in alphabetical
    order, of its samples' image ids or else of the names of their images. A sample without images is a cluster of its
    own, named by its id.
    """
    numbers = group_by_shared_keys([[*_list_image_id_keys(sample), *sample.pixel_keys] for sample in samples])
    names: dict[int, tuple[int, str]] = {}
    keys: dict[int, tuple[int, str]] = {}
    for number, sample in zip(numbers, samples, strict=True):
        image_ids = [(0, image_id) for _, image_id in _list_image_id_keys(sample)]
        name_candidates = image_ids + [(1, name) for name in sample.image_names]
        # Bytes instead of pixels: another version of a decoder must not change how a data set is divided.
        key_candidates = image_ids + [
            (1, content[:16]) if content else (2, name)
            for content, name in zip(sample.content_hashes, sample.image_names, strict=True)
        ]
        names[number] = min([*name_candidates, names.get(number, (3, sample.id))])
        keys[number] = min([*key_candidates, keys.get(number, (3, sample.id))])
    return [ImageCluster(number, names[number][1], keys[number][1]) for number in numbers]


def merge_image_ids(image_ids: Sequence[str], pixel_hashes: Sequence[Iterable[Hashable]]) -> list[str]:
    """The cluster's image id for every sample; samples with an equal image id or an equal image are one cluster."""
    numbers = group_by_shared_keys([[("id", image_id), *pixel_hashes[i]] for i, image_id in enumerate(image_ids)])
    names: dict[int, str] = {}
    for number, image_id in zip(numbers, image_ids, strict=True):
        names[number] = min(image_id, names.get(number, image_id))
    return [names[number] for number in numbers]


def divide_rows(
    rows: Sequence[FileRow], image_clusters: Sequence[ImageCluster], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Split -> positions of its rows, such that no image is in two splits.

    A row that gives its split keeps it; the others get the split of their cluster from `assign_splits`. Raises
    DataError if the splits of the file put an image file or an image id into two splits. Two files with equal pixels
    in different splits are not an error here; `find_shared_images` reports them.
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
        previous_split, first_row = assigned.setdefault(groups[position], (split, row))
        if previous_split != split:
            raise DataError(
                f"{row.location}: image {image.image_id} is in split {split} here and in {previous_split} at "
                f"{first_row.location}; "
                "an image may be in one split only"
            )
        positions[split].append(position)
    return positions


def assign_splits(keys: Iterable[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Key -> split: test or validation with their `fractions`, else train; a hash of the key and `seed` decides.

    The split of a key does not depend on the other keys, unless a split would get none: it then takes a key from a
    split that has several, or from a less important one (train before test before validation).
    """
    positions = {key: _hash_to_fraction(key, seed) for key in keys}
    splits = {key: _pick_split(position, fractions) for key, position in positions.items()}
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
    """Images that are in two splits, from `pixel_index` (split -> hash of an image's pixels -> id of a sample)."""
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


def _list_image_id_keys(sample: SampleImages) -> list[tuple[str, str]]:
    return [] if sample.image_id is None else [("id", sample.image_id)]


def _list_declared_images(row: FileRow) -> list[Hashable]:
    """The identifiers that a row gives to its images: files and image id."""
    files = [image for image in row.images if isinstance(image, Path)]
    return [*files, *([] if row.image_id is None else [("id", row.image_id)])]


def _hash_to_fraction(key: str, seed: int) -> float:
    """Map a key to a number from 0 to below 1 by its hash."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64


def _pick_split(position: float, fractions: Mapping[str, float]) -> str:
    for split in ("test", "validation"):
        position -= fractions.get(split, 0.0)
        if position < 0:
            return split
    return "train"
