"""`mmsa robust`: one training a seed, its one checkpoint at every rate; tables, pictures, mistakes, interruptions."""

from __future__ import annotations

import csv
import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmsa_decalign.cli import main
from mmsa_decalign.data.synthetic import write_synthetic
from mmsa_decalign.errors import Interrupted, RunError
from mmsa_decalign.harness import robust, watch
from mmsa_decalign.harness.robust_report import plot_curves, print_curves
from mmsa_decalign.harness.runner import prepare, run

TINY = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2, "num_epochs": 2, "batch_size": 16}


def saved_in(folder: Path) -> list[str]:
    return [part for name in ("model-save", "res-save", "log") for part in (f"--{name}-dir", str(folder / name))]


def job(model: str, tiny: Path, folders: dict[str, Path], seeds: list[int], **options: Any) -> Any:
    overrides = TINY if model == "decalign" else {"max_epochs": 2} if model == "lf_dnn" else {"epochs": 1}
    return prepare(model, "synthetic", feature_file=tiny, device="cpu", verbose=0, seeds=seeds,
                   **{"overrides": overrides, **folders, **options})


def result_of(*values: tuple[str, str, float, int, float]) -> robust.Robustness:
    rows: list[dict[str, Any]] = [
        {"model": m, "missing": x, "rate": r, "seed": s, "absent": {}, "test": {"MAE": v}} for m, x, r, s, v in values]
    rates = tuple(sorted({row["rate"] for row in rows}))
    names = tuple(dict.fromkeys(row["missing"] for row in rows))
    how = {row["model"]: robust.ZEROS for row in rows}
    return robust.Robustness("mosi", rates, names, how, (), ["MAE"], rows)


def test_each_rate_gives_what_a_run_with_that_rate_gives(tiny: Path, folders: dict[str, Path]) -> None:
    """The same checkpoint: figures equal those of `--missing`, for a model that masks and one that does not."""
    jobs = {m: job(m, tiny, folders, [7, 8]) for m in ("decalign", "lf_dnn")}
    result = robust.measure(jobs, robust.plan(jobs, ("vision", "all"), (0.0, 0.5)))
    assert len(result.rows) == 2 * 2 * 2 * 2
    assert len(result.records) == 4
    for model, rates in (("decalign", {"all": "text=0.5,audio=0.5,vision=0.5", "vision": "vision=0.5"}),
                         ("lf_dnn", {"vision": "vision=0.5"})):
        for name, spec in rates.items():
            records = run(job(model, tiny, folders, [7, 8], missing=spec)).records
            for metric in ("MAE", "Non0_acc_2", "Corr"):
                assert result.figures(model, name, 0.5, metric) == [r["test"][metric] for r in records]
        complete = [r["test"]["MAE"] for r in run(job(model, tiny, folders, [7, 8])).records]
        assert result.figures(model, "vision", 0.0, "MAE") == complete
        assert result.figures(model, "all", 0.0, "MAE") == complete
    assert result.how == {"decalign": robust.MASKED, "lf_dnn": robust.ZEROS}


def test_models_meet_the_same_gaps(tiny: Path, folders: dict[str, Path]) -> None:
    jobs = {m: job(m, tiny, folders, [7]) for m in ("decalign", "lf_dnn")}
    result = robust.measure(jobs, robust.plan(jobs, ("audio",), (0.5,)))
    one, other = (row["absent"] for row in result.rows)
    assert one == other
    assert 0 < one["audio"] < 17


def test_the_test_split_is_read_when_the_checkpoint_is_chosen(
    tiny: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    real = watch.TrainLoader.__iter__
    monkeypatch.setattr(watch.TrainLoader, "__iter__", lambda self: (reads.append("train"), real(self))[1])
    item = robust.AbsentSplit.__getitem__
    monkeypatch.setattr(robust.AbsentSplit, "__getitem__",
                        lambda self, index: (reads.append("test"), item(self, index))[1])
    jobs = {"lf_dnn": job("lf_dnn", tiny, folders, [7])}
    robust.measure(jobs, robust.plan(jobs, ("audio",), (0.0, 0.5, 1.0)))
    assert "test" in reads
    assert "train" not in reads[reads.index("test"):]
    assert reads[:3] == ["train"] * 3


@pytest.mark.parametrize("text", ["0,0.5,1", "1,0,0.5,0.5", " 0 , .5, 1.0 "])
def test_rates_are_a_rising_grid(text: str) -> None:
    assert robust.parse_grid(text) == (0.0, 0.5, 1.0)


def test_curves_are_means_and_population_deviations_of_the_seeds_that_have_a_number() -> None:
    result = result_of(("a", "text", 0.0, 1, 1.0), ("a", "text", 0.0, 2, 3.0), ("a", "text", 1.0, 1, 5.0))
    result.rows.append({"model": "a", "missing": "text", "rate": 1.0, "seed": 2, "absent": {}, "test": {"MAE": None}})
    assert result.curve("a", "text", "MAE") == [(0.0, 2.0, 1.0), (1.0, 5.0, 0.0)]
    assert result.curve("a", "audio", "MAE") == []
    (curve,) = robust.document(result)["curves"]
    assert curve["points"] == [{"rate": 0.0, "mean": 2.0, "std": 1.0}, {"rate": 1.0, "mean": 5.0, "std": 0.0}]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_names_and_digits_are_whole_on_every_terminal(width: int) -> None:
    result = result_of(*[("a_model@[a]_long_config", m, r, s, 1.234 + s) for m in ("text", "vision")
                         for r in (0.0, 0.25, 0.5, 0.75, 1.0) for s in (1, 2)])
    console = Console(file=io.StringIO(), width=width)
    print_curves(result, console)
    shown = console.file.getvalue()
    assert shown.count("a_model@[a]_long_config") == 2, "in the table and below it"
    assert shown.count("2.734" if width < 200 else "2.734 ± 0.500") == 10
    assert "…" not in shown
    assert "MAE (lower is better)" in shown
    assert "an absent modality is set to zeros" in shown


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_picture_names_axes_models_and_modalities(suffix: str, tmp_path: Path) -> None:
    result = result_of(*[(a, m, r, s, s + r) for a in ("one", "two$x$") for m in ("text", "vision") for r in (0.0, 1.0)
                         for s in (1, 2)])
    out = plot_curves(result, tmp_path / f"new folder/curve{suffix}")
    content = out.read_bytes()
    if suffix == ".png":
        width, height = struct.unpack(">II", content[16:24])
        assert width > height > 300
    if suffix == ".svg":
        text = content.decode()
        for word in ("missing rate", "text missing", "vision missing", "MAE", "(lower is better)", "one", "2 seeds"):
            assert f"<!-- {word}" in text or word in text


def test_a_failed_or_interrupted_seed_keeps_what_is_finished(
    tiny: Path, folders: dict[str, Path], toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.csv"
    jobs = {"toy": job("toy", tiny, folders, [7, 8], overrides={"behaviour": "interrupt", "bad_seed_number": 2})}
    result = robust.plan(jobs, ("text",), (0.0, 1.0))
    with pytest.raises(Interrupted, match=r"interrupted; 1 of 2 trainings finished; their figures are in .*figures"):
        robust.measure(jobs, result, out)
    assert [row["seed"] for row in result.rows] == [7, 7]
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["rate"], row["seed"], row["absence"]) for row in rows] == [("0", "7", "zeros"), ("1", "7", "zeros")]
    arguments = ["robust", "-m", "toy", "-d", "synthetic", "--feature-file", str(tiny), "--device", "cpu", "-s", "7,8",
                 "-v", "0", "--modality", "text", "--set", "behaviour=crash", "--set", "bad_seed_number=2",
                 *saved_in(tmp_path)]
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert "MAE" in shown.out  # the seed that was finished is shown
    assert "toy on synthetic, seed 8: RuntimeError: shapes do not match" in shown.err
    assert "1 of 2 trainings finished" in shown.err


def test_the_command_prints_draws_and_stores(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.json").write_text(json.dumps(TINY))
    command = ["robust", "-m", f"decalign@{tmp_path / 'small.json'}", "-m", "lf_dnn", "-d", "synthetic",
               "--feature-file", str(tiny), "--device", "cpu", "-s", "7", "-v", "0", "--modality", "vision",
               "--rates", "0,1", "--metric", "MAE", "--out", str(tmp_path / "out.json"), "--plot",
               str(tmp_path / "out.png"), "--json",
               *saved_in(tmp_path)]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out.json").read_text())
    assert document["rates"] == [0.0, 1.0]
    assert {row["rate"] for row in document["tests"]} == {0.0, 1.0}
    assert [value.split(":")[0] for value in document["how"].values()] == ["masked", "set to zeros"]
    assert (tmp_path / "out.png").stat().st_size > 5000
    for path in document["records"]:
        record = json.loads(Path(path).read_text())
        assert record["missing"] is None
        assert record["more_tests"].keys() == {"vision 1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rates", "0,2"], "--rates '0,2': '2': expected a rate from 0"),
        (["--rates", "0,1", "--modality", "all"], "give --rates below 1"),
        (["--modality", "sound"], "unknown 'sound'"),
        (["--metric", "mae"], "--metric 'mae': no metric of synthetic; did you mean 'MAE'"),
        (["--out", "figures.txt"], "expected a name that ends with .csv or .json"),
        (["--out", "no/such/folder/a.csv"], "--out no/such/folder/a.csv: expected the name of a file"),
        (["--plot", "no/such/folder/a.png"], "--plot no/such/folder/a.png: expected the name of a file"),
        (["--out", "/proc/a.csv"], "--out /proc/a.csv: "),
        (["--plot", "/proc/a.png"], "--plot /proc/a.png: "),
        (["--feature-file", "."], "feature file . is a folder"),
        (["--plot", "figure.gif"], "ends with .png, .pdf or .svg"),
        (["-m", "lf_dn"], "did you mean 'lf_dnn'"),
        (["-m", "decalign@utterence"], "did you mean 'utterance'"),
        (["--missing-train", "text=x"], "--missing-train 'text=x'"),
        (["--set", 'modalities=["text","audio"]', "--modality", "vision"], "unknown setting 'modalities'"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(
    options: list[str], message: str, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust, "train_and_test", lambda *_, **__: pytest.fail("a training has begun"))
    assert main(["robust", "-m", "lf_dnn", "-d", "synthetic", "--feature-file", str(tiny), *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_checkpoint_that_test_chooses_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its curve would begin with a figure that is too good."""
    six = write_synthetic(tmp_path / "six.pkl", layout="iemocap", samples=(24, 12, 12))
    assert main(["robust", "-m", "lf_dnn", "-d", "iemocap", "--feature-file", str(six), "-s", "7", "--rates", "0,0.5",
                 "--set", "protocol=paper_count", "--set", "max_epochs=1", *saved_in(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "lf_dnn: protocol=paper_count chooses the checkpoint by the test split" in shown.err
    assert shown.err.count("\n") == 1


def test_a_failing_write_names_the_file_of_the_user(tmp_path: Path) -> None:
    out = tmp_path / "gone/figures.csv"
    (tmp_path / "gone").write_text("a file where the folder was")
    with pytest.raises(RunError, match=r"gone/figures.csv: cannot be written"):
        robust.write_table(result_of(("a", "text", 0.0, 1, 1.0)), out)


def test_a_modality_that_some_model_does_not_have_is_refused(tiny: Path, folders: dict[str, Path]) -> None:
    jobs = {"lf_dnn": job("lf_dnn", tiny, folders, [7]),
            "pair": job("decalign", tiny, folders, [7], overrides=TINY | {"modalities": ["text", "audio"]})}
    with pytest.raises(robust.InputError, match="pair: .*leaves vision out already"):
        robust.plan(jobs, ("vision",))
    assert robust.plan(jobs, ()).missing == ("text", "audio")  # what all of them can lose
    alone = {"one": job("decalign", tiny, folders, [7], overrides=TINY | {"modalities": ["text"]})}
    with pytest.raises(robust.InputError, match="there is no modality that every model can lose"):
        robust.plan(alone, ())
