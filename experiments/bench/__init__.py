"""`make bench`: the speed and memory of training steps, this project's and those of others.

`rows.py` lists what is compared, `others.py` has the steps of other projects, `measure.py` times them, `report.py`
writes the tables. Nothing here changes how a model is trained.
"""
