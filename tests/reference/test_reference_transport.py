"""Costs and transport against POT, linear programming, closed forms and the optimality conditions."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from mmsa_decalign import reference as ref

SIZES = [(4, 5), (3, 4, 5), (2, 3, 4, 3)]


def outer(vectors, ufunc):
    total = vectors[0]
    for vector in vectors[1:]:
        total = ufunc.outer(total, vector)
    return total


def objective(plan, cost, reg):
    positive = plan[plan > 0]
    return (plan * cost).sum() + reg * (positive * (np.log(positive) - 1)).sum()


def check_optimal(result, cost, marginals, reg, tol=1e-9):
    """Every condition of optimality: no second solver needed."""
    for m, nu in enumerate(marginals):
        others = tuple(axis for axis in range(cost.ndim) if axis != m)
        assert np.abs(result.plan.sum(axis=others) - nu).sum() <= tol
    assert result.converged is True
    assert 0 <= result.marginal_error <= tol
    exponent = (outer(result.potentials, np.add) - cost) / reg
    assert_allclose(result.plan, np.exp(exponent), rtol=1e-9, atol=1e-15)
    assert_allclose(objective(result.plan, cost, reg), result.value, rtol=1e-7, atol=1e-8)
    levels = [nu[nu > 0] @ f[nu > 0] for nu, f in zip(marginals, result.potentials, strict=True)]
    assert_allclose(levels, np.full(len(levels), levels[0]), rtol=1e-9, atol=1e-9 * max(1.0, np.abs(cost).max()))


# The cost


@pytest.mark.parametrize("form", ["diag", "full"])
def test_cost_is_pots_bures_wasserstein_squared(make_mixture, form):
    ot = pytest.importorskip("ot")
    a, b = make_mixture(3, 4, form), make_mixture(2, 4, form)
    dense = (lambda c: c) if form == "full" else np.diag
    expected = np.array(
        [
            [
                ot.gaussian.bures_wasserstein_distance(mean_a, mean_b, dense(cov_a), dense(cov_b)) ** 2
                for mean_b, cov_b in zip(b.means, b.covariances, strict=True)
            ]
            for mean_a, cov_a in zip(a.means, a.covariances, strict=True)
        ]
    )
    assert_allclose(ref.gaussian_cost(a, b, reduction="sum"), expected, rtol=1e-9)
    assert_allclose(ref.gaussian_cost(a, b), expected / 4, rtol=1e-9)
    assert_allclose(ref.gaussian_cost(b, a), expected.T / 4, rtol=1e-9)


def test_diagonal_cost_is_the_full_cost_of_diagonal_matrices(make_mixture):
    a, b = make_mixture(3, 4), make_mixture(2, 4)
    full_a, full_b = (m._replace(covariances=np.stack([np.diag(v) for v in m.covariances])) for m in (a, b))
    assert_allclose(ref.gaussian_cost(a, b), ref.gaussian_cost(full_a, full_b), rtol=1e-10)


@pytest.mark.parametrize("form", ["diag", "full"])
def test_cost_of_a_mixture_with_itself(make_mixture, form):
    a = make_mixture(3, 4, form)
    assert_allclose(np.diag(ref.gaussian_cost(a, a)), np.zeros(3), atol=1e-12)
    assert ref.gaussian_cost(a, a)[0, 1] > 0.01


def test_product_floor_by_hand():
    a, b = (ref.GaussianMixture(np.ones(1), np.zeros((1, 2)), np.array([v]), np.ones((1, 1))) for v in ([1, 4], [9, 4]))
    assert_allclose(ref.gaussian_cost(a, b, reduction="sum"), [[4.0]], rtol=1e-14)
    expected = (10 - 2 * 4.0) + (8 - 2 * np.sqrt(23.0))  # the products are 9 and 16, the floor 7
    assert_allclose(ref.gaussian_cost(a, b, reduction="sum", product_floor=7.0), [[expected]], rtol=1e-14)
    assert_allclose(ref.joint_cost([a, b], product_floor=7.0), [[expected / 2]], rtol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("n_modalities", [2, 3, 4])
def test_joint_cost_sums_the_pairs(make_mixture, n_modalities, reduction):
    mixtures = [make_mixture(k, 2) for k in (2, 3, 4, 2)[:n_modalities]]
    cost = ref.joint_cost(mixtures, reduction=reduction)
    assert cost.shape == (2, 3, 4, 2)[:n_modalities]
    for index in itertools.product(*map(range, cost.shape)):
        total = 0.0
        for i in range(n_modalities):
            for j in range(i):
                total += ref.gaussian_cost(mixtures[i], mixtures[j], reduction=reduction)[index[i], index[j]]
        assert_allclose(cost[index], total, rtol=1e-12)


# The entropic problem


@pytest.mark.parametrize("reg", [1.0, 0.05, 0.002])
def test_two_marginals_are_pots_sinkhorn(make_problem, reg):
    ot = pytest.importorskip("ot")
    cost, (a, b) = make_problem(5, 7)
    plan = ot.sinkhorn(a, b, cost, reg, method="sinkhorn_log", stopThr=1e-13, numItermax=200000)
    result = ref.multimarginal_sinkhorn(cost, [a, b], reg=reg)
    assert_allclose(result.plan, plan, atol=1e-9)
    assert_allclose(result.value, objective(plan, cost, reg), rtol=1e-8)
    f, g = result.potentials
    assert_allclose(np.exp((f[:, None] + g - cost) / reg), plan, atol=1e-9)


@pytest.mark.parametrize("reg", [10.0, 0.3, 0.01, 1e-4])
@pytest.mark.parametrize("sizes", SIZES)
def test_optimality(make_problem, sizes, reg):
    cost, marginals = make_problem(*sizes)
    check_optimal(ref.multimarginal_sinkhorn(cost, marginals, reg=reg), cost, marginals, reg)


@pytest.mark.parametrize("reg", [1.0, 0.02])
@pytest.mark.parametrize("sizes", SIZES)
def test_zero_marginals_are_the_smaller_problem(make_problem, sizes, reg):
    cost, marginals = make_problem(*sizes)
    full_cost = np.pad(cost, [(1, 0)] + [(0, 1)] * (len(sizes) - 1), constant_values=-3.0)
    full_marginals = [np.append(0.0, marginals[0])] + [np.append(nu, 0.0) for nu in marginals[1:]]
    small = ref.multimarginal_sinkhorn(cost, marginals, reg=reg)
    large = ref.multimarginal_sinkhorn(full_cost, full_marginals, reg=reg)
    check_optimal(large, full_cost, full_marginals, reg)
    assert_allclose(large.value, small.value, rtol=1e-12)
    assert large.plan[0].max() == 0.0
    assert large.plan[..., -1].max() == 0.0
    assert large.potentials[0][0] == -np.inf
    assert_array_equal([f[-1] for f in large.potentials[1:]], np.full(len(sizes) - 1, -np.inf))
    assert_allclose(large.potentials[1][:-1], small.potentials[1], rtol=1e-9, atol=1e-9)


def test_no_cost_gives_independence(make_problem):
    _, marginals = make_problem(2, 3, 4)
    result = ref.multimarginal_sinkhorn(np.zeros((2, 3, 4)), marginals, reg=0.7)
    assert_allclose(result.plan, outer(marginals, np.multiply), rtol=1e-12)
    negative_entropies = sum((nu * np.log(nu)).sum() for nu in marginals)
    assert_allclose(result.value, 0.7 * (negative_entropies - 1), rtol=1e-12)
    assert result.n_iter == 1


@pytest.mark.parametrize("reg", [2.0, 0.1, 1e-3])
def test_two_by_two_closed_form(reg):
    stay = 1 / (1 + np.exp(-1 / reg))
    result = ref.multimarginal_sinkhorn([[0.0, 1.0], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]], reg=reg)
    expected = np.array([[stay, 1 - stay], [1 - stay, stay]]) / 2
    assert_allclose(result.plan, expected, rtol=1e-12, atol=1e-300)
    assert_allclose(result.value, objective(expected, 1 - np.eye(2), reg), rtol=1e-12)


def test_a_trivial_marginal_drops_out(make_problem):
    cost, marginals = make_problem(4, 5)
    two = ref.multimarginal_sinkhorn(cost, marginals, reg=0.05)
    three = ref.multimarginal_sinkhorn(cost[:, None, :], [marginals[0], [1.0], marginals[1]], reg=0.05)
    assert_allclose(three.plan[:, 0, :], two.plan, atol=1e-9)
    assert_allclose(three.value, two.value, rtol=1e-10)
    shift = three.potentials[0] - two.potentials[0]  # potentials agree up to what they can exchange
    assert_allclose(shift, np.full(4, shift[0]), atol=1e-8)


def test_symmetries(make_problem):
    cost, marginals = make_problem(3, 4, 5)
    base = ref.multimarginal_sinkhorn(cost, marginals, reg=0.05)
    turned = ref.multimarginal_sinkhorn(cost.transpose(2, 0, 1), [marginals[m] for m in (2, 0, 1)], reg=0.05)
    assert_allclose(turned.plan, base.plan.transpose(2, 0, 1), atol=1e-9)
    assert_allclose(turned.potentials[0], base.potentials[2], atol=1e-8)
    scaled = ref.multimarginal_sinkhorn(8 * cost, marginals, reg=0.4)
    assert_allclose(scaled.value, 8 * base.value, rtol=1e-10)
    shifted = ref.multimarginal_sinkhorn(cost - 1e6, marginals, reg=0.05)
    assert_allclose(shifted.value + 1e6, base.value, atol=1e-8)
    flipped = ref.multimarginal_sinkhorn(cost[::-1], [marginals[0][::-1], *marginals[1:]], reg=0.05)
    assert_allclose(flipped.plan[::-1], base.plan, atol=1e-9)


def test_plan_and_potentials_are_the_gradients(make_problem, rng):
    cost, marginals = make_problem(3, 4, 2)
    reg, h = 0.2, 1e-4

    def value(moved_cost, moved_marginals):
        return ref.multimarginal_sinkhorn(moved_cost, moved_marginals, reg=reg, tol=1e-13).value

    result = ref.multimarginal_sinkhorn(cost, marginals, reg=reg, tol=1e-13)
    direction = rng.normal(size=cost.shape)
    slope = (value(cost + h * direction, marginals) - value(cost - h * direction, marginals)) / (2 * h)
    assert_allclose(slope, (result.plan * direction).sum(), rtol=1e-6)
    for m, nu in enumerate(marginals):
        direction = rng.normal(size=len(nu)) * nu
        direction -= nu * direction.sum()  # the mass must stay 1
        up, down = ([*marginals[:m], nu + s * h * direction, *marginals[m + 1 :]] for s in (1, -1))
        slope = (value(cost, up) - value(cost, down)) / (2 * h)
        assert_allclose(slope, result.potentials[m] @ direction, rtol=1e-6)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_general_optimiser_finds_the_same_dual_optimum(make_problem, sizes):
    """max over f of sum_m <nu_m, f_m> - reg sum exp((f_1 + ... + f_M - C) / reg), by SciPy's BFGS."""
    cost, marginals = make_problem(*sizes)
    reg, ends = 0.3, np.cumsum(sizes)[:-1]

    def negative_dual(f):
        plan = np.exp((outer(np.split(f, ends), np.add) - cost) / reg)
        axes = [tuple(axis for axis in range(cost.ndim) if axis != m) for m in range(cost.ndim)]
        gradient = np.concatenate([plan.sum(axis=others) for others in axes]) - np.concatenate(marginals)
        return reg * plan.sum() - np.concatenate(marginals) @ f, gradient

    found = minimize(negative_dual, np.zeros(sum(sizes)), jac=True, method="BFGS", options={"gtol": 1e-9})
    result = ref.multimarginal_sinkhorn(cost, marginals, reg=reg)
    assert_allclose(result.value, -found.fun, rtol=1e-9, atol=1e-9)
    plan = np.exp((outer(np.split(found.x, ends), np.add) - cost) / reg)
    assert_allclose(result.plan, plan, atol=1e-7)


def test_no_other_coupling_is_better(make_problem):
    cost, marginals = make_problem(3, 4, 5)
    best = ref.multimarginal_sinkhorn(cost, marginals, reg=0.1)
    others = [outer(marginals, np.multiply), ref.exact_transport(cost, marginals).plan]
    for other, share in itertools.product(others, (1e-3, 0.1, 1.0)):
        assert objective((1 - share) * best.plan + share * other, cost, 0.1) > best.value + 1e-8


@pytest.mark.parametrize("ratio", [1e-6, 1.0, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("sizes", [(12, 12), (6, 5, 7), (3, 4, 3, 4)])
def test_any_ratio_of_cost_to_reg(rng, sizes, ratio):
    reg = 1 / ratio
    for spread in (1.0, 0.05):  # the second draws masses down to 1e-30 and below
        cost = rng.random(sizes)
        marginals = [rng.dirichlet(np.full(size, spread)) for size in sizes]
        marginals[0][0] = 0.0
        marginals[0] /= marginals[0].sum()
        result = ref.multimarginal_sinkhorn(cost, marginals, reg=reg)
        check_optimal(result, cost, marginals, reg)


def test_points_on_a_line_with_ties():
    points = np.array([0.0, 0.0, 1.0, 1.0, 2.0])
    cost = (points[:, None] - points) ** 2
    marginals = [np.full(5, 0.2), np.array([0.2, 0.3, 0.0, 0.2, 0.3])]
    check_optimal(ref.multimarginal_sinkhorn(cost, marginals, reg=1e-4), cost, marginals, 1e-4)


@pytest.mark.parametrize("max_iter", [1, 2, 9])
def test_too_few_rounds_are_admitted(make_problem, max_iter):
    cost, marginals = make_problem(6, 6, 6)
    best = ref.multimarginal_sinkhorn(cost, marginals, reg=1e-3)
    message = f"after {max_iter} rounds.*raise reg .now 0.001. or max_iter .now {max_iter}"
    with pytest.warns(RuntimeWarning, match=message):
        short = ref.multimarginal_sinkhorn(cost, marginals, reg=1e-3, max_iter=max_iter)
    assert short.converged is False
    assert short.n_iter == max_iter
    assert short.marginal_error > 1e-9
    assert np.isfinite(short.plan).all()
    assert short.value <= best.value  # a dual value bounds the minimum from below


def test_tolerance_decides_the_rounds(make_problem):
    cost, marginals = make_problem(6, 6, 6)
    loose = ref.multimarginal_sinkhorn(cost, marginals, reg=0.01, tol=1e-2)
    tight = ref.multimarginal_sinkhorn(cost, marginals, reg=0.01, tol=1e-12)
    assert tight.marginal_error <= 1e-12 < loose.marginal_error <= 1e-2
    assert loose.n_iter < tight.n_iter < 100


def test_marginals_are_divided_by_their_sums(make_problem):
    cost, marginals = make_problem(3, 4)
    result = ref.multimarginal_sinkhorn(cost, [marginals[0] * (1 + 8e-7), marginals[1] * (1 - 8e-7)], reg=0.1)
    assert_allclose(result.plan, ref.multimarginal_sinkhorn(cost, marginals, reg=0.1).plan, atol=1e-9)


# Without entropy


@pytest.mark.parametrize("sizes", SIZES)
def test_exact_transport_has_a_certificate(make_problem, sizes):
    cost, marginals = make_problem(*sizes)
    result = ref.exact_transport(cost, marginals)
    slack = cost - outer(result.potentials, np.add)
    assert slack.min() > -1e-9
    assert (result.plan * slack).sum() < 1e-9
    assert result.plan.min() >= 0
    assert result.marginal_error < 1e-9
    assert_allclose(result.value, sum(nu @ f for nu, f in zip(marginals, result.potentials, strict=True)), atol=1e-9)
    assert result.converged is True


def test_exact_transport_is_pots_emd(make_problem):
    ot = pytest.importorskip("ot")
    cost, (a, b) = make_problem(6, 8)
    assert_allclose(ref.exact_transport(cost, [a, b]).value, ot.emd2(a, b, cost), rtol=1e-9)


@pytest.mark.parametrize("sizes", SIZES)
def test_entropic_value_nears_the_exact_one_at_the_known_rate(make_problem, sizes):
    cost, marginals = make_problem(*sizes)
    exact = ref.exact_transport(cost, marginals)
    used = exact.plan[exact.plan > 1e-12]
    slope = (used * (np.log(used) - 1)).sum()  # of the value in reg at 0, as the optimal plan is unique
    for reg in (1e-1, 1e-2, 1e-3, 1e-4):
        value = ref.multimarginal_sinkhorn(cost, marginals, reg=reg).value
        assert exact.value - reg * (1 + np.log(cost.size)) <= value <= exact.value + reg * slope + 1e-9
    assert_allclose((value - exact.value) / reg, slope, rtol=1e-4)


def test_entropic_value_goes_to_pots_emd(make_problem):
    ot = pytest.importorskip("ot")
    cost, (a, b) = make_problem(6, 8)
    result = ref.multimarginal_sinkhorn(cost, [a, b], reg=1e-5)
    assert_allclose((result.plan * cost).sum(), ot.emd2(a, b, cost), rtol=1e-7)


# The release's arithmetic


def release_by_hand(cost, a, b, reg, n_rounds):
    """The two-marginal case, entry by entry."""
    kernel = [[max(np.exp(-c / max(reg, 1e-6)), 1e-30) for c in row] for row in cost]
    u, v = [1.0] * len(a), [1.0] * len(b)
    for _ in range(n_rounds):
        u = [a[k] / (sum(kernel[k][m] * v[m] for m in range(len(b))) + 1e-8) for k in range(len(a))]
        v = [b[m] / (sum(kernel[k][m] * u[k] for k in range(len(a))) + 1e-8) for m in range(len(b))]
    plan = np.array([[u[k] * kernel[k][m] * v[m] for m in range(len(b))] for k in range(len(a))])
    return plan, (plan * cost).sum() + reg * (plan * (np.log(np.maximum(plan, 1e-8)) - 1)).sum()


@pytest.mark.parametrize(("max_iter", "n_rounds"), [(None, 50), (3, 3)])
@pytest.mark.parametrize("reg", [1.0, 0.05, 0.003])
def test_release_solver_by_hand(make_problem, reg, max_iter, n_rounds):
    cost, (a, b) = make_problem(3, 4)
    plan, value = release_by_hand(cost, a, b, reg, n_rounds)
    result = ref.multimarginal_sinkhorn(cost, [a, b], reg=reg, solver="release", max_iter=max_iter)
    assert_allclose(result.plan, plan, rtol=1e-10)
    assert_allclose(result.value, value, rtol=1e-10)
    assert result.n_iter == n_rounds
    errors = [np.abs(plan.sum(axis=1) - a).sum(), np.abs(plan.sum(axis=0) - b).sum()]
    assert_allclose(result.marginal_error, max(errors), rtol=1e-6)
    assert result.converged is bool(max(errors) <= 1e-9)


@pytest.mark.parametrize("sizes", SIZES)
def test_release_solver_is_right_when_reg_is_large(make_problem, sizes):
    cost, marginals = make_problem(*sizes)
    release = ref.multimarginal_sinkhorn(cost, marginals, reg=1.0, solver="release")
    log = ref.multimarginal_sinkhorn(cost, marginals, reg=1.0)
    assert_allclose(release.plan, log.plan, rtol=1e-5)
    assert_allclose(release.value, log.value, rtol=1e-5)
    assert_allclose(outer(release.potentials, np.add), outer(log.potentials, np.add), atol=1e-5)


def test_release_solver_loses_the_mass_when_reg_is_small():
    """A known defect, kept because numbers of the release must be reproducible."""
    cost = np.full((3, 3, 3), 20.0)
    marginals = [np.full(3, 1 / 3)] * 3
    result = ref.multimarginal_sinkhorn(cost, marginals, reg=0.1, solver="release")
    assert result.plan.sum() < 1e-5
    assert result.converged is False
    assert_allclose(ref.multimarginal_sinkhorn(cost, marginals, reg=0.1).plan.sum(), 1.0, rtol=1e-12)


def test_release_solver_never_divides_by_less_than_a_millionth():
    cost, halves = np.array([[0.0, 3e-6], [2e-6, 1e-6]]), np.array([0.5, 0.5])
    plan, value = release_by_hand(cost, halves, halves, 1e-7, 50)
    result = ref.multimarginal_sinkhorn(cost, [halves, halves], reg=1e-7, solver="release")
    assert_allclose(result.plan, plan, rtol=1e-10)
    assert_allclose(result.value, value, rtol=1e-10)


def test_release_solver_takes_zero_marginals():
    result = ref.multimarginal_sinkhorn([[0.0, 1.0]] * 2, [[1.0, 0.0], [0.5, 0.5]], reg=1.0, solver="release")
    assert_array_equal(result.plan[1], np.zeros(2))
    assert result.potentials[0][1] == -np.inf
    assert np.isfinite(result.potentials[0][0])


# Wrong input


def test_wrong_mixtures_are_named(make_mixture):
    a = make_mixture(2, 3)
    with pytest.raises(ValueError, match=r"agree in width and form, got \(2, 3\) and \(2, 4\)"):
        ref.gaussian_cost(a, make_mixture(2, 4))
    with pytest.raises(ValueError, match="fit both with one `covariance`"):
        ref.gaussian_cost(a, make_mixture(2, 3, "full"))
    with pytest.raises(ValueError, match="reduction must be one of"):
        ref.gaussian_cost(a, a, reduction="none")
    with pytest.raises(ValueError, match="product_floor must be 0 or above, got -1"):
        ref.gaussian_cost(a, a, product_floor=-1)
    with pytest.raises(ValueError, match="at least 2 modalities, got 1"):
        ref.joint_cost([a])


HALVES = [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("cost", "marginals", "options", "message"),
    [
        (np.zeros(2), HALVES[:1], {}, r"one axis per marginal, 2 or more, got \(2,\)"),
        (np.zeros((2, 2)), HALVES[:1], {}, r"got \(2, 2\) and \(2,\)"),
        (np.zeros((2, 3)), HALVES, {}, r"got \(2, 3\) and \(2, 2\): match them"),
        (np.array([[0.0, np.inf]] * 2), HALVES, {}, "cost must be finite"),
        (np.zeros((2, 2)), [[0.5, 0.5], [1.5, -0.5]], {}, r"marginals\[1\] must be non-negative.*least entry -0.5"),
        (np.zeros((2, 2)), [[0.5, 0.5001], [0.5, 0.5]], {}, r"marginals\[0\].*sum 1.0001: divide it by its sum"),
        (np.zeros((2, 2)), [[0.5, 0.5 + 1.2e-6], [0.5, 0.5]], {}, r"marginals\[0\].*sum 1.0000012: divide it"),
        (np.zeros((2, 2)), [[[0.5, 0.5]], [0.5, 0.5]], {}, r"marginals\[0\] must have 1 axes"),
        (np.zeros((2, 2)), HALVES, {"reg": 0.0}, "reg must be a finite number above 0, got 0.0"),
        (np.zeros((2, 2)), HALVES, {"tol": -1.0}, "tol must be a finite number above 0"),
        (np.zeros((2, 2)), HALVES, {"max_iter": 0}, "max_iter must be a whole number of at least 1, got 0"),
        (np.zeros((2, 2)), HALVES, {"solver": "newton"}, r"solver must be one of \['log', 'release'\], got 'newton'"),
    ],
)
def test_wrong_transport_input_is_named(cost, marginals, options, message):
    with pytest.raises(ValueError, match=message):
        ref.multimarginal_sinkhorn(cost, marginals, **{"reg": 1.0, **options})
    if not options:
        with pytest.raises(ValueError, match=message):
            ref.exact_transport(cost, marginals)
