"""A sweep file as checked values: its sections and its search space."""
