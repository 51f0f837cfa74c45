"""What every script needs and no library has: one-line errors, paths, locks, files that are written whole, signals."""
