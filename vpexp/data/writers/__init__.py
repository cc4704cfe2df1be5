"""Data sets written from masks, in the formats that ``vpexp.data.readers`` read; the same masks come back."""
