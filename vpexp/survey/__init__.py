"""What is in a data set: counts, sizes, duplicates, what to look at; as tables, plots and one page."""
