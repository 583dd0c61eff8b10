"""What a run is asked for: flags, their groups, presets, files of them. Nothing here knows a model."""
