"""Builds the site from the pages of `docs/` (`make docs`): MkDocs' hooks, the page of flags, the notebook's figures.

Only the build and the tests of the docs use it; the pages themselves live in `docs/`.
"""
