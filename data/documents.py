"""
Documents from files of the user's own: one a row of parquet, one a line of JSON, one a text file. They are tidied (no byte-order mark,
line ends as asked for), and what was done is said once.
"""
import glob
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq

from common import paths
from common.errors import UserError
from data.sources import sha256_of, tidy


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def local_files(source):
    """The files that --source=FILES means, in order, each once. Raises UserError."""
    files = []
    for given in filter(None, (part.strip() for part in source.split(","))):
        pattern = paths.expand(given)
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise UserError(f"--source: {given}: no such file; it takes 'shards', 'hub', or files and patterns")
        files += found
    for path in files:
        if not os.path.exists(path):
            raise UserError(f"--source: {path} {paths.what_is(path)}")
        if os.path.isdir(path):
            raise UserError(f"--source: {path} is a folder; give its files, as '{os.path.join(path, '*.parquet')}'")
        if not path.endswith(tuple(ROWS_OF)):
            raise UserError(f"--source: {path}: unknown kind of file; known are {', '.join(ROWS_OF)}")
    if not files:
        raise UserError(f"--source={source}: no files")
    return list(dict.fromkeys(files))


def parquet_rows(path, column):
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:  # row groups may be larger than memory
        names = file.schema_arrow.names
        if column not in names:
            raise UserError(f"{path}: no column {column!r}; it has {', '.join(names)}: choose with --text_column")
        kind = file.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{path}: column {column!r} is {kind}, not text; it has {', '.join(names)}: choose with "
                            "--text_column")
        for batch in file.iter_batches(batch_size=64, columns=[column]):
            yield from batch.column(0).to_pylist()


def jsonl_rows(path, column):
    # Not datasets' JSON reader: it makes a date of a text that looks like one, and gives up at a lone surrogate.
    # Arrow's streams notice a compressed file that was cut off; others end there as if it were whole.
    compression = "gzip" if path.endswith(".gz") else "zstd" if path.endswith(".zst") else None
    with pa.input_stream(path, compression=compression) as stream, io.BufferedReader(stream, 1 << 20) as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number:,}: not JSON: {first_line(error)}") from None
            if not isinstance(row, dict) or column not in row:
                has = f"it has {', '.join(row)}" if isinstance(row, dict) else "it is no object"
                raise UserError(f"{path}, line {number:,}: no key {column!r}; {has}: choose with --text_column")
            if not isinstance(row[column], str | None):
                raise UserError(f"{path}, line {number:,}: {column!r} is {type(row[column]).__name__}, not text")
            yield row[column]


def text_rows(path, column):
    with open(path, encoding="utf-8", newline="") as f:
        yield f.read()


_said = []  # of tidied documents
ROWS_OF = {".parquet": parquet_rows, ".jsonl": jsonl_rows, ".jsonl.gz": jsonl_rows, ".jsonl.zst": jsonl_rows,
           ".txt": text_rows}


def rows_of(files, column, newlines):
    """The documents of some files, one after another, as `datasets` takes them: {column: text or None}. What is done to the
    first one that has a byte-order mark or line ends with CR is said. (`datasets` calls this once a file.)"""
    for path in files:
        read = next(rows for ending, rows in ROWS_OF.items() if path.endswith(ending))
        try:
            for text in read(path, column):
                text, said = tidy(text, newlines) if text else (text, [])
                if said and not _said:
                    _said.extend(said)
                    for sentence in said:
                        print(f"note: {path}: {sentence}; so in other documents like it")
                yield {column: text}
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read: {first_line(error)}") from None


def forget_what_was_said():
    _said.clear()


def open_local(files, column, newlines):
    import datasets  # takes two seconds, which downloads need not wait for

    return datasets.IterableDataset.from_generator(rows_of, gen_kwargs={"files": files, "column": column, "newlines": newlines})


def local_fingerprint(files):
    """A digest of the files' names, sizes and times of change."""
    known = [(os.path.basename(path), os.path.getsize(path), os.stat(path).st_mtime_ns) for path in files]
    return sha256_of(json.dumps(known).encode("ascii"))
