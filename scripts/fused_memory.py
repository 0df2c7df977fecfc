"""Peak memory of one training step of a GPT: AdamW, AdaLomo, and AdaLomo fused into backward.

    python scripts/fused_memory.py            # compiles only, about a minute; nothing is trained

From the compiler's own account of each program (`memory_analysis`): arguments, of which donated
ones are overwritten, and temporaries. Windows are short and few, so that gradients and not
activations are what is compared.
"""

import jax
import jax.numpy as jnp
from absl import app, flags

from surge.cli import parsed
from surge.optimizers import make_optimizer
from surge.tasks.gpt import GPT, SIZES, Size
from surge.tasks.gpt_stack import parts, split
from surge.training.fused import Parts, Stack, fused_step, init_state, plain_step

LENGTH, WINDOWS = 64, 1
SHAPES = {
    "0.8 M": SIZES["small"],
    "25 M": Size(8_192, 1_024, 512, 6, 8),
    "82 M": SIZES["distilgpt2"],
    "124 M": SIZES["gpt2"],
}
STEPS = {
    "adamw": ("adamw", plain_step),
    "adalomo": ("adalomo", plain_step),
    "adalomo, fused": ("adalomo", fused_step),
}


def needed(size: Size, name: str) -> tuple[int, int]:
    """Bytes of arguments (parameters, state) and of temporaries of one step."""
    spec, make = STEPS[name]
    transform = make_optimizer(spec)(1e-3, WINDOWS, None)
    tokens = jnp.zeros(LENGTH, jnp.int32)

    def begin(key: jax.Array) -> Parts:
        return Parts(*split(GPT(size).init(key, tokens), size.depth))

    params = jax.eval_shape(begin, jax.random.key(0))
    state = jax.eval_shape(lambda params: init_state(transform, params), params)
    windows = jax.ShapeDtypeStruct((WINDOWS, LENGTH + 1), jnp.int32)
    step = jax.jit(make(Stack(*parts(size)), transform), donate_argnums=(0, 1))
    memory = step.lower(params, state, windows).compile().memory_analysis()
    assert memory is not None
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def main(_: list[str]) -> None:
    print("| GPT | step | parameters and state, MiB | temporaries, MiB | together | of AdamW |")
    print("|---|---|---|---|---|---|")
    for label in _SIZES.value or SHAPES:
        whole = {}
        for name in STEPS:
            held, temporary = needed(SHAPES[label], name)
            whole[name] = held + temporary
            share = whole[name] / whole["adamw"]
            sizes = " | ".join(f"{size / 2**20:.1f}" for size in (held, temporary, whole[name]))
            print(f"| {label} | {name} | {sizes} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    _SIZES = flags.DEFINE_list("sizes", [], "names of sizes; empty for all")
    app.run(main, flags_parser=parsed)
