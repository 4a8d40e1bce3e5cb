"""The kernel: files, versions, tables, the row loop and where row work runs. It imports nothing of ours."""
