"""The golden files: the reference still makes them, the operators and the model agree with them, --check can fail."""

import inspect
import re
import shutil

import make_golden as golden
import numpy as np
import pytest


def nested(arrays):
    """The inverse of `flat`: names with slashes to dictionaries, lists and arrays."""
    tree = {}
    for name, array in arrays.items():
        branch, *keys = tree, *name.split("/")
        for key in keys[:-1]:
            branch = branch.setdefault(key, {})
        branch[keys[-1]] = array

    def settle(node):
        if not isinstance(node, dict):
            return node
        items = {key: settle(item) for key, item in node.items()}
        return list(items.values()) if all(key.isdigit() for key in items) else items

    return settle(tree)


def below(arrays, prefix):
    """The arrays whose names begin with a prefix, by the rest of their names."""
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", golden.FILES)
def test_the_reference_makes_them_again(name):
    assert golden.changes(name, golden.FOLDER) == []


@pytest.mark.parametrize("name", golden.FILES)
def test_they_say_where_they_come_from(name):
    arrays, meta = golden.read(golden.FOLDER / name)
    assert meta["seed"] == golden.SEED
    assert meta["versions"].keys() == {"python", "numpy", "scipy"}
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", meta["commit"])
    assert all(below(arrays, f"out/{case}") for case in meta["cases"])
    assert all(array.dtype.kind in "fib" for array in arrays.values())


def test_they_are_small_and_none_is_left_over():
    files = sorted(golden.FOLDER.glob("*.npz"))
    assert [path.name for path in files] == sorted(golden.FILES)
    assert sum(path.stat().st_size for path in files) < 200_000


def test_every_operator_is_in_them():
    described = [golden.read(golden.FOLDER / name)[1]["cases"].values() for name in golden.FILES]
    functions = {case["function"] for cases in described for case in cases}
    public = {name for name in golden.ref.__all__ if inspect.isfunction(getattr(golden.ref, name))}
    assert public - functions == {"moment_distance"}  # homo_loss is made of it


# What --check says


@pytest.fixture
def copies(tmp_path):
    """A folder with copies of all files, and edit(name, change): change the arrays of one of them in place."""
    for name in golden.FILES:
        shutil.copy(golden.FOLDER / name, tmp_path)

    def edit(name, change):
        with np.load(tmp_path / name) as file:
            arrays = dict(file)
        change(arrays)
        np.savez_compressed(tmp_path / name, **arrays)

    return tmp_path, edit


def check(folder, capsys):
    code = golden.main(["--check", "--folder", str(folder)])
    return code, capsys.readouterr().out.splitlines()


def test_check_finds_nothing(copies, capsys):
    folder, _ = copies
    assert check(folder, capsys) == (0, [f"{name}: agrees" for name in golden.FILES])


def test_check_names_file_array_and_difference(copies, capsys):
    folder, edit = copies

    def spoil(arrays):
        arrays["out/diag/means"] = arrays["out/diag/means"] * (1 + 1e-6)
        arrays["out/full/weights"] = arrays["out/full/weights"] * (1 + 1e-13)  # rounding
        del arrays["out/start/means"]
        arrays["out/start/extra"] = np.zeros(1)
        arrays["in/few"] = arrays["in/few"][:2]

    edit("mixture.npz", spoil)
    edit("transport.npz", lambda arrays: arrays["out/zero/potentials/0"].__setitem__(1, 0.0))
    (folder / "model.npz").unlink()
    code, lines = check(folder, capsys)
    assert code == 1
    assert lines == [
        "mixture.npz: in/few: shape (3, 3), stored (2, 3)",
        "mixture.npz: out/diag/means: relative difference 1.00e-06, tolerance 1e-09",
        "mixture.npz: out/start/extra: no longer made",
        "mixture.npz: out/start/means: not stored",
        "transport.npz: out/zero/potentials/0: other infinite entries",
        "losses.npz: agrees",
        "model.npz: missing",
    ]
    assert not (folder / "model.npz").exists()  # --check writes nothing
    assert golden.main(["--folder", str(folder)]) == 0
    capsys.readouterr()
    assert check(folder, capsys) == (0, [f"{name}: agrees" for name in golden.FILES])


def test_check_notices_a_changed_reference(copies, capsys, monkeypatch):
    folder, _ = copies
    honest = golden.ref.mmd
    monkeypatch.setattr(golden.ref, "mmd", lambda *arguments, **options: honest(*arguments, **options) + 1e-7)
    code, lines = check(folder, capsys)
    assert code == 1
    assert [line.split(":")[1].strip() for line in lines if "difference" in line] == [
        f"out/mmd, {name}" for name in ("median", "one", "several")
    ]


def test_check_notices_other_options(copies, capsys, monkeypatch):
    folder, _ = copies
    monkeypatch.setitem(golden.CHANGES, "self", {"use_cross_modal_attention": False})
    code, lines = check(folder, capsys)
    assert code == 1
    assert "model.npz: other seed, functions or options" in lines


def test_what_agrees_is_not_written_again(copies):
    folder, _ = copies
    times = {name: (folder / name).stat().st_mtime_ns for name in golden.FILES}
    assert golden.main(["--folder", str(folder)]) == 0
    assert {name: (folder / name).stat().st_mtime_ns for name in golden.FILES} == times


@pytest.mark.parametrize(
    ("found", "stored", "expected"),
    [([1.0, 2.0], [1.0, 4.0], 0.5), ([0.0], [0.0], 0.0), ([2.0], [0.0], 2.0), ([-np.inf, 1.0], [-np.inf, 1.0], 0.0),
     ([np.inf, 1.0], [-np.inf, 1.0], "other infinite entries"), ([np.nan], [1.0], "other infinite entries"),
     ([1.0], [[1.0]], "shape (1,), stored (1, 1)")],
)  # fmt: skip
def test_difference(found, stored, expected):
    assert golden.difference(np.array(found), np.array(stored)) == expected


# The operators and the model, on each device that is there


def devices():
    torch = pytest.importorskip("torch")
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def arguments(tree, device):
    """Inputs of a case as tensors; a mixture is told by its fields."""
    import torch

    from mmsa_decalign import ops

    if isinstance(tree, list):
        return [arguments(item, device) for item in tree]
    if isinstance(tree, dict):
        return ops.GaussianMixture(**{field: arguments(item, device) for field, item in tree.items()})
    return torch.tensor(tree, device=device)


def host(result):
    """A result of the operators with arrays in place of tensors."""
    if hasattr(result, "detach"):
        return result.detach().cpu().numpy()
    if hasattr(result, "_fields"):
        return type(result)(*[host(item) for item in result])
    return [host(item) for item in result] if isinstance(result, (tuple, list)) else result


def disagreements(result, arrays, case):
    """What of a result is not as the file says, by name; an empty dictionary where all is."""
    stored = {key: array for key, array in arrays.items() if f"{key}/".startswith(f"out/{case}/")}
    found = dict(golden.flat(host(result), f"out/{case}"))
    assert found.keys() == stored.keys() != set()
    differences = {key: golden.difference(found[key], stored[key]) for key in found}
    return {key: value for key, value in differences.items() if isinstance(value, str) or not value <= golden.TOLERANCE}


@pytest.mark.parametrize("name", [name for name in golden.FILES if name != "model.npz"])
def test_operators_agree(name):
    pytest.importorskip("torch")
    from mmsa_decalign import ops

    arrays, meta = golden.read(golden.FOLDER / name)
    for device in devices():
        for case, call in meta["cases"].items():
            if call["function"] == "exact_transport":  # the reference alone has it
                continue
            trees = [nested({f"in{key}": array for key, array in below(arrays, f"in/{each}").items()})
                     for each in call["inputs"]]  # fmt: skip
            inputs = [arguments(tree["in"], device) for tree in trees]
            result = getattr(ops, call["function"])(*inputs, **call["options"])
            assert disagreements(result, arrays, case) == {}, (case, device)


def test_the_model_agrees():
    torch = pytest.importorskip("torch")
    from mmsa_decalign import DecAlign, Settings, objective

    arrays, meta = golden.read(golden.FOLDER / "model.npz")
    rates = {"attn_dropout": (0.0,) * 3, "relu_dropout": 0.0, "embed_dropout": 0.0, "res_dropout": 0.0}
    for device in devices():
        for case in golden.CHANGES:
            settings = Settings(**meta["cases"][case]["settings"], **rates)
            model = DecAlign(settings).double().to(device).train()
            model.load_state_dict({key: torch.tensor(array) for key, array in below(arrays, "in/p/").items()})
            outputs = model(*[torch.tensor(arrays[f"in/{m}"], device=device) for m in golden.MODALITIES])
            total = objective(outputs, torch.tensor(arrays["in/labels"], device=device), settings)
            assert disagreements({key: host(value) for key, value in outputs.items()}, arrays, case) == {}
            assert disagreements(total, arrays, f"{case}, objective") == {}


def test_disagreements_are_found():
    arrays, _ = golden.read(golden.FOLDER / "losses.npz")
    value = arrays["out/mmd, one"]
    assert disagreements(value, arrays, "mmd, one") == {}
    assert disagreements(value * (1 + 1e-8), arrays, "mmd, one").keys() == {"out/mmd, one"}
