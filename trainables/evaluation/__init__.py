"""An adapter as it is served: its answers, and what is measured of them."""
