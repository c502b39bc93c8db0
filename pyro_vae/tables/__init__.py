"""Tables: text files, their cells, and the kinds of their columns."""
