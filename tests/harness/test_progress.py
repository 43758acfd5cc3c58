"""Bars on a terminal only, MMSA's bars off within our runs only, loggers as they were."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from mmsa_decalign.harness.progress import LOGGER, epoch_bars, logging_to, quiet_mmsa


class Loader(list):
    pass


@pytest.mark.parametrize(
    ("terminal", "enabled", "drawn"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_a_bar_per_epoch_on_a_terminal(terminal: bool, enabled: bool, drawn: bool) -> None:
    stream = io.StringIO()
    show = epoch_bars(Console(file=stream, force_terminal=terminal, width=80), enabled=enabled)
    for _ in range(2):
        assert list(show([1, 2, 3])) == [1, 2, 3]
    assert ("epoch 2" in stream.getvalue()) == drawn
    assert ("3/3" in stream.getvalue()) == drawn


def test_the_logger_is_borrowed(tmp_path: Path) -> None:
    stream, before = io.StringIO(), (LOGGER.level, LOGGER.propagate, list(LOGGER.handlers))
    with logging_to(Console(file=stream, width=20, soft_wrap=True), tmp_path / "logs" / "x.log", 1):
        LOGGER.info("a line that is much longer than twenty columns [not markup]")
        LOGGER.debug("for the file")
    LOGGER.info("afterwards")
    assert stream.getvalue() == "a line that is much longer than twenty columns [not markup]\n"
    text = (tmp_path / "logs" / "x.log").read_text()
    assert "MMSA [INFO] - a line that" in text
    assert "for the file" in text
    assert "afterwards" not in text
    assert (LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)) == before


@pytest.mark.parametrize("logger", [LOGGER, logging.getLogger()], ids=["MMSA", "root"])
def test_other_handlers_do_not_repeat_our_lines(logger: logging.Logger) -> None:
    left_behind = logging.StreamHandler(io.StringIO())
    logger.addHandler(left_behind)
    try:
        with logging_to(Console(file=io.StringIO()), None, 1):
            LOGGER.error("ours")
        LOGGER.error("theirs")
    finally:
        logger.removeHandler(left_behind)
    assert left_behind.stream.getvalue() == "theirs\n"


@pytest.mark.parametrize(("verbose", "shown"), [(0, "e"), (1, "ei"), (2, "eid")])
def test_verbosity_is_mmsas(verbose: int, shown: str) -> None:
    stream = io.StringIO()
    with logging_to(Console(file=stream), None, verbose):
        for level, letter in ((logging.ERROR, "e"), (logging.INFO, "i"), (logging.DEBUG, "d")):
            LOGGER.log(level, letter)
    assert stream.getvalue().split() == list(shown)


def test_mmsas_bars_are_off_inside_only(capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("MMSA.trains.singleTask.TFN")  # the attribute of that name is the class
    before = module.tqdm
    with quiet_mmsa():
        with module.tqdm([1, 2]) as bar:
            assert list(bar) == [1, 2]
        assert capsys.readouterr().err == ""
    assert module.tqdm is before
    with module.tqdm([1, 2]) as bar:
        assert list(bar) == [1, 2]
    assert "2/2" in capsys.readouterr().err


def test_only_the_known_warning_is_hidden() -> None:
    import numpy as np

    with quiet_mmsa():
        assert np.isnan(np.corrcoef([1.0, 1.0], [1.0, 2.0])[0, 1])
        with pytest.raises(UserWarning):
            warnings.warn("something else", UserWarning, stacklevel=1)
