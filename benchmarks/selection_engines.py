"""The selection of `selection_rate.py` by another engine: a process that imports that engine alone.

`python selection_engines.py ENGINE FOLDER CAP BUDGET THREADS OUT` writes the rows as Parquet, and prints the seconds
from the end of the import on. Cap 0: none.
"""

from __future__ import annotations

import sys
import time

COLUMNS = ["sample_id", "group", "captured_at", "predicted_loss", "expected_pck", "pool_file", "pool_row"]
FIRST_ROWS_FACTOR, FIRST_ROWS_GROWTH = 2, 4  # of the rows that the capped query begins with


def run_duckdb(folder: str, cap: int, budget: int, threads: int, out: str) -> float:
    """The best SQL that we found: the last of the best losses first, from one column; then the rows that reach it.

    Under a cap a window over these, once more with four times as many while that is too little.
    """
    import duckdb

    started = time.perf_counter()
    duckdb.execute(f"SET threads TO {threads}")
    rows = f"read_parquet('{folder}/parts/*.parquet') WHERE error IS NULL"
    columns = ", ".join(f'"{name}"' for name in COLUMNS)
    order = "ORDER BY predicted_loss DESC, sample_id"
    num_first = FIRST_ROWS_FACTOR * budget if cap else budget
    while True:
        best = f"SELECT predicted_loss FROM {rows} ORDER BY predicted_loss DESC LIMIT {num_first}"  # noqa: S608
        least = duckdb.sql(f"SELECT min(predicted_loss) FROM ({best})").fetchall()[0][0]  # noqa: S608
        rank = f'QUALIFY row_number() OVER (PARTITION BY "group" {order}) <= {cap}' if cap else ""
        found = f"SELECT {columns} FROM {rows} AND predicted_loss >= {least!r}::FLOAT {rank} {order} LIMIT {budget}"  # noqa: S608
        ((count,),) = duckdb.execute(f"COPY ({found}) TO '{out}' (FORMAT parquet, COMPRESSION zstd)").fetchall()
        if count == budget or not cap:
            return time.perf_counter() - started
        num_first *= FIRST_ROWS_GROWTH


def run_polars(folder: str, cap: int, budget: int, threads: int, out: str) -> float:
    """The same with a lazy frame."""
    import polars as pl

    del threads  # POLARS_MAX_THREADS says it
    started = time.perf_counter()
    rows = pl.scan_parquet(f"{folder}/parts/*.parquet").filter(pl.col("error").is_null()).select(COLUMNS)
    if cap:
        rank = pl.struct(-pl.col("predicted_loss"), "sample_id").rank("ordinal").over("group")
        rows = rows.filter(rank <= cap)
    best = rows.top_k(budget, by=["predicted_loss", "sample_id"], reverse=[False, True])
    found = best.collect(engine="streaming").sort(["predicted_loss", "sample_id"], descending=[True, False])
    found.write_parquet(out)
    return time.perf_counter() - started


if __name__ == "__main__":
    engine, folder, cap, budget, threads, out = sys.argv[1:]
    print({"DuckDB": run_duckdb, "Polars": run_polars}[engine](folder, int(cap), int(budget), int(threads), out))
