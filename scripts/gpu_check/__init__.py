"""What ``scripts/check_gpu`` checks and measures: one part a function, each in a process of its own."""
