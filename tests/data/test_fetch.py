"""Fetching: the real gdown against a server that plays Drive; nothing but the right file ever gets the right name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gdown
import numpy as np
import pytest
from drive_server import BUSY, CONFIRMATION, NOT_FOUND, QUOTA, DriveServer, page, running, send

from mmsa_decalign.cli import main
from mmsa_decalign.data import fetch as fetching
from mmsa_decalign.data import published
from mmsa_decalign.data.fetch import fetch, verify
from mmsa_decalign.data.published import FILES, PublishedFile, file_with_hash, files_of
from mmsa_decalign.data.reading import sha256_of
from mmsa_decalign.errors import InputError, RunError

# 3 MB: several blocks of gdown's half a megabyte, so that a cut leaves some of them written
CONTENT = pickle.dumps({"numbers": np.random.default_rng(0).integers(0, 255, 3_000_000, dtype=np.uint8)})
FILE = PublishedFile("toy", "aligned", "TOY/Processed/toy.pkl", "1" + "x" * 32,
                     hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{FILE.sha256}\nsize {FILE.size}\n"


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Iterator[DriveServer]:
    with running(monkeypatch) as server:
        server.content = CONTENT
        yield server


def get(root: Path, source: str | None = None, file: PublishedFile = FILE, **options: Any) -> dict[str, Any]:
    options = {"timeout": 5.0, "retries": 0, "waits": (0.01, 0.01), **options}
    return fetch(file, root, source, **options)


def refused(root: Path, source: str | None = None, file: PublishedFile = FILE, **options: Any) -> str:
    """The message of a fetch that must fail, and must not leave anything that looks like the file."""
    with pytest.raises(RunError) as caught:
        get(root, source, file, **options)
    message = str(caught.value)
    assert not (root / file.path).exists()
    assert len(message.splitlines()) == 3
    size, sha256 = file.size or "size not published", file.sha256 or "SHA-256 not published"
    for needed in (file.drive_id, f"https://drive.google.com/file/d/{file.drive_id}/view", str(size), sha256,
                   "--from PATH_OR_URL"):
        assert needed in message
    return message


def left(root: Path) -> list[str]:
    names = sorted(path.name for path in (root / "TOY" / "Processed").iterdir())
    return [name for name in names if not name.endswith(".lock")]  # an empty file that stays


def test_the_file_arrives_whole_and_alone(drive: DriveServer, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    result = get(tmp_path, progress=lambda *step: seen.append(step))
    assert (tmp_path / FILE.path).read_bytes() == CONTENT
    assert left(tmp_path) == ["toy.pkl"]
    assert (result["verified"], result["fetched"], result["sha256"]) == (True, True, FILE.sha256)
    assert drive.asked == [(f"/uc?id={FILE.drive_id}", None)]
    loaded = [done for doing, done, total in seen if doing == "downloading" and total == FILE.size]
    assert loaded == sorted(loaded)
    assert loaded[-1] == FILE.size
    assert len(loaded) > 2


def test_a_right_file_is_not_fetched_again(drive: DriveServer, tmp_path: Path) -> None:
    get(tmp_path)
    again = get(tmp_path)
    assert (again["fetched"], again["verified"]) == (False, True)
    assert len(drive.asked) == 1


def test_another_file_in_the_place_is_left_alone(drive: DriveServer, tmp_path: Path) -> None:
    target = tmp_path / FILE.path
    target.parent.mkdir(parents=True)
    target.write_bytes(b"my own features")
    with pytest.raises(InputError, match="is there already") as caught:
        get(tmp_path)
    assert FILE.sha256 in str(caught.value)
    assert target.read_bytes() == b"my own features"
    assert drive.asked == []


def test_the_confirmation_form_is_answered(drive: DriveServer, tmp_path: Path) -> None:
    drive.answers = [page(CONFIRMATION)]
    get(tmp_path)
    assert (tmp_path / FILE.path).read_bytes() == CONTENT
    (first, _), (second, _) = drive.asked
    assert first.startswith("/uc?")
    assert second.startswith("/download?")
    assert "confirm=t" in second
    assert "uuid=0123-4567" in second


def test_a_quota_page_is_reported_and_not_hammered(drive: DriveServer, tmp_path: Path) -> None:
    drive.answers = [page(QUOTA)] * 9
    assert "Too many users have viewed or downloaded this file recently" in refused(tmp_path)
    assert len(drive.asked) == 1
    assert left(tmp_path) == []


def test_a_file_that_is_gone_is_reported_at_once(drive: DriveServer, tmp_path: Path) -> None:
    drive.answers = [page(NOT_FOUND, 404)] * 9
    assert "404" in refused(tmp_path)
    assert len(drive.asked) == 2  # gdown, and the question for the status that gdown does not tell
    drive.answers = [page(NOT_FOUND, 404)] * 9
    drive.asked.clear()
    assert "404" in refused(tmp_path, f"{drive.address}/mirror/toy.pkl")
    assert len(drive.asked) == 1


@pytest.mark.parametrize("plain", [False, True])
def test_too_many_requests_and_then_success(drive: DriveServer, tmp_path: Path, plain: bool) -> None:
    drive.answers = [page(BUSY, 429)] * (1 if plain else 2)  # to gdown, and to the question for the status
    get(tmp_path, f"{drive.address}/mirror/toy.pkl" if plain else None)
    assert (tmp_path / FILE.path).read_bytes() == CONTENT


def test_too_many_requests_for_ever(drive: DriveServer, tmp_path: Path) -> None:
    drive.answers = [page(BUSY, 429)] * 99
    assert "429" in refused(tmp_path)
    assert len(drive.asked) == 6  # three times two
    drive.asked.clear()
    assert "429" in refused(tmp_path, f"{drive.address}/mirror/toy.pkl")
    assert len(drive.asked) == 3


def test_a_cut_connection_is_taken_up_again(drive: DriveServer, tmp_path: Path) -> None:
    drive.answers = [send(0.5)]
    get(tmp_path, retries=2)
    assert (tmp_path / FILE.path).read_bytes() == CONTENT
    assert left(tmp_path) == ["toy.pkl"]
    (_, first), (_, second) = drive.asked
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= FILE.size // 2


def test_a_later_call_goes_on_where_one_broke_off(drive: DriveServer, tmp_path: Path) -> None:
    drive.answers = [send(0.5)]
    message = refused(tmp_path)
    assert "goes on after the" in message
    (half,) = left(tmp_path)
    assert half.endswith(".part")
    have = (tmp_path / "TOY" / "Processed" / half).stat().st_size
    assert have > FILE.size // 3
    drive.asked.clear()
    get(tmp_path)
    assert (tmp_path / FILE.path).read_bytes() == CONTENT
    assert left(tmp_path) == ["toy.pkl"]
    assert drive.asked[-1][1] == f"bytes={have}-"


def test_a_server_without_ranges_is_asked_for_all_of_it(drive: DriveServer, tmp_path: Path) -> None:
    drive.answers = [send(0.5)]
    refused(tmp_path)
    drive.answers = [send(ranges=False)] * 20
    get(tmp_path)
    assert (tmp_path / FILE.path).read_bytes() == CONTENT
    assert left(tmp_path) == ["toy.pkl"]


def test_an_interrupted_download_goes_on(drive: DriveServer, tmp_path: Path) -> None:
    def stop(doing: str, done: int, total: int | None) -> None:
        if done > FILE.size // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        get(tmp_path, progress=stop)
    assert not (tmp_path / FILE.path).exists()
    get(tmp_path)
    assert drive.asked[-1][1] is not None
    assert (tmp_path / FILE.path).read_bytes() == CONTENT


def test_a_wrong_file_of_the_right_size_is_refused_and_removed(drive: DriveServer, tmp_path: Path) -> None:
    wrong = bytearray(CONTENT)
    wrong[len(wrong) // 2] ^= 1
    drive.content = bytes(wrong)
    assert f"another file (SHA-256 {hashlib.sha256(wrong).hexdigest()})" in refused(tmp_path)
    assert left(tmp_path) == []
    drive.content = CONTENT
    get(tmp_path)
    assert (tmp_path / FILE.path).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [0, 100, len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_file_of_another_size_is_refused_before_it_is_loaded(drive: DriveServer, tmp_path: Path, size: int) -> None:
    drive.content = (CONTENT + b"x")[:size]
    message = refused(tmp_path)
    assert ("it is empty" if size == 0 else f"the server offers {size} bytes") in message
    assert left(tmp_path) == []


def test_a_web_page_or_a_pointer_in_place_of_the_file_is_named(drive: DriveServer, tmp_path: Path) -> None:
    mirror = f"{drive.address}/mirror/toy.pkl"
    unknown = replace(FILE, sha256=None, size=None)
    for file in (FILE, unknown):
        drive.answers = [page(NOT_FOUND)]
        assert "a web page came instead" in refused(tmp_path, mirror, file)
        drive.answers = [page(LFS, kind="application/octet-stream")]
        assert "a Git LFS pointer came instead" in refused(tmp_path, mirror, file)
        assert left(tmp_path) == []


def test_a_slow_stream_arrives(drive: DriveServer, tmp_path: Path) -> None:
    drive.answers = [send(pause=0.15)]  # 1.2 s in all, each silence shorter than the time allowed
    get(tmp_path, timeout=0.8)
    assert (tmp_path / FILE.path).read_bytes() == CONTENT


def test_a_stream_that_falls_silent_is_given_up_and_kept(drive: DriveServer, tmp_path: Path) -> None:
    drive.answers = [send(0.7, stall=3.0)]
    assert "fell silent" in refused(tmp_path, timeout=0.3)
    get(tmp_path, timeout=0.8)
    assert drive.asked[-1][1] is not None
    assert (tmp_path / FILE.path).read_bytes() == CONTENT


def test_no_server_at_all(tmp_path: Path, drive: DriveServer) -> None:
    closed = f"http://127.0.0.1:{drive.server_port}/toy.pkl"
    drive.shutdown()
    drive.server_close()
    assert "there is no connection" in refused(tmp_path, closed)


def test_nothing_is_written_into_the_home(drive: DriveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setitem(gdown.download.__globals__, "DEFAULT_COOKIES_FILE", str(home / "cookies.txt"))
    drive.answers = [page(CONFIRMATION)]
    get(tmp_path / "data")
    assert list(home.iterdir()) == []


# From elsewhere


@pytest.mark.parametrize("source", ["toy.pkl", ".", "TOY/Processed"])
def test_from_a_local_copy_or_its_folder(tmp_path: Path, source: str) -> None:
    copy = tmp_path / "usb" / ("TOY/Processed/toy.pkl" if source != "toy.pkl" else "toy.pkl")
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    result = get(tmp_path / "root", str(tmp_path / "usb" / source))
    assert (tmp_path / "root" / FILE.path).read_bytes() == CONTENT
    assert copy.read_bytes() == CONTENT
    assert result["source"] == str(tmp_path / "usb" / source)


def test_from_a_local_copy_that_is_wrong(tmp_path: Path) -> None:
    copy = tmp_path / "copy.pkl"
    for content, words in ((CONTENT[:-1], f"it has {FILE.size - 1} bytes"), (CONTENT[:-1] + b"!", "another file"),
                           (LFS.encode(), "a Git LFS pointer"), (b"", "it is empty")):
        copy.write_bytes(content)
        assert words in refused(tmp_path / "root", str(copy))
        assert left(tmp_path / "root") == []


def test_from_nowhere(tmp_path: Path) -> None:
    for source, words in ((tmp_path / "absent.pkl", "does not exist"), (tmp_path, "holds neither"),
                          ("ftp://host/file", "expected an address")):
        with pytest.raises(InputError, match=words):
            get(tmp_path / "root", str(source))
    assert not (tmp_path / "root").exists()


def test_from_a_mirror(drive: DriveServer, tmp_path: Path) -> None:
    mirror = f"{drive.address}/resolve/main/toy.pkl?download=true"
    assert get(tmp_path, mirror)["source"] == mirror
    assert (tmp_path / FILE.path).read_bytes() == CONTENT


def test_from_another_file_on_drive(drive: DriveServer, tmp_path: Path) -> None:
    get(tmp_path, "https://drive.google.com/file/d/1another/view?usp=sharing")
    assert drive.asked[0][0] == "/uc?id=1another"


def test_a_file_without_a_published_hash_is_kept_and_said_to_be_unverified(drive: DriveServer, tmp_path: Path) -> None:
    result = get(tmp_path, file=replace(FILE, sha256=None, size=None))
    assert (result["verified"], result["sha256"]) == (False, FILE.sha256)


def test_an_archive_is_not_called_a_pickle(drive: DriveServer, tmp_path: Path) -> None:
    file = replace(FILE, sha256=None, size=None)
    with io.BytesIO() as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("features/one.npy", CONTENT)
        drive.content = stream.getvalue()
    assert Path(get(tmp_path, file=file)["path"]).name == "toy.zip"
    assert get(tmp_path, file=file)["fetched"] is False
    assert left(tmp_path) == ["toy.zip"]


def test_a_full_disk_is_known_beforehand(drive: DriveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, FILE.size - 1))
    with pytest.raises(RunError, match=r"needs 3\.0 MB, but 3\.0 MB are free") as caught:
        get(tmp_path)
    assert "--data-root" in str(caught.value)
    assert drive.asked == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "TOY").write_text("a file where a folder should be")
    with pytest.raises(RunError, match="could not be fetched"):
        get(tmp_path)


# The table of published files


def test_the_table_is_in_order() -> None:
    assert len({file.path for file in FILES}) == len({file.drive_id for file in FILES}) == len(FILES)
    known = [file for file in FILES if file.sha256 is not None]
    assert len({file.sha256 for file in known}) == len(known) == 5
    for file in FILES:
        assert gdown.parse_url.parse_url(url=file.page)[0] == file.drive_id
        assert file.kind in published.KINDS
    for file in known:
        assert file_with_hash(file.sha256.upper()) == file
        assert len(bytes.fromhex(file.sha256)) == 32
    assert file_with_hash("0" * 64) is None


def test_the_paths_are_where_mmsa_looks() -> None:
    from importlib import resources

    config = json.loads(resources.files("MMSA").joinpath("config/config_regression.json").read_text("utf-8"))
    for dataset in ("mosi", "mosei", "sims"):
        section = config["datasetCommonParams"][dataset]
        assert {file.kind: file.path for file in files_of(dataset, "all")} == {
            kind: section[kind]["featurePath"] for kind in section}


def test_which_files_a_data_set_has() -> None:
    assert [file.kind for file in files_of("mosi")] == ["aligned"]
    assert [file.kind for file in files_of("mosi", "unaligned")] == ["unaligned"]
    assert [file.kind for file in files_of("mosi", "all")] == ["aligned", "unaligned"]
    assert [file.kind for file in files_of("sims")] == ["unaligned"]
    with pytest.raises(InputError, match="did you mean 'mosei'"):
        files_of("moseii")
    with pytest.raises(InputError, match="no aligned file; it has: unaligned"):
        files_of("sims", "aligned")


# Commands


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, layout: Any) -> tuple[PublishedFile, Path]:
    """A feature file that counts as published, and where a copy of it lies."""
    copy = tmp_path / "toy.pkl"
    copy.write_bytes(pickle.dumps(layout))
    file = replace(FILE, sha256=sha256_of(copy), size=copy.stat().st_size)
    monkeypatch.setattr(published, "FILES", (file,))
    return file, copy


def test_the_command_puts_it_where_training_looks(
    toy: tuple[PublishedFile, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsa_decalign.harness.datasets import locate

    file, copy = toy
    monkeypatch.setenv("MMSA_DATA_ROOT", str(tmp_path / "root"))
    assert main(["data", "fetch", "toy", "--from", str(copy)]) == 0
    assert "size and SHA-256 are the published ones" in capsys.readouterr().out
    assert locate("toy", file.path) == tmp_path / "root" / file.path
    assert main(["data", "fetch", "toy", "--json", "--from", str(copy)]) == 0
    (one,) = json.loads(capsys.readouterr().out)["files"]
    assert (one["fetched"], one["verified"]) == (False, True)
    assert main(["data", "fetch", "toy", "--from", str(copy), "--data-root", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / file.path).exists()
    assert main(["--data-root", str(tmp_path / "third"), "data", "fetch", "toy", "--from", str(copy)]) == 0
    assert (tmp_path / "third" / file.path).exists()


def test_the_command_tells_mistakes_from_failures(
    toy: tuple[PublishedFile, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "fetch", "tox"]) == 2
    assert "did you mean 'toy'" in capsys.readouterr().err
    copy = tmp_path / "wrong.pkl"
    copy.write_bytes(b"wrong")
    assert main(["data", "fetch", "toy", "--from", str(copy), "--data-root", str(tmp_path)]) == 1
    assert "it has 5 bytes" in capsys.readouterr().err


def test_verify_says_which_file_it_is(
    toy: tuple[PublishedFile, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: Any
) -> None:
    file, copy = toy
    assert main(["data", "verify", str(copy)]) == 0
    out = capsys.readouterr().out
    assert f"the published {file.path} (toy, aligned)" in out
    assert "train 5, valid 3, test 4 samples" in out
    assert main(["data", "verify", str(copy), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["published"] == {"dataset": "toy", "kind": "aligned", "path": file.path}
    assert (document["widths"], document["steps"]) == ([6, 3, 2], [4, 4, 4])

    layout["train"]["regression_labels"][0] += 1
    copy.write_bytes(pickle.dumps(layout))
    assert main(["data", "verify", str(copy)]) == 1
    captured = capsys.readouterr()
    assert "none of the published files" in captured.out
    assert "none of the published files has its SHA-256" in captured.err
    copy.write_bytes(copy.read_bytes()[:-20])
    assert main(["data", "verify", str(copy)]) == 2
    assert "cut short" in capsys.readouterr().err
    assert main(["data", "verify", str(tmp_path / "absent.pkl")]) == 2


@pytest.mark.real_data
def test_verify_reads_the_real_folds(real_fold: Any) -> None:
    result = verify(real_fold(0))
    assert result["published"] is None
    assert result["samples"] == {"train": 534, "valid": 77, "test": 141}


def test_the_seam_to_gdown_is_the_real_one() -> None:
    """Nothing of gdown is replaced in these tests; what they need of it is there."""
    assert gdown.download.__module__ == "gdown.download"
    assert issubclass(gdown.exceptions.FileURLRetrievalError, gdown.exceptions.DownloadError)
    assert fetching.WAITS[0] >= 1, "a server that refuses is not asked again at once"
    assert os.path.basename(gdown.__file__) == "__init__.py"
