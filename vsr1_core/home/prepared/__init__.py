"""The authors' prepared data (METHOD 7): read and checked, taken into the lake, and written again from it."""
