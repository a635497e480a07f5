"""The real pair: two exposures of one sky on different CCDs, each the other's reference."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from ops.bench.difference_figures import reach
from ops.bench.rows import Row
from stream.archive import ProductStore, StoreInputs
from stream.core.flags import Mask
from stream.core.records import Difference, ScienceImage
from stream.offline import process_image
from stream.reference import build_reference
from stream.subtract import subtract

REAL = ("20250116146979_000250_zg_c08_o_q3", "20250116147917_000249_zg_c05_o_q4")
CORE = 25  # px: as far from saturated pixels as the PSF's wings are fitted
BRIGHT = 20.0  # S/N of a star whose residual can reach 5 sigma


def real_rows(images: Path, plot: Path | None) -> Iterator[Row]:
    """Noise against prediction, and all that is left at 5 sigma, each way round."""
    paths = [images / f"ztf_{name}_sciimg.fits" for name in REAL]
    with tempfile.TemporaryDirectory() as empty:
        inputs = StoreInputs(ProductStore(empty))
        pair = [process_image(path, inputs).science for path in paths]
    for a, b in ((0, 1), (1, 0)):
        science, template = pair[a], pair[b]
        if science is None or template is None:
            raise SystemExit("the real images could not be measured")
        reference = build_reference([template])
        d = subtract(science, reference)
        name = f"real {REAL[a][:14]} - {REAL[b][:14]}"
        # The reference is on a zero point of its own: what the template's DN are in science DN takes both steps.
        scale = d.flux_scale * 10 ** (0.4 * (reference.magzp - template.zeropoint.magzp))
        predicted = float(np.hypot(science.background.sigma, scale * template.background.sigma))
        noise = noise_of(d)
        ratio = noise / predicted
        yield Row(f"{name}: noise over prediction", "0.90 to 1.10", f"{ratio:.3f}", abs(ratio - 1) < 0.1)
        for what, image in (("S_corr", d.scorr), ("D", d.data / np.float32(noise))):
            found = left_over(image, d, science)
            counts = Counter(kind for kind, _ in found)
            classes = ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items())) or "nothing"
            yield Row(f"{name}: {what} above 5 sigma", "none unexplained", classes, counts["unexplained"] == 0)
            for kind, line in found:
                yield Row(f"{name}: {what}, {kind}", "", line, None)
        if plot is not None and a == 0:
            picture(plot, science, d)


def noise_of(d: Difference) -> float:
    """Scatter of D, DN."""
    values = d.data[np.isfinite(d.data)]
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def left_over(score: np.ndarray, d: Difference, science: ScienceImage) -> list[tuple[str, str]]:
    """Every island above 5: its class, and place, value and what shows the class.

    ``score``: S_corr, which is scaled to the scatter around bright stars, or D over the sky's noise, which is not.
    """
    labels, _ = ndimage.label(np.abs(np.nan_to_num(score)) > 5, np.ones((3, 3)))
    saturated = (d.mask & np.uint16(Mask.SATURATED)) != 0
    core = ndimage.binary_dilation(saturated, iterations=CORE) if saturated.any() else saturated
    out = []
    for k, box in enumerate(ndimage.find_objects(labels), 1):
        inside = np.where(labels[box] == k, np.nan_to_num(score[box]), 0)
        j, i = np.unravel_index(np.abs(inside).argmax(), inside.shape)
        y, x = int(box[0].start + j), int(box[1].start + i)
        kind, why = explained(x, y, science, core)
        around = np.s_[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5]
        light = float(np.nanmax(d.reference[around])) if np.isfinite(d.reference[around]).any() else float("nan")
        out.append((kind, f"x {x} y {y} {inside[j, i]:+.1f}; {why}; reference up to {light:.0f} DN"))
    return out


def explained(x: int, y: int, science: ScienceImage, core: np.ndarray) -> tuple[str, str]:
    """Class of what is left at a pixel and the fact that puts it there."""
    ny, nx = science.data.shape
    sky = science.background
    for what, distance, line in (
        ("column", x, np.s_[:, 0]),
        ("column", nx - 1 - x, np.s_[:, nx - 1]),
        ("row", y, np.s_[0, :]),
        ("row", ny - 1 - y, np.s_[ny - 1, :]),
    ):
        step = float(np.nanmedian(science.data[line] - sky.level[line]))
        # An edge explains what lies on it only if it is wrong as a whole.
        if distance <= 2 and abs(step) > sky.sigma:
            return f"edge {what}", f"the whole {what} lies {step:+.0f} DN from its sky (noise {sky.sigma:.1f} DN)"
    if core[y, x]:
        return "saturated core", f"within {CORE} px of saturated pixels"
    s = science.sources
    distance = np.hypot(s["x"] - x, s["y"] - y)
    near = (distance < reach(s["flux"])) & (s["snr"] > BRIGHT)
    if near.any():
        k = int(np.flatnonzero(near)[np.argmax(s["snr"][near])])
        return "star residual", f"{distance[k]:.1f} px from a star of S/N {float(s['snr'][k]):.0f}"
    return "unexplained", "nothing known is there"


def picture(plot: Path, science: ScienceImage, d: Difference) -> None:
    """Science, template, difference and S_corr side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(16, 4.4), constrained_layout=True)
    s = science.background.sigma
    for ax, (title, image, low, high) in zip(
        axes,
        (
            ("science", science.data - science.background.level, -3 * s, 20 * s),
            ("template on its grid", d.reference, -3 * s, 20 * s),
            ("difference", d.data, -5 * s, 5 * s),
            ("S_corr", d.scorr, -5, 5),
        ),
        strict=True,
    ):
        ax.imshow(image, origin="lower", vmin=low, vmax=high, cmap="gray", interpolation="nearest")
        ax.set_title(title)
    plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(plot, dpi=80)
    plt.close(figure)
