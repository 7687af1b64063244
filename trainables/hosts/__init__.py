"""Host process: the loop, the broker's orders and the saved checkpoints."""
