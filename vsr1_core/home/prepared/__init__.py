"""The authors' prepared data: read and check a folder, import it into the lake, and export the same layout again."""
