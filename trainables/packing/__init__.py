"""Many adapters in one pass: whose tokens lie where, and the layers that keep them apart."""
