"""What a run reports: its opening and closing lines, losses between reports, telemetry, TensorBoard, results.

Nothing here trains or computes a loss.
"""
