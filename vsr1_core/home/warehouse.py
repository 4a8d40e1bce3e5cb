"""`vsr1.duckdb`: DuckDB views over the lake's Parquet, for people, notebooks and `vsr1 sql`.

The file contains views and no data. The view of an asset globs over the files of all datasets, so it shows what is
committed at the time of the query and need not be remade after a run. Of the files with a table's rows
(`rows.row_files`) it reads those of the newest state that the glob found: a query that runs during a commit sees the
whole table from before it. The same glob also matches one empty Parquet file per asset (`<lake>/schemas/`), so an asset
that was never built has no rows and the right columns. A refresh writes a new file and renames it over the old one, so
readers and writers never wait for each other. Of the same views the file has the same bytes in each home and each time,
so that it is copied where it is known.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from vsr1_core.home.history_views import kept_schema
from vsr1_core.home.row_sql import HOME_VARIABLE, LISTING, quoted_name, quoted_text
from vsr1_core.home.warehouse_views import COMMON, METRICS, VIEWS, MadeView, made_views
from vsr1_core.rows.build_history import BUILDS, RECIPES
from vsr1_core.rows.files import WriteRefused, atomic_path, file_state, read_json, write_json
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.row_files import PATTERN
from vsr1_core.rows.table import BASE_COLUMNS, HISTORY_COLUMNS
from vsr1_core.rows.unreadable import read_rows
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import Stage

if TYPE_CHECKING:
    import duckdb

STORAGE_VERSION = "v1.2.0"
"""Version of the file format. The default of DuckDB 2.0 cannot be opened by a `duckdb` command of version 1.5."""


def database_path(home: Path) -> Path:
    """The path of `vsr1.duckdb`, which the plain `duckdb` command can open."""
    return home / "vsr1.duckdb"


def connect(home: Path, read_only: bool = True) -> duckdb.DuckDBPyConnection:
    """A connection to the views of a home. The views are made first where they are missing or of an earlier form, in
    memory where the file cannot be written.

    The file is attached, not opened: DuckDB keeps one instance per opened path in a process, which would keep showing
    the views from before a refresh.
    """
    import duckdb

    path = database_path(home)
    how = "READ_ONLY" if read_only else "READ_WRITE"
    if path.exists():
        found = _forms_of(path.absolute(), *file_state(path))
        connection = _attach(_connection(home), path, how)
        if not found:
            found.append(_is_of_this_form(connection))
        if found[0]:
            return connection
        connection.close()
    try:
        return _attach(_connection(home), refresh(home), how)
    except (WriteRefused, duckdb.IOException):
        return _in_memory(home)


def _connection(home: Path) -> duckdb.DuckDBPyConnection:
    """A connection in which views read this home."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET VARIABLE {HOME_VARIABLE} = {quoted_text(f'{home.absolute()}/')}")
    return connection


def _in_memory(home: Path) -> duckdb.DuckDBPyConnection:
    from vsr1_core.stages.graph import all_stages

    connection = _connection(home)
    connection.execute("ATTACH ':memory:' AS vsr1")
    connection.execute("USE vsr1")
    _make_views(connection, all_stages())
    return connection


def query(home: Path, sql: str, is_restricted: bool = True) -> pl.DataFrame:
    """The result of one SQL statement on the views of a home.

    is_restricted: the statement may only read, and only files below the home's `lake` folder. Otherwise it may do what
    DuckDB can: write files with COPY, read files anywhere, load extensions. The views are read-only in both cases.

    Raises:
        ValueError: The SQL is bad, empty or not allowed; the message is one line and lists the views.
        UnreadableRows: A file of rows cannot be read; the message says which.
    """
    with queries(home, is_restricted) as ask:
        return ask(sql)


@contextlib.contextmanager
def queries(home: Path, is_restricted: bool = True) -> Iterator[Callable[[str], pl.DataFrame]]:
    """`query` for several statements over one connection, which takes as long to open as a small query."""
    with connect(home) as connection:
        connection.execute("SET python_enable_replacements = false")
        if is_restricted:
            _restrict(connection, home)
        yield functools.partial(_answer, connection, home, is_restricted)


def _answer(connection: duckdb.DuckDBPyConnection, home: Path, is_restricted: bool, sql: str) -> pl.DataFrame:
    import duckdb

    try:
        if is_restricted:
            _refuse_writing(connection, sql)
        relation = connection.sql(sql)
        if relation is not None:
            return relation.pl()
    except duckdb.Error as error:
        _name_unreadable(home, error)
        raise ValueError(f"{_one_line(error)} {_known_views(connection)}") from error
    except pl.exceptions.ComputeError as error:  # of an INTERVAL
        types = ", ".join(f"{name} {kind}" for name, kind in zip(relation.columns, relation.types, strict=True))
        raise ValueError(
            f"a column has a type that no table here holds; write it as column::varchar: {types}"
        ) from error
    raise ValueError(f"there is no SQL to run. {_known_views(connection)}")


def _name_unreadable(home: Path, error: Exception) -> None:
    """Raise UnreadableRows where a query failed because of a file of rows. DuckDB names it where the end of the file
    is not that of a Parquet file; of what is inside, it says which byte is wrong and not of which file."""
    import duckdb

    tables = (home / "lake" / "tables").absolute()
    named = re.search(rf"{re.escape(str(tables))}/[^'\"]+\.parquet", str(error))
    if named:
        read_rows(Path(named[0]))
    elif type(error) in (duckdb.Error, duckdb.InternalException, duckdb.FatalException):
        for path in sorted(tables.glob(f"*/dataset=*/{PATTERN}")):
            read_rows(path)


def _restrict(connection: duckdb.DuckDBPyConnection, home: Path) -> None:
    """Let the connection read below the lake of `home` and nothing else, for as long as it is open."""
    lake = str((home / "lake").absolute())
    allowed = ", ".join(quoted_text(spelling) for spelling in (lake, glob.escape(lake)))  # views have the second one
    for setting in (
        f"allowed_directories = [{allowed}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")


def _refuse_writing(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """ValueError: `sql` does not only read. DuckDB's own limits are not enough: a COPY may write where files may be
    read."""
    kinds = {kind for statement in connection.extract_statements(sql) for kind in _kinds(connection, statement)}
    if refused := sorted(kinds - {"SELECT"}):
        raise ValueError(
            f"{', '.join(refused)} is not allowed here, because this query may only read. `vsr1 sql --unrestricted` "
            f"(in Python: Home.sql(..., is_restricted=False)) runs it. {_known_views(connection)}"
        )


def _kinds(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> Iterator[str]:
    """The kind of a statement; of an EXPLAIN, the kinds of what it explains, which EXPLAIN ANALYZE executes."""
    explained = re.sub(r"^\s*explain(\s+analyze)?\s", "", statement.query, flags=re.IGNORECASE)
    if statement.type.name == "EXPLAIN" and explained != statement.query:
        for inner in connection.extract_statements(explained):
            yield from _kinds(connection, inner)
    else:
        yield statement.type.name


def views(home: Path) -> pl.DataFrame:
    """One row per view: its name (`view`), what it contains (`holds`), and the names of its columns (`columns`)."""
    return query(
        home,
        """SELECT view_name AS "view", v.comment AS holds,
                  string_agg(column_name, ', ' ORDER BY column_index) AS columns
           FROM duckdb_views() v JOIN duckdb_columns() c ON c.table_oid = v.view_oid AND c.database_oid = v.database_oid
           WHERE v.database_name = 'vsr1' AND NOT v.internal GROUP BY ALL ORDER BY view_name""",
    )


def _one_line(error: Exception) -> str:
    """DuckDB's message in one line, without the drawing that points at the place and without guesses of table names."""
    said = str(error).partition("\n\nLINE")[0].splitlines()
    kept = " ".join(line.strip() for line in said if not line.startswith("Did you mean"))
    return kept if kept.endswith((".", "!")) else f"{kept}."


def _known_views(connection: duckdb.DuckDBPyConnection) -> str:
    found = connection.execute(
        "SELECT view_name FROM duckdb_views() WHERE database_name = 'vsr1' AND NOT internal ORDER BY view_name"
    )
    names = ", ".join(name for (name,) in found.fetchall())
    return f'The views are: {names}; to see the columns of one: vsr1 sql "describe predictions"'


def refresh(home: Path, stages: Mapping[str, Stage] | None = None) -> Path:
    """Write the views of all stages to a new file in place of the old one. Returns the path of the database."""
    from vsr1_core.stages.graph import all_stages

    stages = all_stages() if stages is None else stages
    root, path = (home / "lake").absolute(), database_path(home)
    _write_schemas(root, stages.values())
    said, made_of = root / "schemas" / "views.json", _made_of(stages)
    known = _content(made_of)
    if not known and _said_in(said) == _said_of(made_of, before := _bytes_of(path)):
        known.append(before)
    with atomic_path(path) as temporary:  # also where the old one is the same: whoever holds that one blocks nobody
        if known:
            temporary.write_bytes(known[0])
        else:
            with _connection(home) as connection:
                _make_views(_attach(connection, temporary, f"STORAGE_VERSION {quoted_text(STORAGE_VERSION)}"), stages)
            known.append(temporary.read_bytes())
    if _said_in(said) != (now := _said_of(made_of, known[0])):
        write_json(said, now, lasting=False)
    return path


@functools.lru_cache(maxsize=8)
def _content(made_of: str) -> list[bytes]:
    """The bytes of the file with this fingerprint, once this process made or read them. They serve every home: to make
    them takes 0.3 s, and a view finds the home, and the types of its columns, when it is queried."""
    return []


def _said_of(made_of: str, content: bytes) -> dict[str, str]:
    """What is noted beside the lake of a file, so that a later process knows what it was made of."""
    return {"made_of": made_of, "file": hashlib.sha256(content).hexdigest()}


def _said_in(path: Path) -> Any:
    """What was noted; None where nothing was, or nothing that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(path)
    return None


def _bytes_of(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def _made_of(stages: Mapping[str, Stage]) -> str:
    """Fingerprint of all that decides the file of the views."""
    import duckdb

    columns = {name for stage in stages.values() for name in (stage.key, *stage.columns)}
    columns |= {*COMMON, *(name for view in VIEWS for name in view.means)}
    said = [
        [view.name, view.sql, view.says, [view.meaning(column) for column in sorted(columns)]]
        for view in made_views(stages)
    ]
    types = [[name, column, str(kind)] for name, stage in stages.items() for column, kind in stage.dtypes.items()]
    return fingerprint([duckdb.__version__, STORAGE_VERSION, said, types])


def _make_views(connection: duckdb.DuckDBPyConnection, stages: Mapping[str, Stage]) -> None:
    connection.begin()  # one transaction: each of hundreds would wait for the disk
    for view in made_views(stages):
        for statement in _statements(view):
            connection.execute(statement)
        for statement in list(_column_comments(connection, view)):
            connection.execute(statement)
    connection.commit()


def _attach(connection: duckdb.DuckDBPyConnection, path: Path, how: str) -> duckdb.DuckDBPyConnection:
    connection.execute(f"ATTACH {quoted_text(str(path))} AS vsr1 ({how})")
    connection.execute("USE vsr1")
    return connection


@functools.lru_cache(maxsize=8)
def _forms_of(path: Path, *state: int) -> list[bool]:
    """What `_is_of_this_form` said of the file in this state, once this process asked. DuckDB writes the SQL of all
    views for it, in a quarter of the time of a small query."""
    return []


def _is_of_this_form(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the views read the home where it is now, all files of rows, and one state of them. Views of before read
    the place where they were made, or no deltas, or listed files too late."""
    views = "SELECT sql FROM duckdb_views() WHERE database_name = 'vsr1' AND view_name = 'failures'"
    found = connection.execute(views).fetchone()
    return found is not None and all(part in found[0] for part in (HOME_VARIABLE, PATTERN, LISTING))


def _write_schemas(root: Path, stages: Iterable[Stage]) -> None:
    for stage in stages:
        _write_empty(root / "schemas" / stage.name, {stage.key: pl.String, **BASE_COLUMNS, **stage.dtypes})
        if stage.name == METRICS:
            _write_empty(Lake(root).history(METRICS), {**HISTORY_COLUMNS, **stage.dtypes})
        if (kept := kept_schema(stage)) is not None:
            _write_empty(Lake(root).history(stage.name), kept)
    for what in (BUILDS, RECIPES):
        path = Lake(root).history(what) / "dataset=none" / "none.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _write_empty(folder: Path, schema: Mapping[str, Any]) -> None:
    """Write a file with these columns and no rows into `folder`, unless it exists already."""
    path, empty = folder / "dataset=none" / "rows.parquet", pl.DataFrame(schema=schema)
    if _schema_of(path) != empty.schema:
        with atomic_path(path) as temporary:
            empty.write_parquet(temporary)


def _schema_of(path: Path) -> pl.Schema | None:
    """The columns of a file of rows; None where it is not there, or damaged."""
    with contextlib.suppress(OSError, pl.exceptions.PolarsError):
        return pl.scan_parquet(path, glob=False).collect_schema()
    return None


def _statements(view: MadeView) -> Iterator[str]:
    yield f"CREATE VIEW {quoted_name(view.name)} AS {view.sql}"
    yield f"COMMENT ON VIEW {quoted_name(view.name)} IS {quoted_text(view.says)}"


def _column_comments(connection: duckdb.DuckDBPyConnection, view: MadeView) -> Iterator[str]:
    found = connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE NOT internal AND table_name = ?", [view.name]
    )
    for (column,) in found.fetchall():
        if said := view.meaning(column):
            yield f"COMMENT ON COLUMN {quoted_name(view.name)}.{quoted_name(column)} IS {quoted_text(said)}"
