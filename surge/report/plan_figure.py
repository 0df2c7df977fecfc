"""Steps against examples: what every batch size costs, and the run that a user has."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from surge.report import drawing
from surge.report.drawing import COLOR
from surge.report.formats import count


def trade(axes: Axes, plan: Any) -> None:
    """The hyperbola of a plan with the spread that its noise scale leaves, and the user's point."""
    drawing.log_axes(axes, "examples", "steps")
    axes.set_xscale("log", base=10)
    middle, low, high = (
        np.array([(one.examples, one.steps) for one in curve])
        for curve in zip(*plan.trades, strict=True)
    )
    for ends in (low, high):
        axes.plot(*ends.T, color=COLOR["law"], linewidth=0.8, linestyle="--")
    axes.plot(*middle.T, ".-", color=COLOR["law"], label="other batch sizes, to the same loss")
    for one, _, _ in plan.trades[::3]:
        axes.annotate(count(one.batch_size), (one.examples, one.steps), fontsize=9)
    own = plan.own
    label = f"your run, B = {count(own.batch_size)}"
    axes.plot(own.examples, own.steps, "o", color=COLOR["ink"], label=label)
