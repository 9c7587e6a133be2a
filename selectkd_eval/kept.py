"""How is something dear kept for good? One SQLite file of rows by key, safe between processes and against SIGKILL.

Two stores are made of it: the judges' replies and the models' answers. A row is durable when `put` returns, even if
the process is killed with the next instruction; the first row of a key stays. What a key means, and what a row holds,
is for those who use it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selectkd_eval.errors import InputError, SetupError

_AT_ONCE = 500  # keys in one question: older SQLite takes 999


class Kept:
    """Rows by key in one file. `columns` are name and SQL type, the key first; `what` and `option` are the words for
    messages: what the file is to the user, and the option that names another one. With `reading` nothing is put into
    a file that exists, and it is left as it is: it may lie where nobody can write.
    """

    def __init__(
        self, path: Path, table: str, columns: dict[str, str], what: str, option: str, *, reading: bool = False
    ) -> None:
        self.path, self.table, self.what, self.option = path, table, what, option
        self._columns = list(columns)
        self._lock = threading.Lock()  # one connection serves all threads, a transaction at a time
        with self._explained():
            self._database = self._as_it_is() if reading else self._opened()
        try:
            with self._explained():
                self._refuse_foreign()
                if reading:
                    return
                self._database.execute("PRAGMA journal_mode=WAL")
                # NORMAL survives the process being killed; only a power cut can cost the last rows.
                self._database.execute("PRAGMA synchronous=NORMAL")
                key, *rest = (f"{name} {kind}" for name, kind in columns.items())
                body = ", ".join([f"{key} PRIMARY KEY", *(f"{column} NOT NULL" for column in rest)])
                self._database.execute(f"CREATE TABLE IF NOT EXISTS {table} ({body}) WITHOUT ROWID")
        except BaseException:
            self._database.close()
            raise

    def _opened(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)

    def _as_it_is(self) -> sqlite3.Connection:
        # A write-ahead log is read through a file of shared memory beside it. Where nobody writes there is none, and
        # SQLite must be told that the file stays as it is.
        log = self.path.with_name(f"{self.path.name}-wal")
        written = log.is_file() and log.stat().st_size > 0
        how = "mode=ro" if written else "mode=ro&immutable=1"
        return sqlite3.connect(
            f"{self.path.resolve().as_uri()}?{how}", uri=True, timeout=60, isolation_level=None, check_same_thread=False
        )

    def find(self, keys: Sequence[str], column: str) -> dict[str, Any]:
        """The values of one column for those of the keys that are kept."""
        found: dict[str, Any] = {}
        with self._lock, self._explained():
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                found |= dict(
                    self._database.execute(
                        f"SELECT {self._columns[0]}, {column} FROM {self.table} WHERE {self._columns[0]} IN ({marks})",
                        list(some),
                    )
                )
        return found

    def where(self, column: str, value: Any, wanted: str, most: int) -> list[Any]:
        """What `wanted` holds in at most so many rows with this value; which of them is as good as chance."""
        with self._lock, self._explained():
            asked = f"SELECT {wanted} FROM {self.table} WHERE {column} = ? LIMIT ?"
            return [held for (held,) in self._database.execute(asked, (value, most))]

    def distinct(self, column: str) -> list[Any]:
        """Every value of a column, once."""
        with self._lock, self._explained():
            asked = f"SELECT DISTINCT {column} FROM {self.table} ORDER BY {column}"
            return [held for (held,) in self._database.execute(asked)]

    def put(self, rows: Iterable[Sequence[Any]]) -> None:
        """Keep rows, values in the order of the columns, in one transaction. A key that is there keeps its row."""
        with self._lock, self._explained():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                marks = ",".join("?" * len(self._columns))
                self._database.executemany(f"INSERT OR IGNORE INTO {self.table} VALUES ({marks})", rows)
                self._database.execute("COMMIT")
            except BaseException:
                # A full disk has rolled back already.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def __len__(self) -> int:
        with self._lock, self._explained():
            return int(self._database.execute(f"SELECT count(*) FROM {self.table}").fetchone()[0])

    def close(self) -> None:
        """Let go of the file; what is kept stays."""
        self._database.close()

    def _refuse_foreign(self) -> None:
        tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return
        found = [row[1] for row in self._database.execute(f"PRAGMA table_info({self.table})")]
        if found != self._columns:
            held = ", ".join(sorted(tables))[:80]
            raise sqlite3.DatabaseError(f"an SQLite file of something else, with the tables {held}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise SetupError(
                f"the {self.what} {self.path} cannot be used ({error}): check the disk's space and permissions, "
                f"then run the same command again; what was stored so far is safe"
            ) from None
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self.path} is no {self.what} ({error}): move it away or give another {self.option}"
            ) from None
        except OSError as error:
            raise InputError(
                f"cannot make {self.path.parent} ({error.strerror}): give a writable {self.option}"
            ) from None
