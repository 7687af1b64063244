"""Pages: a report or a comparison as one HTML file that asks the network for nothing."""
