"""Golden files: what the reference gives for inputs from a seed, for every later version and machine to agree with.

    python tests/golden/make_golden.py             write the files that are missing or no longer agree
    python tests/golden/make_golden.py --check     say what no longer agrees; exit 1 if anything does not

A file holds inputs, "in/<name>...", and results by case, "out/<case>...". "meta" is JSON: the seed, for each case the
function, the names of its inputs and its options, and the Python, NumPy and SciPy versions and the commit that the file
was written with.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import scipy

from mmsa_decalign import reference as ref

FOLDER = Path(__file__).resolve().parent
SEED = 20251
# Largest difference that counts as agreement, in units of the largest entry of the array: versions of NumPy and BLAS
# differ in the order of their sums, and EM and the transport's last Newton step amplify what they round.
TOLERANCE = 1e-9
DEPENDS_ON_ROUNDING = {"n_iter", "marginal_error"}
KEPT_ELSEWHERE = {"hetero_parts", "homo_parts"}  # in losses.npz; these files should stay small
MODALITIES = ("text", "audio", "vision")


def flat(value, name):
    """(name, array) of a value and of all that is inside: records by field, sequences by position, nothing for None."""
    if hasattr(value, "_asdict"):
        fields = value._asdict().items()
        value = {field: item for field, item in fields if field not in DEPENDS_ON_ROUNDING | KEPT_ELSEWHERE}
    elif isinstance(value, (tuple, list)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}/{key}")
    elif value is not None:
        yield name, np.asarray(value)


class File:
    """Arrays and descriptions of the cases of one golden file, collected as functions of the reference are called."""

    def __init__(self, **inputs):
        self.inputs, self.cases = inputs, {}
        self.arrays = dict(flat(inputs, "in"))

    def add(self, case, function, *names, **options):
        """Call a function on the inputs of these names, and keep what it returns."""
        result = getattr(ref, function)(*[self.inputs[name] for name in names], **options)
        self.arrays |= dict(flat(result, f"out/{case}"))
        self.cases[case] = {"function": function, "inputs": names, "options": options}
        return result


def mixture(rng):
    """EM: both forms, no step, fewer samples than components, far from the origin."""
    x = rng.normal(size=(24, 3)) * [1.0, 0.5, 2.0] + 3 * rng.randint(0, 3, size=(24, 1))
    file = File(x=x, few=x[:3], far=100 + 0.1 * x)
    for form in ("diag", "full"):
        options = {"n_components": 4, "n_iter": 5, "var_floor": 1e-2, "covariance": form}
        file.add(form, "fit_gaussian_mixture", "x", **options)
    file.add("start", "fit_gaussian_mixture", "x", n_components=5, n_iter=0)
    file.add("few samples", "fit_gaussian_mixture", "few", n_components=5, n_iter=3, var_floor=1e-2)
    file.add("far away", "fit_gaussian_mixture", "far", n_components=3, n_iter=3)
    return file


def transport(rng):
    """The entropic optimum for two to four marginals, with zeros and little entropy; the release; the exact optimum."""
    inputs = {}
    for name, sizes in {"two": (4, 5), "three": (3, 4, 5), "four": (2, 3, 2, 3), "zero": (3, 4)}.items():
        marginals = [rng.gamma(1.0, size=size) for size in sizes]
        if name == "zero":
            marginals[0][1] = 0.0
        inputs[f"{name}/cost"] = rng.uniform(size=sizes)
        inputs[f"{name}/marginals"] = [nu / nu.sum() for nu in marginals]
    file = File(**inputs)
    for name, reg in {"two": 0.1, "three": 0.05, "four": 0.5, "zero": 0.1}.items():
        file.add(name, "multimarginal_sinkhorn", f"{name}/cost", f"{name}/marginals", reg=reg, tol=1e-12)
    three = ("three/cost", "three/marginals")
    file.add("three, little entropy", "multimarginal_sinkhorn", *three, reg=0.002, tol=1e-12)
    file.add("three, release", "multimarginal_sinkhorn", *three, reg=0.05, solver="release")
    file.add("three, exact", "exact_transport", *three)
    return file


def losses(rng):
    """Costs and losses with their options."""
    x = [rng.normal(size=(12, 4)) + m for m in range(3)]
    fits = {}
    for form in ("diag", "full"):
        fits[form] = [ref.fit_gaussian_mixture(one, 3, var_floor=0.05, covariance=form) for one in x]
    unique, common = ([rng.normal(size=(5, 4, t)) for t in (3, 1, 2)] for _ in range(2))
    single = {f"{form} {i}": fits[form][i] for form in fits for i in (0, 1)}
    file = File(x=x, x0=x[0], x1=x[1], **fits, **single, unique=unique, common=common)
    for form in fits:
        file.add(f"cost, {form}", "gaussian_cost", f"{form} 0", f"{form} 1", reduction="sum")
        file.add(f"joint cost, {form}", "joint_cost", form)
        for mahalanobis in (False, True):
            file.add(f"prototypes, {form}, {mahalanobis}", "prototype_loss", "x", form, mahalanobis=mahalanobis)
        options = {"n_components": 3, "var_floor": 0.05, "covariance": form, "tol": 1e-12}
        file.add(f"heterogeneity, {form}", "hetero_loss", "x", **options)
    file.add("heterogeneity, sums", "hetero_loss", "x", n_components=2, reduction="sum", reg=0.5, tol=1e-12)
    file.add("heterogeneity, release", "hetero_loss", "x", n_components=3, solver="release")
    file.add("moments", "batch_moments", "x0")
    for name, bandwidth in {"one": 0.5, "median": "median", "several": [0.5, 2.0, 8.0]}.items():
        file.add(f"mmd, {name}", "mmd", "x0", "x1", bandwidth=bandwidth)
        file.add(f"homogeneity, {name}", "homo_loss", "x", bandwidth=bandwidth)
    for power in (1, 2):
        file.add(f"decoupling, {power}", "decoupling_loss", "unique", "common", power=power)
    return file


SETTINGS = {
    "feature_dims": [5, 3, 4], "d_model": 4, "num_heads": 2, "nlevels": 2, "conv_kernel_sizes": [2, 1, 1],
    "modalities": list(MODALITIES), "pde_dim": 3, "num_prototypes": 3, "gmm_em_iters": 4, "gmm_var_floor": 0.01,
    "gmm_covariance": "diag", "cost_reduction": "mean", "prototype_mahalanobis": False, "ot_reg": 0.1,
    "ot_solver": "log", "ot_tol": 1e-12, "ot_max_iter": None, "mmd_bandwidth": "median", "decoupling_power": 2,
    "projection_activation": "none", "use_sequence_mask": True, "use_cross_modal_attention": True, "attn_mask": True,
    "train_mode": "regression", "task_loss": "mse", "dec_loss_weight": 1.0, "alpha": 0.05, "beta": 0.07,
    "ct_weight": 0.01, "ct_temperature": 0.1, "binary_task_weight": 0.1,
}  # fmt: skip
CHANGES = {
    "cross-modal": {},
    "self": {"use_cross_modal_attention": False, "projection_activation": "tanh", "task_loss": "smooth_l1"},
    "masks off": {"use_sequence_mask": False, "gmm_covariance": "full", "decoupling_power": 1, "task_loss": "l1"},
    "release": {"ot_solver": "release", "ot_max_iter": 50, "mmd_bandwidth": 1.0},
}


def random_parameters(rng, settings):
    """Parameters of a model by the names of its state dict, none of them zero or one."""
    p, d = {}, settings["d_model"]

    def add(name, *shape, about=0.0):
        p[name] = about + rng.normal(size=shape) / (1 + np.sqrt(shape[-1]))

    for m, width, kernel in zip(MODALITIES, settings["feature_dims"], settings["conv_kernel_sizes"], strict=True):
        for name, value in {"low": -1.5, "high": 2.0, "mean": 0.1, "std": 1.2}.items():
            p[f"standardise.{m}.{name}"] = np.full(width, value)
        add(f"project.{m}.weight", d, width, kernel)
        add(f"unique.{m}.weight", d, d)
        for number in range(settings["nlevels"]):
            layer = f"fuse.{m}.layers.{number}"
            add(f"{layer}.attention.in_proj_weight", 3 * d, d)
            add(f"{layer}.attention.in_proj_bias", 3 * d)
            for name, rows, columns in (("attention.out_proj", d, d), ("up", 4 * d, d), ("down", d, 4 * d)):
                add(f"{layer}.{name}.weight", rows, columns)
                add(f"{layer}.{name}.bias", rows)
            for name in ("attention_norm", "final_norm"):
                add(f"{layer}.{name}.weight", d, about=1.0)
                add(f"{layer}.{name}.bias", d)
        for name, rows in (("0", d), ("3", settings["pde_dim"])):
            add(f"distribution.{m}.{name}.weight", rows, d)
            add(f"distribution.{m}.{name}.bias", rows)
    add("common.weight", d, d)
    add("head.weight", 1, 6 * d)
    add("head.bias", 1)
    return p


def model(rng):
    """Outputs, alignment terms and objective of the whole model under several settings, for one set of parameters."""
    shapes = zip(MODALITIES, (4, 5, 3), SETTINGS["feature_dims"], strict=True)
    inputs = {m: rng.normal(size=(8, steps, width)) for m, steps, width in shapes}
    inputs["audio"][2, 3:] = 0.0
    labels = rng.randint(-6, 7, size=8) / 2.0
    file = File(p=random_parameters(rng, SETTINGS), labels=labels, **inputs)
    for case, change in CHANGES.items():  # settings and outputs are not among the arrays "in/": see meta and "out/"
        file.inputs["settings"] = SETTINGS | change
        file.inputs["outputs"] = file.add(case, "decalign", "p", "settings", *MODALITIES)
        file.add(f"{case}, objective", "objective", "outputs", "labels", "settings")
        file.cases[case]["settings"] = SETTINGS | change
    return file


FILES = {"mixture.npz": mixture, "transport.npz": transport, "losses.npz": losses, "model.npz": model}


def made(name):
    """(arrays, cases) of a golden file, from the reference as it is now."""
    file = FILES[name](np.random.RandomState(SEED))  # the legacy generator: its numbers are promised never to change
    return file.arrays, file.cases


def read(path):
    """(arrays, meta) of a golden file."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays.pop("meta")))


def difference(found, stored):
    """max |found - stored| / max |stored| over finite entries, or what else is wrong in words."""
    if found.shape != stored.shape:
        return f"shape {found.shape}, stored {stored.shape}"
    finite = np.isfinite(stored)
    if not np.array_equal(found[~finite], stored[~finite]) or not np.isfinite(found[finite]).all():
        return "other infinite entries"
    scale = np.abs(stored[finite]).max(initial=0.0)
    largest = np.abs(found[finite].astype(float) - stored[finite]).max(initial=0.0)
    return float(largest / scale) if scale > 0 else float(largest)


def changes(name, folder):
    """One line for every array of a golden file with which the reference does not agree."""
    path = folder / name
    if not path.exists():
        return [f"{name}: missing"]
    (now, cases), (stored, meta) = made(name), read(path)
    lines = []
    if json.loads(json.dumps(cases)) != meta["cases"] or meta["seed"] != SEED:
        lines.append(f"{name}: other seed, functions or options")
    for key in sorted(now.keys() | stored.keys()):
        if key not in stored or key not in now:
            lines.append(f"{name}: {key}: {'no longer made' if key in stored else 'not stored'}")
            continue
        found = difference(now[key], stored[key])
        if isinstance(found, str):
            lines.append(f"{name}: {key}: {found}")
        elif not found <= TOLERANCE:
            lines.append(f"{name}: {key}: relative difference {found:.2e}, tolerance {TOLERANCE:.0e}")
    return lines


def commit():
    """The repository's commit, marked -dirty where the checkout, these files aside, differs from it."""
    git = ["git", "-C", str(FOLDER)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        others = [*git, "status", "--porcelain", "--", ":/", ":!*.npz"]
        changed = subprocess.run(others, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + "-dirty" * bool(changed.stdout)


def write(name, folder):
    arrays, cases = made(name)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    meta = {"seed": SEED, "versions": versions, "commit": commit(), "cases": cases}
    np.savez_compressed(folder / name, meta=json.dumps(meta), **arrays)


def main(arguments=None):
    """Exit code: 0, or 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file no longer agrees")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are (default: beside this script)")
    chosen = parser.parse_args(arguments)
    found = {name: changes(name, chosen.folder) for name in FILES}
    for name, lines in found.items():
        print("\n".join(lines) if lines else f"{name}: agrees")
        if lines and not chosen.check:
            write(name, chosen.folder)
            print(f"{name}: written")
    return int(chosen.check and any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
