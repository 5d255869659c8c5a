"""Everything a rescue needs on disk: the verified image, the overlay over it, and the seed."""
