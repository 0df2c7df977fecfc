"""Two CPU devices for every test, so that what is said of several devices is tested on several."""

import jax

jax.config.update("jax_num_cpu_devices", 2)
