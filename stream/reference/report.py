"""A page about one reference for a person: what it looks like, how deep and sharp it is, what it is made of.

One HTML file with its pictures inside, so that it can be mailed, kept beside the image, and opened anywhere.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stream.core.identity import FILTER_CODES
from stream.core.records import F32, Reference, Row
from stream.reference.check import Residuals
from stream.reference.select import epochs_of_table, expected_depth

_SIDE = 500  # px of the pictures of the image
_PLACES = 5  # of the PSF, each way

_FIGURES = (
    ("nframes", "inputs", ""), ("exptime", "exposure", "s"), ("maglim", "5-sigma limit at the centre", "mag"),
    ("fwhm", "FWHM", "px"), ("fwhmminpix", "FWHM of the inputs, least", "px"), ("fwhmmedpix", "median", "px"),
    ("fwhmmaxpix", "largest", "px"), ("medncov", "median coverage", ""), ("cov5percent", "coverage of 5", "%"),
    ("npixsat", "saturated pixels", ""), ("npixnan", "pixels without a value", ""), ("rejected", "clipped share", ""),
    ("clmean", "clipped mean", "DN"), ("clstddev", "clipped standard deviation", "DN"), ("gmedian", "median", "DN"),
    ("datascale", "half of p84 - p16", "DN"), ("gmin", "minimum", "DN"), ("gmax", "maximum", "DN"),
    ("medpixunc", "median uncertainty", "DN"), ("noise_factor", "r.m.s. per pixel over uncertainty", ""),
    ("nsources", "sources", ""), ("gaia_n", "stars on Gaia", ""), ("gaia_east", "median offset east", "mas"),
    ("gaia_north", "north", "mas"), ("gaia_rms_east", "scatter east", "mas"), ("gaia_rms_north", "north", "mas"),
    ("ps1_n", "PS1 calibrators", ""), ("ps1_offset", "zero point less PS1's", "mag"), ("ps1_rms", "scatter", "mag"),
    ("ps1_clrcoeff", "colour coefficient", ""),
)  # fmt: skip


def report_page(reference: Reference, residuals: Residuals) -> str:
    """The page, HTML.

    Parameters
    ----------
    reference : Reference
        Its ``qa["epochs"]``, where there is one, is the table of exposures.
    residuals : Residuals
        As ``catalog_residuals`` gives them.
    """
    r = reference
    title = f"Reference of field {r.field}, {FILTER_CODES[r.fid]}, rcid {r.rcid}"
    epochs = list(r.qa.get("epochs") or [])
    pictures = [
        _picture(_draw_images(r), "The image, its coverage (inputs a pixel) and its uncertainty (DN)"),
        _picture(_draw_psf(r), "The PSF over the field: FWHM of the model, and the model at nine places"),
        _picture(_draw_depth(r, epochs), "Depth with the number of exposures, seeing and depth of what was looked at"),
        _picture(_draw_residuals(residuals), "Places on Gaia, fluxes on Pan-STARRS1"),
    ]
    lines = [
        "<!DOCTYPE html><html lang=en><meta charset=utf-8>", f"<title>{title}</title>", f"<style>{_STYLE}</style>",
        f"<h1>{title}</h1>",
        f"<p>Version <b>{html.escape(r.version)}</b>, rfid {r.rfid}, {r.n_frames} exposures of "
        f"JD {r.jd_start:.3f} to {r.jd_end:.3f}, zero point {r.magzp:.3f}, made by "
        f"{html.escape(str(r.qa.get('software', '')))}.</p>",
        *pictures, "<h2>Figures</h2>", _figures_table(r.qa), "<h2>Exposures</h2>", _epochs_table(epochs, r), "</html>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


_STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:1100px}table{border-collapse:collapse}"
    "td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:left}tr.out{color:#999}tr.relaxed{color:#a60}"
    "img{max-width:100%}figcaption{color:#555}figure{margin:1em 0}"
)


def _picture(figure: Figure, caption: str) -> str:
    data = io.BytesIO()
    figure.savefig(data, dpi=90, format="png", metadata={"Software": None})
    code = base64.b64encode(data.getvalue()).decode("ascii")
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{code}"><figcaption>{caption}</figcaption></figure>'
    )


def _figures_table(qa: Row) -> str:
    cells = [f"<tr><td>{label}<td>{_number(qa.get(name))} {unit}" for name, label, unit in _FIGURES]
    return f"<table>{''.join(cells)}</table>"


def _number(value: object) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else html.escape(str(value))


def _epochs_table(epochs: Sequence[Row], reference: Reference) -> str:
    if not epochs:
        return f"<p>{html.escape(', '.join(reference.inputs))}</p>"
    rows = []
    for e in epochs:
        style = "" if e["chosen"] and not e["relaxed"] else " class=relaxed" if e["chosen"] else " class=out"
        verdict = "chosen though it breaks a rule" if e["relaxed"] else str(e["verdict"])
        numbers = "".join(f"<td>{_number(e[name])}" for name in ("exptime", "seeing", "maglim", "magzp", "infobits"))
        rows.append(f"<tr{style}><td>{html.escape(str(e['name']))}{numbers}<td>{html.escape(verdict)}")
    head = "<tr><th>exposure<th>s<th>seeing [arcsec]<th>MAGLIM<th>MAGZP<th>INFOBITS<th>verdict"
    return f"<table>{head}{''.join(rows)}</table>"


def _axes(n: int, width: float = 3.8, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * n, height))
    figure.subplots_adjust(left=0.06, right=0.97, bottom=0.14, top=0.9, wspace=0.32)
    return figure, [figure.add_subplot(1, n, k + 1) for k in range(n)]


def _small(image: NDArray[np.generic], side: int = _SIDE) -> F32:
    """Every k-th pixel of an image: at most ``side`` a side."""
    k = max(1, -(-max(image.shape) // side))
    return np.asarray(image[::k, ::k], np.float32)


def _draw_images(r: Reference) -> Figure:
    figure, axes = _axes(3)
    noise = float(np.nanmedian(r.unc)) if np.isfinite(r.unc).any() else 1.0
    extent = (-0.5, r.data.shape[1] - 0.5, -0.5, r.data.shape[0] - 0.5)
    for ax, image, limits, name in (
        (axes[0], _small(np.arcsinh(r.data / (3 * noise))), (-1.0, 4.0), "image, asinh"),
        (axes[1], _small(r.coverage), (0.0, float(max(r.n_frames, 1))), "coverage"),
        (axes[2], _small(r.unc), (0.8 * noise, 1.6 * noise), "uncertainty"),
    ):
        shown = ax.imshow(image, origin="lower", extent=extent, vmin=limits[0], vmax=limits[1],
                          cmap="gray" if ax is axes[0] else "viridis", interpolation="nearest")  # fmt: skip
        ax.set_title(name)
        figure.colorbar(shown, ax=ax, shrink=0.8)
    return figure


def _draw_psf(r: Reference) -> Figure:
    figure, axes = _axes(2)
    ny, nx = r.psf.shape
    gx, gy = np.meshgrid(np.linspace(0, nx - 1, _PLACES), np.linspace(0, ny - 1, _PLACES))
    widths = np.asarray(r.psf.widths(gx.ravel(), gy.ravel())).reshape(gx.shape)
    shown = axes[0].imshow(widths, origin="lower", extent=(0, nx, 0, ny), interpolation="bilinear")
    figure.colorbar(shown, ax=axes[0], shrink=0.8)
    axes[0].set_title("FWHM [px]")
    px, py = np.meshgrid((np.arange(3) + 0.5) / 3 * nx, (2.5 - np.arange(3)) / 3 * ny)
    stamps = r.psf.stamps(px.ravel(), py.ravel(), 15)
    mosaic = np.concatenate([np.concatenate(list(stamps[3 * k : 3 * k + 3]), axis=1) for k in range(3)], axis=0)
    axes[1].imshow(np.arcsinh(mosaic / (0.01 * mosaic.max())), cmap="magma", interpolation="nearest")
    axes[1].set_title("PSF, asinh")
    axes[1].set_axis_off()
    return figure


def _draw_depth(r: Reference, epochs: Sequence[Row]) -> Figure:
    figure, axes = _axes(2, 5.5)
    chosen = sorted(epochs_of_table(epochs), key=lambda e: -e.maglim if np.isfinite(e.maglim) else np.inf)
    if chosen:
        depth = [expected_depth(chosen[: k + 1]) for k in range(len(chosen))]
        axes[0].plot(np.arange(1, len(depth) + 1), depth, ".-", label="expected of the inputs, deepest first")
    measured = r.qa.get("maglim")
    if measured is not None and measured == measured:
        axes[0].plot([r.n_frames], [measured], "r*", ms=12, label="of the reference")
    axes[0].set(xlabel="exposures", ylabel="5-sigma limit [mag]")
    if axes[0].has_data():
        axes[0].legend()
    for used, look in ((True, "go"), (False, "x")):
        rows = [e for e in epochs if bool(e["chosen"]) is used and e["seeing"] is not None and e["maglim"] is not None]
        axes[1].plot([e["seeing"] for e in rows], [e["maglim"] for e in rows], look, label="used" if used else "not")
    axes[1].set(xlabel="seeing [arcsec]", ylabel="MAGLIM")
    axes[1].legend()
    return figure


def _draw_residuals(residuals: Residuals) -> Figure:
    figure, axes = _axes(3)
    axes[0].plot(1000 * residuals.east, 1000 * residuals.north, ".", ms=2, alpha=0.5)
    axes[0].axhline(0, lw=0.5)
    axes[0].axvline(0, lw=0.5)
    axes[0].set(xlim=(-150, 150), ylim=(-150, 150), title="Gaia: east, north [mas]")
    axes[1].quiver(*_arrows(residuals), angles="xy", scale_units="xy", scale=0.05, width=0.004)
    axes[1].set_title("mean offset (arrows 20 px a mas)")
    axes[2].plot(residuals.magnitude, residuals.difference, ".", ms=2, alpha=0.5)
    axes[2].axhline(0, lw=0.5)
    axes[2].set(ylim=(-0.15, 0.15), xlabel="PS1 [mag]", title="reference less PS1 [mag]")
    return figure


def _arrows(residuals: Residuals, cells: int = 6) -> tuple[NDArray[np.float64], ...]:
    """Median offsets (mas) in cells of the field, and where."""
    found = []
    if len(residuals.x):
        span_x, span_y = float(residuals.x.max()) + 1, float(residuals.y.max()) + 1
        i, j = (residuals.x / span_x * cells).astype(int), (residuals.y / span_y * cells).astype(int)
        for k in np.unique(i + cells * j).tolist():
            some = i + cells * j == k
            if some.sum() >= 5:
                # East is towards smaller x, north towards smaller y.
                offset = -1000 * np.median(residuals.east[some]), -1000 * np.median(residuals.north[some])
                found.append(((k % cells + 0.5) / cells * span_x, (k // cells + 0.5) / cells * span_y, *offset))
    table = np.array(found, float).reshape(-1, 4)
    return tuple(table.T)
