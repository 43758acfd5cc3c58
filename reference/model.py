"""DecAlign without dropout, from its parameters: encode, decouple, align, fuse, predict (paper: framework).

Lives here: the forward pass. Each sample is cut to its valid steps and taken alone, so nothing is padded or masked;
only the alignment losses look at the batch.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from . import _checks as check
from .decoupling import decoupling_loss
from .fusion import linear, part, perceptron, transformer
from .losses import HeteroLoss, HomoLoss, hetero_loss, homo_loss

ACTIVATIONS = {"none": lambda x: x, "relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}


class AlignmentTerms(NamedTuple):
    """The alignment losses of a batch; hetero and homo are None with a single modality."""
    decoupling: float
    hetero: float | None
    homo: float | None
    hetero_parts: HeteroLoss | None
    homo_parts: HomoLoss | None


def valid_steps(x: np.ndarray, length: int | None) -> np.ndarray:
    """The first `length` steps of x (T, D); for None, those up to the last that is not all zero. At least one."""
    kept = 1 + np.flatnonzero(x.any(axis=1)).max(initial=0) if length is None else int(length)
    return x[: max(kept, 1)]


def encode(x: np.ndarray, standardise: Mapping, project: Mapping, activation: str) -> np.ndarray:
    """Temporal convolution of a standardised sample: x (T, D) to (T - kernel + 1, d), at least one step.

    act(sum over i of W[:, :, i] z_(t+i)), z = (clip(x, low, high) - mean) / std, with zeros after a sequence shorter
    than the kernel. Where the model has no convolution: z.
    """
    z = (np.clip(x, standardise["low"], standardise["high"]) - standardise["mean"]) / standardise["std"]
    if not project:
        return z
    kernel = project["weight"].shape[2]  # of (d, D, kernel)
    n_steps = max(len(z) - kernel + 1, 1)
    z = np.pad(z, ((0, kernel - 1), (0, 0)))  # the windows reach them only if z is shorter
    return ACTIVATIONS[activation](sum(z[i : i + n_steps] @ project["weight"][:, :, i].T for i in range(kernel)))


def one_sample(p: Mapping, settings: Mapping, x: Mapping[str, np.ndarray]) -> tuple[dict, dict, dict]:
    """S_m and C_m, (T_m, d) each, and h_m (d,) of each modality m, from the sample's valid steps x_m (T, D_m).

    S_m = E_m(encode(x_m)) and C_m = E(encode(x_m)); h_m is the mean over steps of the transformer of S_m over the other
    modalities' S one after another (over itself where there are none, or without cross-modal attention).
    """
    unique, common, h = {}, {}, {}
    for m in x:
        standardise, project = part(p, f"standardise.{m}"), part(p, f"project.{m}")
        encoded = encode(x[m], standardise, project, settings["projection_activation"])
        unique[m], common[m] = linear(encoded, part(p, f"unique.{m}")), linear(encoded, part(p, "common"))
    for m in x:
        others = [unique[o] for o in x if o != m and settings["use_cross_modal_attention"]]
        context = np.concatenate(others) if others else None
        h[m] = transformer(unique[m], context, part(p, f"fuse.{m}"), settings).mean(axis=0)
    return unique, common, h


def decalign(
    p: Mapping, settings: Mapping, text, audio, vision, *, lengths: Mapping | None = None, training: bool = True
) -> dict[str, Any]:
    """Prediction M = head([h_text, h_audio, h_vision, c_text, c_audio, c_vision]), (N, outputs), and alignment terms.

    x_m and c_m are the means over steps of S_m and C_m. L_dec: mean over samples of decoupling_loss(S, C);
    L_hetero: hetero_loss of the x_m; L_homo: homo_loss of z_m = PDE_m(c_m).

    p: arrays by the names of the model's state dict. settings: values by the names of its settings.
    text, audio, vision: (N, T_m, D_m), text encoded; may be None where settings["modalities"] leaves them out.
    lengths: numbers of valid steps (N,) by modality. For a modality that it lacks, zero steps at the end are not valid;
        with settings["use_sequence_mask"] off all steps are.
    Returns M; Feature_t, Feature_a, Feature_v: the h_m; Feature_f: what the head sees; if training, terms: an
    AlignmentTerms. Raises ValueError for a wrong shape or a missing modality.
    """
    samples, names = [], settings["modalities"]  # of each sample, a dictionary of its valid steps by modality
    for m in names:
        x = check.finite(m, {"text": text, "audio": audio, "vision": vision}[m], ndim=3)
        steps = (lengths or {}).get(m, [None] * len(x)) if settings["use_sequence_mask"] else [x.shape[1]] * len(x)
        samples = samples or [{} for _ in x]
        for sample, x_n, length in zip(samples, x, steps, strict=True):
            sample[m] = valid_steps(x_n, length)
    unique, common, h = zip(*[one_sample(p, settings, sample) for sample in samples], strict=True)
    x, c = ({m: np.stack([s[m].mean(axis=0) for s in features]) for m in names} for features in (unique, common))
    h = {m: np.stack([h_n[m] for h_n in h]) for m in names}
    seen, head = np.concatenate([*h.values(), *c.values()], axis=1), part(p, "head")
    prediction = linear(seen, head) if "weight" in head else perceptron(seen, part(head, "0"), part(head, "2"))
    found = {"M": prediction, "Feature_f": seen, **{f"Feature_{m[0]}": h[m] for m in names}}
    if not training:
        return found
    z = [perceptron(c[m], part(p, f"distribution.{m}.0"), part(p, f"distribution.{m}.3")) for m in names]
    pairs = [([s[m][None] for m in names], [t[m][None] for m in names]) for s, t in zip(unique, common, strict=True)]
    decoupling = float(np.mean([decoupling_loss(s, t, power=settings["decoupling_power"]) for s, t in pairs]))
    if len(z) < 2:
        return found | {"terms": AlignmentTerms(decoupling, None, None, None, None)}
    hetero = hetero_loss(
        [*x.values()], n_components=settings["num_prototypes"], n_iter=settings["gmm_em_iters"],
        var_floor=settings["gmm_var_floor"], covariance=settings["gmm_covariance"],
        reduction=settings["cost_reduction"], mahalanobis=settings["prototype_mahalanobis"],
        reg=settings["ot_reg"], solver=settings["ot_solver"], tol=settings["ot_tol"], max_iter=settings["ot_max_iter"],
    )  # fmt: skip
    homo = homo_loss(z, bandwidth=settings["mmd_bandwidth"])
    return found | {"terms": AlignmentTerms(decoupling, hetero.value, homo.value, hetero, homo)}
