"""The page of one run, for people: verdict first, then whom it hit, a chart, what the checkers found. Judges nothing.

It is one file that needs no network. Drawn with matplotlib and jinja2, which are the `chaos` extra.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from chaos.catalogue import Group
from chaos.containment import Series

_TEMPLATES: Final = Path(__file__).parent / "templates"
_COLOURS: Final = {Group.TARGET: "#d1495b", Group.CELL: "#d98e04", Group.OTHERS: "#2f7fb8"}
_INK: Final = {"light": "#333333", "dark": "#cccccc"}


def render(found: Mapping[str, Any], series: Sequence[Series]) -> str:
    """Give the whole page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    charts = {theme: _as_uri(chart(found, series, ink)) for theme, ink in _INK.items()}
    return environment.get_template("report.html").render(found=found, charts=charts)


def chart(found: Mapping[str, Any], series: Sequence[Series], ink: str) -> bytes:
    """Draw errors and p99 over time for each group, the fault marked, as SVG."""
    happened = found["happened"]
    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": ink,
            "font.family": "sans-serif",
            "font.size": 10,
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), ink),
        }
    ):
        figure = Figure(figsize=(10, 4.8), layout="constrained")
        latencies, errors = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for axes in (latencies, errors):
            axes.patch.set_alpha(0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(visible=True, alpha=0.2)
            if happened["struck_s"] is not None:
                until_s = happened["calm_s"] or happened["end_s"]
                axes.axvspan(happened["struck_s"], until_s, color="#d1495b", alpha=0.10, lw=0)
                axes.axvline(happened["struck_s"], color="#d1495b", lw=1.2, ls="--")
        for one in series:
            colour = _COLOURS[one.group]
            told = [(at_s, p99_ms) for at_s, p99_ms in zip(one.at_s, one.p99_ms, strict=True) if p99_ms is not None]
            latencies.plot([at_s for at_s, _ in told], [p99 for _, p99 in told], color=colour, label=one.group, lw=1.6)
            errors.step(one.at_s, one.errors, where="post", color=colour, lw=1.6)
        latencies.set_yscale("log")
        for set_formatter in (latencies.yaxis.set_major_formatter, latencies.yaxis.set_minor_formatter):
            set_formatter(LogFormatter(minor_thresholds=(2, 0.8)))  # 20, not 2 x 10^1
        latencies.set_ylabel("p99, ms")
        if series:
            latencies.legend(loc="upper right", frameon=False, ncols=3)
        errors.set_ylabel("errors a second")
        errors.set_xlabel("seconds since the load began; shaded: from the fault until all was as ever")
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": "bulkhead chaos"})
    return out.getvalue()


def _as_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
