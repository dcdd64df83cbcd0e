"""Token losses of a frozen model: its head, its frozen layers, batches, and what a corpus asks to be written."""
