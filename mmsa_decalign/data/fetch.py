"""Getting a published feature file into the data root, and saying which published file a file is.

A download is gdown's, in this order: Drive to `NAME.part*.part` (gdown's own name while bytes are missing), that to
`NAME.part`, checks, and one rename to `NAME`: who sees `NAME` sees all of the right file. What is left of a broken
download is where the next call goes on; what turned out to be the wrong file is removed. What may change here: further
sources, and what gdown raises.
"""

from __future__ import annotations

import glob
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InputError, RunError
from ..locks import guarded
from .published import MMSA_FOLDER, PublishedFile, file_with_hash
from .reading import read_features, sha256_of

Progress = Callable[[str, int, "int | None"], None]  # what is done, bytes so far, bytes in all if known

WAITS = (5.0, 30.0)  # seconds before asking again a server that refuses, once each
_BLOCK = 1 << 20
_FOR_GOOD = ("does not exist", "Too many users", "quota", "permission", "need access", "answers 401", "answers 403",
             "answers 404", "answers 410")  # no use to ask again soon


def fetch(
    file: PublishedFile,
    root: Path,
    source: str | None = None,
    *,
    progress: Progress = lambda *_: None,
    timeout: float = 60.0,
    retries: int = 4,
    waits: Sequence[float] = WAITS,
) -> dict[str, Any]:
    """Put `file` at `root / file.path` and return what is known of it: path, size, sha256, verified, source, fetched.

    `source` is a file, a folder that holds it, or a URL in place of Drive. Whatever it comes from must have the
    published size and SHA-256; for a file without a published hash `verified` is False. A right file that is already
    there is left alone (`fetched` False). `timeout` is the longest silence of a server in seconds, `retries` how often
    a connection that broke is taken up again. Raises InputError where something else stands in the target's place or
    `source` does not exist, RunError where the file cannot be had or another process is at it; both leave the target as
    it was.
    """
    target = Path(root) / file.path
    if (there := _there(file, target, source, progress)) is not None:
        return there
    local = _local(source, file)
    try:
        with guarded(target):  # two downloads would write into one file
            return _there(file, target, source, progress) or _had(file, target, source, local, progress, timeout,
                                                                  retries, waits)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command goes on with what is there of {target.name}") from None
    except OSError as error:
        _fail(file, source, f"{error.filename or target}: {error.strerror or error}")


def _archive(target: Path) -> Path:
    """The name of a target that turns out to be an archive."""
    return target.with_suffix(".zip")


def _there(file: PublishedFile, target: Path, source: str | None, progress: Progress) -> dict[str, Any] | None:
    """What is known of a right file that is there already; None where there is none. Raises InputError for another."""
    if file.sha256 is None and _archive(target).exists():
        target = _archive(target)
    if not target.exists():
        return None
    digest = sha256_of(target, lambda done, total: progress("checking", done, total))
    if file.sha256 is not None and digest != file.sha256:
        raise InputError(f"{target}: is there already and is not the published {file.path}\n"
                         f"(SHA-256 {digest}, published {file.sha256}). Move it away and fetch again.")
    return _result(file, target, digest, source, fetched=False)


def _had(
    file: PublishedFile, target: Path, source: str | None, local: Path | None, progress: Progress,
    timeout: float, retries: int, waits: Sequence[float],
) -> dict[str, Any]:  # fmt: skip
    """Copy or download, check, and put in place."""
    part = target.with_name(target.name + ".part")
    _need_space(part, file)
    if local is not None:
        _copy(local, part, progress)
    else:
        _download(file, source, part, progress, timeout, retries, waits)
    digest = _check(file, source, part, progress)
    if file.sha256 is None and zipfile.is_zipfile(part):  # under the name of a pickle it would be misread
        target = _archive(target)
    os.replace(part, target)
    return _result(file, target, digest, source, fetched=True)


def verify(path: Path, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Which published file `path` is, by its hash, or None, and what it holds; raises InputError if it does not read.

    Returns schema_version, path, size, sha256, published (data set, kind, path) or None, samples by split, widths,
    steps. Reading checks the file as a training does, so it needs memory for all of it.
    """
    path = Path(path).expanduser()
    features = read_features(path)
    found = file_with_hash(features.sha256)
    return {
        "schema_version": 1, "path": str(path), "size": path.stat().st_size, "sha256": features.sha256,
        "published": None if found is None else {"dataset": found.dataset, "kind": found.kind, "path": found.path},
        "samples": {name: len(split) for name, split in features.splits.items()},
        "widths": list(features.feature_dims), "steps": list(features.seq_lens),
    }  # fmt: skip


def _result(
    file: PublishedFile, target: Path, digest: str, source: str | None, *, fetched: bool
) -> dict[str, Any]:
    return {"schema_version": 1, "dataset": file.dataset, "kind": file.kind, "path": str(target),
            "size": target.stat().st_size, "sha256": digest, "verified": digest == file.sha256,
            "source": source or file.page, "fetched": fetched}


def _is_url(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def _local(source: str | None, file: PublishedFile) -> Path | None:
    """The file that `source` names on this machine; None if it is a URL or not given."""
    if source is None or _is_url(source):
        return None
    path = Path(source).expanduser()
    if "://" in source:
        raise InputError(f"--from {source}: expected an address that starts with http:// or https://, or a path")
    for candidate in (path, path / file.path, path / file.name):
        if candidate.is_file():
            return candidate
    what = f"holds neither {file.path} nor {file.name}" if path.is_dir() else "does not exist"
    raise InputError(f"--from {source}: {what}; expected a local copy of {file.path}, or an address")


def _need_space(part: Path, file: PublishedFile) -> None:
    have = sum(Path(name).stat().st_size for name in _left_over(part))
    free = shutil.disk_usage(part.parent).free
    if file.size is not None and free < file.size - have:
        raise RunError(f"{part.parent}: {file.path} needs {_mb(file.size - have)}, but {_mb(free)} are free.\n"
                       "Make room, or name another disk with --data-root.")


def _left_over(part: Path) -> list[str]:
    """Files of a download that was not finished: gdown puts eight letters and `.part` after the name it is given."""
    return glob.glob(glob.escape(str(part)) + "????????.part") + ([str(part)] if part.exists() else [])


def _copy(source: Path, part: Path, progress: Progress) -> None:
    done, total = 0, source.stat().st_size
    with source.open("rb") as stream, part.open("wb") as copy:
        while block := stream.read(_BLOCK):
            copy.write(block)
            done += len(block)
            progress("copying", done, total)


class _OtherSize(Exception):
    """The server announces another number of bytes than the file has."""


def _download(
    file: PublishedFile, source: str | None, part: Path, progress: Progress,
    timeout: float, retries: int, waits: Sequence[float],
) -> None:  # fmt: skip
    """Download to `part`, going on where an earlier call stopped."""
    import gdown
    import requests

    def step(done: int, total: int | None) -> None:
        if file.size is not None and total is not None and total != file.size:
            raise _OtherSize(f"the server offers {total} bytes")
        progress("downloading", done, total or file.size)

    url = source or f"https://drive.google.com/uc?id={file.drive_id}"
    for wait in (*waits, None):
        try:
            # Without cookies: those of other downloads are none of ours, and ours are not kept in the user's home.
            gdown.download(url, str(part), quiet=True, use_cookies=False, resume=True, progress=step,
                           timeout=timeout, retries=retries)
            return
        except _OtherSize as error:
            reason = _describe(_left_over(part)) or str(error)
            _remove(part)
            _fail(file, source, reason)
        except gdown.exceptions.DownloadError as error:
            if isinstance(error.__cause__, requests.RequestException):  # tried again as often as it should be
                _fail(file, source, _connection(error.__cause__), _left_over(part))
            reason = _in_words(str(error)) or _status(url, timeout)
            if wait is None or any(words in reason for words in _FOR_GOOD):
                _fail(file, source, reason, _left_over(part))
            if "byte range" in str(error):  # the server cannot resume, or has another file now: begin anew
                _remove(part)
        except requests.HTTPError as error:
            status = error.response.status_code
            if wait is None or not (status == 429 or status >= 500):
                _fail(file, source, f"the server answers {status} {error.response.reason}")
        except requests.RequestException as error:
            _fail(file, source, _connection(error), _left_over(part))
        except KeyError as error:  # gdown looks for headers that an odd server leaves out
            _fail(file, source, f"the server's answer lacks {error}")
        time.sleep(wait)


def _check(file: PublishedFile, source: str | None, part: Path, progress: Progress) -> str:
    """The SHA-256 of a whole download, after size and hash were found right; a wrong one is removed."""
    size = part.stat().st_size
    reason = _describe([str(part)])
    digest = ""
    if not reason and file.size is not None and size != file.size:
        reason = f"it has {size} bytes"
    if not reason:
        digest = sha256_of(part, lambda done, total: progress("checking", done, total))
        if file.sha256 is not None and digest != file.sha256:
            reason = f"it is another file (SHA-256 {digest})"
    if reason:
        part.unlink()
        _fail(file, source, reason)
    return digest


def _describe(paths: Sequence[str]) -> str:
    """What a file is that is no feature file, judged by its start; empty if it may be one."""
    for path in paths:
        with open(path, "rb") as stream:
            head = stream.read(512).lstrip().lower()
        if not head:
            return "it is empty"
        if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
            return "a web page came instead of the file"
        if head.startswith(b"version https://git-lfs"):
            return "a Git LFS pointer came instead of the file"
    return ""


def _remove(part: Path) -> None:
    for name in _left_over(part):
        os.unlink(name)


def _in_words(message: str) -> str:
    """What gdown says, in one line without its advice and address; empty where it only guesses."""
    if "multiple temporary files" in message:
        return "several broken downloads of it are there; remove all its .part files but the largest"
    if "Cannot retrieve the public link" in message:
        return ""
    lines = [line.strip() for line in message.splitlines()]
    beside = ("Failed to retrieve", "You may still", "http", "but Gdown can't", "The received bytes")
    return " ".join(line for line in lines if line and not line.startswith(beside)).strip(" .")[:200]


def _status(url: str, timeout: float) -> str:
    """What a server that sent gdown a page says of itself: gdown does not pass the status on."""
    import requests

    try:
        with requests.get(url, stream=True, timeout=timeout) as answer:
            if answer.status_code < 400:
                return "a web page came instead of the file"
            return f"the server answers {answer.status_code} {answer.reason}"
    except requests.RequestException as error:
        return _connection(error)


def _connection(error: Exception) -> str:
    import requests

    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "the server fell silent"
    if "NameResolution" in str(error):
        return "the server's name cannot be resolved (is there a network?)"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return f"there is no connection ({type(error).__name__})"


def _mb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _fail(file: PublishedFile, source: str | None, reason: str, left: Sequence[str] = ()) -> NoReturn:
    """RunError in three lines: what happened, what was expected and where a browser finds it, and the way round."""
    size = "size not published" if file.size is None else f"{file.size} bytes"
    hashed = "SHA-256 not published" if file.sha256 is None else f"SHA-256 {file.sha256}"
    folder = f" (folder: {MMSA_FOLDER})" if file.dataset in ("mosi", "mosei", "sims", "simsv2") else ""
    have = sum(Path(name).stat().st_size for name in left)
    resume = f" The same command goes on after the {_mb(have)} that are there." if have else ""
    raise RunError(
        f"{file.path} could not be fetched from {source or f'Google Drive, file {file.drive_id}'}: {reason}.{resume}\n"
        f"Expected {size}, {hashed}; in a browser: {file.page}{folder}\n"
        f"Download it there, or copy it from elsewhere, then: mmsa data fetch {file.dataset} --kind {file.kind} "
        "--from PATH_OR_URL"
    ) from None
