"""The authors' prepared data: read and checked, taken into the lake, and written again from it."""
