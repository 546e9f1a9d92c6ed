"""Table 12 and the page of every problem."""
