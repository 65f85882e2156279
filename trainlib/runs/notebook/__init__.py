"""What a notebook shows: curves, a live bar, the card of a run. HTML with its own styles, for light and dark."""
