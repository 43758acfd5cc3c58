"""`mmsa verify`: what it prints, its exit codes, and that it notices a wrong operator. The comparison: tests/oracle."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch
from rich.console import Console

from mmsa_decalign import ops, verify
from mmsa_decalign.cli import main

CPU = torch.device("cpu")


@pytest.fixture
def few_cases(monkeypatch):
    """One case per operator: the whole table is what tests/oracle goes through."""
    few = list({case.operator: case for case in verify.cases()}.values())
    monkeypatch.setattr(verify, "cases", lambda: iter(few))
    return few


@pytest.fixture
def wrong_mmd(monkeypatch):
    original = ops.mmd
    monkeypatch.setattr(ops, "mmd", lambda *a, **k: original(*a, **k) + 1e-3)


def rows(value_error=1e-12, passed=True):
    return [verify.Row("mmd", "cpu", "float64", value_error, 1e-8, 1e-9, 1e-7, passed)]


def text_of(rows, width=80):
    stream = io.StringIO()
    verify.print_rows(rows, Console(file=stream, width=width))
    return stream.getvalue()


def test_a_row_for_every_operator_and_type_with_the_worst_of_its_cases(few_cases):
    table = verify.verify([CPU])
    assert [(row.operator, row.dtype) for row in table] == [
        (case.operator, dtype) for case in few_cases for dtype in ("float64", "float32")
    ]
    assert all(row.passed for row in table)
    assert all(0 <= row.value_error <= row.value_tolerance for row in table)
    assert max(row.value_error for row in table) > 0
    assert max(row.gradient_error for row in table) > 0


def test_the_worst_case_counts(monkeypatch):
    cases = [case for case in verify.cases() if case.operator == "mmd"][:3]
    monkeypatch.setattr(verify, "cases", lambda: iter(cases))
    monkeypatch.setattr(verify, "value_error", lambda case, *_: {0: 1e-3, 1: 0.0, 2: 1e-12}[cases.index(case)])
    monkeypatch.setattr(verify, "gradient_error", lambda case, *_: 0.0)
    assert [(row.value_error, row.passed) for row in verify.verify([CPU])] == [(1e-3, False)] * 2


@pytest.mark.parametrize(("value", "gradient", "passed"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_value_and_gradient_must_both_hold(monkeypatch, few_cases, value, gradient, passed):
    monkeypatch.setattr(verify, "value_error", lambda *_: float(value))
    monkeypatch.setattr(verify, "gradient_error", lambda *_: float(gradient))
    assert {row.passed for row in verify.verify([CPU])} == {passed}


def test_it_measures_with_coarse_products_allowed_and_restores_the_setting(monkeypatch, few_cases):
    seen = set()
    monkeypatch.setattr(verify, "value_error", lambda *_: seen.add(torch.get_float32_matmul_precision()) or 0.0)
    before = torch.get_float32_matmul_precision()
    verify.verify([CPU])
    assert seen == {"medium"}
    assert torch.get_float32_matmul_precision() == before


def test_devices_are_the_cpu_and_every_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(device) for device in verify.devices_here()] == ["cpu", "cuda:0", "cuda:1"]


def test_a_gpu_is_shown_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    text = text_of([*rows(), rows()[0]._replace(device="cuda:0"), rows()[0]._replace(device="cuda:0")])
    assert text.count("cuda:0: GPU of cuda:0\n") == 1
    assert text.count("cpu: ") == 1


def test_the_table_fits_80_columns_and_shows_failures():
    text = text_of([*rows(), *rows(math.inf, False)])
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    good, bad = (line.split() for line in text.splitlines() if line.startswith("mmd"))
    assert good == ["mmd", "cpu", "float64", "1e-12", "1e-08", "1e-09", "1e-07", "yes"]
    assert bad == ["mmd", "cpu", "float64", "inf", "1e-08", "1e-09", "1e-07", "NO"]
    assert "'highest'" in text


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_the_precision_in_force_is_reported(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        assert f"'{precision}'" in text_of(rows())
        assert verify.document(rows())["float32_matmul_precision"] == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_command_prints_the_table(few_cases, capsys):
    assert main(["verify", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.count("float32 ") >= len(few_cases)
    assert err == ""


def test_json_is_one_document_without_infinities(few_cases, capsys):
    assert main(["verify", "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    assert [row["operator"] for row in document["operators"]][::2] == [case.operator for case in few_cases]
    assert document["versions"]["torch"] == torch.__version__
    assert set(document["devices"]) == {"cpu"}
    assert verify.document(rows(math.inf, False))["operators"][0]["value_error"] is None


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_wrong_operator_is_exit_code_1_and_named(few_cases, wrong_mmd, capsys, options):
    assert main(["verify", "--device", "cpu", *options]) == 1
    out, err = capsys.readouterr()
    assert err == ("mmsa: operators that differ from the reference by more than allowed: mmd (cpu, float64), "
                   "mmd (cpu, float32)\n")  # fmt: skip
    assert (json.loads(out)["passed"] is False) if options else ("NO" in out)


def test_without_a_device_it_takes_all_of_them(monkeypatch, few_cases, capsys):
    asked = []
    monkeypatch.setattr(verify, "verify", lambda devices: asked.append(devices) or rows())
    assert main(["verify"]) == 0
    assert main(["verify", "--device", "cpu"]) == 0
    assert asked == [verify.devices_here(), [CPU]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_wrong_input(capsys):
    assert main(["verify", "--device", "cuda"]) == 2
    assert "use --device cpu" in capsys.readouterr().err
