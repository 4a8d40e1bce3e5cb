"""The kernel: files, versions, tables, the row loop, and the processes that do row work. It imports no other package
of this project."""
