"""What is seen of a sweep: what it does now, how far it is, and the state it is in."""
