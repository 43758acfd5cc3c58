"""Missing modalities in a run: who lacks what, what the model is shown, what record and table say, what is refused."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mmsa_decalign.cli import main
from mmsa_decalign.data.schema import MODALITIES
from mmsa_decalign.data.synthetic import write_synthetic
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.absence import Absence, AbsentSplit, check_rates, hide, parse_rates, presence, share
from mmsa_decalign.harness.datasets import load_features, make_loaders, make_splits
from mmsa_decalign.harness.runner import prepare, run

IDS = [f"video{i % 30}$_${i}" for i in range(3000)]
TINY = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2, "num_epochs": 2, "batch_size": 16}
SETTINGS = {"model_name": "decalign", "batch_size": 16}


def saved_in(folder: Path) -> list[str]:
    return [part for name in ("model-save", "res-save", "log") for part in (f"--{name}-dir", str(folder / name))]


def absent(rates: dict[str, float], seed: int = 1, names: tuple[str, ...] = MODALITIES) -> dict[str, np.ndarray]:
    return {m: ~mask.numpy() for m, mask in presence(IDS, rates, names, seed).items()}


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("vision=1.0,audio=0.3", {"audio": 0.3, "vision": 1.0}),
        (" text = 0.25 ", {"text": 0.25}),
        ("text=0,audio=1e-1", {"audio": 0.1}),
    ],
)
def test_rates_are_read(text: str, rates: dict[str, float]) -> None:
    assert parse_rates(text) == rates


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("visoin=0.5", "unknown modality 'visoin'; did you mean 'vision'"),
        ("vision", "expected MODALITY=RATE"),
        ("", "expected MODALITY=RATE"),
        ("vision=0.5,", "expected MODALITY=RATE"),
        ("=0.5", "expected MODALITY=RATE"),
        ("vision=1.5", "vision=1.5: expected a rate from 0"),
        ("vision=-0.1", "expected a rate from 0"),
        ("vision=nan", "expected a rate from 0"),
        ("vision=half", "expected a rate from 0"),
        ("vision=0.1,vision=0.2", "vision is named twice"),
    ],
)
def test_mistakes_in_rates_are_one_line_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_rates(text)
    assert message in str(error.value)
    assert str(error.value).startswith(f"--missing {text!r}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rates", "settings", "message"),
    [
        (dict.fromkeys(MODALITIES, 1.0), {}, "nothing is left"),
        ({"text": 1.0, "audio": 1.0}, {"modalities": ["text", "audio"]}, "one of text, audio a rate below 1"),
        ({"vision": 0.5}, {"modalities": ["text", "audio"]}, "leaves vision out already; it has text, audio"),
        ({"vision": 0.5}, {"data_missing": True, "model_name": "tfr_net"}, "hides parts of its input by itself"),
    ],
)
def test_rates_that_fit_no_model_of_these_settings_are_refused(
    rates: dict[str, float], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_rates(rates, settings)
    check_rates({"text": 0.9, "audio": 1.0}, {})
    check_rates({}, settings)


def test_share_is_the_same_everywhere_and_uniform() -> None:
    assert share(1111, "2iD-tVS8NPw$_$3", "vision") == pytest.approx(0x2A1961FA57BC4830 / 2**64)  # b2sum -l 64
    u = np.array([[share(s, i, m) for i in IDS] for s, m in itertools.product((1, 2), MODALITIES)])
    assert np.abs(np.histogram(u, 10, (0, 1))[0] / u.size - 0.1).max() < 0.01
    assert np.abs(np.corrcoef(u) - np.eye(6)).max() < 0.06  # seeds and modalities have nothing to do with each other


def test_rates_are_met_and_1_means_every_sample() -> None:
    got = absent({"text": 0.2, "vision": 1.0})
    assert got["text"].mean() == pytest.approx(0.2, abs=0.03)
    assert not got["audio"].any()
    assert got["vision"].all()


def test_absence_grows_with_the_rate_sample_by_sample() -> None:
    """One modality or all at one rate: who lacks it at a rate lacks it at every higher one."""
    for names in (("vision",), MODALITIES):
        grid = [absent(dict.fromkeys(names, rate)) for rate in (0.1, 0.3, 0.5, 0.9, 0.999)]
        for less, more in itertools.pairwise(grid):
            for m in names:
                assert (less[m] <= more[m]).all()
                assert less[m].sum() < more[m].sum()


def test_absence_of_one_modality_does_not_depend_on_the_rates_of_others_unless_all_would_go() -> None:
    alone, with_audio = absent({"vision": 0.4})["vision"], absent({"vision": 0.4, "audio": 0.7})["vision"]
    assert (alone == with_audio).all()
    crowded = absent({"vision": 0.4, "audio": 0.7, "text": 0.8})
    differing = alone != crowded["vision"]
    assert 0 < differing.mean() < 0.4 * 0.7 * 0.8
    assert not crowded["vision"][differing].any()  # kept, since it was the last


@pytest.mark.parametrize("rates", [{"text": 1.0, "audio": 1.0, "vision": 0.9}, dict.fromkeys(MODALITIES, 0.99)])
def test_no_sample_loses_everything_and_a_rate_of_1_holds(rates: dict[str, float]) -> None:
    got = absent(rates)
    assert not np.logical_and.reduce(list(got.values())).any()
    for m, rate in rates.items():
        assert rate < 1 or got[m].all()
    two = presence(IDS, {"text": 0.9, "audio": 0.9}, ("text", "audio"), 1)  # a model of two keeps one of its two
    assert bool((two["text"] | two["audio"]).all())


@pytest.fixture(scope="module")
def splits(tiny: Path) -> Any:
    return make_splits(SETTINGS, load_features(tiny, {}))


def test_batches_show_zeros_and_flags_whatever_their_order_and_size(splits: Any) -> None:
    split = AbsentSplit(splits["test"], {"vision": 0.5, "text": 0.3}, SETTINGS, 5)
    expected = presence(split.ids, {"vision": 0.5, "text": 0.3}, MODALITIES, 5)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).tolist()
    for indices in ([order], [order[:3], order[3:]], [[i] for i in range(len(split))]):
        for batch in map(split.__getitem__, indices):
            chosen = batch["index"]
            for m in MODALITIES:
                here = expected[m][chosen]
                assert torch.equal(batch[f"{m}_present"], here)
                assert bool((batch[m][~here] == 0).all())
                assert torch.equal(batch[m][here], splits["test"].tensors[m][chosen][here])
                assert torch.equal(batch[f"{m}_lengths"][here], splits["test"].lengths[m][chosen][here])
                assert bool((batch[f"{m}_lengths"][~here] == 1).all())
    assert split.counts() == {m: int((~mask).sum()) for m, mask in expected.items()}
    assert 0 < split.counts()["vision"] < len(split)
    one = split[3]  # a single sample, as a loader without our sampler asks for it
    assert one["vision_present"].shape == ()
    assert bool(one["vision"].any()) == bool(one["vision_present"])
    assert torch.equal(splits["test"][3]["vision"], splits["test"].tensors["vision"][3])  # the split itself is whole
    assert next(iter(DataLoader(split, batch_size=5)))["text_present"].tolist() == expected["text"][:5].tolist()
    assert pickle.loads(pickle.dumps(split)).feature_dims == splits["test"].feature_dims  # a worker process gets one


def test_workers_see_the_same(splits: Any) -> None:
    hidden = hide(splits, Absence(test={"audio": 0.5}), SETTINGS, 5)
    assert hidden["train"] is splits["train"]
    found = []
    for workers in (0, 2):
        loaders = make_loaders(dict(SETTINGS), hidden, seed=1, num_workers=workers)
        found.append(torch.cat([batch["audio"] for batch in loaders["test"]]))
    assert torch.equal(*found)


def test_token_ids_of_an_absent_text_are_zero_with_one_step_to_attend_to(tmp_path: Path) -> None:
    settings = {"use_bert": True, "model_name": "self_mm"}
    file = write_synthetic(tmp_path / "mosi.pkl", layout="mosi", samples=(20, 4, 4))
    whole = make_splits(settings, load_features(file, {}))["train"]
    split = AbsentSplit(whole, {"text": 0.5}, settings, 0)
    batch = split[list(range(20))]
    here = batch["text_present"]
    assert 0 < int(here.sum()) < 20
    assert torch.equal(batch["text"][here], whole.tensors["text"][here])
    assert bool((batch["text"][~here].flatten(1).sum(dim=1) == 1).all())
    assert bool((batch["text"][~here][:, 1, 0] == 1).all())
    assert bool((batch["text_lengths"][~here] == 1).all())


def do(model: str, tiny: Path, folders: dict[str, Path], overrides: dict[str, Any], **options: Any) -> Any:
    job = prepare(model, "synthetic", feature_file=tiny, device="cpu", verbose=0, overrides=overrides, seeds=[7],
                  **folders, **options)
    return run(job).records[0]


def test_a_run_tests_with_gaps_and_says_so(tiny: Path, folders: dict[str, Path]) -> None:
    plain = do("decalign", tiny, folders, TINY)
    gaps = do("decalign", tiny, folders, TINY, missing="vision=1,audio=0.5")
    assert plain["missing"] is None
    assert gaps["missing"] == {
        "test": {"audio": 0.5, "vision": 1.0}, "training": {}, "seed": 7,
        "absent": {"test": {"text": 0, "audio": gaps["missing"]["absent"]["test"]["audio"], "vision": 17}},
        "how": "masked: the model is told which modalities a sample has",
    }  # fmt: skip
    assert 0 < gaps["missing"]["absent"]["test"]["audio"] < 17
    assert gaps["epochs"][-1]["train"] == plain["epochs"][-1]["train"]  # training saw none of it
    assert gaps["selection"] == plain["selection"]
    assert gaps["test"] != plain["test"]
    rows = (folders["res_save_dir"] / "normal" / "synthetic.csv").read_text().splitlines()
    assert [row.split(",")[0].strip('"') for row in rows[1:]] == ["decalign", "decalign (missing audio=0.5"]


def test_training_with_gaps_reaches_training_and_validation(tiny: Path, folders: dict[str, Path]) -> None:
    plain = do("decalign", tiny, folders, TINY)
    gaps = do("decalign", tiny, folders, TINY, missing_train="text=0.5")
    assert gaps["missing"]["absent"].keys() == {"train", "valid"}
    assert gaps["epochs"][0]["train"] != plain["epochs"][0]["train"]
    assert gaps["epochs"][0]["valid"] != plain["epochs"][0]["valid"]
    none = do("decalign", tiny, folders, TINY | {"need_feature_standardized": True}, missing_train="audio=1")
    state = torch.load(none["checkpoint"], weights_only=True)
    assert bool((state["standardise.audio.mean"] == 0).all())  # nobody has it: there is nothing to standardise by
    assert bool((state["standardise.vision.mean"] != 0).any())
    assert state["stand_in.batches"].tolist() == [4, 0, 4]  # two epochs of two batches


def test_standardisation_is_that_of_the_samples_that_have_the_modality(tiny: Path, folders: dict[str, Path]) -> None:
    record = do("decalign", tiny, folders, TINY | {"need_feature_standardized": True}, missing_train="audio=0.5")
    split = load_features(tiny, {}).splits["train"]
    here = presence(split.ids, {"audio": 0.5}, MODALITIES, 7)["audio"].numpy()
    rows = [x[:steps] for x, steps, has in zip(split.audio, split.lengths["audio"], here, strict=True) if has]
    state = torch.load(record["checkpoint"], weights_only=True)
    np.testing.assert_allclose(state["standardise.audio.mean"], np.concatenate(rows).mean(axis=0), atol=1e-5)


def test_a_baseline_sees_zeros(tiny: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """The figures are those of a file in which the vision of the test split is zero."""
    gaps = do("lf_dnn", tiny, folders, {"max_epochs": 2}, missing="vision=1")
    assert gaps["missing"]["how"].startswith("set to zeros")
    content = pickle.loads(tiny.read_bytes())
    content["test"]["vision"] = content["test"]["vision"] * 0
    (tmp_path / "zero.pkl").write_bytes(pickle.dumps(content))
    assert do("lf_dnn", tmp_path / "zero.pkl", folders, {"max_epochs": 2})["test"] == gaps["test"]


def test_what_a_file_holds_of_an_absent_modality_has_no_influence(
    tiny: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    content = pickle.loads(tiny.read_bytes())
    content["test"]["audio"] = content["test"]["audio"] * -3 + 5
    (tmp_path / "other.pkl").write_bytes(pickle.dumps(content))
    for model, overrides in (("decalign", TINY), ("lf_dnn", {"max_epochs": 2})):
        one, other = (do(model, file, folders, overrides, missing="audio=1")["test"]
                      for file in (tiny, tmp_path / "other.pkl"))
        assert one == other
        assert do(model, tmp_path / "other.pkl", folders, overrides)["test"] != one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--missing", "visoin=1"], "did you mean 'vision'"),
        (["--missing-train", "text=1,audio=1,vision=1"], "--missing-train text=1,audio=1,vision=1: nothing is left"),
        (["--missing", "text=0.5", "-t"], "a search ranks settings on complete samples"),
        (["--missing-train", "text=0.5", "-t"], "a search ranks settings on complete samples"),
        (["-m", "tfr_net", "-d", "mosi", "--missing", "text=0.5"], "use --set missing_rate="),
        (["-m", "decalign", "--set", 'modalities=["text","audio"]', "--missing", "vision=1"], "leaves vision out"),
    ],
)
def test_the_command_refuses_with_exit_code_2(
    options: list[str], message: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", "lf_dnn", "-d", "synthetic", "--feature-file", str(tiny), *options]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert err.count("\n") == 1


def test_the_command_says_what_was_absent_and_how(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-m", "lf_dnn", "-d", "synthetic", "--feature-file", str(tiny), "--device", "cpu", "-s", "7", "-v", "0",
               "--set", "max_epochs=1", "--missing", "vision=1", "--missing-train", "audio=0.5",
               *saved_in(tmp_path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "lf_dnn (missing vision=1 at test" in out
    assert "an absent modality is set to zeros: the model cannot be told" in out
    assert "absent of 17 test samples, by seed: vision 17" in out
    assert "absent of 33 train samples, by seed: audio " in out
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["missing"]["test"] == {"vision": 1.0}
    assert document["missing"]["training"] == {"audio": 0.5}
