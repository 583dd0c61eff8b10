"""Finished runs as tables, figures, tests of significance and pages."""
