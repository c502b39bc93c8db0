"""What the console commands share: exit codes, signals, and errors without a traceback."""
