"""The stages of the graph, one module a group. Each says which rows it wants and how a row is made."""
