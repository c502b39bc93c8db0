"""Shared by the console commands: exit codes, signals, and errors without a traceback."""
