"""Tables of any common format as rows of text: read, found by split, and written back with new columns."""

from data_utils.tables.sources import SUFFIXES, find_tables, read_table, write_table
from data_utils.tables.table import Row, Table, column_of

__all__ = ["SUFFIXES", "Row", "Table", "column_of", "find_tables", "read_table", "write_table"]
