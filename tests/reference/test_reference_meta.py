"""What the reference must be apart from being right: independent, documented by examples that run, and small."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from mmsa_decalign import reference as ref

FOLDER = Path(ref.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
ALLOWED = {"numpy", "scipy", "collections", "functools", "itertools", "typing", "warnings"}

SIGNATURES = {
    "fit_gaussian_mixture": "x, n_components, *, n_iter=5, var_floor=0.0001, covariance='diag'",
    "gaussian_cost": "a, b, *, reduction='mean', product_floor=0.0",
    "joint_cost": "mixtures, *, reduction='mean', product_floor=0.0",
    "multimarginal_sinkhorn": "cost, marginals, *, reg, tol=1e-09, max_iter=None, solver='log'",
    "exact_transport": "cost, marginals",
    "prototype_loss": "features, mixtures, *, reduction='mean', mahalanobis=False",
    "hetero_loss": "features, *, n_components, reg=0.1, n_iter=5, var_floor=0.0001, covariance='diag', "
    "reduction='mean', mahalanobis=False, solver='log', tol=1e-09, max_iter=None",
    "batch_moments": "z",
    "moment_distance": "a, b",
    "mmd": "x, y, *, bandwidth=1.0",
    "homo_loss": "features, *, bandwidth=1.0",
    "decoupling_loss": "unique, common, *, power=2",
}
MODEL_SIGNATURES = {
    "decalign": "p, settings, text, audio, vision, *, lengths=None, training=True",
    "objective": "outputs, labels, settings, class_weights=None",
}
FIELDS = {
    "GaussianMixture": ("weights", "means", "covariances", "responsibilities"),
    "TransportResult": ("value", "plan", "potentials", "marginal_error", "n_iter", "converged"),
    "HeteroLoss": ("value", "transport", "prototype", "mixtures", "result"),
    "Moments": ("mean", "cov", "skew"),
    "HomoLoss": ("value", "semantic", "mmd"),
    "AlignmentTerms": ("decoupling", "hetero", "homo", "hetero_parts", "homo_parts"),
    "Objective": ("total", "task", "decoupling", "hetero", "homo", "contrastive", "binary"),
}


def imported(tree):
    """Top-level names of absolute imports, relative ones as a dot, wherever they stand in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level if node.level else node.module.split(".")[0]


def test_the_files_are_found():
    assert {"mixture.py", "transport.py", "moments.py", "mmd.py", "decoupling.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_are_numpy_scipy_and_the_standard_library(path):
    names = set(imported(ast.parse(path.read_text())))
    assert names - ALLOWED <= {"."}, "the reference must stay independent of torch and of the package"


def test_it_stands_alone():
    """As a top-level package in a fresh interpreter: it loads neither torch nor the package it is installed with."""
    program = (
        "import sys, reference; assert reference.mmd([[0.0]], [[0.0]]) == 0.0; "
        "print(sorted({'torch', 'mmsa_decalign'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=FOLDER.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_import_check_can_fail():
    source = "import torch.nn\ndef f():\n    from mmsa_decalign.ops import mmd\nfrom ..ops import mmd\n"
    assert set(imported(ast.parse(source))) == {"torch", "mmsa_decalign", ".."}


def test_public_names():
    assert set(ref.__all__) == set(SIGNATURES) | set(MODEL_SIGNATURES) | set(FIELDS)
    assert len(ref.__all__) == len(set(ref.__all__))


@pytest.mark.parametrize(("name", "signature"), (SIGNATURES | MODEL_SIGNATURES).items())
def test_signatures(name, signature):
    parameters = inspect.signature(getattr(ref, name)).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(plain)) == f"({signature})"


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name):
    assert getattr(ref, name)._fields == FIELDS[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_examples_in_docstrings(path):
    module = importlib.import_module(f"{ref.__name__}.{path.stem}".removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_operator_has_an_example(name):
    assert ">>>" in getattr(ref, name).__doc__


def test_it_stays_small():
    sizes = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert sum(sizes.values()) < 900
    assert max(sizes.values()) < 250
