"""CLARS: LARS by the norms of single gradients instead of their mean's (arXiv 2002.01576).

    s_l = η |θ_l| / mean_n |g_n,l|        m = β m + s_l (G_l + λ θ_l)        u = m

The norm does not depend on the batch size, so that the optimal rate has the form of SGD's. The mean
is of norms, not the norm of the mean and not a root mean square. With `norm_batch` = 1 the g_n are
gradients of single examples, as in the paper; with 8 of mini-batches of 8, as in its authors' code
(which also caps s_l at 0.1; that is left out, and so is its η of LARS at the first step). The
placement of the momentum and of λ is our reading. Layers, and what is no layer: see `lars`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from surge.optimizers.lars import layerwise, scaled_layers
from surge.optimizers.rule import Rule, Stationary, entry
from surge.optimizers.step import ExampleMoments, needed


def scale_by_clars(
    trust: Any = 1e-2, decay: Any = 0.9, l2: Any = 0.0
) -> optax.GradientTransformationExtraArgs:
    """CLARS's direction u, with the mean norms that `moments.norm` holds; see `scale_by_lars`."""

    def init(params: Any) -> optax.TraceState:
        return optax.TraceState(optax.tree.zeros_like(params))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        moments: ExampleMoments | None = None,
        **others: Any,
    ) -> tuple[Any, optax.TraceState]:
        del others
        sizes = needed(moments, "moments", "clars").norm
        scaled = scaled_layers(updates, params, sizes, trust, l2)
        trace = jax.tree.map(lambda old, new: decay * old + new, state.trace, scaled)
        return trace, optax.TraceState(trace)

    return optax.GradientTransformationExtraArgs(init, update)


@entry
def clars(trust: float = 1e-2, decay: float = 0.9, l2: float = 0.0, norm_batch: int = 1) -> Rule:
    """CLARS of the paper; norm_batch=8 is its code's."""

    def sizes(at: Stationary) -> Any:
        """√E|g|², a little above E|g|: by 1/4P for Gaussian noise in P coordinates."""
        mean = at._replace(batch_size=at.batch_size / norm_batch).example_second()
        return jax.tree.map(lambda second: jnp.sqrt(second.sum()), mean)

    transform = scale_by_clars(trust, decay, l2)
    rule = layerwise(transform, sizes, trust, decay, l2, needs=("moments",))
    return rule._replace(norm_batch=norm_batch)
