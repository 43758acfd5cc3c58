"""The published feature files: where each lies on Google Drive and below the data root, its size and its SHA-256.

The hashes of MOSI, MOSEI and SIMS are those of MMSA's README; nobody publishes one for the other two. Drive ids and
sizes are those that public download scripts use for files of these hashes. They are kept here, not read from MMSA's
Drive folder: that holds thousands of raw videos, and listing it ends in an error half-way. What may change here: a file
that was published anew, with its hash.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError, nearest

KINDS = ("aligned", "unaligned")
MMSA_FOLDER = "https://drive.google.com/drive/folders/1A2S4pqCHryGmiqnNSPLv7rEg63WvjCSk"


@dataclass(frozen=True)
class PublishedFile:
    """One file. `path` is relative to the data root, as in MMSA's settings; `sha256` and `size` are None if unknown."""

    dataset: str
    kind: str  # of KINDS
    path: str
    drive_id: str
    sha256: str | None = None
    size: int | None = None  # bytes

    @property
    def page(self) -> str:
        """Where a browser finds it."""
        return f"https://drive.google.com/file/d/{self.drive_id}/view"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


FILES = (
    PublishedFile(
        "mosi", "aligned", "MOSI/Processed/aligned_50.pkl", "1VqjkYqcgUlggZVN7B3NpXwQ-BIWIXxkj",
        "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9", 367_257_274),
    PublishedFile(
        "mosi", "unaligned", "MOSI/Processed/unaligned_50.pkl", "1U_RpJB_PV-JRgCs694UHczLr2h5YJOma",
        "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524", 554_181_170),
    PublishedFile(
        "mosei", "aligned", "MOSEI/Processed/aligned_50.pkl", "16LfoCDw8LncJMVHaCOhN3H3_jjiKBmPu",
        "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791", 4_683_341_880),
    PublishedFile(
        "mosei", "unaligned", "MOSEI/Processed/unaligned_50.pkl", "13yKFqrS6v95QzH29h-zSg7ZuJdn6G5yA",
        "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f", 13_652_131_313),
    PublishedFile(
        "sims", "unaligned", "SIMS/Processed/unaligned_39.pkl", "1l_Nb9h3BRa3S-N76YcSQ3ixakr0gn6Qr",
        "c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f"),
    PublishedFile("simsv2", "unaligned", "SIMSV2/Processed/unaligned.pkl", "13JdO6GbPHOGZ8yLBFUrNR8c2FvHN-E_O"),
    PublishedFile("iemocap", "unaligned", "IEMOCAP/iemocap_data.pkl", "1Hn82-ZD0CNqXQtImd982YHHi-3gIX2G3"),
)  # fmt: skip


def files_of(dataset: str, kind: str | None = None) -> list[PublishedFile]:
    """The files of a data set of one kind, of all kinds for "all", or without a kind the one that DecAlign reads.

    DecAlign reads the aligned file where there is one. Raises InputError for an unknown name, or a kind it lacks.
    """
    of_set = [file for file in FILES if file.dataset == dataset]
    if not of_set:
        raise InputError(f"no published file of data set {dataset!r}; {nearest(dataset, {f.dataset for f in FILES})}")
    if kind is None or kind == "all":
        return of_set[:1] if kind is None else of_set
    found = [file for file in of_set if file.kind == kind]
    if not found:
        raise InputError(f"data set {dataset!r} has no {kind} file; it has: {', '.join(f.kind for f in of_set)}")
    return found


def file_with_hash(sha256: str) -> PublishedFile | None:
    """Which published file has this SHA-256."""
    return next((file for file in FILES if file.sha256 == sha256.lower()), None)
