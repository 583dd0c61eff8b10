"""One run: objective, optimizer, epochs, evaluation points, signals, failures, what is reported."""
