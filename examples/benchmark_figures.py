"""Pictures of the benchmark of heads: time and memory against the number of classes, on log axes."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which remain apart for every kind of colour vision; each line has a marker of its own, too.
# Where there are more lines than colours, theirs are dashed with hollow markers, so that what lies below shows.
COLOURS = "#000000", "#E69F00", "#56B4E9", "#009E73", "#888888", "#0072B2", "#D55E00", "#CC79A7"
MARKERS = "o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h"

Line = dict[int, float]


def sweep(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of the batch size and dimension that most numbers of classes were measured for, in their order."""
    of_size: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for result in results:
        of_size.setdefault(tuple(result["shape"][:2]), []).append(result)
    return sorted(max(of_size.values(), key=len), key=lambda result: result["shape"][2])


def draw_times(path: Path, results: list[dict[str, Any]]) -> None:
    def seconds(result, name):
        return statistics.median(result["seconds"][name])

    names = list(results[0]["seconds"])
    _draw(path, sweep(results), names, seconds, "seconds", "Loss and both gradients: time")


def draw_memory(path: Path, results: list[dict[str, Any]]) -> None:
    def mebibytes(result, name):
        return result["temporary_bytes"][name] / 2**20

    names = [name for name, size in results[0]["temporary_bytes"].items() if size is not None]
    _draw(
        path,
        sweep(results),
        names,
        mebibytes,
        "MiB besides arguments and results",
        "Loss and both gradients: temporaries",
    )


def _draw(path, results, names, value, unit, title):
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    highest = 0.0
    everyone = list(results[0]["seconds"])  # so that a name looks the same in both pictures
    for name in names:
        i = everyone.index(name)
        line = {r["shape"][2]: value(r, name) for r in results if name in r["seconds"]}
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        if i >= len(COLOURS):
            look |= {"linestyle": "--", "markerfacecolor": "white", "markersize": 8, "zorder": 3}
        axes.plot(list(line), list(line.values()), label=name, **{"markersize": 5, "linewidth": 1.5} | look)
        highest = max(highest, *line.values())
    absent = [(r["shape"][2], name) for r in results for name in names if "does not fit" in r["why_not"].get(name, "")]
    for i, (classes, name) in enumerate(absent):
        axes.annotate(f"{name}: does not fit", (classes, highest * 1.6**i), ha="right", fontsize=7, color="#D55E00")
    batch, dim, _ = results[0]["shape"]
    axes.set(xscale="log", yscale="log", xlabel="classes C", ylabel=unit, title=f"{title} (B = {batch}, D = {dim})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)
