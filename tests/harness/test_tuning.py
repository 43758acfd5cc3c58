"""The search: scored on validation, resumable, and not to be mixed up with MMSA's."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmsa_decalign.errors import InputError
from mmsa_decalign.harness import watch
from mmsa_decalign.harness.report import print_search
from mmsa_decalign.harness.runner import RunInterrupted, prepare
from mmsa_decalign.harness.tuning import Search, search_document, tune


def search(model: str, tiny: Path, folders: dict[str, Path], times: int, **overrides: Any) -> Search:
    return tune(prepare(model, "synthetic", feature_file=tiny, seeds=[7], device="cpu", verbose=0, tuning=True,
                        overrides=overrides, **folders), times)


def test_a_search_ranks_by_validation_and_never_opens_the_test_split(
    tiny: Path, folders: dict[str, Path], toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.SealedLoader, "open", lambda self: pytest.fail("the test split was opened"))
    found = search("toy", tiny, folders, 9, epochs=2)
    losses = [trial["valid"]["Loss"] for trial in found.trials]
    assert losses == sorted(losses)
    assert len(found.trials) == 4  # the whole space: two learning rates times two shapes
    assert {trial["settings"]["learning_rate"] for trial in found.trials} == {0.001, 0.01}
    with found.csv.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert found.csv == folders["res_save_dir"] / "tune" / "synthetic-toy.csv"
    assert list(rows[0])[:3] == ["learning_rate", "shape", "Has0_acc_2"]
    assert {row["Split"] for row in rows} == {"valid"}
    assert sorted(float(row["Loss"]) for row in rows) == pytest.approx(losses)
    assert list(folders["model_save_dir"].iterdir()) == []
    assert search_document(found)["scored_by"] == {"metric": "Loss", "mode": "min", "split": "valid"}


def test_a_second_search_goes_on_where_the_first_stopped(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    first, second = search("toy", tiny, folders, 1, epochs=1), search("toy", tiny, folders, 9, epochs=1)
    assert len(second.trials) == 3
    assert first.trials[0]["settings"] not in [trial["settings"] for trial in second.trials]


def test_what_the_user_fixed_stays_fixed(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    found = search("toy", tiny, folders, 9, epochs=1, learning_rate=0.5)
    assert {trial["settings"]["learning_rate"] for trial in found.trials} == {0.5}
    assert len(found.trials) == 2


@pytest.mark.parametrize("mended", [False, True])
def test_the_faults_of_a_model_stand_under_its_search(mended: bool, tiny: Path, folders: dict[str, Path]) -> None:
    found = tune(prepare("lmf", "synthetic", feature_file=tiny, seeds=[7], device="cpu", verbose=0, tuning=True,
                         overrides={"max_epochs": 1}, mended=mended, **folders), 1)
    stream = io.StringIO()
    print_search(found, Console(file=stream, width=120))
    said = "repaired for this result (--mended): in MMSA's lmf" if mended else "as MMSA ships lmf:"
    assert f"{said} the weights and the bias that sum up the low-rank factors" in stream.getvalue()
    document = search_document(found)
    assert document["mended"] is mended
    assert {flag["name"]: flag["repaired"] for flag in document["flags"]}["untrained_rank_weights"] is mended


def test_mmsas_own_space_and_its_own_table(tiny: Path, folders: dict[str, Path]) -> None:
    found = search("lmf", tiny, folders, 1, max_epochs=1)
    assert found.trials[0]["valid"]["Loss"] > 0
    found.csv.write_text("hidden_dims,MAE,Loss\n1,2,3\n")
    with pytest.raises(InputError, match="MMSA's own search, scored on the test split"):
        search("lmf", tiny, folders, 1, max_epochs=1)


def test_a_failed_trial_does_not_end_the_search(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    found = search("toy", tiny, folders, 3, epochs=1, behaviour="crash", bad_seed_number=2)
    assert [bool(trial["valid"]) for trial in found.trials] == [True, True, False]
    assert len(found.csv.read_text().splitlines()) == 4


def test_ctrl_c_says_how_far_it_came(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    with pytest.raises(RunInterrupted, match="1 of 3 trials finished"):
        search("toy", tiny, folders, 3, epochs=1, behaviour="interrupt", bad_seed_number=2)


def test_decalign_has_a_space(tiny: Path, folders: dict[str, Path]) -> None:
    small = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_epochs": 1}
    found = search("decalign", tiny, folders, 1, **small)
    assert found.trials[0]["valid"]["Loss"] > 0


def test_nothing_to_tune(tiny: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="no tuning space"):
        search("mctn", tiny, folders, 1)
