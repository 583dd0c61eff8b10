"""Files and formats: readers and writers with their limits, tokenizers, metrics, MT-DNN's enumerations, errors.

Every other folder may import from here. Nothing here knows a model or a task type, and nothing imports torch on import.
"""
