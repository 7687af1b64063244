"""Training of adapters: the engine, its seats, their optimizers, states and bundles."""
