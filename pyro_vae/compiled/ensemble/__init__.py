"""One compiled step for several VAEs that differ only in numbers."""
