"""The command line: what it accepts, what it answers to mistakes, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmsa_decalign.cli import build_parser, main
from mmsa_decalign.commands.parsing import Parser, subcommands
from mmsa_decalign.data.synthetic import write_synthetic


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("cli") / "tiny.pkl", samples=(33, 12, 17))


@pytest.fixture
def training(features: Path, tmp_path: Path) -> list[str]:
    """A whole training of a second or so; the caller adds to it."""
    return ["-m", "lf_dnn", "-d", "synthetic", "--feature-file", str(features), "--device", "cpu", "-s", "7",
            "--set", "max_epochs=2", *(part for name in ("model-save", "res-save", "log")
                                       for part in (f"--{name}-dir", str(tmp_path / name)))]


def spawn(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmsa_decalign", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_training_prints_a_table_and_keeps_the_log_off_standard_output(
    training: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(training) == 0
    out, err = capsys.readouterr()
    assert "Non0_acc_2" in out
    assert "lowest validation Loss" in out
    assert "TRAIN-" not in out
    assert err.count("seed 7 (1 of 1)") == 1
    assert "TRAIN-(lf_dnn)" in err
    assert (tmp_path / "log" / "lf_dnn-synthetic.log").stat().st_size > 0
    (checkpoint,) = (tmp_path / "model-save").iterdir()
    assert checkpoint.name.startswith("lf_dnn-synthetic-7-")
    assert (tmp_path / "res-save" / "normal" / "synthetic.csv").stat().st_size > 0
    (record,) = (tmp_path / "res-save" / "runs").iterdir()
    assert json.loads(record.read_text())["command"].startswith("mmsa -m lf_dnn -d synthetic")


def test_json_is_one_document_and_nothing_else(training: list[str]) -> None:
    done = spawn(*training, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["summary"]["Non0_acc_2"]["mean"] == document["runs"][0]["test"]["Non0_acc_2"]
    assert "TRAIN-(lf_dnn)" in done.stderr


def test_tuning(training: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*training, "-t", "-tt", "1", "-v", "0"]) == 0
    out, err = capsys.readouterr()
    assert "validation split" in out
    assert "the test split was not read" in out
    assert "use it: mmsa -m lf_dnn -d synthetic -c " in out
    assert err == ""
    assert main([*training, "-t", "-tt", "1", "-v", "0", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["trials"]) == 1


def test_a_repaired_run_says_so(training: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*training, "--mended", "-v", "0"]) == 0
    out, err = capsys.readouterr()
    assert "lf_dnn (mended) on synthetic" in out
    assert "repaired for this result (--mended)" in out
    assert err == ""
    (record,) = (tmp_path / "res-save" / "runs").iterdir()
    assert json.loads(record.read_text())["mended"] is True
    assert main([*training, "-v", "0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["mended"], [flag["repaired"] for flag in document["flags"]]) == (False, [False])


def test_options_are_mmsas() -> None:
    arguments = build_parser().parse_strictly(
        ["-m", "tfn", "-d", "sims", "-c", "x.json", "-t", "-tt", "3", "-s", "1", "-s", "2,3", "-s4", "-n", "2",
         "-v", "2", "-g", "1", "-Ft", "t", "-Fa", "a", "-Fv", "v", "--model-save-dir", "m",
         "--res-save-dir", "r", "--log-dir", "l"])
    assert arguments.seeds == [[1], [2, 3], [4]]
    assert (arguments.model, arguments.dataset, arguments.config, arguments.tune, arguments.tune_times) == (
        "tfn", "sims", "x.json", True, 3)
    assert (arguments.num_workers, arguments.verbose, arguments.gpu_ids) == (2, 2, [1])
    assert (arguments.feature_T, arguments.feature_A, arguments.feature_V) == ("t", "a", "v")
    assert (arguments.model_save_dir, arguments.res_save_dir, arguments.log_dir) == ("m", "r", "l")
    for name in ("--feature-T", "--feature-A", "--feature-V", "--seeds", "--gpu-ids", "--tune-times", "--num-workers"):
        build_parser().parse_strictly([name, "1"])
    defaults = build_parser().parse_strictly(["-v1"])
    assert (defaults.model, defaults.dataset, defaults.seeds, defaults.num_workers) == ("decalign", "synthetic", [], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sed", "3"], "unknown option '--sed'; did you mean '--seeds'?"),
        (["--model=tfn", "--datset=mosi"], "unknown option '--datset'; did you mean '--dataset'?"),
        (["--seed", "3"], "unknown option '--seed'; did you mean '--seeds'?"),
        (["lst"], "unknown 'lst'; did you mean 'list'?"),
        (["list", "--jsn"], "unknown option '--jsn'; did you mean '--json'?"),
        (["list", "-m", "tfn"], "option '-m' does not belong here"),
        (["data"], "required: COMMAND"),
        (["data", "sinth", "x.pkl"], "unknown 'sinth'; did you mean 'synth'?"),
        (["data", "synth"], "required: OUT"),
        (["data", "synth", "x.pkl", "--layout", "mozi"], "unknown layout 'mozi'"),
        (["-s", "x"], "'x' is not a seed"),
        (["-s", "99999999999"], "too large for a seed"),
        (["-n", "-1"], "-n"),
        (["-tt", "0", "-t"], "expected a whole number from 1"),
        (["-v", "5"], "-v/--verbose: unknown 5"),
        (["-m"], "expected one argument"),
        (["-m", "tfm"], "unknown model 'tfm'; did you mean 'tfn'"),
        (["-d", "mosy"], "unknown data set 'mosy'; did you mean 'mosi'"),
        (["-m", "tfn", "-d", "mosi", "--data-root", "/nowhere"], "looked for /nowhere/MOSI/Processed/unaligned_50.pkl"),
        (["-m", "tfn", "--feature-file", "/nowhere/x.pkl"], "/nowhere/x.pkl does not exist"),
        (["-m", "tfn", "--set", "batch_sise=3"], "'batch_sise' for model 'tfn'; did you mean 'batch_size'"),
        (["-m", "tfn", "--set", "batch_size"], "expected key=value"),
        (["--set", "num_heads=7"], "num_heads=7 does not divide d_model"),
        (["--set", "num_headz=7"], "did you mean 'num_heads'"),
        (["--set", "dataset_name=sims"], "contradicts the command line"),
        (["--set", "seed=5"], "unknown setting 'seed': use -s"),
        (["-m", "tfn", "--set", "device=cpu"], "use --device"),
        (["--set", "clip=-1"], "clip=-1: expected null or a number above 0"),
        (["--set", "KeyEval=5"], "KeyEval=5: no metric of synthetic"),
        (["-n", "²"], "-n"),
        (["--device", "gpu"], "--device gpu: expected auto, cpu, cuda or cuda:N"),
        (["-c", "no_such"], "neither a file nor a shipped one"),
        (["-m", "tfn", "--pretrained", "bert-base-uncased"], "'tfn' has no text encoder"),
        (["--pretrained", "./no_such_folder"], "expected a folder"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MMSA_DATA_ROOT", str(tmp_path / "data"))
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("mmsa: ")
    assert len(err.splitlines()) <= 2
    assert out == ""
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "SYNTHETIC" not in str(path)]


def test_an_encoder_folder_without_weights(training: list[str], tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert main(["--pretrained", str(folder)]) == 2
    assert "the folder has no weights" in capsys.readouterr().err


def test_a_failed_run_is_exit_code_1_and_debug_shows_where(
    training: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    failing = [*training, "--set", "learning_rate=1e30", "-v", "0"]
    assert main(failing) == 1
    plain = capsys.readouterr().err
    assert plain.startswith("mmsa: lf_dnn on synthetic, seed 7: ")
    assert "Traceback" not in plain
    assert len(plain.splitlines()) <= 2
    assert main([*failing, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_keeps_finished_seeds(features: Path, tmp_path: Path) -> None:
    runs = tmp_path / "res" / "runs"
    command = [sys.executable, "-m", "mmsa_decalign", "-m", "lmf", "-d", "synthetic", "--feature-file", str(features),
               "-s", ",".join(map(str, range(500))), "--set", "max_epochs=20", "--res-save-dir", str(tmp_path / "res"),
               "--model-save-dir", str(tmp_path / "models"), "--log-dir", str(tmp_path / "logs"), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (runs.exists() and len(list(runs.glob("*.json"))) >= 2):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    finished = len(list(runs.glob("*.json")))
    assert err.splitlines()[-2] == f"mmsa: interrupted; {finished} of 500 seeds finished, their results are in {runs}"
    assert err.splitlines()[-1].startswith("The same command with --resume does the rest")
    assert not list((tmp_path / "models").glob(".*"))


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for word in ("tfn", "decalign", "MMSA 2.2.1", "synthetic", "unimodal labels", "repaired by --mended:\n  a  "):
        assert word in out
    for arguments in (["list", "--json"], ["--json", "list"]):
        assert main(arguments) == 0
        document = json.loads(capsys.readouterr().out)
        assert len(document["models"]) >= 18
        assert {fault["name"] for model in document["models"] for fault in model["faults"]} >= {"batch_as_time"}
        assert {data["name"] for data in document["datasets"]} >= {"mosi", "mosei", "sims", "synthetic"}


def test_data_synth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmsa_decalign.data.reading import read_features

    out = tmp_path / "mosi.pkl"
    assert main(["data", "synth", str(out), "--layout", "mosi", "--seed", "3"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert read_features(out).feature_dims == (768, 5, 20)
    assert main(["data", "synth", str(tmp_path / "b.pkl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "synthetic"


def test_help_and_the_bare_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == bare
    assert "examples:" in bare
    assert "-Ft" in bare
    assert "exit codes" in bare
    for arguments in (["list", "--help"], ["data", "--help"], ["data", "synth", "--help"]):
        assert main(arguments) == 0


def parsers(parser: Parser, *words: str) -> Iterator[tuple[tuple[str, ...], Parser]]:
    yield words, parser
    for name, command in subcommands(parser).items():
        yield from parsers(command, *words, name)


def test_every_command_has_help_whose_examples_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    examples = []
    for words, parser in parsers(build_parser()):
        assert main([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        assert parser.description in shown
        assert max(map(len, shown.splitlines())) <= 120
        for action in parser._actions:  # a name that the program alone knows is shown to nobody
            own = f"--{action.dest}".replace("_", "-")
            assert action.metavar or action.choices or action.nargs == 0 or own in action.option_strings, action
        examples += [line.strip() for line in (parser.epilog or "").splitlines() if line.startswith("  mmsa ")]
    for example in examples:
        command = example.partition("  ")[0].partition(" > ")[0]
        build_parser().parse_strictly(shlex.split(command)[1:])
    commands = list(subcommands(build_parser()))
    named = list(dict.fromkeys(word for line in build_parser().epilog.splitlines() if line.startswith("  mmsa ")
                               and (word := line.split()[1]) in commands))
    assert named == commands, "an example of each command, in the order in which they are listed"


def test_mistakes_are_answered_without_loading_mmsa() -> None:
    code = ("import sys; from mmsa_decalign.cli import main; code = main(['-m', 'tfm']);"
            "assert 'MMSA' not in sys.modules and 'transformers' not in sys.modules; sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr[:26]) == (2, "mmsa: unknown model 'tfm';")


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_closed_pipe_is_not_a_crash(option: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mmsa_decalign", "list", *option]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""
