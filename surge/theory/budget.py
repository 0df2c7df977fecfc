"""Steps S(B) and examples E(B) to a target loss, each batch size at its best rate.

Source: McCandlish et al., arXiv 1812.06162. Every function broadcasts over `batch_size`.
"""

from typing import Any


def gain(batch_size: Any, max_gain: Any, b_noise: Any) -> Any:
    """ΔL(B) = ΔL_max / (1 + B_noise/B), the fall of the loss in one step at the best rate.

    B_noise is finite. Of SGD at every B (equation 2.7), of sign descent while B is far below
    `derivations.validity` (Li et al., arXiv 2405.14578).
    """
    return max_gain / (1 + b_noise / batch_size)


def steps_to_target(batch_size: Any, s_min: Any, b_noise: Any) -> Any:
    """S(B) = S_min (1 + B_noise/B), at the best rate of each B (equation 2.11)."""
    return s_min * (1 + b_noise / batch_size)


def examples_to_target(batch_size: Any, e_min: Any, b_noise: Any) -> Any:
    """E(B) = E_min (1 + B/B_noise), with E_min = S_min B_noise.

    So that (S/S_min − 1)(E/E_min − 1) = 1.
    """
    return e_min * (1 + batch_size / b_noise)


def critical_batch_size(b_noise: Any, overhead: Any = 0.2) -> Any:
    """Largest B whose examples exceed E_min by at most `overhead`: overhead·B_noise.

    Zhang et al., arXiv 2410.21676, take 20%.
    """
    return overhead * b_noise
