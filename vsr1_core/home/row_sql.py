"""SQL of the committed rows of tables, for the views of `vsr1.duckdb`: which files make up a table's newest state, and
where the home is. What each view selects is in `home.warehouse_views`.
"""

from __future__ import annotations

from collections.abc import Iterable

from vsr1_core.rows.row_files import DROPPED, NAME, PATTERN

LISTING = "read_blob"
"""DuckDB's function that lists files when a query binds. It reads nothing where only names are asked for."""
HOME_VARIABLE = "vsr1_home"
HOME = f"coalesce(getvariable('{HOME_VARIABLE}'), regexp_replace(current_setting('temp_directory'), '[^/]*$', ''))"
"""SQL of the folder of the home, with a slash at its end. DuckDB's folder for temporary files stands beside the
database that it opened, so the views follow a home that is moved or copied. Where they are opened otherwise, such as by
ATTACH, the variable says it."""


def pattern_of(below: str) -> str:
    """SQL of a pattern of files below the home, whose own name is taken literally."""
    return rf"regexp_replace({HOME}, '([*?\[])', '[\1]', 'g') || {quoted_text(below)}"


def files_of(asset: str) -> str:
    """SQL of the pattern of an asset's files of rows: those of its tables, and in `schemas` the empty one.
    DuckDB's patterns have no alternatives; no other folder of the lake begins like these two."""
    return pattern_of(f"lake/[ts][ac][bh]*/{asset}/dataset=*/{PATTERN}")


def committed(asset: str, key: str, method: str = "") -> str:
    """SQL of the rows of an asset (`asset` may be a glob) in all datasets, and of the empty file that adds the columns.
    method: SQL of the column `method`, which it adds, from the path `file` of a row.

    A listing on the left of the joins chooses the files of the newest state (`rows.row_files`), so that a table whose
    newest state has no rows shows none. DuckDB lists files when it binds, left before right, so the files that were
    newest in the first listing still exist in the later ones, and a delta that only those found is newer than `newest`
    and replaces nothing. With a window function DuckDB lists them in the other order, and one query in ten that ran
    during a commit found no rows. So it was with `glob`, which DuckDB 2.0 lists when it runs, where many files match.

    What a path says is found where the files are listed, once for each: found for each row, it took 0.65 of the 0.67 s
    of a query over 300,000 predictions.
    """
    pattern, name = files_of(asset), quoted_name(key)
    states = f"SELECT parse_dirpath(file) AS folder, list(file) AS files, max({_part(1, 'file')}) AS newest "
    of_state = f"list_filter(files, lambda f: {_part(2, 'f')} = left(newest, {len('_0000000001')}))"
    listed = f"SELECT filename AS file FROM {LISTING}({pattern})"
    files = f"SELECT folder, newest, unnest({of_state}) AS file FROM ({states} FROM ({listed}) GROUP BY folder)"
    said, shown = (f", {method} AS method", ", live.method") if method else ("", "")
    live = f"SELECT *, {_part(1, 'file')} AS place{said} FROM ({files})"
    scan = f"read_parquet({pattern}, filename = true)"  # all files have the key: not all of their ends are read
    deltas = f"SELECT {name} AS id, {_part(1, 'filename')} AS place, parse_dirpath(filename) AS folder FROM {scan}"
    is_later = "later.place > live.place AND later.place <= live.newest"
    return (
        f"(SELECT found.*{shown} FROM ({live}) AS live JOIN {scan_of(pattern)} AS found ON found.filename = live.file "
        f"ANTI JOIN ({deltas} WHERE {_part(3, 'filename')} <> '') AS later "
        f"ON later.id = found.{name} AND later.folder = live.folder AND {is_later} "
        f"WHERE found.status IS DISTINCT FROM {quoted_text(DROPPED)})"
    )


def _part(number: int, file: str) -> str:
    """SQL of a part of the name of a file of rows (`NAME`)."""
    return f"regexp_extract({file}, {quoted_text(NAME + '$')}, {number})"


def scan_of(pattern: str) -> str:
    return (
        f"read_parquet({pattern}, union_by_name = true, hive_partitioning = true, "
        "hive_types = {'dataset': VARCHAR}, filename = true)"
    )


def fields_of(of: str, names: Iterable[str]) -> str:
    return ", ".join(f"{of}.{quoted_name(name)}" for name in names)


def name_list(names: Iterable[str]) -> str:
    return ", ".join(quoted_name(name) for name in names)


def quoted_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def quoted_text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
