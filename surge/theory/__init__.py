"""Pure mathematics of the laws: arrays in, arrays out; never a model, a file or a config."""
