"""Files: written whole or not at all, and read with limits if they may come from strangers."""
