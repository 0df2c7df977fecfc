"""surge: the optimal learning rate of Adam-style optimizers as a function of batch size."""
