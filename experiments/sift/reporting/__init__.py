"""Finished runs read back, and what the report makes of them: tables, figures, tests of significance, pages.

Nothing here trains or scores a model; every number is computed from the runs' files.
"""
