"""Losses and gradients of PyTorch Metric Learning in float64, which tests/test_parity.py holds the package against.

Write tests/reference/pytorch_metric_learning.npz, beside this script:

    pip install torch pytorch-metric-learning && python tests/reference/pytorch_metric_learning.py

Compute everything anew and compare with that file, exit status 1 where they differ:

    python tests/reference/pytorch_metric_learning.py --check

Everything is stored in the package's layout: class weights `[C, D]` or `[C, K, D]`, which the library holds as `[D, C]`
and `[D, C K]`, the K sub-centres of a class side by side. Each case has its inputs, `losses`, and `features_bar` and
`weights_bar`, the gradients of `sum(cotangent losses)`.
"""

import argparse
import pathlib
import platform
import sys

# This script has the library's name, and its folder comes first in the search: it would import itself.
sys.path.pop(0)

import numpy as np
import pytorch_metric_learning
import torch
from pytorch_metric_learning import losses, reducers

STORED = pathlib.Path(__file__).with_suffix(".npz")
SEEDS = {"inputs": 0, "sub_centres": 1}
B, D, C, K = 8, 5, 11, 3
ANGLES = np.array([0.1, 0.4, 0.8, 1.2, 1.7, 2.3, 2.8, 3.0])
"""From the own class's row; none within 0.01 of a multiple of pi / 2, pi / 3 or pi / 4, where k of L-Softmax jumps."""
COTANGENT = np.array([1.0, -0.5, 2.0, 0.25, 3.0, -1.0, 0.75, 1.5])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def inputs():
    """Features at `ANGLES` from their class, class rows and sub-centres, the first of which is the row; labels."""
    random = np.random.default_rng(SEEDS["inputs"])
    weights, labels = random.normal(size=(C, D)), random.integers(0, C, B)
    labels[1] = labels[0]
    own = unit(weights)[labels]
    across = random.normal(size=(B, D))
    across = unit(across - np.sum(across * own, axis=1, keepdims=True) * own)
    features = np.cos(ANGLES)[:, None] * own + np.sin(ANGLES)[:, None] * across
    features *= random.uniform(0.5, 3.0, size=(B, 1))
    more = np.random.default_rng(SEEDS["sub_centres"]).normal(size=(C, K - 1, D))
    return features, weights, np.concatenate([weights[:, None], more], axis=1), labels


def reference(loss, features, weights, labels):
    """One case, through a library's loss whose class weights are replaced."""
    x = torch.tensor(features, requires_grad=True)
    loss.W = torch.nn.Parameter(torch.tensor(weights.reshape(-1, D).T.copy()))
    cotangent = COTANGENT[: len(features)]
    if isinstance(loss, losses.ArcFaceLoss):
        # Past theta + m = pi its logit is another one, by design: its losses are kept, and add to no gradient.
        cosines = np.einsum("bd,bkd->bk", unit(features), unit(weights.reshape(len(weights), -1, D)[labels]))
        cotangent = np.where(np.arccos(cosines.max(axis=1)) + loss.margin <= np.pi, cotangent, 0.0)
    values = loss(x, torch.tensor(labels))["loss"]["losses"]
    x_bar, w_bar = torch.autograd.grad(values, (x, loss.W), torch.tensor(cotangent))
    return {
        "features": features,
        "weights": weights,
        "labels": labels.astype(np.int32),
        "cotangent": cotangent,
        "losses": values.detach().numpy(),
        "features_bar": x_bar.numpy(),
        "weights_bar": w_bar.numpy().T.reshape(weights.shape),
    }


def p2sgrad(features, weights, labels):
    """P2SGrad, a mean over examples and classes, with the unit rows that the library then holds."""
    x = torch.tensor(features, requires_grad=True)
    loss = losses.P2SGradLoss(D, C, reducer=reducers.DoNothingReducer())
    # torch.renorm divides by the length + 1e-7; rows this long come out of it as long as rounding lets them be.
    loss.weight = torch.nn.Parameter(torch.tensor(1e10 * weights.T))
    value = loss(x, torch.tensor(labels))["loss"]["losses"]
    x_bar, w_bar = torch.autograd.grad(value, (x, loss.weight))
    return {
        "features": features,
        "weights": loss.weight.detach().numpy().T.copy(),
        "labels": labels.astype(np.int32),
        "losses": value.detach().numpy(),
        "features_bar": x_bar.numpy(),
        "weights_bar": w_bar.numpy().T,
    }


def cases():
    features, weights, centres, labels = inputs()
    sizes = {"num_classes": C, "embedding_size": D, "reducer": reducers.DoNothingReducer()}
    of_rows = {
        "l_softmax_2": losses.LargeMarginSoftmaxLoss(margin=2, scale=1, **sizes),
        "l_softmax_3": losses.LargeMarginSoftmaxLoss(margin=3, scale=1, **sizes),
        "l_softmax_4": losses.LargeMarginSoftmaxLoss(margin=4, scale=1, **sizes),
        "sphereface_2": losses.SphereFaceLoss(margin=2, scale=1, **sizes),
        "sphereface_4": losses.SphereFaceLoss(margin=4, scale=1, **sizes),
        "arcface": losses.ArcFaceLoss(margin=28.6, scale=64, **sizes),
        "arcface_60": losses.ArcFaceLoss(margin=60, scale=30, **sizes),
        "cosface": losses.CosFaceLoss(margin=0.35, scale=64, **sizes),
        "normalized_softmax": losses.NormalizedSoftmaxLoss(temperature=0.05, **sizes),
    }
    result = {name: reference(loss, features, weights, labels) for name, loss in of_rows.items()}
    sub_centre = losses.SubCenterArcFaceLoss(margin=28.6, scale=64, sub_centers=K, **sizes)
    result["sub_centre_arcface"] = reference(sub_centre, features, centres, labels)
    at_zero = losses.ArcFaceLoss(margin=28.6, scale=64, **sizes | {"num_classes": D})
    result["arcface_at_angle_0"] = reference(at_zero, 2.0 * np.eye(1, D), np.eye(D), np.array([0]))
    result["p2sgrad"] = p2sgrad(features, weights, labels)
    return {f"{name}/{field}": array for name, case in result.items() for field, array in case.items()}


def differs(live, stored):
    """Whether they differ by more than 1e-12 of the largest number: smaller ones are differences of larger ones."""
    if live.shape != stored.shape or live.dtype != stored.dtype:
        return True
    largest = np.max(np.abs(stored), where=np.isfinite(stored), initial=0.0)
    return not np.allclose(live, stored, rtol=1e-12, atol=1e-12 * largest, equal_nan=True)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the stored file, write nothing")
    check = parser.parse_args().check
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "pytorch-metric-learning": pytorch_metric_learning.__version__,
    }
    about = {
        "versions": np.array([f"{name} {version}" for name, version in versions.items()]),
        "seeds": np.array([f"{name} {seed}" for name, seed in SEEDS.items()]),
    }
    print(*about["versions"], *about["seeds"], sep="\n")
    arrays = cases()
    if not check:
        np.savez_compressed(STORED, **about, **arrays)
        print(f"{STORED.name}: {len(arrays)} arrays, {STORED.stat().st_size} bytes")
        return 0
    with np.load(STORED) as file:
        stored = {name: file[name] for name in file.files}
    print("stored with:", *stored.pop("versions"), *stored.pop("seeds"), sep="\n")
    unlike = sorted(arrays.keys() ^ stored.keys())
    unlike += [name for name in arrays.keys() & stored.keys() if differs(arrays[name], stored[name])]
    print(*(f"differs: {name}" for name in unlike), f"{len(unlike)} of {len(arrays)} arrays differ", sep="\n")
    return int(bool(unlike))


if __name__ == "__main__":
    sys.exit(main())
