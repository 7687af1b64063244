"""The text of a sweep file: read within bounds, changed, written; mistakes shown in their line."""
